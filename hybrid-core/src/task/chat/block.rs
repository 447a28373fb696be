use std::mem;

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{
    super::{MediaSource, is_default},
    BlockDelta, CitedText, ContentPart, Reasoning, StopReason, ToolResultPart, ToolUse, ToolUseKind,
};
use crate::{Error, Result};

/// A part as its block begins, and what is added to it. What has no text begins whole.
pub(super) fn split_part(part: ContentPart, reason: &StopReason) -> (ContentPart, Vec<BlockDelta>) {
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

/// One block as far as it has come. What grows and is not in a `String` of the part already, grows beside it.
pub(super) struct Block {
    part: ContentPart,
    input: Option<String>,
    data: Option<BytesMut>,
    whole: bool,
}

impl Block {
    pub(super) fn new(part: ContentPart) -> Self {
        Self { part, input: None, data: None, whole: false }
    }

    /// A block that was not announced: some providers announce only the blocks whose kind the first delta does not tell.
    pub(super) fn begun_by(delta: &BlockDelta) -> Result<Self> {
        Ok(Self::new(match delta {
            BlockDelta::Text(_) => ContentPart::Text(String::new()),
            BlockDelta::Citation(_) => CitedText::default().into(),
            BlockDelta::Reasoning(_) | BlockDelta::Signature(_) => Reasoning::text("").into(),
            BlockDelta::Redacted(_) => Reasoning::Redacted(Bytes::new()).into(),
            _ => return Err(corrupt("a block went on that had not begun")),
        }))
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        if mem::replace(&mut self.whole, true) { Err(corrupt("the block ended already")) } else { Ok(()) }
    }

    pub(super) fn add(&mut self, delta: BlockDelta) -> Result<()> {
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

    pub(super) fn finish(mut self, reason: &StopReason) -> Result<ContentPart> {
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

pub(super) fn corrupt(message: &'static str) -> Error {
    Error::corrupt("fold chat deltas", message)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::{
            super::{AudioPart, ImagePart},
            Citation, ToolResult,
        },
        *,
    };

    fn grow(part: impl Into<ContentPart>, deltas: impl IntoIterator<Item = BlockDelta>) -> Result<ContentPart> {
        grow_until(StopReason::EndTurn, part, deltas)
    }

    fn grow_until(
        reason: StopReason,
        part: impl Into<ContentPart>,
        deltas: impl IntoIterator<Item = BlockDelta>,
    ) -> Result<ContentPart> {
        let mut block = Block::new(part.into());
        deltas.into_iter().try_for_each(|delta| block.add(delta))?;
        block.finish(&reason)
    }

    fn input(fragments: &[&str], reason: StopReason) -> Result<Value> {
        let fragments = fragments.iter().map(|text| BlockDelta::ToolInput((*text).into()));
        match grow_until(reason, ToolUse::new("t", "weigh", Value::Null), fragments)? {
            ContentPart::ToolUse(tool_use) => Ok(tool_use.input),
            other => panic!("{other:?}"),
        }
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
        assert_eq!(error.context("tool"), Some("weigh"));
        assert_eq!(input(&[r#"{"gra"#], StopReason::MaxTokens).unwrap(), json!(r#"{"gra"#));
    }

    #[test]
    fn tool_input_is_streamed_as_the_model_wrote_it() {
        let cut = ToolUse::new("t", "weigh", json!(r#"{"gra"#));
        let (_, deltas) = split_part(cut.into(), &StopReason::MaxTokens);
        assert_eq!(deltas, [BlockDelta::ToolInput(r#"{"gra"#.into())]);
        let custom = ToolUse { kind: ToolUseKind::Custom, ..ToolUse::new("t", "say", json!("hi")) };
        let (_, deltas) = split_part(custom.into(), &StopReason::ToolUse);
        assert_eq!(deltas, [BlockDelta::ToolInput("hi".into())]);
    }

    #[test]
    fn media_grow() {
        let media = |bytes: &'static [u8]| BlockDelta::Media(Bytes::from_static(bytes).into());
        let deltas = [media(&[2]), media(&[3]), BlockDelta::Transcript("hi".into())];
        let audio = AudioPart { transcript: Some("hi".into()), ..AudioPart::new("audio/wav", vec![1, 2, 3]) };
        assert_eq!(grow(AudioPart::new("audio/wav", vec![1]), deltas).unwrap(), audio.into());

        let image = |source: MediaSource| ImagePart::new("image/png", source);
        let elsewhere = || MediaSource::uri("s3://b/k");
        let grown = grow(image(MediaSource::default()), [BlockDelta::Media(elsewhere())]);
        assert_eq!(grown.unwrap(), image(elsewhere()).into());
        assert!(grow(image(elsewhere()), [media(&[1])]).is_err());
        assert!(grow(image(MediaSource::default()), [media(&[1]), BlockDelta::Media(elsewhere())]).is_err());
    }

    #[test]
    fn tool_results_grow() {
        let text = |text: &str| BlockDelta::ToolResult(ToolResultPart::Text(text.into()));
        let begun = ToolResult { tool_use_id: "t".into(), ..ToolResult::default() };
        assert_eq!(grow(begun, [text("5 "), text("g")]).unwrap(), ToolResult::text("t", "5 g").into());
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

    pub(in super::super) fn part() -> impl Strategy<Value = ContentPart> {
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
}
