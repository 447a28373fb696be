//! A request as it is written.

use hybrid_core::{
    Error, Note, Result,
    task::{
        AudioPart, ChatRequest, CitedText, ContentPart, DocumentPart, DocumentSource, GrammarSyntax, ImageDetail,
        Latency, MediaSource, Message, Reasoning, ResponseFormat, Role, SystemPart, Tool, ToolChoice, ToolResult,
        ToolResultPart, ToolStatus, ToolUse, ToolUseKind,
    },
};
use serde_json::Value;

use super::{
    super::{media, unsupported},
    AllowedTools, AudioReference, ChosenTools, CompletionRequest, Content, CustomCall, CustomFormat, FunctionCall,
    ImageUrl, InputAudio, Named, OneOrMany, StreamOptions, ToolCall, WireAudioOutput, WireCustomTool, WireFile,
    WireFormat, WireFunction, WireGrammar, WireMessage, WirePart, WirePrediction, WireSchema, WireTool, WireToolChoice,
    answer_out::input_text,
};

const WRITE: &str = "write chat request";

/// What servers differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireOptions<'a> {
    pub(crate) model: &'a str,
    pub(crate) stream: bool,
    /// Ask for one more chunk that tells what was used.
    pub(crate) include_usage: bool,
    /// Send reasoning of earlier answers back.
    pub(crate) send_reasoning: bool,
    /// Call the most tokens `max_tokens`.
    pub(crate) older_max_tokens: bool,
}

/// Writes a request; what the server cannot be told and does not need is left out with a note.
///
/// # Errors
/// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) that names the field that this API has no word for.
pub(crate) fn write_request(request: ChatRequest, options: WireOptions<'_>) -> Result<(CompletionRequest, Vec<Note>)> {
    let mut writer = Writer { options, messages: Vec::new(), notes: Vec::new() };
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
        // Put in by the caller, who has the JSON.
        extra: _,
        extra_response_fields: _,
    } = request;
    for (field, there) in [
        ("prompt_variables", prompt_variables.is_some()),
        ("guardrail", guardrail.is_some()),
        ("latency", !matches!(latency, None | Some(Latency::Standard))),
        ("reasoning.budget_tokens", reasoning.budget_tokens.is_some()),
    ] {
        if there {
            return Err(unsupported(WRITE, field, "has no counterpart in the OpenAI API; leave it out"));
        }
    }
    writer.system(system)?;
    for (i, message) in messages.into_iter().enumerate() {
        writer.message(message).map_err(|error| error.with("message", i))?;
    }
    let tools = tools.into_iter().filter_map(|tool| writer.tool(tool).transpose()).collect::<Result<Vec<_>>>()?;
    let (max_completion_tokens, max_tokens) =
        if options.older_max_tokens { (None, sampling.max_tokens) } else { (sampling.max_tokens, None) };
    let custom: Vec<_> =
        tools.iter().filter_map(|tool| tool.custom.as_ref().map(|custom| custom.name.clone())).collect();
    let wire = CompletionRequest {
        model: Some(options.model.to_owned()),
        stream: options.stream.then_some(true),
        stream_options: (options.stream && options.include_usage)
            .then_some(StreamOptions { include_usage: Some(true) }),
        max_completion_tokens,
        max_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        n: sampling.n,
        stop: (!sampling.stop.is_empty()).then_some(OneOrMany::Many(sampling.stop)),
        seed: sampling.seed.map(u64::cast_signed),
        logprobs: sampling.logprobs.map(|_| true),
        top_logprobs: sampling.logprobs.filter(|top| *top > 0),
        logit_bias: (!sampling.logit_bias.is_empty()).then_some(sampling.logit_bias),
        tool_choice: tool_choice.map(|choice| write_choice(choice, &custom)),
        tools: (!tools.is_empty()).then_some(tools),
        parallel_tool_calls,
        response_format: write_format(response_format),
        modalities: (!modalities.is_empty())
            .then(|| modalities.iter().map(|modality| modality.as_str().to_owned()).collect()),
        audio: audio
            .map(|audio| {
                let format = media::format(&audio.media_type)
                    .ok_or_else(|| unsupported(WRITE, "audio.media_type", "is no format that the OpenAI API knows"))?;
                Ok::<_, Error>(WireAudioOutput { voice: audio.voice, format: format.to_owned() })
            })
            .transpose()?,
        reasoning_effort: reasoning.effort.map(|effort| effort.as_str().to_owned()),
        verbosity: verbosity.map(|verbosity| verbosity.as_str().to_owned()),
        prediction: prediction.map(|text| WirePrediction { kind: "content".into(), content: Content::Text(text) }),
        service_tier: service_tier.map(|tier| tier.as_str().to_owned()),
        metadata: (!metadata.is_empty()).then_some(metadata),
        user,
        prompt_cache_key,
        store,
        messages: writer.messages,
        ..CompletionRequest::default()
    };
    Ok((wire, writer.notes))
}

struct Writer<'a> {
    options: WireOptions<'a>,
    messages: Vec<WireMessage>,
    notes: Vec<Note>,
}

impl Writer<'_> {
    /// Says once what is left out.
    fn left_out(&mut self, what: &'static str) {
        let note = Note { code: "left_out".into(), detail: format!("the OpenAI API has no place for {what}") };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn system(&mut self, system: Vec<SystemPart>) -> Result<()> {
        let mut texts = Vec::new();
        for part in system {
            match part {
                SystemPart::Text(text) => texts.push(text),
                SystemPart::CachePoint(_) => self.left_out("cache points"),
                _ => return Err(unsupported(WRITE, "system", "has a part with no counterpart in the OpenAI API")),
            }
        }
        if !texts.is_empty() {
            let parts = texts.into_iter().map(WirePart::text).collect();
            let content = Some(compact(parts));
            self.messages.push(WireMessage { role: "system".into(), content, ..WireMessage::default() });
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<()> {
        let Message { role, name, content } = message;
        let role = match role {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            _ => return Err(unsupported(WRITE, "messages", "have a role that the OpenAI API does not know")),
        };
        let mut wire = WireMessage { role: role.into(), name, ..WireMessage::default() };
        let mut parts = Vec::new();
        for part in content {
            self.part(part, &mut wire, &mut parts)?;
        }
        // Results were written as messages of their own.
        if role == "tool" && parts.is_empty() {
            return Ok(());
        }
        let says_something = wire.tool_calls.is_some()
            || wire.audio.is_some()
            || wire.reasoning_content.is_some()
            || wire.refusal.is_some();
        match role {
            "assistant" if parts.is_empty() && says_something => {}
            "user" if parts.is_empty() => return Ok(()),
            _ => wire.content = Some(compact(parts)),
        }
        self.messages.push(wire);
        Ok(())
    }

    fn part(&mut self, part: ContentPart, wire: &mut WireMessage, parts: &mut Vec<WirePart>) -> Result<()> {
        match part {
            ContentPart::Text(text) => parts.push(WirePart::text(text)),
            ContentPart::CitedText(CitedText { text, .. }) => {
                self.left_out("citations of earlier answers");
                parts.push(WirePart::text(text));
            }
            ContentPart::Refusal(text) => wire.refusal.get_or_insert_default().push_str(&text),
            ContentPart::Reasoning(Reasoning::Text { text, .. }) if self.options.send_reasoning => {
                wire.reasoning_content.get_or_insert_default().push_str(&text);
            }
            ContentPart::Reasoning(_) => self.left_out("reasoning of earlier answers"),
            ContentPart::Image(image) => {
                let url = media::to_url(&image.media_type, &image.source)
                    .ok_or_else(|| unsupported(WRITE, "image.source", "must be bytes or an address"))?;
                let detail = image.detail.map(|detail| match detail {
                    ImageDetail::Low => "low".to_owned(),
                    ImageDetail::High => "high".to_owned(),
                    _ => "auto".to_owned(),
                });
                let image_url = Some(ImageUrl { url, detail });
                parts.push(WirePart { kind: "image_url".into(), image_url, ..WirePart::default() });
            }
            ContentPart::Audio(AudioPart { id: Some(id), .. }) if wire.role == "assistant" => {
                wire.audio = Some(AudioReference { id });
            }
            ContentPart::Audio(audio) => parts.push(write_audio(&audio)?),
            ContentPart::Document(document) => parts.push(self.document(document)?),
            ContentPart::ToolUse(tool_use) => wire.tool_calls.get_or_insert_default().push(write_call(tool_use)?),
            ContentPart::ToolResult(result) => self.result(result)?,
            ContentPart::CachePoint(_) => self.left_out("cache points"),
            _ => return Err(unsupported(WRITE, "messages", "have a part with no counterpart in the OpenAI API")),
        }
        Ok(())
    }

    fn document(&mut self, document: DocumentPart) -> Result<WirePart> {
        if document.context.is_some() || document.citations {
            self.left_out("a document's context and citations");
        }
        let no_file = || unsupported(WRITE, "document.source", "must be bytes, text or an id of the provider's");
        let (file_data, file_id) = match (document.source, document.media_type) {
            (DocumentSource::File(MediaSource::Id(id)), _) => (None, Some(id)),
            (DocumentSource::File(source @ MediaSource::Bytes(_)), Some(media_type)) => {
                (media::to_url(&media_type, &source), None)
            }
            (DocumentSource::Text(text), _) => (media::to_url("text/plain", &text.into_bytes().into()), None),
            _ => return Err(no_file()),
        };
        let file = Some(WireFile { file_id, file_data, filename: Some(document.name) });
        Ok(WirePart { kind: "file".into(), file, ..WirePart::default() })
    }

    /// A result is a message of its own here.
    fn result(&mut self, result: ToolResult) -> Result<()> {
        let ToolResult { tool_use_id, content, status, kind } = result;
        if status == ToolStatus::Error {
            self.left_out("a tool's status; its answer says that it failed");
        }
        if kind.is_some() {
            return Err(unsupported(WRITE, "messages", "have a result of a tool that a provider ran"));
        }
        let texts = content.into_iter().map(|part| match part {
            ToolResultPart::Text(text) => Ok(WirePart::text(text)),
            ToolResultPart::Json(value) => Ok(WirePart::text(value.to_string())),
            _ => Err(unsupported(WRITE, "messages", "have a tool's result that is neither text nor JSON")),
        });
        let content = Some(compact(texts.collect::<Result<_>>()?));
        let tool_call_id = Some(tool_use_id);
        self.messages.push(WireMessage { role: "tool".into(), content, tool_call_id, ..WireMessage::default() });
        Ok(())
    }

    fn tool(&mut self, tool: Tool) -> Result<Option<WireTool>> {
        Ok(Some(match tool {
            Tool::Function(function) => {
                let (name, description, strict) = (function.name, function.description, function.strict);
                let function = WireFunction { name, description, parameters: Some(function.input_schema), strict };
                WireTool { kind: "function".into(), function: Some(function), custom: None }
            }
            Tool::Custom(custom) => {
                let format = custom
                    .grammar
                    .map(|grammar| {
                        let syntax = match grammar.syntax {
                            GrammarSyntax::Lark => "lark",
                            GrammarSyntax::Regex => "regex",
                            _ => {
                                return Err(unsupported(
                                    WRITE,
                                    "tools",
                                    "have a grammar that is neither lark nor regex",
                                ));
                            }
                        };
                        let grammar = WireGrammar { syntax: syntax.into(), definition: grammar.definition };
                        Ok(CustomFormat { kind: "grammar".into(), grammar: Some(grammar), ..CustomFormat::default() })
                    })
                    .transpose()?;
                let custom = WireCustomTool { name: custom.name, description: custom.description, format };
                WireTool { kind: "custom".into(), function: None, custom: Some(custom) }
            }
            Tool::CachePoint(_) => {
                self.left_out("cache points");
                return Ok(None);
            }
            _ => return Err(unsupported(WRITE, "tools", "have a tool that a provider runs")),
        }))
    }
}

/// One text as a text, which every server takes; anything else as parts.
fn compact(mut parts: Vec<WirePart>) -> Content {
    match &mut parts[..] {
        [] => Content::Text(String::new()),
        [WirePart { kind, text: Some(text), .. }] if kind == "text" => Content::Text(std::mem::take(text)),
        _ => Content::Parts(parts),
    }
}

fn write_audio(audio: &AudioPart) -> Result<WirePart> {
    let (Some(format), MediaSource::Bytes(bytes)) = (media::format(&audio.media_type), &audio.source) else {
        return Err(unsupported(WRITE, "audio", "must be bytes of a format that the OpenAI API knows"));
    };
    let input_audio = Some(InputAudio { data: media::encode(bytes), format: format.to_owned() });
    Ok(WirePart { kind: "input_audio".into(), input_audio, ..WirePart::default() })
}

fn write_call(tool_use: ToolUse) -> Result<ToolCall> {
    let (id, text) = (Some(tool_use.id.clone()), input_text(&tool_use));
    let name = Some(tool_use.name);
    match tool_use.kind {
        ToolUseKind::Function => {
            let function = Some(FunctionCall { name, arguments: Some(Value::String(text)) });
            Ok(ToolCall { id, kind: Some("function".into()), function, ..ToolCall::default() })
        }
        ToolUseKind::Custom => {
            let custom = Some(CustomCall { name, input: Some(text) });
            Ok(ToolCall { id, kind: Some("custom".into()), custom, ..ToolCall::default() })
        }
        _ => Err(unsupported(WRITE, "messages", "have the call of a tool that a provider ran")),
    }
}

fn write_choice(choice: ToolChoice, custom: &[String]) -> WireToolChoice {
    let chosen = |name: String| {
        let is_custom = custom.contains(&name);
        let (kind, named) = (if is_custom { "custom" } else { "function" }.to_owned(), Some(Named { name }));
        let (function, custom) = if is_custom { (None, named) } else { (named, None) };
        ChosenTools { kind, function, custom, allowed_tools: None }
    };
    let among = |mode: &str, names: Vec<String>| {
        let tools = names.into_iter().map(&chosen).collect();
        let allowed_tools = Some(AllowedTools { mode: mode.to_owned(), tools });
        WireToolChoice::Tools(ChosenTools { kind: "allowed_tools".into(), allowed_tools, ..ChosenTools::default() })
    };
    match choice {
        ToolChoice::None => WireToolChoice::Mode("none".into()),
        ToolChoice::Required => WireToolChoice::Mode("required".into()),
        ToolChoice::Tool(name) => WireToolChoice::Tools(chosen(name)),
        ToolChoice::AutoAmong(names) => among("auto", names),
        ToolChoice::RequiredAmong(names) => among("required", names),
        _ => WireToolChoice::Mode("auto".into()),
    }
}

fn write_format(format: ResponseFormat) -> Option<WireFormat> {
    match format {
        ResponseFormat::Json => Some(WireFormat { kind: "json_object".into(), json_schema: None }),
        ResponseFormat::JsonSchema { name, description, schema, strict } => {
            // The API asks for a name.
            let name = Some(name.unwrap_or_else(|| "answer".to_owned()));
            let json_schema = Some(WireSchema { name, description, schema: Some(schema), strict });
            Some(WireFormat { kind: "json_schema".into(), json_schema })
        }
        _ => None,
    }
}
