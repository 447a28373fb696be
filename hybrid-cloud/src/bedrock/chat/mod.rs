//! Chat through Converse and ConverseStream.

mod additional;
mod content;
mod media;
mod request;
mod response;
mod stream;
mod tools;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use aws_sdk_bedrockruntime::{
    operation::{
        converse::{ConverseInput, ConverseOutput, builders::ConverseFluentBuilder},
        converse_stream::{ConverseStreamOutput, builders::ConverseStreamFluentBuilder},
    },
    types::{GuardrailConfiguration, GuardrailStreamConfiguration},
};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Event, InferenceBackend, Reply, Result, Task,
    task::{Chat, ChatRequest},
};

use self::request::Mapped;
use super::{ModelOptions, call::Caller, failure::Failure, streaming::Opened, trace::TraceTap};

const INFER: &str = "converse with Bedrock";
const STREAM: &str = "stream from Bedrock";

/// Converse and ConverseStream have one input but for the guardrail's type.
macro_rules! with_input {
    ($call:expr, $model:expr, $input:ident) => {
        $call
            .model_id($model)
            .set_messages($input.messages)
            .set_system($input.system)
            .set_inference_config($input.inference_config)
            .set_tool_config($input.tool_config)
            .set_additional_model_request_fields($input.additional_model_request_fields)
            .set_prompt_variables($input.prompt_variables)
            .set_additional_model_response_field_paths($input.additional_model_response_field_paths)
            .set_request_metadata($input.request_metadata)
            .set_performance_config($input.performance_config)
            .set_service_tier($input.service_tier)
            .set_output_config($input.output_config)
    };
}

/// A model on Bedrock that chats.
///
/// # Behavior
/// - What the data policy does not admit leaves no byte; see the [module](super) for where a model's data goes.
/// - What Converse and the model have no field for is refused or noted, never left out in silence.
/// - A stream is `Done` once usage has come, which is after the answer's end. A stream that breaks off before the answer's end fails; one that breaks
///   off between is whole, and noted `unmetered`.
/// - Failed calls are made again as the [module](super) says.
#[derive(Debug)]
pub struct BedrockChat {
    caller: Arc<Caller>,
    additional: BTreeMap<String, String>,
}

impl BedrockChat {
    pub(super) fn new(caller: Caller, model: ModelOptions) -> Result<Self> {
        let mut additional = additional::of_family(caller.id.base());
        for (name, pointer) in model.additional {
            additional::check(&name, &pointer)?;
            additional.insert(name, pointer);
        }
        Ok(Self { caller: Arc::new(caller), additional })
    }

    fn map(&self, operation: &'static str, cx: &CallContext, request: ChatRequest) -> Result<Mapped> {
        Chat::validate(&request)?;
        cx.admit(operation, &self.caller.profile.locality)?;
        request::map(operation, request, &self.additional)
    }

    async fn converse(&self, input: ConverseInput) -> std::result::Result<(ConverseOutput, TraceTap), Failure> {
        let tap = TraceTap::for_answer();
        let call = with_input!(self.caller.client.converse(), self.caller.id.as_str(), input);
        let call: ConverseFluentBuilder = call.set_guardrail_config(input.guardrail_config);
        let answer = call.customize().interceptor(tap.clone()).send().await.map_err(Failure::of)?;
        Ok((answer, tap))
    }

    async fn open(&self, mapped: Mapped) -> std::result::Result<(ConverseStreamOutput, TraceTap), Failure> {
        let tap = TraceTap::for_stream();
        let Mapped { input, streaming, notes: _ } = mapped;
        let call = with_input!(self.caller.client.converse_stream(), self.caller.id.as_str(), input);
        let guardrail = input.guardrail_config.map(|guardrail: GuardrailConfiguration| {
            GuardrailStreamConfiguration::builder()
                .guardrail_identifier(guardrail.guardrail_identifier)
                .guardrail_version(guardrail.guardrail_version)
                .trace(guardrail.trace)
                .set_stream_processing_mode(streaming)
                .build()
        });
        let call: ConverseStreamFluentBuilder = call.set_guardrail_config(guardrail);
        let answer = call.customize().interceptor(tap.clone()).send().await.map_err(Failure::of)?;
        Ok((answer, tap))
    }
}

#[async_trait]
impl InferenceBackend<Chat> for BedrockChat {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.caller.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        let start = cx.clock.monotonic();
        let Mapped { input, streaming: _, mut notes } = self.map(INFER, cx, request)?;
        let limit = self.caller.options.answer_within;
        let (answer, tap) = self.caller.call(cx, INFER, limit, || self.converse(input.clone())).await?;
        let answered = response::read(answer, tap.take(), &mut notes).map_err(|failure| failure.into_error(INFER))?;
        let meta = self.caller.meta(cx.clock.monotonic().since(start), answered.usage, notes)?;
        Ok(Reply { response: answered.response, meta })
    }

    async fn stream(&self, cx: &CallContext, request: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let start = cx.clock.monotonic();
        let mapped = self.map(STREAM, cx, request)?;
        let limit = self.caller.options.stall_after;
        let opened = self
            .caller
            .call(cx, STREAM, limit, || async {
                let (answer, tap) = self.open(mapped.clone()).await?;
                Opened::begin(stream::Events::new(answer.stream, tap)).await
            })
            .await?;
        Ok(opened.events(Arc::clone(&self.caller), cx.clone(), start, mapped.notes))
    }
}
