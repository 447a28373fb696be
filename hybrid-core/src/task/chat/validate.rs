use std::{collections::BTreeSet, fmt::Display};

use super::{
    super::check::{Check, FINITE, NOT_NEGATIVE, SHARE},
    ChatRequest, ContentPart, GuardedContent, Message, Reasoning, ResponseFormat, Sampling, SystemPart, Tool,
    ToolChoice, ToolResult, ToolResultPart,
};
use crate::Result;

const CHECK: Check = Check("validate chat request");

pub(super) fn request(request: &ChatRequest) -> Result<()> {
    let answerable = !request.messages.is_empty() || request.prompt_variables.is_some();
    CHECK.that(answerable, "messages", "must hold at least one message")?;
    for (i, part) in request.system.iter().enumerate() {
        let field = format_args!("system[{i}]");
        match part {
            SystemPart::Text(text) => CHECK.not_blank(field, text)?,
            SystemPart::Guarded(guarded) => self::guarded(field, guarded)?,
            SystemPart::CachePoint(_) => {}
        }
    }
    for (i, message) in request.messages.iter().enumerate() {
        self::message(i, message)?;
    }
    tools(&request.tools, request.tool_choice.as_ref())?;
    if let ResponseFormat::JsonSchema { name, schema, .. } = &request.response_format {
        CHECK.not_blank_if_set("response_format.name", name.as_deref())?;
        CHECK.that(schema.is_object(), "response_format.schema", "must be a JSON object")?;
    }
    if let Some(audio) = &request.audio {
        CHECK.not_blank("audio.voice", &audio.voice)?;
        CHECK.not_blank("audio.media_type", &audio.media_type)?;
    }
    sampling(&request.sampling)?;
    if let Some(guardrail) = &request.guardrail {
        CHECK.not_blank("guardrail.id", &guardrail.id)?;
        CHECK.not_blank("guardrail.version", &guardrail.version)?;
    }
    CHECK.that(!request.metadata.contains_key(""), "metadata", "must not have an empty key")
}

fn message(i: usize, message: &Message) -> Result<()> {
    CHECK.that(!message.content.is_empty(), format_args!("messages[{i}].content"), "must hold at least one part")?;
    CHECK.not_blank_if_set(format_args!("messages[{i}].name"), message.name.as_deref())?;
    for (j, part) in message.content.iter().enumerate() {
        let field = format_args!("messages[{i}].content[{j}]");
        match part {
            ContentPart::Image(image) => image.check(CHECK, field)?,
            ContentPart::Audio(audio) => audio.check(CHECK, field)?,
            ContentPart::Video(video) => video.check(CHECK, field)?,
            ContentPart::Document(document) => document.check(CHECK, field)?,
            ContentPart::Guarded(guarded) => self::guarded(field, guarded)?,
            ContentPart::Reasoning(Reasoning::Redacted(bytes)) => {
                CHECK.that(!bytes.is_empty(), field, "must not be empty")?;
            }
            ContentPart::ToolUse(tool_use) => {
                CHECK.not_blank(format_args!("{field}.id"), &tool_use.id)?;
                CHECK.not_blank(format_args!("{field}.name"), &tool_use.name)?;
            }
            ContentPart::ToolResult(result) => tool_result(field, result)?,
            // A blank text stays for what it is worth: models write them, and their answers come back in the next request.
            ContentPart::Text(_)
            | ContentPart::Refusal(_)
            | ContentPart::CitedText(_)
            | ContentPart::Reasoning(Reasoning::Text { .. })
            | ContentPart::SearchResult(_)
            | ContentPart::ToolAddition(_)
            | ContentPart::ToolRemoval(_)
            | ContentPart::CachePoint(_) => {}
        }
    }
    Ok(())
}

fn guarded(field: impl Display, guarded: &GuardedContent) -> Result<()> {
    match guarded {
        GuardedContent::Text { text, .. } => CHECK.not_blank(field, text),
        GuardedContent::Image(image) => image.check(CHECK, field),
    }
}

fn tool_result(field: impl Display, result: &ToolResult) -> Result<()> {
    CHECK.not_blank(format_args!("{field}.tool_use_id"), &result.tool_use_id)?;
    for (k, part) in result.content.iter().enumerate() {
        let field = format_args!("{field}.content[{k}]");
        match part {
            ToolResultPart::Image(image) => image.check(CHECK, field)?,
            ToolResultPart::Audio(audio) => audio.check(CHECK, field)?,
            ToolResultPart::Video(video) => video.check(CHECK, field)?,
            ToolResultPart::Document(document) => document.check(CHECK, field)?,
            ToolResultPart::Text(_) | ToolResultPart::Json(_) | ToolResultPart::SearchResult(_) => {}
        }
    }
    Ok(())
}

fn tools(tools: &[Tool], choice: Option<&ToolChoice>) -> Result<()> {
    let mut names = BTreeSet::new();
    for (i, tool) in tools.iter().enumerate() {
        if let Some(name) = tool.name() {
            let field = format_args!("tools[{i}].name");
            CHECK.not_blank(field, name)?;
            if !names.insert(name) {
                return Err(CHECK.refuse(field, "must be unique among the tools").with("name", name));
            }
        }
        match tool {
            Tool::Function(function) => {
                let field = format_args!("tools[{i}].input_schema");
                CHECK.that(function.input_schema.is_object(), field, "must be a JSON object")?;
            }
            Tool::Custom(custom) => {
                let grammar = custom.grammar.as_ref().map(|grammar| grammar.definition.as_str());
                CHECK.not_blank_if_set(format_args!("tools[{i}].grammar.definition"), grammar)?;
            }
            Tool::System(_) | Tool::CachePoint(_) => {}
        }
    }
    let wanted = match choice {
        None | Some(ToolChoice::Auto | ToolChoice::None) => return Ok(()),
        Some(ToolChoice::Required) => {
            return CHECK.that(!names.is_empty(), "tool_choice", "requires a tool, and `tools` has none");
        }
        Some(ToolChoice::Tool(name)) => std::slice::from_ref(name),
        Some(ToolChoice::AutoAmong(names) | ToolChoice::RequiredAmong(names)) => names,
    };
    CHECK.that(!wanted.is_empty(), "tool_choice", "must name at least one tool")?;
    match wanted.iter().find(|name| !names.contains(name.as_str())) {
        Some(name) => Err(CHECK.refuse("tool_choice", "names a tool that is not in `tools`").with("name", name)),
        None => Ok(()),
    }
}

fn sampling(sampling: &Sampling) -> Result<()> {
    CHECK.not_zero("sampling.max_tokens", sampling.max_tokens)?;
    CHECK.within("sampling.temperature", sampling.temperature, NOT_NEGATIVE)?;
    CHECK.within("sampling.top_p", sampling.top_p, SHARE)?;
    CHECK.not_zero("sampling.top_k", sampling.top_k)?;
    CHECK.within("sampling.min_p", sampling.min_p, SHARE)?;
    CHECK.within("sampling.frequency_penalty", sampling.frequency_penalty, FINITE)?;
    CHECK.within("sampling.presence_penalty", sampling.presence_penalty, FINITE)?;
    // Logits are divided by it.
    CHECK.within("sampling.repetition_penalty", sampling.repetition_penalty, f32::MIN_POSITIVE..=f32::MAX)?;
    for (i, stop) in sampling.stop.iter().enumerate() {
        CHECK.that(!stop.is_empty(), format_args!("sampling.stop[{i}]"), "must not be empty")?;
    }
    for (token, bias) in &sampling.logit_bias {
        CHECK.within(format_args!("sampling.logit_bias[{token}]"), Some(*bias), FINITE)?;
    }
    CHECK.not_zero("sampling.n", sampling.n)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{
            super::{ImagePart, MediaSource, check::testing::refused},
            Chat, FunctionTool, Guardrail, Role, ToolUse,
        },
        *,
    };

    #[track_caller]
    fn check(change: impl FnOnce(&mut ChatRequest), field: Option<&str>) {
        let mut request = ChatRequest::user("hi").with_tool(FunctionTool::new("weigh", json!({"type": "object"})));
        change(&mut request);
        assert_eq!(refused::<Chat>(&request).as_deref(), field);
    }

    #[test]
    fn what_can_be_answered_is_accepted() {
        check(|_| {}, None);
        check(|r| r.messages.push(Message::assistant("")), None);
        check(|r| r.sampling = Sampling { temperature: Some(0.0), top_p: Some(1.0), ..Sampling::default() }, None);
        check(|r| r.tool_choice = Some(ToolChoice::Tool("weigh".into())), None);
        check(|r| (r.messages, r.prompt_variables) = (vec![], Some([].into())), None);
    }

    #[test]
    fn empty_content_is_refused() {
        let nothing: [ContentPart; 0] = [];
        check(|r| r.messages.clear(), Some("messages"));
        check(|r| r.system.push("".into()), Some("system[0]"));
        check(|r| r.messages.push(Message::new(Role::User, nothing)), Some("messages[1].content"));
        let image = |source: MediaSource| Message::new(Role::User, [ImagePart::new("image/png", source)]);
        check(|r| r.messages.push(image(vec![].into())), Some("messages[1].content[0].source"));
        check(|r| r.messages.push(image(MediaSource::uri(""))), Some("messages[1].content[0].source.uri"));
        let call = Message::new(Role::Assistant, [ToolUse::new("", "weigh", json!({}))]);
        check(|r| r.messages.push(call), Some("messages[1].content[0].id"));
        check(|r| r.messages.push(Message::tool_result("", "5")), Some("messages[1].content[0].tool_use_id"));
        check(|r| r.guardrail = Some(Guardrail::new("", "1")), Some("guardrail.id"));
        check(|r| r.metadata = [(String::new(), "x".into())].into(), Some("metadata"));
    }

    #[test]
    fn tools_that_cannot_be_called_are_refused() {
        let tool = |name: &str, schema| Tool::from(FunctionTool::new(name, schema));
        check(|r| r.tools.push(tool("weigh", json!({}))), Some("tools[1].name"));
        check(|r| r.tools.push(tool(" ", json!({}))), Some("tools[1].name"));
        check(|r| r.tools.push(tool("bake", json!([]))), Some("tools[1].input_schema"));
        check(|r| r.tool_choice = Some(ToolChoice::Tool("bake".into())), Some("tool_choice"));
        check(|r| r.tool_choice = Some(ToolChoice::RequiredAmong(vec![])), Some("tool_choice"));
        check(|r| (r.tools, r.tool_choice) = (vec![], Some(ToolChoice::Required)), Some("tool_choice"));
        check(|r| r.response_format = ResponseFormat::json_schema("a", json!(1)), Some("response_format.schema"));
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        check(|r| r.sampling.temperature = Some(-0.1), Some("sampling.temperature"));
        check(|r| r.sampling.temperature = Some(f32::NAN), Some("sampling.temperature"));
        check(|r| r.sampling.top_p = Some(1.01), Some("sampling.top_p"));
        check(|r| r.sampling.min_p = Some(-1.0), Some("sampling.min_p"));
        check(|r| r.sampling.top_k = Some(0), Some("sampling.top_k"));
        check(|r| r.sampling.max_tokens = Some(0), Some("sampling.max_tokens"));
        check(|r| r.sampling.n = Some(0), Some("sampling.n"));
        check(|r| r.sampling.frequency_penalty = Some(f32::INFINITY), Some("sampling.frequency_penalty"));
        check(|r| r.sampling.presence_penalty = Some(f32::NAN), Some("sampling.presence_penalty"));
        check(|r| r.sampling.repetition_penalty = Some(0.0), Some("sampling.repetition_penalty"));
        check(|r| r.sampling.stop.push(String::new()), Some("sampling.stop[0]"));
        check(|r| r.sampling.logit_bias = [(3, f32::NAN)].into(), Some("sampling.logit_bias[3]"));
    }
}
