//! An answer, whole or as named events.

use std::collections::BTreeMap;

use hybrid_core::{
    ReplyMeta,
    task::{BlockDelta, ChatDelta, ContentPart, Reasoning, StopReason, ToolUseKind},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    super::chat::{Heading, citation, input_text, write_logprobs},
    FormatSettings, Incomplete, OutputContent, OutputItem, ResponseAnnotation, ResponseError, ResponseObject,
    ResponseRequest, TextSettings,
};

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// An event with its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) name: &'static str,
    pub(crate) data: Value,
}

/// Writes deltas as events, and the whole answer at the end.
#[derive(Debug)]
pub(crate) struct ResponseWriter {
    response: ResponseObject,
    /// What its items are named after.
    id: String,
    sequence: u64,
    /// Which item each block is; `None` where this API has no place for it.
    blocks: BTreeMap<u32, Option<usize>>,
    /// The block that ended last. Whether it is whole shows in what comes next: another block, or the reason why the model stopped.
    ended: Option<u32>,
    stopped: Option<StopReason>,
    out: Vec<Named>,
}

impl ResponseWriter {
    /// The answer to a request, before anything is known of it. The heading's id is without its prefix.
    pub(crate) fn new(heading: Heading, wire: ResponseRequest) -> Self {
        let Heading { id, created, model } = heading;
        let text_format = || FormatSettings { kind: "text".into(), ..FormatSettings::default() };
        let mut text = wire.text.unwrap_or_default();
        text.format.get_or_insert_with(text_format);
        let mut reasoning = wire.reasoning.unwrap_or_default();
        reasoning.summary = None;
        let response = ResponseObject {
            id: format!("resp_{id}"),
            object: "response",
            created_at: created,
            status: IN_PROGRESS,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: wire.instructions,
            max_output_tokens: wire.max_output_tokens,
            model,
            output: Vec::new(),
            parallel_tool_calls: wire.parallel_tool_calls.unwrap_or(true),
            previous_response_id: None,
            reasoning,
            service_tier: wire.service_tier,
            store: false,
            temperature: wire.temperature,
            text: TextSettings { ..text },
            tool_choice: wire.tool_choice.unwrap_or_else(|| json!("auto")),
            tools: wire.tools.unwrap_or_default(),
            top_p: wire.top_p,
            truncation: "disabled",
            usage: None,
            user: wire.user,
            metadata: wire.metadata.unwrap_or_default(),
            notes: Vec::new(),
        };
        Self { response, id, sequence: 0, blocks: BTreeMap::new(), ended: None, stopped: None, out: Vec::new() }
    }

    /// The events that come before the first delta.
    pub(crate) fn begin(&mut self) -> Vec<Named> {
        self.tell_all("response.created");
        self.tell_all("response.in_progress");
        std::mem::take(&mut self.out)
    }

    /// The events that a delta makes.
    pub(crate) fn write(&mut self, delta: ChatDelta) -> Vec<Named> {
        match delta {
            ChatDelta::BlockStart { choice: 0, block, part } => {
                self.close_ended(COMPLETED);
                self.open(block, part);
            }
            ChatDelta::Block { choice: 0, block, delta } => {
                self.close_ended(COMPLETED);
                self.add(block, delta);
            }
            ChatDelta::BlockStop { choice: 0, block } => {
                self.close_ended(COMPLETED);
                self.ended = Some(block);
            }
            ChatDelta::Stop { choice: 0, reason, .. } => {
                let status = if reason.is_complete() { COMPLETED } else { INCOMPLETE };
                self.close_ended(status);
                let open: Vec<_> = self.blocks.keys().copied().collect();
                open.into_iter().for_each(|block| self.close(block, status));
                self.stopped = Some(reason);
            }
            ChatDelta::Logprobs { choice: 0, logprobs } => {
                let text = self.response.output.iter_mut().rev().find_map(|item| match item {
                    OutputItem::Message { content, .. } => content.iter_mut().find_map(|part| match part {
                        OutputContent::OutputText { logprobs, .. } => Some(logprobs),
                        _ => None,
                    }),
                    _ => None,
                });
                if let Some(known) = text {
                    known.extend(write_logprobs(logprobs).content.into_iter().flatten());
                }
            }
            ChatDelta::Details(details) => {
                self.response.service_tier =
                    details.service_tier.map(|tier| tier.as_str().to_owned()).or(self.response.service_tier.take());
            }
            _ => {}
        }
        std::mem::take(&mut self.out)
    }

    /// The event that ends the answer.
    pub(crate) fn finish(&mut self, meta: &ReplyMeta) -> Vec<Named> {
        self.response.usage = Some((&meta.usage).into());
        self.response.notes = meta.notes.clone();
        let incomplete = |reason: &str| Some(Incomplete { reason: reason.to_owned() });
        match &self.stopped {
            Some(StopReason::EndTurn | StopReason::ToolUse | StopReason::StopSequence | StopReason::Refusal) => {
                self.response.status = COMPLETED;
                self.tell_all("response.completed");
            }
            None | Some(StopReason::MalformedOutput | StopReason::MalformedToolUse) => {
                return self.fail("server_error", "the model wrote what its provider could not read");
            }
            Some(reason) => {
                self.response.incomplete_details = match reason {
                    StopReason::MaxTokens | StopReason::ContextWindowExceeded => incomplete("max_output_tokens"),
                    StopReason::GuardrailIntervened | StopReason::ContentFiltered => incomplete("content_filter"),
                    other => incomplete(other.as_str()),
                };
                self.response.status = INCOMPLETE;
                self.tell_all("response.incomplete");
            }
        }
        std::mem::take(&mut self.out)
    }

    /// The event that ends an answer that failed on its way.
    pub(crate) fn fail(&mut self, code: &str, message: &str) -> Vec<Named> {
        self.response.status = "failed";
        self.response.error = Some(ResponseError { code: code.to_owned(), message: message.to_owned() });
        self.tell_all("response.failed");
        std::mem::take(&mut self.out)
    }

    /// The answer as it stands.
    pub(crate) fn into_response(self) -> ResponseObject {
        self.response
    }

    fn open(&mut self, block: u32, part: ContentPart) {
        let index = self.response.output.len();
        let id = |prefix: &str| format!("{prefix}_{}_{index}", self.id);
        let message = |content| OutputItem::Message {
            id: id("msg"),
            status: IN_PROGRESS,
            role: "assistant",
            content: vec![content],
        };
        let (item, first) = match part {
            ContentPart::Text(text) => (message(text_of(String::new())), Some(BlockDelta::Text(text))),
            ContentPart::CitedText(cited) => (message(text_of(String::new())), Some(BlockDelta::Text(cited.text))),
            ContentPart::Refusal(text) => {
                (message(OutputContent::Refusal { refusal: String::new() }), Some(BlockDelta::Text(text)))
            }
            ContentPart::Reasoning(Reasoning::Text { text, .. }) => {
                let content = vec![OutputContent::ReasoningText { text: String::new() }];
                let item = OutputItem::Reasoning { id: id("rs"), status: IN_PROGRESS, summary: Vec::new(), content };
                (item, Some(BlockDelta::Reasoning(text)))
            }
            ContentPart::ToolUse(tool_use) if tool_use.kind != ToolUseKind::Server => {
                let first = (!tool_use.input.is_null()).then(|| BlockDelta::ToolInput(input_text(&tool_use)));
                let (status, call_id, name) = (IN_PROGRESS, tool_use.id, tool_use.name);
                let item = match tool_use.kind {
                    ToolUseKind::Custom => {
                        OutputItem::CustomToolCall { id: id("ctc"), status, call_id, name, input: String::new() }
                    }
                    _ => OutputItem::FunctionCall { id: id("fc"), status, call_id, name, arguments: String::new() },
                };
                (item, first)
            }
            _ => {
                self.blocks.insert(block, None);
                return;
            }
        };
        self.blocks.insert(block, Some(index));
        // The item is announced empty, and its part after it.
        let mut announced = item.clone();
        let part = match &mut announced {
            OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => content.pop(),
            _ => None,
        };
        let item_id = item_id(&item).to_owned();
        self.response.output.push(item);
        self.tell("response.output_item.added", json!({ "output_index": index, "item": announced }));
        if let Some(part) = part {
            let data = json!({ "item_id": item_id, "output_index": index, "content_index": 0, "part": part });
            self.tell("response.content_part.added", data);
        }
        if let Some(first) = first {
            self.add(block, first);
        }
    }

    fn add(&mut self, block: u32, delta: BlockDelta) {
        if !self.blocks.contains_key(&block) {
            // A block that was not announced is what its first delta tells.
            match &delta {
                BlockDelta::Text(_) | BlockDelta::Citation(_) => self.open(block, String::new().into()),
                BlockDelta::Reasoning(_) => self.open(block, Reasoning::text("").into()),
                _ => return,
            }
        }
        let Some(index) = self.blocks.get(&block).copied().flatten() else { return };
        let Some(item) = self.response.output.get_mut(index) else { return };
        let item_id = item_id(item).to_owned();
        let place = |field: &str, value: Value| {
            let mut data = json!({ "item_id": item_id, "output_index": index, "content_index": 0 });
            data[field] = value;
            data
        };
        let told = match (item, delta) {
            (OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. }, delta) => {
                match (content.first_mut(), delta) {
                    (Some(OutputContent::OutputText { text, .. }), BlockDelta::Text(more)) if !more.is_empty() => {
                        text.push_str(&more);
                        let mut data = place("delta", more.into());
                        data["logprobs"] = json!([]);
                        Some(("response.output_text.delta", data))
                    }
                    (Some(OutputContent::OutputText { text, annotations, .. }), BlockDelta::Citation(cited)) => {
                        citation(&cited, 0, text).and_then(|annotation| annotation.url_citation).map(|cited| {
                            let annotation = ResponseAnnotation { kind: "url_citation", cited };
                            let mut data = place("annotation", value(&annotation));
                            data["annotation_index"] = annotations.len().into();
                            annotations.push(annotation);
                            ("response.output_text.annotation.added", data)
                        })
                    }
                    (Some(OutputContent::Refusal { refusal }), BlockDelta::Text(more)) if !more.is_empty() => {
                        refusal.push_str(&more);
                        Some(("response.refusal.delta", place("delta", more.into())))
                    }
                    (Some(OutputContent::ReasoningText { text }), BlockDelta::Reasoning(more)) if !more.is_empty() => {
                        text.push_str(&more);
                        Some(("response.reasoning_text.delta", place("delta", more.into())))
                    }
                    _ => None,
                }
            }
            (OutputItem::FunctionCall { arguments, .. }, BlockDelta::ToolInput(more)) => {
                arguments.push_str(&more);
                let data = json!({ "item_id": item_id, "output_index": index, "delta": more });
                Some(("response.function_call_arguments.delta", data))
            }
            (OutputItem::CustomToolCall { input, .. }, BlockDelta::ToolInput(more)) => {
                input.push_str(&more);
                let data = json!({ "item_id": item_id, "output_index": index, "delta": more });
                Some(("response.custom_tool_call_input.delta", data))
            }
            _ => None,
        };
        if let Some((name, data)) = told {
            self.tell(name, data);
        }
    }

    fn close_ended(&mut self, status: &'static str) {
        if let Some(block) = self.ended.take() {
            self.close(block, status);
        }
    }

    /// Ends an item, once.
    fn close(&mut self, block: u32, ended: &'static str) {
        let Some(index) = self.blocks.insert(block, None).flatten() else { return };
        let Some(item) = self.response.output.get_mut(index) else { return };
        let done = match item {
            OutputItem::Message { status, content, .. } | OutputItem::Reasoning { status, content, .. } => {
                *status = ended;
                content.first().map(|part| {
                    let (name, field, text) = match part {
                        OutputContent::OutputText { text, .. } => ("response.output_text.done", "text", text),
                        OutputContent::Refusal { refusal } => ("response.refusal.done", "refusal", refusal),
                        OutputContent::ReasoningText { text } => ("response.reasoning_text.done", "text", text),
                    };
                    (name, field, text.clone(), Some(part.clone()))
                })
            }
            OutputItem::FunctionCall { status, arguments, .. } => {
                *status = ended;
                // Providers send nothing for a tool without arguments.
                if arguments.is_empty() {
                    arguments.push_str("{}");
                }
                Some(("response.function_call_arguments.done", "arguments", arguments.clone(), None))
            }
            OutputItem::CustomToolCall { status, input, .. } => {
                *status = ended;
                Some(("response.custom_tool_call_input.done", "input", input.clone(), None))
            }
        };
        let item = item.clone();
        let item_id = item_id(&item);
        if let Some((name, field, text, part)) = done {
            let mut data = json!({ "item_id": item_id, "output_index": index });
            data[field] = text.into();
            if let OutputItem::FunctionCall { name, .. } = &item {
                data["name"] = name.as_str().into();
            }
            if part.is_some() {
                data["content_index"] = 0.into();
            }
            if name == "response.output_text.done" {
                data["logprobs"] = json!([]);
            }
            self.tell(name, data);
            if let Some(part) = part {
                let data = json!({ "item_id": item_id, "output_index": index, "content_index": 0, "part": part });
                self.tell("response.content_part.done", data);
            }
        }
        self.tell("response.output_item.done", json!({ "output_index": index, "item": item }));
    }

    fn tell_all(&mut self, name: &'static str) {
        let response = value(&self.response);
        self.tell(name, json!({ "response": response }));
    }

    fn tell(&mut self, name: &'static str, data: Value) {
        let mut fields = Map::from_iter([
            ("type".to_owned(), Value::from(name)),
            ("sequence_number".to_owned(), Value::from(self.sequence)),
        ]);
        if let Value::Object(data) = data {
            fields.extend(data);
        }
        self.sequence += 1;
        self.out.push(Named { name, data: fields.into() });
    }
}

fn text_of(text: String) -> OutputContent {
    OutputContent::OutputText { text, annotations: Vec::new(), logprobs: Vec::new() }
}

fn item_id(item: &OutputItem) -> &str {
    match item {
        OutputItem::Message { id, .. }
        | OutputItem::FunctionCall { id, .. }
        | OutputItem::CustomToolCall { id, .. }
        | OutputItem::Reasoning { id, .. } => id,
    }
}

fn value(serialisable: &impl Serialize) -> Value {
    // Plain structs of texts and finite numbers always serialise.
    serde_json::to_value(serialisable).unwrap_or_default()
}
