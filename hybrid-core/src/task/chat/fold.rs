use std::{collections::BTreeMap, mem};

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{
    super::{MediaSource, is_default},
    BlockDelta, ChatDelta, ChatResponse, Choice, CitedText, ContentPart, Logprobs, Message, Reasoning, ResponseDetails,
    Role, StopReason, ToolResultPart, ToolUse, ToolUseKind,
};
use crate::{Error, Result};

pub(super) fn split(response: ChatResponse) -> Vec<ChatDelta> {
    let mut deltas = Vec::new();
    for (choice, answer) in (0..).zip(response.choices) {
        let Choice { message, stop_reason: reason, stop_sequence: sequence, logprobs } = answer;
        deltas.push(ChatDelta::Start { choice, role: message.role, name: message.name });
        for (block, part) in (0..).zip(message.content) {
            let (part, rest) = split_part(part, &reason);
            deltas.push(ChatDelta::BlockStart { choice, block, part });
            deltas.extend(rest.into_iter().map(|delta| ChatDelta::Block { choice, block, delta }));
            deltas.push(ChatDelta::BlockStop { choice, block });
        }
        deltas.extend(logprobs.map(|logprobs| ChatDelta::Logprobs { choice, logprobs }));
        deltas.push(ChatDelta::Stop { choice, reason, sequence });
    }
    if !is_default(&response.details) {
        deltas.push(ChatDelta::Details(response.details));
    }
    deltas
}

/// A part as its block begins, and what is added to it. What has no text begins whole.
fn split_part(part: ContentPart, reason: &StopReason) -> (ContentPart, Vec<BlockDelta>) {
    let text_delta = |text: String| (!text.is_empty()).then_some(BlockDelta::Text(text));
    match part {
        ContentPart::Text(text) => (ContentPart::Text(String::new()), text_delta(text).into_iter().collect()),
        ContentPart::Refusal(text) => (ContentPart::Refusal(String::new()), text_delta(text).into_iter().collect()),
        ContentPart::CitedText(CitedText { text, citations }) => {
            let citations = citations.into_iter().map(BlockDelta::Citation);
            (CitedText::default().into(), text_delta(text).into_iter().chain(citations).collect())
        }
        ContentPart::Reasoning(Reasoning::Text { text, signature }) => {
            let thoughts = (!text.is_empty()).then_some(BlockDelta::Reasoning(text));
            let signature = signature.map(BlockDelta::Signature);
            (Reasoning::text("").into(), thoughts.into_iter().chain(signature).collect())
        }
        ContentPart::ToolUse(mut tool_use) => match input_text(&tool_use, reason) {
            Some(text) => {
                tool_use.input = Value::Null;
                (tool_use.into(), vec![BlockDelta::ToolInput(text)])
            }
            None => (tool_use.into(), Vec::new()),
        },
        whole => (whole, Vec::new()),
    }
}

/// A tool's input as its model wrote it: the inverse of [`read_input`].
fn input_text(tool_use: &ToolUse, reason: &StopReason) -> Option<String> {
    match (&tool_use.input, tool_use.kind) {
        (Value::String(text), ToolUseKind::Custom) => Some(text.clone()),
        (_, ToolUseKind::Custom) => None,
        (Value::String(cut), _) if !reason.is_complete() && is_unfinished_json(cut) => Some(cut.clone()),
        (input, _) => Some(input.to_string()),
    }
}

fn is_unfinished_json(text: &str) -> bool {
    !text.trim().is_empty() && serde_json::from_str::<IgnoredAny>(text).is_err()
}

pub(super) fn fold(deltas: impl IntoIterator<Item = ChatDelta>) -> Result<ChatResponse> {
    let mut answers = BTreeMap::<u32, Answer>::new();
    let mut details = ResponseDetails::default();
    for delta in deltas {
        let choice = match &delta {
            ChatDelta::Details(_) => None,
            ChatDelta::Start { choice, .. }
            | ChatDelta::BlockStart { choice, .. }
            | ChatDelta::Block { choice, .. }
            | ChatDelta::BlockStop { choice, .. }
            | ChatDelta::Logprobs { choice, .. }
            | ChatDelta::Stop { choice, .. } => Some(*choice),
        };
        match (choice, delta) {
            (Some(choice), delta) => {
                answers.entry(choice).or_default().add(delta).map_err(|e| e.with("choice", choice))?
            }
            (None, ChatDelta::Details(later)) => details.merge(later),
            (None, _) => {}
        }
    }
    let mut choices = Vec::with_capacity(answers.len());
    for (expected, (choice, answer)) in (0..).zip(answers) {
        if choice != expected {
            return Err(corrupt("a choice is missing").with("choice", expected));
        }
        choices.push(answer.finish().map_err(|e| e.with("choice", choice))?);
    }
    if choices.is_empty() {
        return Err(corrupt("the stream has no choice"));
    }
    Ok(ChatResponse { choices, details })
}

fn corrupt(message: &'static str) -> Error {
    Error::corrupt("fold chat deltas", message)
}

/// One choice as far as it has come.
#[derive(Default)]
struct Answer {
    speaker: Option<(Role, Option<String>)>,
    blocks: BTreeMap<u32, Block>,
    logprobs: Option<Logprobs>,
    stop: Option<(StopReason, Option<String>)>,
}

impl Answer {
    fn add(&mut self, delta: ChatDelta) -> Result<()> {
        if self.stop.is_some() {
            return Err(corrupt("a delta came after the end of its choice"));
        }
        match delta {
            ChatDelta::Start { role, name, .. } => {
                if self.speaker.is_some() || !self.blocks.is_empty() {
                    return Err(corrupt("the choice began already"));
                }
                self.speaker = Some((role, name));
            }
            ChatDelta::BlockStart { block, part, .. } => {
                if self.blocks.insert(block, Block::new(part)).is_some() {
                    return Err(corrupt("the block began already").with("block", block));
                }
            }
            ChatDelta::Block { block, delta, .. } => {
                self.add_to_block(block, delta).map_err(|e| e.with("block", block))?
            }
            ChatDelta::BlockStop { block, .. } => match self.blocks.get_mut(&block) {
                Some(known) if !known.whole => known.whole = true,
                _ => return Err(corrupt("a block ended that was not open").with("block", block)),
            },
            ChatDelta::Logprobs { logprobs, .. } => {
                let known = self.logprobs.get_or_insert_default();
                known.content.extend(logprobs.content);
                known.refusal.extend(logprobs.refusal);
            }
            ChatDelta::Stop { reason, sequence, .. } => self.stop = Some((reason, sequence)),
            ChatDelta::Details(_) => {}
        }
        Ok(())
    }

    fn add_to_block(&mut self, block: u32, delta: BlockDelta) -> Result<()> {
        if let Some(known) = self.blocks.get_mut(&block) {
            return known.add(delta);
        }
        // Some providers announce only the blocks whose kind the first delta does not tell.
        let part = match &delta {
            BlockDelta::Text(_) => ContentPart::Text(String::new()),
            BlockDelta::Citation(_) => CitedText::default().into(),
            BlockDelta::Reasoning(_) | BlockDelta::Signature(_) => Reasoning::text("").into(),
            BlockDelta::Redacted(_) => Reasoning::Redacted(Bytes::new()).into(),
            _ => return Err(corrupt("a block went on that had not begun")),
        };
        self.blocks.entry(block).or_insert(Block::new(part)).add(delta)
    }

    fn finish(self) -> Result<Choice> {
        let Some((stop_reason, stop_sequence)) = self.stop else {
            return Err(corrupt("the stream ended before the choice did"));
        };
        let (role, name) = self.speaker.unwrap_or((Role::Assistant, None));
        let content = self
            .blocks
            .into_iter()
            .map(|(block, part)| part.finish(&stop_reason).map_err(|e| e.with("block", block)))
            .collect::<Result<_>>()?;
        Ok(Choice { message: Message { role, name, content }, stop_reason, stop_sequence, logprobs: self.logprobs })
    }
}

/// One block as far as it has come. What grows and is not in a `String` of the part already, grows beside it.
struct Block {
    part: ContentPart,
    input: Option<String>,
    data: Option<BytesMut>,
    whole: bool,
}

impl Block {
    fn new(part: ContentPart) -> Self {
        Self { part, input: None, data: None, whole: false }
    }

    fn add(&mut self, delta: BlockDelta) -> Result<()> {
        if self.whole {
            return Err(corrupt("a delta came after the end of its block"));
        }
        match (&mut self.part, delta) {
            (ContentPart::Text(text) | ContentPart::Refusal(text), BlockDelta::Text(more)) => text.push_str(&more),
            (ContentPart::CitedText(cited), BlockDelta::Text(more)) => cited.text.push_str(&more),
            (ContentPart::CitedText(cited), BlockDelta::Citation(citation)) => cited.citations.push(citation),
            (ContentPart::Text(text), BlockDelta::Citation(citation)) => {
                self.part = CitedText { text: mem::take(text), citations: vec![citation] }.into();
            }
            (ContentPart::Reasoning(Reasoning::Text { text, .. }), BlockDelta::Reasoning(more)) => text.push_str(&more),
            (ContentPart::Reasoning(Reasoning::Text { signature, .. }), BlockDelta::Signature(more)) => {
                signature.get_or_insert_default().push_str(&more);
            }
            (ContentPart::Reasoning(reasoning), BlockDelta::Redacted(more)) => {
                if *reasoning == Reasoning::text("") {
                    *reasoning = Reasoning::Redacted(Bytes::new());
                }
                let Reasoning::Redacted(begun) = reasoning else { return Err(unfit()) };
                self.data.get_or_insert_with(|| BytesMut::from(&begun[..])).extend_from_slice(&more);
            }
            (ContentPart::ToolUse(_), BlockDelta::ToolInput(more)) => {
                self.input.get_or_insert_default().push_str(&more)
            }
            (ContentPart::ToolResult(result), BlockDelta::ToolResult(more)) => {
                match (result.content.last_mut(), more) {
                    (Some(ToolResultPart::Text(text)), ToolResultPart::Text(more)) => text.push_str(&more),
                    (_, more) => result.content.push(more),
                }
            }
            (ContentPart::Audio(audio), BlockDelta::Transcript(more)) => {
                audio.transcript.get_or_insert_default().push_str(&more);
            }
            (ContentPart::Audio(audio), BlockDelta::ExpiresAt(time)) => audio.expires_at = Some(time),
            (ContentPart::Audio(audio), BlockDelta::Error(error)) => audio.error = Some(error),
            (ContentPart::Image(image), BlockDelta::Error(error)) => image.error = Some(error),
            (part, BlockDelta::Media(more)) => match (source(part).ok_or_else(unfit)?, more) {
                (MediaSource::Bytes(begun), MediaSource::Bytes(more)) => {
                    self.data.get_or_insert_with(|| BytesMut::from(&begun[..])).extend_from_slice(&more);
                }
                (begun, elsewhere) if self.data.is_none() && is_default(begun) => *begun = elsewhere,
                _ => return Err(corrupt("a medium came from two places")),
            },
            _ => return Err(unfit()),
        }
        Ok(())
    }

    fn finish(mut self, reason: &StopReason) -> Result<ContentPart> {
        if let Some(data) = self.data.take().map(BytesMut::freeze) {
            if let Some(source) = source(&mut self.part) {
                *source = data.into();
            } else {
                self.part = Reasoning::Redacted(data).into();
            }
        }
        if let ContentPart::ToolUse(tool_use) = &mut self.part {
            read_input(tool_use, self.input, reason)?;
        }
        Ok(self.part)
    }
}

fn unfit() -> Error {
    corrupt("a delta does not fit the kind of its block")
}

fn source(part: &mut ContentPart) -> Option<&mut MediaSource> {
    match part {
        ContentPart::Image(image) => Some(&mut image.source),
        ContentPart::Audio(audio) => Some(&mut audio.source),
        ContentPart::Video(video) => Some(&mut video.source),
        _ => None,
    }
}

/// Reads the joined fragments of a tool's input, once.
fn read_input(tool_use: &mut ToolUse, text: Option<String>, reason: &StopReason) -> Result<()> {
    tool_use.input = match (text, tool_use.kind) {
        (Some(text), ToolUseKind::Custom) => Value::String(text),
        // Providers send nothing for a tool without arguments.
        (Some(text), _) if text.trim().is_empty() => Value::Object(Map::new()),
        (None, ToolUseKind::Function | ToolUseKind::Server) if tool_use.input.is_null() => Value::Object(Map::new()),
        (None, _) => return Ok(()),
        (Some(text), _) => match serde_json::from_str(&text) {
            Ok(input) => input,
            Err(_) if !reason.is_complete() => Value::String(text),
            Err(error) => {
                let error = corrupt("the input of a tool use is not JSON").with_source(error);
                return Err(error.with("tool", &tool_use.name));
            }
        },
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::{
            super::{
                AudioPart, ImagePart,
                check::testing::{fold_error, over_json},
            },
            Chat, Citation, TokenLogprob, ToolResult,
        },
        *,
    };

    fn begin(block: u32, part: impl Into<ContentPart>) -> ChatDelta {
        ChatDelta::BlockStart { choice: 0, block, part: part.into() }
    }

    fn go_on(block: u32, delta: BlockDelta) -> ChatDelta {
        ChatDelta::Block { choice: 0, block, delta }
    }

    fn stop(reason: StopReason) -> ChatDelta {
        ChatDelta::Stop { choice: 0, reason, sequence: None }
    }

    fn input(fragments: &[&str], reason: StopReason) -> Result<Value> {
        let fragments = fragments.iter().map(|text| go_on(3, BlockDelta::ToolInput((*text).into())));
        let deltas = [begin(3, ToolUse::new("t", "weigh", Value::Null))].into_iter().chain(fragments);
        let response = fold(deltas.chain([stop(reason)]))?;
        Ok(response.choices[0].message.tool_uses().next().unwrap().input.clone())
    }

    #[test]
    fn tool_input_is_joined_and_read_once() {
        assert_eq!(input(&[r#"{"gra"#, r#"ms":"#, "5}"], StopReason::ToolUse).unwrap(), json!({"grams": 5}));
        assert_eq!(input(&[], StopReason::ToolUse).unwrap(), json!({}));
        assert_eq!(input(&[""], StopReason::ToolUse).unwrap(), json!({}));
    }

    #[test]
    fn tool_input_that_is_not_json_is_corrupt_unless_the_model_was_cut_off() {
        let error = input(&[r#"{"gra"#], StopReason::ToolUse).unwrap_err();
        assert_eq!((error.context("tool"), error.context("block")), (Some("weigh"), Some("3")));
        assert_eq!(input(&[r#"{"gra"#], StopReason::MaxTokens).unwrap(), json!(r#"{"gra"#));
    }

    #[test]
    fn a_stream_without_starts_is_read_as_its_deltas_tell() {
        let citation = Citation { title: Some("t".into()), ..Citation::default() };
        let response = fold([
            go_on(0, BlockDelta::Reasoning("h".into())),
            go_on(0, BlockDelta::Reasoning("m".into())),
            go_on(0, BlockDelta::Signature("s".into())),
            ChatDelta::text(4, "a"),
            ChatDelta::text(4, "b"),
            go_on(4, BlockDelta::Citation(citation.clone())),
            go_on(2, BlockDelta::Redacted(Bytes::from_static(&[1]))),
            go_on(2, BlockDelta::Redacted(Bytes::from_static(&[2]))),
            stop(StopReason::EndTurn),
        ]);
        let message = response.unwrap().choices.remove(0).message;
        assert_eq!(message.role, Role::Assistant);
        let thoughts = Reasoning::Text { text: "hm".into(), signature: Some("s".into()) };
        let redacted = Reasoning::Redacted(Bytes::from_static(&[1, 2]));
        let cited = CitedText { text: "ab".into(), citations: vec![citation] };
        assert_eq!(message.content, [thoughts.into(), redacted.into(), cited.into()]);
    }

    #[test]
    fn media_and_tool_results_grow() {
        let media = |bytes: &'static [u8]| BlockDelta::Media(Bytes::from_static(bytes).into());
        let part = |text: &str| BlockDelta::ToolResult(ToolResultPart::Text(text.into()));
        let response = fold([
            begin(0, AudioPart::new("audio/wav", vec![1])),
            go_on(0, media(&[2])),
            go_on(0, media(&[3])),
            go_on(0, BlockDelta::Transcript("hi".into())),
            begin(1, ImagePart::new("image/png", MediaSource::default())),
            go_on(1, BlockDelta::Media(MediaSource::uri("s3://b/k"))),
            begin(2, ToolResult { tool_use_id: "t".into(), ..ToolResult::default() }),
            go_on(2, part("5 ")),
            go_on(2, part("g")),
            stop(StopReason::EndTurn),
        ]);
        let audio = AudioPart { transcript: Some("hi".into()), ..AudioPart::new("audio/wav", vec![1, 2, 3]) };
        let image = ImagePart::new("image/png", MediaSource::uri("s3://b/k"));
        let parts = [audio.into(), image.into(), ToolResult::text("t", "5 g").into()];
        assert_eq!(response.unwrap().choices[0].message.content, parts);
    }

    #[test]
    fn half_an_answer_is_corrupt() {
        let end = || stop(StopReason::EndTurn);
        let text = || begin(0, "");
        let closed = || ChatDelta::BlockStop { choice: 0, block: 0 };
        let start = || ChatDelta::Start { choice: 0, role: Role::Assistant, name: None };
        let later = ChatDelta::Stop { choice: 1, reason: StopReason::EndTurn, sequence: None };
        for (deltas, message) in [
            (vec![], "no choice"),
            (vec![later], "a choice is missing (choice: 0)"),
            (vec![start()], "ended before"),
            (vec![start(), start()], "began already"),
            (vec![text(), text()], "began already"),
            (vec![end(), ChatDelta::text(0, "a")], "after the end of its choice"),
            (vec![text(), closed(), ChatDelta::text(0, "a")], "after the end of its block"),
            (vec![closed()], "not open"),
            (vec![go_on(0, BlockDelta::ToolInput("{".into()))], "had not begun"),
            (vec![text(), go_on(0, BlockDelta::Reasoning("a".into()))], "does not fit"),
            (vec![text(), go_on(0, BlockDelta::Media(MediaSource::default()))], "does not fit"),
        ] {
            let error = fold_error::<Chat>(deltas);
            assert!(error.contains(message), "{error}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn part() -> impl Strategy<Value = ContentPart> {
        let kind = prop_oneof![Just(ToolUseKind::Function), Just(ToolUseKind::Custom), Just(ToolUseKind::Server)];
        let citations = || prop::collection::vec(Just(Citation::default()), 0..3);
        prop_oneof![
            ".{0,8}".prop_map(ContentPart::Text),
            ".{0,8}".prop_map(ContentPart::Refusal),
            (".{0,8}", citations()).prop_map(|(text, citations)| CitedText { text, citations }.into()),
            (".{0,8}", prop::option::of(".{0,3}"))
                .prop_map(|(text, signature)| Reasoning::Text { text, signature }.into()),
            any::<Vec<u8>>().prop_map(|bytes| Reasoning::Redacted(bytes.into()).into()),
            any::<Vec<u8>>().prop_map(|bytes| ImagePart::new("image/png", bytes).into()),
            ("[{}\"a ]{0,5}").prop_map(|cut| ToolUse::new("t", "weigh", Value::String(cut)).into()),
            (json_value(), kind).prop_map(|(input, kind)| ToolUse { kind, ..ToolUse::new("t", "weigh", input) }.into()),
            json_value().prop_map(|value| ToolResult::json("t", value).into()),
        ]
    }

    fn choice() -> impl Strategy<Value = Choice> {
        let reason = prop_oneof![Just(StopReason::EndTurn), Just(StopReason::MaxTokens), Just("resting".into())];
        let logprobs = prop::option::of(prop::collection::vec(Just(TokenLogprob::new("a", -1.0)), 0..2));
        let name = prop::option::of(Just("Ada".to_owned()));
        (prop::collection::vec(part(), 0..4), reason, logprobs, name).prop_map(|(content, reason, logprobs, name)| {
            let logprobs = logprobs.map(|content| Logprobs { content, refusal: vec![] });
            Choice { logprobs, ..Choice::new(Message { role: Role::Assistant, name, content }, reason) }
        })
    }

    proptest! {
        #[test]
        fn answers_come_back(choices in prop::collection::vec(choice(), 1..3), id: Option<String>) {
            let response = ChatResponse { choices, details: ResponseDetails { id, ..ResponseDetails::default() } };
            let deltas = split(response.clone());
            prop_assert_eq!(&over_json(&deltas), &deltas);
            prop_assert_eq!(&fold(deltas).unwrap(), &response);
            prop_assert_eq!(over_json(&response), response);
        }
    }
}
