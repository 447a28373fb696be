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

use super::{
    constraint::{Callable, Form},
    template::Conversation,
};

const OPERATION: &str = "chat";

/// A request as a template takes it.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) conversation: Conversation,
    /// Whether the model may call tools, one or several in a message.
    pub(super) calls: Calls,
    /// What the answer has to be, if the request says so.
    pub(super) form: Option<Form>,
    /// Whether the model is to think before it answers, if the request says so.
    pub(super) thinking: Option<bool>,
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
    let thought = reasoning.budget_tokens.filter(|&tokens| tokens > 0);
    refuse(thought.is_some(), "reasoning.budget_tokens", "thinking cannot be cut; use `sampling.max_tokens`")?;
    let thinking = match (reasoning.effort, reasoning.budget_tokens) {
        (Some(ReasoningEffort::None), _) | (None, Some(_)) => Some(false),
        (Some(_), _) => Some(true),
        (None, None) => None,
    };

    let Offer { tools, calls, callable, forced } = offered(tools, tool_choice, parallel_tool_calls)?;
    let text = match response_format {
        ResponseFormat::Text => None,
        ResponseFormat::Json => Some(serde_json::json!({"type": "object"})),
        ResponseFormat::JsonSchema { schema, .. } => Some(schema),
        _ => return Err(unsupported("response_format", "the model knows no such form")),
    };
    let form = (forced || text.is_some()).then(|| Form {
        text: text.filter(|_| !forced),
        calls: callable,
        many: calls == Calls::Any,
    });
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
    let conversation = Conversation { messages, tools, thinking, now };
    Ok((Prompt { conversation, calls, form, thinking, notes }, sampling))
}

/// Maps a request as [`map`] does, whose last message may be the model's own: what training reads.
pub(super) fn whole(mut request: ChatRequest, now: Timestamp) -> Result<Conversation> {
    let own = request.messages.pop_if(|message| message.role == Role::Assistant);
    let (Prompt { mut conversation, .. }, _) = map(request, now)?;
    conversation.messages.extend(told(&[], own.as_slice())?);
    Ok(conversation)
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

/// The tools of a request.
struct Offer {
    /// Those that the model is told of.
    tools: Vec<Value>,
    calls: Calls,
    /// Those that it may call, where its answer has a form.
    callable: Vec<Callable>,
    /// Whether it must call one.
    forced: bool,
}

fn offered(tools: Vec<Tool>, choice: Option<ToolChoice>, many: Option<bool>) -> Result<Offer> {
    let (told, among, forced) = match choice {
        None | Some(ToolChoice::Auto) => (None, None, false),
        Some(ToolChoice::None) => (Some(Vec::new()), None, false),
        Some(ToolChoice::AutoAmong(names)) => (Some(names), None, false),
        Some(ToolChoice::Required) => (None, None, true),
        Some(ToolChoice::Tool(name)) => (None, Some(vec![name]), true),
        Some(ToolChoice::RequiredAmong(names)) => (None, Some(names), true),
        Some(_) => return Err(unsupported("tool_choice", "the model knows no such choice")),
    };
    let (mut values, mut callable) = (Vec::new(), Vec::new());
    for (i, tool) in tools.into_iter().enumerate() {
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
        if strict == Some(true) && !forced {
            let why = "arguments can be held to a schema only where a call is required";
            return Err(unsupported(format_args!("tools[{i}].strict"), why));
        }
        let is_among = |names: &Option<Vec<String>>| names.as_ref().is_none_or(|names| names.contains(&name));
        if is_among(&told) {
            let function = Function { name: &name, description: description.as_deref(), parameters: &input_schema };
            values.push(Value::from(Serde(Offered { r#type: "function", function })));
            if is_among(&among) {
                callable.push(Callable { field: format!("tools[{i}].input_schema"), name, schema: input_schema });
            }
        }
    }
    let calls = match (values.is_empty(), many) {
        (true, _) => Calls::None,
        (false, Some(false)) => Calls::One,
        (false, _) => Calls::Any,
    };
    Ok(Offer { tools: values, calls, callable, forced })
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
    if messages.last().is_some_and(|message| message.role == Role::Assistant) {
        return Err(unsupported("messages", "the last message is the model's own, and it cannot go on from there"));
    }
    told(system, messages)
}

fn told(system: &[SystemPart], messages: &[Message]) -> Result<Vec<Value>> {
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
    fn an_answer_has_the_form_that_the_request_asks_for() {
        let form = |format: ResponseFormat, choice: ToolChoice| {
            let request = ChatRequest { response_format: format, tool_choice: Some(choice), ..ChatRequest::user("hi") };
            let form = mapped(request.with_tool(weigh()).with_tool(FunctionTool::new("bake", json!({})))).unwrap().form;
            form.map(|form| {
                let names: Vec<String> = form.calls.into_iter().map(|call| call.name).collect();
                (form.text, names.join(" "))
            })
        };
        let object = || Some(json!({"type": "object"}));
        let one = || ResponseFormat::json_schema("one", json!({"const": 1}));
        assert_eq!(form(ResponseFormat::Text, ToolChoice::Auto), None);
        assert_eq!(form(ResponseFormat::Json, ToolChoice::Auto), Some((object(), "weigh bake".to_owned())));
        assert_eq!(form(ResponseFormat::Json, ToolChoice::None), Some((object(), String::new())));
        assert_eq!(form(one(), ToolChoice::AutoAmong(vec!["bake".to_owned()])).unwrap().1, "bake");
        assert_eq!(form(one(), ToolChoice::Required), Some((None, "weigh bake".to_owned())));
        assert_eq!(form(ResponseFormat::Text, ToolChoice::Tool("bake".to_owned())), Some((None, "bake".to_owned())));
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
        refused(|r| r.tools.push(FunctionTool { strict: Some(true), ..weigh() }.into()), "tools[1].strict");
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
