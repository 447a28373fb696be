//! Files of examples as mlx-lm, TRL and OpenAI's tools read them, made into judgments.

use std::collections::BTreeMap;

use hybrid_core::{
    Error, IdSource, Judgment, JudgmentId, Result, Task, Timestamp,
    task::{Chat, ChatRequest, ContentPart, FunctionTool, Message, Reasoning, Role, Tool, ToolResult, ToolUse},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::lessons::TEXT;

const OPERATION: &str = "read examples";

/// Makes judgments of a JSONL file of examples, each line one JSON object; `name` is for errors.
///
/// # Forms
/// | keys | what is learnt |
/// |---|---|
/// | `messages`, `tools` (may be absent) | the last message, which is the assistant's; the plan's `learn` may ask for the earlier ones too |
/// | `prompt`, `completion` | the completion |
/// | `prompt`, `chosen`, `rejected` | by `decoder-dpo` that the chosen one is better; by the others the chosen one |
/// | `text` | all of it |
///
/// `messages` and `tools` are as OpenAI's API has them; `prompt` may be messages too, and `chosen`, `rejected` and `completion` a message or a
/// list of one.
///
/// The judgments are of the task `chat`, or `text`, with ids of `ids`, and made `at` one time. Lines with the same prompt are told apart by
/// `metadata` in the request, so that each is learnt.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names file and line, and the key where one is at fault: a key that is not known is
/// refused, not left out.
///
/// ```
/// use hybrid_core::{SeededIds, Timestamp};
/// use hybrid_local::judgments_from_jsonl;
///
/// let lines = r#"{"prompt": "When do you open?", "completion": "At seven."}"#;
/// let judgments = judgments_from_jsonl("hours.jsonl", lines, &SeededIds::default(), Timestamp::UNIX_EPOCH)?;
/// assert_eq!(judgments[0].decision["answers"][0], "At seven.");
/// # Ok::<_, hybrid_core::Error>(())
/// ```
pub fn judgments_from_jsonl(
    name: &str,
    bytes: impl AsRef<[u8]>,
    ids: &dyn IdSource,
    at: Timestamp,
) -> Result<Vec<Judgment>> {
    let text = str::from_utf8(bytes.as_ref())
        .map_err(|error| Error::invalid(OPERATION, "not UTF-8").with("file", name).with_source(error))?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut judgments = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        if line.trim().is_empty() {
            continue;
        }
        let named = |error: Error| error.with("file", name).with("line", number);
        let mut row = read(line).map_err(named)?;
        let repeats = seen.entry(row.input.to_string()).or_default();
        if *repeats > 0 {
            row.input["metadata"] = json!({ "repeat": repeats.to_string() });
        }
        *repeats += 1;
        let Row { task, input, decision, answer } = row;
        let id = JudgmentId::next(ids);
        let task = task.to_owned();
        judgments.push(Judgment {
            id,
            task,
            input,
            decision,
            answer,
            model: None,
            request: None,
            by: None,
            at,
            tags: BTreeMap::new(),
        });
    }
    if judgments.is_empty() {
        return Err(Error::invalid(OPERATION, "the file has no examples").with("file", name));
    }
    Ok(judgments)
}

/// What a line says.
struct Row {
    task: &'static str,
    input: Value,
    decision: Value,
    answer: Option<Value>,
}

fn read(line: &str) -> Result<Row> {
    let value: Value = serde_json::from_str(line).map_err(|error| refuse("not JSON").with_source(error))?;
    let Value::Object(mut row) = value else { return Err(refuse("not a JSON object")) };
    let mut take = |key: &str| row.remove(key);
    let said = if let Some(messages) = take("messages") {
        let mut request = request(messages, take("tools"))?;
        let answer = request.messages.pop_if(|message| message.role == Role::Assistant);
        let answer =
            answer.ok_or_else(|| refuse("the last message has to be the assistant's: it is what is learnt"))?;
        Row { task: Chat::NAME, input: encode(&request)?, decision: decision(&answer)?, answer: None }
    } else if let Some(prompt) = take("prompt") {
        let request = match prompt {
            Value::String(text) => ChatRequest::user(text),
            messages => request(messages, take("tools"))?,
        };
        let (right, wrong) = match (take("completion"), take("chosen"), take("rejected")) {
            (Some(completion), None, None) => (answer(completion, "completion")?, None),
            (None, Some(chosen), Some(rejected)) => (answer(chosen, "chosen")?, Some(answer(rejected, "rejected")?)),
            _ => return Err(refuse("beside a prompt there is either a completion, or chosen and rejected")),
        };
        let answer = wrong.as_ref().map(decision).transpose()?;
        Row { task: Chat::NAME, input: encode(&request)?, decision: decision(&right)?, answer }
    } else if let Some(text) = take("text") {
        if text.as_str().is_none_or(|text| text.trim().is_empty()) {
            return Err(wrong("text", "the value has to be a text that is not blank"));
        }
        Row { task: TEXT, input: json!({ "text": text }), decision: json!({}), answer: None }
    } else {
        return Err(refuse("the line has none of the keys messages, prompt and text"));
    };
    nothing_left(&row, "")?;
    Ok(said)
}

fn refuse(message: &'static str) -> Error {
    Error::invalid(OPERATION, message)
}

fn wrong(key: impl std::fmt::Display, message: &'static str) -> Error {
    refuse(message).with("key", key)
}

fn nothing_left(rest: &Map<String, Value>, place: &str) -> Result<()> {
    match rest.keys().next() {
        Some(key) => Err(wrong(format_args!("{place}{key}"), "the key is not known; nothing is left out in silence")),
        None => Ok(()),
    }
}

fn encode(request: &ChatRequest) -> Result<Value> {
    serde_json::to_value(request)
        .map_err(|error| Error::internal(OPERATION, "a request cannot be written").with_source(error))
}

/// An answer as judgments have it.
fn decision(message: &Message) -> Result<Value> {
    let texts = message.content.iter().all(|part| matches!(part, ContentPart::Text(_)));
    if texts && message.name.is_none() {
        return Ok(json!({ "answers": [message.text()] }));
    }
    let message = serde_json::to_value(message);
    message
        .map(|message| json!({ "message": message }))
        .map_err(|error| Error::internal(OPERATION, "a message cannot be written").with_source(error))
}

fn answer(value: Value, key: &'static str) -> Result<Message> {
    let value = match value {
        Value::String(text) if text.trim().is_empty() => return Err(wrong(key, "the text is blank")),
        Value::String(text) => return Ok(Message::assistant(text)),
        Value::Array(mut list) if list.len() == 1 => list.remove(0),
        other => other,
    };
    let message = message(value, key)?;
    if message.role != Role::Assistant {
        return Err(wrong(key, "the message has to be the assistant's"));
    }
    Ok(message)
}

fn request(messages: Value, tools: Option<Value>) -> Result<ChatRequest> {
    let Value::Array(messages) = messages else { return Err(wrong("messages", "the value has to be a list")) };
    let mut request = ChatRequest::default();
    for (i, value) in messages.into_iter().enumerate() {
        request.messages.push(message(value, &format!("messages[{i}]"))?);
    }
    if request.messages.is_empty() {
        return Err(wrong("messages", "the list is empty"));
    }
    let tools = match tools {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(wrong("tools", "the value has to be a list")),
    };
    for (i, tool) in tools.into_iter().enumerate() {
        let tool: OfferedTool = known(tool, &format!("tools[{i}]"))?;
        let OfferedFunction { name, description, parameters, strict } = tool.function;
        let mut function =
            FunctionTool::new(name, parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}})));
        (function.description, function.strict) = (description, strict);
        request.tools.push(Tool::Function(function));
    }
    Ok(request)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferedTool {
    #[serde(default, rename = "type")]
    _type: Option<Kind>,
    function: OfferedFunction,
}

#[derive(Deserialize)]
enum Kind {
    #[serde(rename = "function")]
    Function,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferedFunction {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    #[serde(default)]
    strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextPart {
    #[serde(rename = "type")]
    _type: TextKind,
    text: String,
}

#[derive(Deserialize)]
enum TextKind {
    #[serde(rename = "text")]
    Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "type")]
    _type: Option<Kind>,
    function: Called,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Called {
    name: String,
    arguments: Value,
}

fn known<T: serde::de::DeserializeOwned>(value: Value, place: &str) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|error| wrong(place, "the value has another form than is known").with_source(error))
}

fn message(value: Value, place: &str) -> Result<Message> {
    let Said { role, content, name, reasoning_content, tool_calls, tool_call_id } = known(value, place)?;
    let text = match content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect(),
    };
    let role = match &*role {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => return Err(wrong(format_args!("{place}.role"), "the role is none of system, user, assistant and tool")),
    };
    let misplaced = |set: bool, key: &str, right: Role| {
        if set && role != right {
            return Err(wrong(format_args!("{place}.{key}"), "a message of this role does not have the key"));
        }
        Ok(())
    };
    misplaced(tool_calls.is_some(), "tool_calls", Role::Assistant)?;
    misplaced(reasoning_content.is_some(), "reasoning_content", Role::Assistant)?;
    misplaced(tool_call_id.is_some(), "tool_call_id", Role::Tool)?;
    let mut parts: Vec<ContentPart> = Vec::new();
    if let Some(thought) = reasoning_content.filter(|thought| !thought.is_empty()) {
        parts.push(Reasoning::text(thought).into());
    }
    match (role == Role::Tool, text.is_empty()) {
        (true, _) => parts.push(ToolResult::text(tool_call_id.unwrap_or_default(), text).into()),
        (false, true) => {}
        (false, false) => parts.push(text.into()),
    }
    for (i, Call { id, function: Called { name, arguments }, .. }) in tool_calls.into_iter().flatten().enumerate() {
        let arguments = match arguments {
            Value::String(text) => serde_json::from_str(&text).map_err(|error| {
                wrong(format_args!("{place}.tool_calls[{i}].function.arguments"), "the text is not JSON")
                    .with_source(error)
            })?,
            value => value,
        };
        parts.push(ToolUse::new(id.unwrap_or_else(|| format!("call_{i}")), name, arguments).into());
    }
    if parts.is_empty() {
        return Err(wrong(format_args!("{place}.content"), "the message says nothing"));
    }
    let mut message = Message::new(role, parts);
    message.name = name.filter(|_| role != Role::Tool);
    Ok(message)
}
