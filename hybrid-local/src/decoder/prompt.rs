//! From a chat request to what a template is filled with, and to nothing that is left out in silence.

use std::collections::BTreeMap;

use hybrid_core::{
    Error, Note, Result, Timestamp,
    task::{
        ChatRequest, ContentPart, FunctionTool, Message, Modality, Reasoning, ReasoningEffort, ResponseFormat, Role,
        SystemPart, Tool, ToolChoice, ToolResult, ToolResultPart, ToolUse, ToolUseKind,
    },
};
use minijinja::{Value, value::Serde};
use serde::Serialize;

use super::template::Conversation;

const OPERATION: &str = "chat";

/// A request as a template takes it.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) conversation: Conversation,
    /// Whether the model may call tools, one or several in a message.
    pub(super) calls: Calls,
    /// What was left out because it changes nothing of the answer.
    pub(super) notes: Vec<Note>,
}

/// How many tools a message may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    None,
    One,
    Any,
}

/// Maps a request.
///
/// # Errors
/// `Unsupported` that names the field.
pub(super) fn map(request: ChatRequest, now: Timestamp) -> Result<(Prompt, hybrid_core::task::Sampling)> {
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
    refuse(prompt_variables.is_some(), "prompt_variables", "no prompts are stored with a local model")?;
    let other = modalities.iter().any(|modality| *modality != Modality::Text);
    refuse(other || audio.is_some(), "modalities", "the model answers in text")?;
    refuse(guardrail.is_some(), "guardrail", "a local model has no guardrail")?;
    refuse(store == Some(true), "store", "conversations are not kept")?;
    refuse(verbosity.is_some(), "verbosity", "the model knows no such setting; say it in the system text")?;
    refuse(!extra.is_empty() || !extra_response_fields.is_empty(), "extra", "there is no provider to pass fields to")?;
    let any_text = response_format == ResponseFormat::Text;
    refuse(!any_text, "response_format", "the form of the text cannot be forced yet; describe it in the system text")?;
    let thought = reasoning.budget_tokens.filter(|&tokens| tokens > 0);
    refuse(thought.is_some(), "reasoning.budget_tokens", "thinking cannot be cut; use `sampling.max_tokens`")?;
    let thinking = match (reasoning.effort, reasoning.budget_tokens) {
        (Some(ReasoningEffort::None), _) | (None, Some(_)) => Some(false),
        (Some(_), _) => Some(true),
        (None, None) => None,
    };

    let (tools, calls) = offered(tools, tool_choice, parallel_tool_calls)?;
    let ignored = [
        ("prediction", prediction.is_some()),
        ("service_tier", service_tier.is_some()),
        ("latency", latency.is_some()),
        ("metadata", !metadata.is_empty()),
        ("user", user.is_some()),
        ("prompt_cache_key", prompt_cache_key.is_some()),
    ];
    let note =
        |(field, _)| Note { code: "ignored".to_owned(), detail: format!("{field}: a local model has no use for it") };
    let notes = ignored.into_iter().filter(|(_, set)| *set).map(note).collect();
    let messages = conversation(&system, &messages)?;
    Ok((Prompt { conversation: Conversation { messages, tools, thinking, now }, calls, notes }, sampling))
}

fn refuse(set: bool, field: &'static str, why: &'static str) -> Result<()> {
    if set { Err(unsupported(field, why)) } else { Ok(()) }
}

fn unsupported(field: impl std::fmt::Display, why: &'static str) -> Error {
    Error::unsupported(OPERATION, why).with("field", field)
}

/// A tool as templates know it.
#[derive(Serialize)]
struct Offered<'a> {
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: &'a serde_json::Value,
}

fn offered(tools: Vec<Tool>, choice: Option<ToolChoice>, many: Option<bool>) -> Result<(Vec<Value>, Calls)> {
    let among = match choice {
        None | Some(ToolChoice::Auto) => None,
        Some(ToolChoice::None) => Some(Vec::new()),
        Some(ToolChoice::AutoAmong(names)) => Some(names),
        Some(_) => return Err(unsupported("tool_choice", "a call of a tool cannot be forced yet; use `auto`")),
    };
    let mut values = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let FunctionTool { name, description, input_schema, strict } = match tool {
            Tool::Function(function) => function,
            Tool::CachePoint(_) => continue,
            _ => {
                return Err(unsupported(
                    format_args!("tools[{i}]"),
                    "the model calls functions with JSON arguments alone",
                ));
            }
        };
        if *strict == Some(true) {
            return Err(unsupported(format_args!("tools[{i}].strict"), "arguments cannot be forced into a schema yet"));
        }
        if among.as_ref().is_none_or(|among| among.contains(name)) {
            let function = Function { name, description: description.as_deref(), parameters: input_schema };
            values.push(Value::from(Serde(Offered { r#type: "function", function })));
        }
    }
    let calls = match (values.is_empty(), many) {
        (true, _) => Calls::None,
        (false, Some(false)) => Calls::One,
        (false, _) => Calls::Any,
    };
    Ok((values, calls))
}

/// A message as templates know it.
#[derive(Debug, Default, Serialize)]
struct Said<'a> {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Call<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Called<'a>,
}

#[derive(Debug, Serialize)]
struct Called<'a> {
    name: &'a str,
    arguments: &'a serde_json::Value,
}

fn conversation(system: &[SystemPart], messages: &[Message]) -> Result<Vec<Value>> {
    let mut said = Vec::new();
    let mut texts = Vec::new();
    for (i, part) in system.iter().enumerate() {
        match part {
            SystemPart::Text(text) => texts.push(text.as_str()),
            SystemPart::CachePoint(_) => {}
            _ => return Err(unsupported(format_args!("system[{i}]"), "the model takes text alone")),
        }
    }
    if !texts.is_empty() {
        said.push(Said { role: "system", content: texts.join("\n\n"), ..Said::default() });
    }
    if messages.last().is_some_and(|message| message.role == Role::Assistant) {
        return Err(unsupported("messages", "the last message is the model's own, and it cannot go on from there"));
    }
    // What each call was a call of, for the messages that answer it.
    let mut names = BTreeMap::new();
    for (i, message) in messages.iter().enumerate() {
        let role = match message.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            _ => return Err(unsupported(format_args!("messages[{i}].role"), "not a role that the model knows")),
        };
        let mut own = Said { role, name: message.name.as_deref(), ..Said::default() };
        let mut results = Vec::new();
        for (j, part) in message.content.iter().enumerate() {
            let field = || format!("messages[{i}].content[{j}]");
            match part {
                ContentPart::Text(text) | ContentPart::Refusal(text) => own.content.push_str(text),
                ContentPart::CitedText(cited) => own.content.push_str(&cited.text),
                ContentPart::Reasoning(Reasoning::Text { text, .. }) => own.reasoning_content.push_str(text),
                ContentPart::ToolUse(ToolUse { id, name, input, kind: ToolUseKind::Function }) => {
                    names.insert(id.as_str(), name.as_str());
                    let function = Called { name, arguments: input };
                    own.tool_calls.push(Call { id, r#type: "function", function });
                }
                ContentPart::ToolResult(result) => results.push(answered(result, &names, &field)?),
                ContentPart::CachePoint(_) => {}
                _ => return Err(unsupported(field(), "the model does not take this kind of content")),
            }
        }
        // Tools answer before anything else is said, as templates expect it.
        let has_results = !results.is_empty();
        said.extend(results);
        if !has_results || !own.content.is_empty() {
            said.push(own);
        }
    }
    Ok(said.iter().map(|said| Value::from(Serde(said))).collect())
}

fn answered<'a>(
    result: &'a ToolResult,
    names: &BTreeMap<&'a str, &'a str>,
    field: &impl Fn() -> String,
) -> Result<Said<'a>> {
    let mut content = String::new();
    for part in &result.content {
        match part {
            ToolResultPart::Text(text) => content.push_str(text),
            ToolResultPart::Json(value) => content.push_str(&value.to_string()),
            _ => return Err(unsupported(field(), "the model takes text and JSON alone as a tool's answer")),
        }
    }
    let id = result.tool_use_id.as_str();
    Ok(Said { role: "tool", content, name: names.get(id).copied(), tool_call_id: Some(id), ..Said::default() })
}

#[cfg(test)]
mod tests {
    use hybrid_core::task::{Guardrail, ImagePart, MediaSource, Sampling, Verbosity};
    use serde_json::json;

    use super::*;

    fn mapped(request: ChatRequest) -> Result<Prompt> {
        map(request, Timestamp::UNIX_EPOCH).map(|(prompt, _)| prompt)
    }

    fn weigh() -> FunctionTool {
        FunctionTool::new("weigh", json!({"type": "object"})).with_description("weighs")
    }

    #[test]
    fn a_conversation_is_told_as_templates_know_it() {
        let call = ToolUse::new("c1", "weigh", json!({"what": "loaf"}));
        let request = ChatRequest::user("how heavy?")
            .with_system("Be kind.")
            .with_system("Be short.")
            .with_tool(weigh())
            .with_message(Message::new(Role::Assistant, [ContentPart::from(Reasoning::text("hm")), call.into()]))
            .with_message(Message::new(
                Role::User,
                [ContentPart::from(ToolResult::json("c1", json!({"g": 750}))), "and?".into()],
            ));
        let prompt = mapped(request).unwrap();
        let messages = serde_json::to_value(&prompt.conversation.messages).unwrap();
        assert_eq!(
            messages,
            json!([
                {"role": "system", "content": "Be kind.\n\nBe short."},
                {"role": "user", "content": "how heavy?"},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": {"what": "loaf"}}}]},
                {"role": "tool", "content": "{\"g\":750}", "name": "weigh", "tool_call_id": "c1"},
                {"role": "user", "content": "and?"},
            ])
        );
        let tools = serde_json::to_value(&prompt.conversation.tools).unwrap();
        let function = json!({"name": "weigh", "description": "weighs", "parameters": {"type": "object"}});
        assert_eq!(tools, json!([{"type": "function", "function": function}]));
        assert_eq!(prompt.calls, Calls::Any);
    }

    #[test]
    fn tools_are_offered_as_chosen() {
        let offered = |choice, many| {
            let request =
                ChatRequest { tool_choice: Some(choice), parallel_tool_calls: many, ..ChatRequest::user("hi") };
            let prompt = mapped(request.with_tool(weigh()).with_tool(FunctionTool::new("bake", json!({})))).unwrap();
            (prompt.conversation.tools.len(), prompt.calls)
        };
        assert_eq!(offered(ToolChoice::Auto, None), (2, Calls::Any));
        assert_eq!(offered(ToolChoice::Auto, Some(false)), (2, Calls::One));
        assert_eq!(offered(ToolChoice::None, None), (0, Calls::None));
        assert_eq!(offered(ToolChoice::AutoAmong(vec!["bake".to_owned()]), None), (1, Calls::Any));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name_and_what_changes_nothing_is_noted() {
        let refused = |change: fn(&mut ChatRequest), field: &str| {
            let mut request = ChatRequest::user("hi").with_tool(weigh());
            change(&mut request);
            let error = mapped(request).unwrap_err();
            assert_eq!(
                (error.kind(), error.context("field")),
                (hybrid_core::ErrorKind::Unsupported, Some(field)),
                "{error}"
            );
        };
        refused(|r| r.response_format = ResponseFormat::Json, "response_format");
        refused(|r| r.tool_choice = Some(ToolChoice::Required), "tool_choice");
        refused(|r| r.tools.push(Tool::System("code".into())), "tools[1]");
        refused(|r| r.modalities = vec![Modality::Audio], "modalities");
        refused(|r| r.guardrail = Some(Guardrail::new("a", "1")), "guardrail");
        refused(|r| r.verbosity = Some(Verbosity::Low), "verbosity");
        refused(|r| r.reasoning.budget_tokens = Some(10), "reasoning.budget_tokens");
        refused(|r| r.messages.push(Message::assistant("so")), "messages");
        let image = || Message::new(Role::User, [ImagePart::new("image/png", MediaSource::from(vec![1u8]))]);
        let mut request = ChatRequest::user("hi").with_message(image());
        assert_eq!(mapped(request.clone()).unwrap_err().context("field"), Some("messages[1].content[0]"));
        request.messages.pop();
        request.user = Some("u1".to_owned());
        request.sampling = Sampling::default();
        let notes = mapped(request).unwrap().notes;
        assert_eq!((notes.len(), notes[0].code.as_str()), (1, "ignored"));
    }
}
