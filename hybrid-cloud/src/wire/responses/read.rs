//! A request as chat.

use hybrid_core::{
    Error, Result,
    task::{
        AudioPart, ChatRequest, ContentPart, CustomTool, FunctionTool, ImageDetail, Message, Reasoning,
        ReasoningOptions, ResponseFormat, Role, Sampling, SystemPart, Tool, ToolChoice, ToolResult, ToolResultPart,
        ToolUse, ToolUseKind,
    },
};
use serde_json::{Value, json};

use super::{
    super::{
        chat::{WireFile, WireSchema, json_or_text, read_file, read_grammar, read_image, read_mode, read_schema},
        media, refuse, unsupported,
    },
    FormatSettings, Input, InputItem, ItemContent, ItemPart, ResponseRequest, ResponseTool,
};

const READ: &str = "read response request";

/// A request with what its answer repeats of it.
#[derive(Clone, Debug)]
pub(crate) struct ParsedResponse {
    pub(crate) wire: ResponseRequest,
    pub(crate) request: ChatRequest,
    pub(crate) stream: bool,
}

/// Reads a request.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) or [`Unsupported`](hybrid_core::ErrorKind::Unsupported) that names the field.
pub(crate) fn read_request(mut wire: ResponseRequest) -> Result<ParsedResponse> {
    refuse_what_needs_a_memory(&wire)?;
    let mut request = ChatRequest {
        system: wire.instructions.iter().filter(|text| !text.is_empty()).cloned().map(SystemPart::Text).collect(),
        tools: wire.tools.iter().flatten().enumerate().map(|(i, tool)| read_tool(i, tool)).collect::<Result<_>>()?,
        tool_choice: wire.tool_choice.as_ref().map(read_choice).transpose()?,
        parallel_tool_calls: wire.parallel_tool_calls,
        response_format: read_format(wire.text.as_ref().and_then(|text| text.format.clone()))?,
        sampling: Sampling {
            max_tokens: wire.max_output_tokens,
            temperature: wire.temperature,
            top_p: wire.top_p,
            logprobs: wire.top_logprobs.or(wants_logprobs(&wire).then_some(0)),
            ..Sampling::default()
        },
        reasoning: ReasoningOptions {
            effort: wire.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()).map(Into::into),
            budget_tokens: None,
        },
        verbosity: wire.text.as_ref().and_then(|text| text.verbosity.clone()).map(Into::into),
        metadata: wire.metadata.clone().unwrap_or_default(),
        user: wire.safety_identifier.clone().or_else(|| wire.user.clone()),
        prompt_cache_key: wire.prompt_cache_key.clone(),
        service_tier: wire.service_tier.clone().map(Into::into),
        ..ChatRequest::default()
    };
    match wire.input.take() {
        None => return Err(refuse(READ, "input", "is missing")),
        Some(Input::Text(text)) => request.messages.push(Message::user(text)),
        Some(Input::Items(items)) => read_items(items, &mut request)?,
    }
    let stream = wire.stream.unwrap_or(false);
    Ok(ParsedResponse { wire, request, stream })
}

fn refuse_what_needs_a_memory(wire: &ResponseRequest) -> Result<()> {
    const NOTHING_KEPT: &str = "is not supported: nothing is kept here; send the whole conversation in `input`";
    for (field, there, message) in [
        ("previous_response_id", wire.previous_response_id.is_some(), NOTHING_KEPT),
        ("conversation", wire.conversation.is_some(), NOTHING_KEPT),
        ("store", wire.store == Some(true), "must be false or left out: nothing is kept here"),
        ("background", wire.background == Some(true), "must be false or left out; use `stream` for long answers"),
        ("prompt", wire.prompt.is_some(), "is not supported; send `instructions`"),
        (
            "truncation",
            !matches!(wire.truncation.as_deref(), None | Some("disabled")),
            "must be disabled: nothing is cut in silence",
        ),
    ] {
        if there {
            return Err(unsupported(READ, field, message));
        }
    }
    Ok(())
}

fn wants_logprobs(wire: &ResponseRequest) -> bool {
    wire.include.iter().flatten().any(|name| name == "message.output_text.logprobs")
}

fn read_items(items: Vec<InputItem>, request: &mut ChatRequest) -> Result<()> {
    let leads = |item: &InputItem| {
        matches!(item.kind.as_deref(), None | Some("message"))
            && matches!(item.role.as_deref(), Some("system" | "developer"))
    };
    let lead = items.iter().take_while(|item| leads(item)).count();
    let lead = if lead == items.len() { 0 } else { lead };
    for (i, item) in items.into_iter().enumerate() {
        let field = format!("input[{i}]");
        if i < lead {
            let texts = texts(&format!("{field}.content"), item.content)?;
            request.system.extend(texts.into_iter().map(SystemPart::Text));
            continue;
        }
        let Some((role, parts)) = read_item(&field, item)? else { continue };
        // One turn of the model is several items here and one message in chat.
        match request.messages.last_mut().filter(|last| role == Role::Assistant && last.role == role) {
            Some(last) => last.content.extend(parts),
            None => request.messages.push(Message { role, name: None, content: parts }),
        }
    }
    Ok(())
}

/// The role and the parts of an item; nothing where it says nothing to a model.
fn read_item(field: &str, item: InputItem) -> Result<Option<(Role, Vec<ContentPart>)>> {
    let InputItem { kind, role, content, call_id, name, arguments, input, output } = item;
    let missing = |name: &str| refuse(READ, format!("{field}.{name}"), "is missing");
    let call = |input: Value, kind: ToolUseKind| {
        let (id, name) = (call_id.clone().ok_or_else(|| missing("call_id"))?, name.ok_or_else(|| missing("name"))?);
        Ok::<_, Error>(Some((Role::Assistant, vec![ToolUse { kind, ..ToolUse::new(id, name, input) }.into()])))
    };
    match kind.as_deref() {
        None | Some("message") => {
            let role = match role.as_deref() {
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                Some("system") => Role::System,
                Some("developer") => Role::Developer,
                _ => return Err(refuse(READ, format!("{field}.role"), "must be user, assistant, system or developer")),
            };
            let content_field = format!("{field}.content");
            let parts = match content.ok_or_else(|| missing("content"))? {
                ItemContent::Text(text) => vec![text.into()],
                ItemContent::Parts(parts) => {
                    let read = |(j, part)| read_part(&format!("{content_field}[{j}]"), part);
                    parts.into_iter().enumerate().map(read).collect::<Result<_>>()?
                }
            };
            Ok(Some((role, parts)))
        }
        Some("function_call") => call(json_or_text(arguments.unwrap_or_default()), ToolUseKind::Function),
        Some("custom_tool_call") => call(Value::String(input.unwrap_or_default()), ToolUseKind::Custom),
        Some("function_call_output" | "custom_tool_call_output") => {
            let tool_use_id = call_id.ok_or_else(|| missing("call_id"))?;
            let content = texts(&format!("{field}.output"), output)?.into_iter().map(ToolResultPart::Text).collect();
            Ok(Some((Role::Tool, vec![ToolResult { tool_use_id, content, ..ToolResult::default() }.into()])))
        }
        Some("reasoning") => {
            let Some(ItemContent::Parts(parts)) = content else { return Ok(None) };
            let thoughts: String = parts.into_iter().filter_map(|part| part.text).collect();
            Ok((!thoughts.is_empty()).then(|| (Role::Assistant, vec![Reasoning::text(thoughts).into()])))
        }
        Some("item_reference") => {
            Err(unsupported(READ, field, "refers to an item that nobody kept; send the item itself"))
        }
        Some(_) => Err(unsupported(
            READ,
            format!("{field}.type"),
            "must be message, function_call, function_call_output, custom_tool_call, custom_tool_call_output or reasoning",
        )),
    }
}

fn texts(field: &str, content: Option<ItemContent>) -> Result<Vec<String>> {
    match content {
        None => Err(refuse(READ, field, "is missing")),
        Some(ItemContent::Text(text)) => Ok(vec![text]),
        Some(ItemContent::Parts(parts)) => {
            let text = |(j, part): (usize, ItemPart)| match (part.kind.as_str(), part.text) {
                ("input_text" | "output_text", Some(text)) => Ok(text),
                _ => Err(refuse(READ, format!("{field}[{j}].type"), "must be input_text here")),
            };
            parts.into_iter().enumerate().map(text).collect()
        }
    }
}

fn read_part(field: &str, part: ItemPart) -> Result<ContentPart> {
    let missing = |name: &str| refuse(READ, format!("{field}.{name}"), "is missing");
    Ok(match part.kind.as_str() {
        "input_text" | "output_text" => part.text.ok_or_else(|| missing("text"))?.into(),
        "refusal" => ContentPart::Refusal(part.refusal.ok_or_else(|| missing("refusal"))?),
        "input_image" => {
            let Some(url) = part.image_url else {
                return Err(refuse(READ, format!("{field}.image_url"), "is missing; an image is an URL here"));
            };
            let mut image = read_image(field, &url, part.detail.as_deref())?;
            // The default here, as in the official client.
            image.detail = image.detail.filter(|detail| *detail != ImageDetail::Auto);
            image.into()
        }
        "input_file" => {
            if part.file_url.is_some() {
                return Err(unsupported(READ, format!("{field}.file_url"), "is not fetched here; send `file_data`"));
            }
            let file = WireFile { file_id: part.file_id, file_data: part.file_data, filename: part.filename };
            read_file(field, file)?.into()
        }
        "input_audio" => {
            let audio = part.input_audio.ok_or_else(|| missing("input_audio"))?;
            let media_type = media::media_type("audio", &audio.format)
                .ok_or_else(|| refuse(READ, format!("{field}.input_audio.format"), "must be wav or mp3"))?;
            AudioPart::new(media_type, media::decode(READ, &format!("{field}.input_audio.data"), &audio.data)?).into()
        }
        _ => {
            return Err(refuse(
                READ,
                format!("{field}.type"),
                "must be input_text, input_image, input_file, input_audio, output_text or refusal",
            ));
        }
    })
}

fn read_tool(i: usize, tool: &Value) -> Result<Tool> {
    let field = format!("tools[{i}]");
    let tool = serde_json::from_value::<ResponseTool>(tool.clone())
        .map_err(|error| refuse(READ, &field, "is no tool").with_source(error))?;
    let ResponseTool { kind, name, description, parameters, strict, format } = tool;
    let named = |name: Option<String>| name.ok_or_else(|| refuse(READ, format!("{field}.name"), "is missing"));
    match kind.as_str() {
        "function" => {
            let input_schema = parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
            Ok(FunctionTool { name: named(name)?, description, input_schema, strict }.into())
        }
        "custom" => {
            let grammar = read_grammar(&format!("{field}.format"), format)?;
            Ok(CustomTool { name: named(name)?, description, grammar }.into())
        }
        _ => Err(unsupported(
            READ,
            format!("{field}.type"),
            "must be function or custom; tools that a provider runs are not offered",
        )),
    }
}

fn read_choice(choice: &Value) -> Result<ToolChoice> {
    if let Value::String(mode) = choice {
        return read_mode("tool_choice", mode);
    }
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    let unnamed = || refuse(READ, "tool_choice", "must name the tool");
    match choice.get("type").and_then(Value::as_str) {
        Some("function" | "custom") => Ok(ToolChoice::Tool(name(choice).ok_or_else(unnamed)?)),
        Some("allowed_tools") => {
            let tools = choice.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let names = tools.iter().map(|tool| name(tool).ok_or_else(unnamed)).collect::<Result<_>>()?;
            match choice.get("mode").and_then(Value::as_str) {
                Some("required") => Ok(ToolChoice::RequiredAmong(names)),
                Some("auto") => Ok(ToolChoice::AutoAmong(names)),
                _ => Err(refuse(READ, "tool_choice.mode", "must be auto or required")),
            }
        }
        _ => Err(unsupported(READ, "tool_choice.type", "must be function, custom or allowed_tools")),
    }
}

fn read_format(format: Option<FormatSettings>) -> Result<ResponseFormat> {
    let Some(FormatSettings { kind, name, description, schema, strict }) = format else {
        return Ok(ResponseFormat::Text);
    };
    match kind.as_str() {
        "text" => Ok(ResponseFormat::Text),
        "json_object" => Ok(ResponseFormat::Json),
        "json_schema" => read_schema("text.format", WireSchema { name, description, schema, strict }),
        _ => Err(unsupported(READ, "text.format.type", "must be text, json_object or json_schema")),
    }
}

/// What [`Task::validate`](hybrid_core::Task::validate) said of a [`ChatRequest`], said of the fields that the caller sent.
pub(crate) fn caller_words(error: Error) -> Error {
    let Some(field) = error.context("field") else { return error };
    let renamed = match field.split_once(['[', '.']).unwrap_or((field, "")) {
        // Items and messages are counted differently.
        ("messages", _) => "input".to_owned(),
        ("system", _) => "instructions".to_owned(),
        ("sampling", "max_tokens") => "max_output_tokens".to_owned(),
        ("sampling", rest) => rest.to_owned(),
        ("response_format", rest) => format!("text.format.{rest}"),
        ("tools", rest) => format!("tools[{}", rest.replace("input_schema", "parameters")),
        _ => return error,
    };
    Error::new(error.kind(), error.operation(), error.message().to_owned()).with("field", renamed)
}
