//! A request as it is read.

use hybrid_core::{
    Error, Result,
    task::{
        AudioOutput, AudioPart, ChatRequest, ContentPart, CustomTool, DocumentPart, FunctionTool, Grammar,
        GrammarSyntax, ImageDetail, ImagePart, MediaSource, Message, Reasoning, ReasoningOptions, ResponseFormat, Role,
        Sampling, SystemPart, Tool, ToolChoice, ToolResult, ToolResultPart, ToolUse, ToolUseKind,
    },
};
use serde_json::{Value, json};

use super::{
    super::{media, refuse, unsupported},
    AudioReference, ChosenTools, CompletionRequest, Content, CustomFormat, OneOrMany, ToolCall, WireFile, WireFormat,
    WireMessage, WirePart, WireSchema, WireTool, WireToolChoice,
};

const READ: &str = "read chat request";

/// A request with what only its server acts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParsedChat {
    pub(crate) model: Option<String>,
    pub(crate) request: ChatRequest,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// How many of the messages went into [`ChatRequest::system`].
    pub(crate) lead: usize,
}

/// Reads a request. Its numbers are not checked here: [`Task::validate`](hybrid_core::Task::validate) does, and
/// [`caller_words`] puts what it says into the caller's names.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) or [`Unsupported`](hybrid_core::ErrorKind::Unsupported) that names the field.
pub(crate) fn read_request(wire: CompletionRequest) -> Result<ParsedChat> {
    refuse_what_nobody_honours(&wire)?;
    let stop = match wire.stop {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    let logprobs = match (wire.logprobs, wire.top_logprobs) {
        (Some(true), top) => Some(top.unwrap_or(0)),
        (_, Some(1..)) => return Err(refuse(READ, "top_logprobs", "needs `logprobs` to be true")),
        _ => None,
    };
    let mut request = ChatRequest {
        tools: read_all("tools", wire.tools.unwrap_or_default(), read_tool)?,
        tool_choice: wire.tool_choice.map(read_choice).transpose()?,
        parallel_tool_calls: wire.parallel_tool_calls,
        response_format: wire.response_format.map_or(Ok(ResponseFormat::Text), read_format)?,
        modalities: wire.modalities.unwrap_or_default().into_iter().map(Into::into).collect(),
        audio: wire
            .audio
            .map(|audio| match media::media_type("audio", &audio.format) {
                Some(media_type) => Ok(AudioOutput { voice: audio.voice, media_type }),
                None => Err(refuse(READ, "audio.format", "must be wav, mp3, flac, opus, aac or pcm16")),
            })
            .transpose()?,
        sampling: Sampling {
            max_tokens: wire.max_completion_tokens.or(wire.max_tokens),
            temperature: wire.temperature,
            top_p: wire.top_p,
            top_k: wire.top_k,
            min_p: wire.min_p,
            frequency_penalty: wire.frequency_penalty,
            presence_penalty: wire.presence_penalty,
            repetition_penalty: wire.repetition_penalty,
            seed: wire.seed.map(i64::cast_unsigned),
            stop,
            logprobs,
            logit_bias: wire.logit_bias.unwrap_or_default(),
            n: wire.n,
        },
        reasoning: ReasoningOptions { effort: wire.reasoning_effort.map(Into::into), budget_tokens: None },
        verbosity: wire.verbosity.map(Into::into),
        prediction: wire
            .prediction
            .map(|prediction| match prediction.kind.as_str() {
                "content" => only_text("prediction.content", prediction.content),
                _ => Err(refuse(READ, "prediction.type", "must be content")),
            })
            .transpose()?,
        service_tier: wire.service_tier.map(Into::into),
        metadata: wire.metadata.unwrap_or_default(),
        user: wire.safety_identifier.or(wire.user),
        prompt_cache_key: wire.prompt_cache_key,
        store: wire.store,
        ..ChatRequest::default()
    };
    let lead = read_messages(wire.messages, &mut request)?;
    Ok(ParsedChat {
        model: wire.model,
        request,
        stream: wire.stream.unwrap_or(false),
        include_usage: wire.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        lead,
    })
}

fn refuse_what_nobody_honours(wire: &CompletionRequest) -> Result<()> {
    let CompletionRequest { functions, function_call, web_search_options, moderation, modalities, .. } = wire;
    let there = |field: &Option<Value>| field.is_some();
    for (field, there, message) in [
        ("functions", there(functions), "is not supported; use `tools`"),
        ("function_call", there(function_call), "is not supported; use `tool_choice`"),
        ("web_search_options", there(web_search_options), "is not supported; leave it out"),
        ("moderation", there(moderation), "is not supported; leave it out"),
    ] {
        if there {
            return Err(unsupported(READ, field, message));
        }
    }
    match modalities.iter().flatten().find(|modality| !matches!(modality.as_str(), "text" | "audio")) {
        Some(_) => {
            Err(unsupported(READ, "modalities", "may hold text and audio; use /v1/images/generations for images"))
        }
        None => Ok(()),
    }
}

/// The leading texts from the product are what the model is told before the conversation, unless there is nothing else.
fn read_messages(messages: Vec<WireMessage>, request: &mut ChatRequest) -> Result<usize> {
    let leads =
        |message: &WireMessage| matches!(message.role.as_str(), "system" | "developer") && message.name.is_none();
    let lead = messages.iter().take_while(|message| leads(message)).count();
    let lead = if lead == messages.len() { 0 } else { lead };
    for (i, message) in messages.into_iter().enumerate() {
        if i < lead {
            let texts = texts(&format!("messages[{i}].content"), message.content)?;
            request.system.extend(texts.into_iter().map(SystemPart::Text));
        } else {
            request.messages.push(read_message(i, message)?);
        }
    }
    Ok(lead)
}

fn read_message(i: usize, wire: WireMessage) -> Result<Message> {
    let WireMessage { role, content, name, refusal, tool_calls, tool_call_id, reasoning_content, audio, function_call } =
        wire;
    let field = |name: &str| format!("messages[{i}].{name}");
    if function_call.is_some() {
        return Err(unsupported(READ, field("function_call"), "is not supported; use `tool_calls`"));
    }
    let content_at = field("content");
    let (role, parts) = match role.as_str() {
        "system" => (Role::System, text_parts(&content_at, content)?),
        "developer" => (Role::Developer, text_parts(&content_at, content)?),
        "user" => (Role::User, read_content(&content_at, content, read_part)?),
        "assistant" => {
            let mut parts = Vec::new();
            parts.extend(reasoning_content.filter(|text| !text.is_empty()).map(|text| Reasoning::text(text).into()));
            parts.extend(read_content(&content_at, content, read_part)?);
            parts.extend(refusal.map(ContentPart::Refusal));
            // The provider keeps the sound; its id is enough.
            parts.extend(audio.map(|AudioReference { id }| {
                ContentPart::Audio(AudioPart {
                    source: MediaSource::Id(id.clone()),
                    id: Some(id),
                    ..AudioPart::default()
                })
            }));
            for (j, call) in tool_calls.into_iter().flatten().enumerate() {
                parts.push(read_call(&field(&format!("tool_calls[{j}]")), call)?.into());
            }
            if parts.is_empty() {
                // An answer that said nothing comes back as it was.
                parts.push(String::new().into());
            }
            (Role::Assistant, parts)
        }
        "tool" => {
            let Some(tool_use_id) = tool_call_id else {
                return Err(refuse(READ, field("tool_call_id"), "is missing; it names the call that is answered"));
            };
            let content = texts(&content_at, content)?.into_iter().map(ToolResultPart::Text).collect();
            (Role::Tool, vec![ToolResult { tool_use_id, content, ..ToolResult::default() }.into()])
        }
        "function" => {
            return Err(unsupported(READ, field("role"), "function is not supported; use `tool` and `tool_call_id`"));
        }
        _ => return Err(refuse(READ, field("role"), "must be system, developer, user, assistant or tool")),
    };
    Ok(Message { role, name, content: parts })
}

fn read_content(
    field: &str,
    content: Option<Content>,
    read: fn(&str, WirePart) -> Result<ContentPart>,
) -> Result<Vec<ContentPart>> {
    match content {
        None => Ok(Vec::new()),
        Some(Content::Text(text)) => Ok(vec![text.into()]),
        Some(Content::Parts(parts)) => read_all(field, parts, read),
    }
}

fn read_all<W, T>(field: &str, items: Vec<W>, read: fn(&str, W) -> Result<T>) -> Result<Vec<T>> {
    items.into_iter().enumerate().map(|(i, item)| read(&format!("{field}[{i}]"), item)).collect()
}

fn text_parts(field: &str, content: Option<Content>) -> Result<Vec<ContentPart>> {
    Ok(texts(field, content)?.into_iter().map(ContentPart::Text).collect())
}

/// The texts of a content that may be nothing else.
fn texts(field: &str, content: Option<Content>) -> Result<Vec<String>> {
    match content {
        None => Err(refuse(READ, field, "is missing")),
        Some(Content::Text(text)) => Ok(vec![text]),
        Some(Content::Parts(parts)) => read_all(field, parts, |field, part| match (part.kind.as_str(), part.text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(refuse(READ, format!("{field}.text"), "is missing")),
            _ => Err(refuse(READ, format!("{field}.type"), "must be text in a message of this role")),
        }),
    }
}

fn only_text(field: &str, content: Content) -> Result<String> {
    Ok(texts(field, Some(content))?.concat())
}

fn read_part(field: &str, part: WirePart) -> Result<ContentPart> {
    let WirePart { kind, text, refusal, image_url, input_audio, file } = part;
    let missing = |name: &str| refuse(READ, format!("{field}.{name}"), "is missing");
    Ok(match kind.as_str() {
        "text" => text.ok_or_else(|| missing("text"))?.into(),
        "refusal" => ContentPart::Refusal(refusal.ok_or_else(|| missing("refusal"))?),
        "image_url" => {
            let image = image_url.ok_or_else(|| missing("image_url"))?;
            read_image(&format!("{field}.image_url"), &image.url, image.detail.as_deref())?.into()
        }
        "input_audio" => {
            let audio = input_audio.ok_or_else(|| missing("input_audio"))?;
            let media_type = media::media_type("audio", &audio.format)
                .ok_or_else(|| refuse(READ, format!("{field}.input_audio.format"), "must be wav or mp3"))?;
            let bytes = media::decode(READ, &format!("{field}.input_audio.data"), &audio.data)?;
            AudioPart::new(media_type, bytes).into()
        }
        "file" => read_file(&format!("{field}.file"), file.ok_or_else(|| missing("file"))?)?.into(),
        _ => {
            return Err(refuse(
                READ,
                format!("{field}.type"),
                "must be text, image_url, input_audio, file or, in an answer, refusal",
            ));
        }
    })
}

pub(crate) fn read_image(field: &str, url: &str, detail: Option<&str>) -> Result<ImagePart> {
    let (media_type, source) = media::from_url(READ, &format!("{field}.url"), url, "image")?;
    let detail = match detail {
        None => None,
        Some("auto") => Some(ImageDetail::Auto),
        Some("low") => Some(ImageDetail::Low),
        Some("high") => Some(ImageDetail::High),
        Some(_) => return Err(refuse(READ, format!("{field}.detail"), "must be auto, low or high")),
    };
    Ok(ImagePart { detail, ..ImagePart::new(media_type, source) })
}

pub(crate) fn read_file(field: &str, file: WireFile) -> Result<DocumentPart> {
    let name = file.filename.unwrap_or_else(|| "file".to_owned());
    match (file.file_data, file.file_id) {
        (Some(data), None) => {
            let (media_type, source) = media::from_url(READ, &format!("{field}.file_data"), &data, "application")?;
            Ok(DocumentPart::file(name, media_type, source))
        }
        (None, Some(id)) => {
            let mut document = DocumentPart::file(name, "", MediaSource::Id(id));
            document.media_type = None;
            Ok(document)
        }
        _ => Err(refuse(READ, field, "must have either `file_data` or `file_id`")),
    }
}

fn read_call(field: &str, call: ToolCall) -> Result<ToolUse> {
    let missing = |name: &str| refuse(READ, format!("{field}.{name}"), "is missing");
    let id = call.id.ok_or_else(|| missing("id"))?;
    match call.kind.as_deref() {
        None | Some("function") => {
            let function = call.function.ok_or_else(|| missing("function"))?;
            let name = function.name.ok_or_else(|| missing("function.name"))?;
            let input = match function.arguments {
                None => json!({}),
                Some(Value::String(text)) => json_or_text(text),
                Some(value) => value,
            };
            Ok(ToolUse::new(id, name, input))
        }
        Some("custom") => {
            let custom = call.custom.ok_or_else(|| missing("custom"))?;
            let name = custom.name.ok_or_else(|| missing("custom.name"))?;
            let input = Value::String(custom.input.unwrap_or_default());
            Ok(ToolUse { kind: ToolUseKind::Custom, ..ToolUse::new(id, name, input) })
        }
        Some(_) => Err(refuse(READ, format!("{field}.type"), "must be function or custom")),
    }
}

/// The arguments of an earlier call. Models write what is no JSON, or are cut off in it, and clients send that back: it stays a text.
pub(crate) fn json_or_text(text: String) -> Value {
    if text.trim().is_empty() {
        return json!({});
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

fn read_tool(field: &str, tool: WireTool) -> Result<Tool> {
    let missing = |name: &str| refuse(READ, format!("{field}.{name}"), "is missing");
    match tool.kind.as_str() {
        "function" => {
            let function = tool.function.ok_or_else(|| missing("function"))?;
            let input_schema = function.parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
            let (name, description, strict) = (function.name, function.description, function.strict);
            Ok(FunctionTool { name, description, input_schema, strict }.into())
        }
        "custom" => {
            let custom = tool.custom.ok_or_else(|| missing("custom"))?;
            let grammar = read_grammar(&format!("{field}.custom.format"), custom.format)?;
            Ok(CustomTool { name: custom.name, description: custom.description, grammar }.into())
        }
        _ => Err(unsupported(
            READ,
            format!("{field}.type"),
            "must be function or custom; tools that a provider runs are not offered",
        )),
    }
}

pub(crate) fn read_grammar(field: &str, format: Option<CustomFormat>) -> Result<Option<Grammar>> {
    let Some(format) = format else { return Ok(None) };
    let (syntax, definition) = match (format.kind.as_str(), format.grammar) {
        ("text", _) => return Ok(None),
        ("grammar", Some(grammar)) => (Some(grammar.syntax), Some(grammar.definition)),
        ("grammar", None) => (format.syntax, format.definition),
        _ => return Err(refuse(READ, format!("{field}.type"), "must be text or grammar")),
    };
    let definition = definition.ok_or_else(|| refuse(READ, format!("{field}.definition"), "is missing"))?;
    let syntax = match syntax.as_deref() {
        Some("lark") => GrammarSyntax::Lark,
        Some("regex") => GrammarSyntax::Regex,
        _ => return Err(refuse(READ, format!("{field}.syntax"), "must be lark or regex")),
    };
    Ok(Some(Grammar { syntax, definition }))
}

fn read_choice(choice: WireToolChoice) -> Result<ToolChoice> {
    let chosen = match choice {
        WireToolChoice::Mode(mode) => return read_mode("tool_choice", &mode),
        WireToolChoice::Tools(chosen) => chosen,
    };
    let ChosenTools { kind, function, custom, allowed_tools } = chosen;
    match (kind.as_str(), allowed_tools) {
        ("allowed_tools", Some(allowed)) => {
            let names = allowed.tools.into_iter().enumerate().map(|(i, tool)| {
                let field = format!("tool_choice.allowed_tools.tools[{i}]");
                let named = tool.function.or(tool.custom).map(|named| named.name);
                named.ok_or_else(|| refuse(READ, field, "must name a function or a custom tool"))
            });
            let names = names.collect::<Result<_>>()?;
            match allowed.mode.as_str() {
                "auto" => Ok(ToolChoice::AutoAmong(names)),
                "required" => Ok(ToolChoice::RequiredAmong(names)),
                _ => Err(refuse(READ, "tool_choice.allowed_tools.mode", "must be auto or required")),
            }
        }
        ("function" | "custom", _) => match function.or(custom) {
            Some(named) => Ok(ToolChoice::Tool(named.name)),
            None => Err(refuse(READ, "tool_choice", "must name the tool")),
        },
        _ => Err(unsupported(READ, "tool_choice.type", "must be function, custom or allowed_tools")),
    }
}

pub(crate) fn read_mode(field: &str, mode: &str) -> Result<ToolChoice> {
    match mode {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        _ => Err(refuse(READ, field, "must be auto, none, required or an object that names a tool")),
    }
}

fn read_format(format: WireFormat) -> Result<ResponseFormat> {
    match (format.kind.as_str(), format.json_schema) {
        ("text", _) => Ok(ResponseFormat::Text),
        ("json_object", _) => Ok(ResponseFormat::Json),
        ("json_schema", Some(schema)) => read_schema("response_format.json_schema", schema),
        ("json_schema", None) => Err(refuse(READ, "response_format.json_schema", "is missing")),
        _ => Err(unsupported(READ, "response_format.type", "must be text, json_object or json_schema")),
    }
}

pub(crate) fn read_schema(field: &str, wire: WireSchema) -> Result<ResponseFormat> {
    let WireSchema { name, description, schema, strict } = wire;
    match schema {
        Some(schema) => Ok(ResponseFormat::JsonSchema { name, description, schema, strict }),
        None => Err(refuse(READ, format!("{field}.schema"), "is missing")),
    }
}

/// What [`Task::validate`](hybrid_core::Task::validate) said of a [`ChatRequest`], said of the fields that the caller sent.
pub(crate) fn caller_words(error: Error, lead: usize) -> Error {
    let Some(field) = error.context("field") else { return error };
    let shifted = |rest: &str, by: usize| {
        let (index, tail) = rest.split_once(']')?;
        Some(format!("messages[{}]{tail}", index.parse::<usize>().ok()? + by))
    };
    let renamed = match field.split_once(['[', '.']) {
        Some(("messages", rest)) if lead > 0 => shifted(rest, lead),
        Some(("system", _)) => Some("messages".to_owned()),
        Some(("sampling", "max_tokens")) => Some("max_completion_tokens".to_owned()),
        Some(("sampling", rest)) => Some(rest.to_owned()),
        Some(("response_format", rest)) => Some(format!("response_format.json_schema.{rest}")),
        Some(("audio", "media_type")) => Some("audio.format".to_owned()),
        Some(("tools", rest)) => Some(format!("tools[{}", rest.replace("input_schema", "function.parameters"))),
        _ => None,
    };
    match renamed {
        Some(field) => Error::new(error.kind(), error.operation(), error.message().to_owned()).with("field", field),
        None => error,
    }
}
