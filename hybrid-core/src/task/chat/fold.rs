use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    super::is_default,
    BlockDelta, ChatDelta, ChatResponse, Choice, Logprobs, Message, ResponseDetails, Role, StopReason,
    block::{Block, corrupt, split_part},
};
use crate::Result;

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
            ChatDelta::BlockStop { block, .. } => {
                let known = self.blocks.get_mut(&block).ok_or_else(|| corrupt("a block ended that had not begun"));
                known.and_then(Block::stop).map_err(|e| e.with("block", block))?;
            }
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
        match self.blocks.entry(block) {
            Entry::Occupied(mut known) => known.get_mut().add(delta),
            Entry::Vacant(free) => free.insert(Block::begun_by(&delta)?).add(delta),
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{
        super::{
            super::{
                MediaSource,
                check::testing::{fold_error, over_json},
            },
            Chat, Citation, CitedText, ContentPart, Reasoning, TokenLogprob,
            block::tests::part,
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
            (vec![closed()], "a block ended that had not begun"),
            (vec![text(), closed(), closed()], "the block ended already"),
            (vec![go_on(0, BlockDelta::ToolInput("{".into()))], "had not begun"),
            (vec![text(), go_on(0, BlockDelta::Reasoning("a".into()))], "does not fit"),
            (vec![text(), go_on(0, BlockDelta::Media(MediaSource::default()))], "does not fit"),
        ] {
            let error = fold_error::<Chat>(deltas);
            assert!(error.contains(message), "{error}");
        }
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
