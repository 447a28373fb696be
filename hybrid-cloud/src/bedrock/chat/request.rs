//! From [`ChatRequest`] to Converse's input.

use std::{borrow::Cow, collections::BTreeMap};

use aws_sdk_bedrockruntime::{
    error::BuildError,
    operation::converse::ConverseInput,
    types::{
        GuardrailConfiguration, GuardrailStreamProcessingMode, GuardrailTrace as ConverseTrace, InferenceConfiguration,
        JsonSchemaDefinition, OutputConfig, OutputFormat, OutputFormatStructure, OutputFormatType,
        PerformanceConfiguration, PromptVariableValues, ServiceTier as ConverseTier, ServiceTierType,
    },
};
use hybrid_core::{
    Error, Note, Result,
    task::{
        ChatRequest, Guardrail, GuardrailStreaming, GuardrailTrace, Modality, ReasoningEffort, ReasoningOptions,
        ResponseFormat, Sampling, ServiceTier,
    },
};
use serde_json::Value;

use super::{
    super::{call::note, json},
    additional::Additional,
    content, tools,
};

/// A request as Converse takes it.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub(super) input: ConverseInput,
    /// Converse has no field for it, ConverseStream has.
    pub(super) streaming: Option<GuardrailStreamProcessingMode>,
    pub(super) notes: Vec<Note>,
}

/// Refuses and notes while a request is mapped.
pub(super) struct Mapper<'a> {
    pub(super) operation: &'static str,
    pub(super) additional: Additional<'a>,
    notes: Vec<Note>,
}

impl Mapper<'_> {
    pub(super) fn unsupported(&self, field: impl ToString, message: impl Into<Cow<'static, str>>) -> Error {
        Error::unsupported(self.operation, message).with("field", field.to_string())
    }

    pub(super) fn invalid(&self, field: impl ToString, message: impl Into<Cow<'static, str>>) -> Error {
        Error::invalid(self.operation, message).with("field", field.to_string())
    }

    /// Something without influence on what may be answered is left out.
    pub(super) fn ignore(&mut self, field: impl ToString, why: &str) {
        self.notes.push(note("ignored", format!("{}: {why}", field.to_string())));
    }

    pub(super) fn built<T>(&self, built: std::result::Result<T, BuildError>) -> Result<T> {
        built.map_err(|error| Error::internal(self.operation, "the request could not be built").with_source(error))
    }

    fn number(&self, field: &'static str, value: u32) -> Result<i32> {
        value.try_into().map_err(|_| self.invalid(field, format!("must be at most {}", i32::MAX)).with("value", value))
    }

    /// Sets what Converse has no field for where the model has one.
    fn model_specific(&mut self, name: &'static str, field: &'static str, value: Option<Value>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        if self.additional.set(name, value) {
            return Ok(());
        }
        let message = "Converse has no field for it and the model none that is known; leave it out, \
                       put the model's own field into `extra`, or name it in `ModelOptions::additional`";
        Err(self.unsupported(field, message))
    }
}

pub(super) fn map(
    operation: &'static str,
    request: ChatRequest,
    additional: &BTreeMap<String, String>,
) -> Result<Mapped> {
    let mut mapper = Mapper { operation, additional: Additional::new(additional), notes: Vec::new() };
    let mapper = &mut mapper;
    let ChatRequest {
        system,
        messages,
        prompt_variables,
        tools,
        tool_choice,
        parallel_tool_calls,
        response_format,
        modalities,
        audio,
        sampling,
        reasoning,
        verbosity,
        prediction,
        service_tier,
        latency,
        guardrail,
        metadata,
        user,
        prompt_cache_key,
        store,
        extra,
        extra_response_fields,
    } = request;

    if let Some(other) = modalities.iter().find(|modality| **modality != Modality::Text) {
        return Err(mapper.unsupported("modalities", "Converse answers in text").with("value", other));
    }
    if audio.is_some() {
        return Err(mapper.unsupported("audio", "Converse answers in text"));
    }
    // Bedrock keeps no conversations, which is what `false` asks for.
    if store == Some(true) {
        return Err(mapper.unsupported("store", "Bedrock keeps no conversations"));
    }
    if prediction.is_some() {
        mapper.ignore("prediction", "Converse has no predicted outputs");
    }
    if prompt_cache_key.is_some() {
        mapper.ignore("prompt_cache_key", "Bedrock finds its cache by the text before a cache point");
    }
    if user.is_some() && !mapper.additional.knows("user") {
        mapper.ignore("user", "Converse has no field for it; use `metadata`");
    } else {
        mapper.model_specific("user", "user", user.map(Value::from))?;
    }
    // Several calls in one message are what models do unless told not to.
    let one_call = parallel_tool_calls.filter(|many| !many || mapper.additional.knows("parallel_tool_calls"));
    mapper.model_specific("parallel_tool_calls", "parallel_tool_calls", one_call.map(Value::from))?;
    mapper.model_specific("verbosity", "verbosity", verbosity.map(|verbosity| verbosity.as_str().into()))?;

    let inference = self::sampling(mapper, sampling)?;
    let effort = self::reasoning(mapper, reasoning)?;
    let format = self::format(mapper, response_format)?;
    let output = (effort.is_some() || format.is_some())
        .then(|| OutputConfig::builder().set_effort(effort).set_text_format(format).build());
    let history_has_tools = messages.iter().any(content::has_tools);
    let tool_config = tools::map(mapper, tools, tool_choice, history_has_tools)?;
    let system = content::system(mapper, system)?;
    let messages = content::messages(mapper, messages)?;
    let (guardrail, streaming) = guardrail.map(self::guardrail).unzip();
    let variables = prompt_variables
        .map(|variables| variables.into_iter().map(|(name, text)| (name, PromptVariableValues::Text(text))).collect());
    check_metadata(mapper, &metadata)?;
    check_response_fields(mapper, &extra_response_fields)?;
    let latency = latency.map(|latency| PerformanceConfiguration::builder().latency(latency.as_str().into()).build());
    let tier = tier(mapper, service_tier)?;
    let additional = mapper.additional.finish(extra).map_err(|field| {
        mapper.invalid(format_args!("extra.{field}"), "says otherwise than another field of the request; keep one")
    })?;

    let none_if_empty = |list: Vec<_>| (!list.is_empty()).then_some(list);
    let input = ConverseInput::builder()
        .set_system(system)
        .set_messages((!messages.is_empty()).then_some(messages))
        .set_inference_config(inference)
        .set_tool_config(tool_config)
        .set_guardrail_config(guardrail)
        .set_additional_model_request_fields(additional.map(json::document))
        .set_prompt_variables(variables)
        .set_additional_model_response_field_paths(none_if_empty(extra_response_fields))
        .set_request_metadata((!metadata.is_empty()).then(|| metadata.into_iter().collect()))
        .set_performance_config(latency)
        .set_service_tier(tier)
        .set_output_config(output)
        .build();
    let input = mapper.built(input)?;
    Ok(Mapped { input, streaming: streaming.flatten(), notes: std::mem::take(&mut mapper.notes) })
}

fn sampling(mapper: &mut Mapper<'_>, sampling: Sampling) -> Result<Option<InferenceConfiguration>> {
    let Sampling {
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        frequency_penalty,
        presence_penalty,
        repetition_penalty,
        seed,
        stop,
        logprobs,
        logit_bias,
        n,
    } = sampling;
    if n.is_some_and(|n| n > 1) {
        return Err(mapper.unsupported("sampling.n", "Converse gives one answer to a request"));
    }
    if logprobs.is_some() {
        return Err(mapper.unsupported("sampling.logprobs", "Converse tells no log probabilities"));
    }
    if let Some(temperature) = temperature.filter(|temperature| *temperature > 1.0) {
        let error = mapper.unsupported("sampling.temperature", "Converse takes a number from 0 to 1");
        return Err(error.with("value", temperature));
    }
    if stop.len() > 2500 {
        return Err(mapper.unsupported("sampling.stop", "Converse takes at most 2500").with("count", stop.len()));
    }
    let bias = (!logit_bias.is_empty())
        .then(|| logit_bias.iter().map(|(token, bias)| (token.to_string(), float(*bias))).collect());
    for (name, field, value) in [
        ("top_k", "sampling.top_k", top_k.map(Value::from)),
        ("min_p", "sampling.min_p", min_p.map(float)),
        ("frequency_penalty", "sampling.frequency_penalty", frequency_penalty.map(float)),
        ("presence_penalty", "sampling.presence_penalty", presence_penalty.map(float)),
        ("repetition_penalty", "sampling.repetition_penalty", repetition_penalty.map(float)),
        ("seed", "sampling.seed", seed.map(Value::from)),
        ("logit_bias", "sampling.logit_bias", bias),
    ] {
        mapper.model_specific(name, field, value)?;
    }
    let max_tokens = max_tokens.map(|max| mapper.number("sampling.max_tokens", max)).transpose()?;
    let any = max_tokens.is_some() || temperature.is_some() || top_p.is_some() || !stop.is_empty();
    Ok(any.then(|| {
        InferenceConfiguration::builder()
            .set_max_tokens(max_tokens)
            .set_temperature(temperature)
            .set_top_p(top_p)
            .set_stop_sequences((!stop.is_empty()).then_some(stop))
            .build()
    }))
}

/// By its shortest decimal text, so that 0.1 does not become 0.10000000149011612.
fn float(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn reasoning(mapper: &mut Mapper<'_>, reasoning: ReasoningOptions) -> Result<Option<String>> {
    let ReasoningOptions { effort, budget_tokens } = reasoning;
    mapper.model_specific("reasoning_budget", "reasoning.budget_tokens", budget_tokens.map(Value::from))?;
    let effort = effort.as_ref().map(ReasoningEffort::as_str);
    match effort {
        Some(long) if long.len() > 16 => Err(mapper.invalid("reasoning.effort", "must be at most 16 characters")),
        _ => Ok(effort.map(str::to_owned)),
    }
}

fn format(mapper: &mut Mapper<'_>, format: ResponseFormat) -> Result<Option<OutputFormat>> {
    let (name, description, schema) = match format {
        ResponseFormat::Text => return Ok(None),
        // `strict` needs no place: what Converse promises by a schema is strict.
        ResponseFormat::JsonSchema { name, description, schema, strict: _ } => (name, description, schema),
        _ => return Err(mapper.unsupported("response_format", "Converse writes JSON by a schema only; give one")),
    };
    let definition =
        JsonSchemaDefinition::builder().schema(schema.to_string()).set_name(name).set_description(description).build();
    let structure = OutputFormatStructure::JsonSchema(mapper.built(definition)?);
    let format = OutputFormat::builder().r#type(OutputFormatType::JsonSchema).structure(structure).build();
    mapper.built(format).map(Some)
}

fn guardrail(guardrail: Guardrail) -> (GuardrailConfiguration, Option<GuardrailStreamProcessingMode>) {
    let Guardrail { id, version, trace, streaming } = guardrail;
    let trace = trace.map(|trace| match trace {
        GuardrailTrace::Disabled => ConverseTrace::Disabled,
        GuardrailTrace::EnabledFull => ConverseTrace::EnabledFull,
        _ => ConverseTrace::Enabled,
    });
    let streaming = streaming.map(|streaming| match streaming {
        GuardrailStreaming::Async => GuardrailStreamProcessingMode::Async,
        _ => GuardrailStreamProcessingMode::Sync,
    });
    let config =
        GuardrailConfiguration::builder().guardrail_identifier(id).guardrail_version(version).set_trace(trace).build();
    (config, streaming)
}

fn tier(mapper: &mut Mapper<'_>, tier: Option<ServiceTier>) -> Result<Option<ConverseTier>> {
    let tier = match tier {
        None | Some(ServiceTier::Auto) => return Ok(None),
        Some(tier @ ServiceTier::Scale) => {
            return Err(mapper.unsupported("service_tier", "Bedrock has no such tier").with("value", tier));
        }
        Some(tier) => ConverseTier::builder().r#type(ServiceTierType::from(tier.as_str())).build(),
    };
    mapper.built(tier).map(Some)
}

/// Bedrock takes 1 to 16 tags of at most 256 characters of its own choice.
fn check_metadata(mapper: &Mapper<'_>, metadata: &BTreeMap<String, String>) -> Result<()> {
    if metadata.len() > 16 {
        return Err(mapper.invalid("metadata", "Bedrock takes at most 16 entries").with("count", metadata.len()));
    }
    let fits = |text: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || c.is_whitespace() || ":_@$#=/+,-.".contains(c);
        text.chars().count() <= 256 && text.chars().all(known)
    };
    match metadata.iter().find(|(name, value)| !fits(name) || !fits(value)) {
        Some((name, _)) => Err(mapper
            .invalid(
                "metadata",
                "Bedrock takes at most 256 letters, digits, spaces and :_@$#=/+,-. in a name and a value",
            )
            .with("name", name)),
        None => Ok(()),
    }
}

fn check_response_fields(mapper: &Mapper<'_>, fields: &[String]) -> Result<()> {
    if fields.len() > 10 {
        let error = mapper.invalid("extra_response_fields", "Bedrock takes at most 10");
        return Err(error.with("count", fields.len()));
    }
    match fields.iter().find(|field| !field.starts_with('/') || field.len() > 256) {
        Some(field) => Err(mapper
            .invalid("extra_response_fields", "expected JSON pointers of at most 256 characters that begin with /")
            .with("found", field)),
        None => Ok(()),
    }
}
