//! What an answer's text is made of: words, thoughts and calls of tools, told apart as the text comes.
//!
//! Thoughts stand in `<think>` and `</think>`. Calls are written in one of two ways: as JSON in `<tool_call>` and `</tool_call>` (Hermes,
//! Qwen), or as an answer that is nothing but JSON (Llama 3).

use std::collections::BTreeSet;

use hybrid_core::task::{BlockDelta, ChatDelta, ContentPart, Reasoning, StopReason, ToolUse};
use serde_json::{Map, Value};

use super::prompt::Calls;

pub(super) const THINK: &str = "<think>";
pub(super) const THOUGHT: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALLED: &str = "</tool_call>";
/// What Llama 3 may write before a call.
const PYTHON: &str = "<|python_tag|>";

/// How a model writes its calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallFormat {
    /// JSON with `name` and `arguments` between tags.
    Tagged,
    /// JSON with `name` and `parameters`, and nothing else.
    Bare,
}

impl CallFormat {
    /// The way in which the template tells the model to write them.
    pub(super) fn of_template(template: &str) -> Self {
        if !template.contains(CALL) && template.contains("parameters") { Self::Bare } else { Self::Tagged }
    }
}

/// Whether an answer goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    More,
    /// It came to this text before which to stop.
    Stop(String),
    /// It called as many tools as it may.
    Called,
}

/// One answer as it comes.
#[derive(Debug)]
pub(super) struct Answer {
    choice: u32,
    stops: Vec<String>,
    /// What may be the beginning of a text before which to stop.
    held: String,
    /// What was read but not told apart yet.
    text: String,
    state: State,
    format: CallFormat,
    calls: Calls,
    called: usize,
    malformed: bool,
    /// Ids of calls that are taken.
    ids: BTreeSet<String>,
    /// The block that is open, and whether it holds thoughts.
    open: Option<Kind>,
    block: u32,
    /// White space that is told only if more comes after it in the same block.
    space: String,
    /// Whether white space is left out until something else comes.
    trimmed: bool,
    deltas: Vec<ChatDelta>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    Begin,
    Words,
    Thoughts,
    Call,
    /// All that comes is one call, or none.
    Bare,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Words,
    Thoughts,
}

impl Answer {
    /// An answer that begins with thoughts if `thinking`, to a request whose messages have calls with `ids`.
    pub(super) fn new(
        choice: u32,
        stops: &[String],
        format: CallFormat,
        calls: Calls,
        thinking: bool,
        ids: BTreeSet<String>,
    ) -> Self {
        Self {
            choice,
            stops: stops.to_vec(),
            held: String::new(),
            text: String::new(),
            state: if thinking { State::Thoughts } else { State::Begin },
            format,
            calls,
            called: 0,
            malformed: false,
            ids,
            open: None,
            block: 0,
            space: String::new(),
            trimmed: thinking,
            deltas: Vec::new(),
        }
    }

    /// Leaves out white space until something else comes.
    pub(super) fn skip_space(&mut self) {
        self.trimmed = true;
    }

    /// Whether what comes now is a thought.
    pub(super) fn is_thinking(&self) -> bool {
        self.state == State::Thoughts
    }

    /// Takes more text.
    pub(super) fn push(&mut self, text: &str) -> Next {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len()))) {
            let stop = stop.clone();
            self.text.push_str(&self.held[..at]);
            self.held.clear();
            self.tell_apart();
            return Next::Stop(stop);
        }
        let sure = self.held.len() - overhang(&self.held, self.stops.iter().map(String::as_str));
        self.text.extend(self.held.drain(..sure));
        self.tell_apart();
        if self.calls == Calls::One && self.called > 0 { Next::Called } else { Next::More }
    }

    /// The deltas that have come since.
    pub(super) fn take(&mut self) -> Vec<ChatDelta> {
        std::mem::take(&mut self.deltas)
    }

    /// Ends the answer: `cut` says what the model was stopped by, if it did not end by itself. Gives why it ended.
    pub(super) fn finish(&mut self, cut: Option<StopReason>) -> StopReason {
        self.text.push_str(&std::mem::take(&mut self.held));
        self.tell_apart();
        let rest = std::mem::take(&mut self.text);
        match self.state {
            State::Call => match call(&rest, self.format).filter(|_| cut.is_none()) {
                Some(call) => self.call(call),
                None => {
                    self.malformed |= cut.is_none();
                    self.say(Kind::Words, &format!("{CALL}{rest}"));
                }
            },
            State::Bare => {
                match call(rest.trim_start().trim_start_matches(PYTHON), self.format).filter(|_| cut.is_none()) {
                    Some(call) => self.call(call),
                    None => self.say(Kind::Words, &rest),
                }
            }
            State::Thoughts => self.say(Kind::Thoughts, &rest),
            State::Begin | State::Words => self.say(Kind::Words, &rest),
        }
        let space = std::mem::take(&mut self.space);
        if self.open == Some(Kind::Words) {
            self.add(BlockDelta::Text(space));
        }
        self.close();
        match cut {
            Some(reason) => reason,
            None if self.malformed => StopReason::MalformedToolUse,
            None if self.called > 0 => StopReason::ToolUse,
            None => StopReason::EndTurn,
        }
    }

    fn tell_apart(&mut self) {
        loop {
            if self.calls == Calls::One && self.called > 0 {
                self.text.clear();
                return;
            }
            let tags: &[&str] = match (self.state, self.calls, self.format) {
                (State::Bare, ..) => return,
                (State::Thoughts, ..) => &[THOUGHT],
                (State::Call, ..) => &[CALLED],
                (State::Begin, Calls::None, _) | (State::Begin, _, CallFormat::Bare) => &[THINK],
                (State::Begin, ..) => &[THINK, CALL],
                (State::Words, Calls::None, _) | (State::Words, _, CallFormat::Bare) => &[],
                (State::Words, ..) => &[CALL],
            };
            let found = tags.iter().filter_map(|tag| Some((self.text.find(tag)?, *tag))).min();
            // At the beginning a tag counts only if nothing is before it.
            let begins = self.state == State::Begin;
            let found = found.filter(|(at, tag)| !begins || *tag == CALL || self.text[..*at].trim().is_empty());
            match found {
                Some((at, tag)) => {
                    let before: String = self.text.drain(..at + tag.len()).collect();
                    self.pass(&before[..at], tag);
                }
                None => {
                    let waits = match self.state {
                        State::Call => true,
                        State::Begin => self.is_undecided(tags),
                        _ => false,
                    };
                    if waits {
                        return;
                    }
                    if begins {
                        let bare = self.format == CallFormat::Bare && self.calls != Calls::None;
                        let text = self.text.trim_start();
                        self.state = if bare && (text.starts_with('{') || text.starts_with(PYTHON)) {
                            State::Bare
                        } else {
                            State::Words
                        };
                        continue;
                    }
                    let sure = self.text.len() - overhang(&self.text, tags.iter().copied());
                    let text: String = self.text.drain(..sure).collect();
                    self.say(if self.is_thinking() { Kind::Thoughts } else { Kind::Words }, &text);
                    return;
                }
            }
        }
    }

    /// Whether what has come may still be the beginning of a tag, or is white space.
    fn is_undecided(&self, tags: &[&str]) -> bool {
        let text = self.text.trim_start();
        tags.iter().chain(&[PYTHON]).any(|tag| tag.starts_with(text))
    }

    /// Goes over a tag with what is before it.
    fn pass(&mut self, before: &str, tag: &str) {
        self.state = match tag {
            THINK => State::Thoughts,
            THOUGHT => {
                self.say(Kind::Thoughts, before);
                State::Words
            }
            CALL => {
                self.say(Kind::Words, before);
                State::Call
            }
            _ => {
                match call(before, self.format) {
                    Some(call) => self.call(call),
                    None => {
                        self.malformed = true;
                        self.say(Kind::Words, &format!("{CALL}{before}{CALLED}"));
                    }
                }
                State::Words
            }
        };
        self.close();
        self.trimmed = true;
    }

    /// Adds text to the block of its kind.
    fn say(&mut self, kind: Kind, text: &str) {
        let text = if self.trimmed { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.trimmed = false;
        if self.open != Some(kind) {
            self.close();
            let part = match kind {
                Kind::Words => ContentPart::Text(String::new()),
                Kind::Thoughts => Reasoning::text("").into(),
            };
            self.deltas.push(ChatDelta::BlockStart { choice: self.choice, block: self.block, part });
            self.open = Some(kind);
        }
        let whole = std::mem::take(&mut self.space) + text;
        let (words, space) = whole.split_at(whole.trim_end().len());
        self.space = space.to_owned();
        let words = words.to_owned();
        self.add(match kind {
            Kind::Words => BlockDelta::Text(words),
            Kind::Thoughts => BlockDelta::Reasoning(words),
        });
    }

    fn add(&mut self, delta: BlockDelta) {
        if !matches!(&delta, BlockDelta::Text(text) | BlockDelta::Reasoning(text) if text.is_empty()) {
            self.deltas.push(ChatDelta::Block { choice: self.choice, block: self.block, delta });
        }
    }

    fn close(&mut self) {
        self.space.clear();
        if self.open.take().is_some() {
            self.deltas.push(ChatDelta::BlockStop { choice: self.choice, block: self.block });
            self.block += 1;
        }
    }

    fn call(&mut self, (name, input): (String, Map<String, Value>)) {
        self.close();
        if self.calls == Calls::One && self.called > 0 {
            return;
        }
        let id = (0..).map(|number| format!("call_{number}")).find(|id| !self.ids.contains(id)).unwrap_or_default();
        self.ids.insert(id.clone());
        let (choice, block) = (self.choice, self.block);
        let part = ToolUse::new(id, name, Value::Null).into();
        let delta = BlockDelta::ToolInput(Value::Object(input).to_string());
        self.deltas.push(ChatDelta::BlockStart { choice, block, part });
        self.deltas.push(ChatDelta::Block { choice, block, delta });
        self.deltas.push(ChatDelta::BlockStop { choice, block });
        self.block += 1;
        self.called += 1;
    }
}

/// Reads a call: its tool and its arguments.
fn call(text: &str, format: CallFormat) -> Option<(String, Map<String, Value>)> {
    let mut call: Map<String, Value> = serde_json::from_str(text.trim()).ok()?;
    let name = match call.remove("name")? {
        Value::String(name) if !name.trim().is_empty() => name,
        _ => return None,
    };
    let keys = match format {
        CallFormat::Tagged => ["arguments", "parameters"],
        CallFormat::Bare => ["parameters", "arguments"],
    };
    match keys.iter().find_map(|key| call.remove(*key)) {
        Some(Value::Object(input)) => Some((name, input)),
        // Some models write the arguments as a text that holds JSON.
        Some(Value::String(text)) => Some((name, serde_json::from_str(&text).ok()?)),
        // A tool without arguments is called without; an answer that is nothing but JSON may be something else.
        None | Some(Value::Null) if format == CallFormat::Tagged => Some((name, Map::new())),
        _ => None,
    }
}

/// How many bytes at the end of `text` are the beginning of one of `tags`.
fn overhang<'a>(text: &str, tags: impl Iterator<Item = &'a str>) -> usize {
    let of = |tag: &str| {
        let longest = text.len().min(tag.len().saturating_sub(1));
        let fits = |length: &usize| text.as_bytes().ends_with(&tag.as_bytes()[..*length]);
        (1..=longest).rev().find(fits).unwrap_or_default()
    };
    let longest = tags.map(of).max().unwrap_or_default();
    // A tag begins with a whole character, so that what is held does too.
    debug_assert!(text.is_char_boundary(text.len() - longest));
    longest
}

#[cfg(test)]
mod tests {
    use hybrid_core::{
        Task,
        task::{Chat, Choice, Role},
    };
    use serde_json::json;

    use super::*;

    fn answer(stops: &[&str], format: CallFormat, calls: Calls) -> Answer {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        Answer::new(0, &stops, format, calls, false, BTreeSet::new())
    }

    /// What comes of a text given in pieces of every length.
    fn check(
        make: impl Fn() -> Answer,
        text: &str,
        cut: Option<StopReason>,
        expected: &[ContentPart],
        why: StopReason,
    ) {
        let chars: Vec<char> = text.chars().collect();
        for length in 1..=chars.len() {
            let mut answer = make();
            let mut deltas = vec![ChatDelta::Start { choice: 0, role: Role::Assistant, name: None }];
            let mut ended = None;
            for piece in chars.chunks(length) {
                match answer.push(&piece.iter().collect::<String>()) {
                    Next::More => {}
                    Next::Stop(stop) => ended = Some((StopReason::StopSequence, Some(stop))),
                    Next::Called => ended = Some((StopReason::ToolUse, None)),
                }
                deltas.extend(answer.take());
                if ended.is_some() {
                    break;
                }
            }
            let (reason, sequence) = match ended {
                Some((reason, sequence)) => (answer.finish(Some(reason)), sequence),
                None => (answer.finish(cut.clone()), None),
            };
            deltas.extend(answer.take());
            deltas.push(ChatDelta::Stop { choice: 0, reason, sequence });
            let Choice { message, stop_reason, .. } = Chat::fold(deltas).unwrap().choices.remove(0);
            assert_eq!(message.content, expected, "{text:?} by {length}");
            assert_eq!(stop_reason, why, "{text:?} by {length}");
        }
    }

    fn words(text: &str) -> ContentPart {
        ContentPart::Text(text.to_owned())
    }

    fn weigh(id: &str) -> ContentPart {
        ToolUse::new(id, "weigh", json!({"what": "loaf"})).into()
    }

    #[test]
    fn words_come_as_they_are() {
        let plain = || answer(&[], CallFormat::Tagged, Calls::Any);
        for text in [" ten rolls \n", "a < b, <think", "<tool", "漢字", "x <think>y</think>"] {
            check(plain, text, None, &[words(text)], StopReason::EndTurn);
        }
        check(plain, "cut", Some(StopReason::MaxTokens), &[words("cut")], StopReason::MaxTokens);
    }

    #[test]
    fn an_answer_ends_before_the_first_text_before_which_to_stop() {
        let stopping = || answer(&["\n\nUser:", "END", "ENDE"], CallFormat::Tagged, Calls::None);
        check(stopping, "ten rolls\n\nUser: more", None, &[words("ten rolls")], StopReason::StopSequence);
        check(stopping, "tenEN D\n\nUse", None, &[words("tenEN D\n\nUse")], StopReason::EndTurn);
        check(stopping, "END", None, &[], StopReason::StopSequence);
    }

    #[test]
    fn thoughts_are_apart_from_words() {
        let plain = || answer(&[], CallFormat::Tagged, Calls::None);
        let thought = |text: &str| ContentPart::from(Reasoning::text(text));
        check(
            plain,
            "\n<think>\nhm <b>\n</think>\n\nten",
            None,
            &[thought("hm <b>"), words("ten")],
            StopReason::EndTurn,
        );
        check(plain, "<think>\n\n</think>\n\nten", None, &[words("ten")], StopReason::EndTurn);
        check(plain, "<think>hm", Some(StopReason::MaxTokens), &[thought("hm")], StopReason::MaxTokens);
        let begun = || Answer::new(0, &[], CallFormat::Tagged, Calls::None, true, BTreeSet::new());
        check(begun, "\nhm</think>ten", None, &[thought("hm"), words("ten")], StopReason::EndTurn);
    }

    #[test]
    fn calls_between_tags_are_read() {
        let tagged = || answer(&[], CallFormat::Tagged, Calls::Any);
        let call = "<tool_call>\n{\"name\": \"weigh\", \"arguments\": {\"what\": \"loaf\"}}\n</tool_call>";
        check(tagged, call, None, &[weigh("call_0")], StopReason::ToolUse);
        let several = format!("I will.\n{call}\n{call}");
        check(tagged, &several, None, &[words("I will."), weigh("call_0"), weigh("call_1")], StopReason::ToolUse);
        let one = || answer(&[], CallFormat::Tagged, Calls::One);
        check(one, &several, None, &[words("I will."), weigh("call_0")], StopReason::ToolUse);
        let unclosed = call.trim_end_matches(CALLED);
        check(tagged, unclosed, None, &[weigh("call_0")], StopReason::ToolUse);
        check(tagged, unclosed, Some(StopReason::MaxTokens), &[words(unclosed)], StopReason::MaxTokens);
        let without = ToolUse::new("call_0", "open", json!({})).into();
        check(tagged, "<tool_call>{\"name\": \"open\"}</tool_call>", None, &[without], StopReason::ToolUse);
        let bad = "<tool_call>{\"name\": 3}</tool_call>";
        check(tagged, bad, None, &[words(bad)], StopReason::MalformedToolUse);
        let none = || answer(&[], CallFormat::Tagged, Calls::None);
        check(none, call, None, &[words(call)], StopReason::EndTurn);
        let taken = || Answer::new(0, &[], CallFormat::Tagged, Calls::Any, false, ["call_0".to_owned()].into());
        check(taken, call, None, &[weigh("call_1")], StopReason::ToolUse);
    }

    #[test]
    fn an_answer_that_is_nothing_but_a_call_is_read() {
        let bare = || answer(&[], CallFormat::Bare, Calls::Any);
        let call = "{\"name\": \"weigh\", \"parameters\": {\"what\": \"loaf\"}}";
        check(bare, call, None, &[weigh("call_0")], StopReason::ToolUse);
        check(bare, &format!("{PYTHON}{call}"), None, &[weigh("call_0")], StopReason::ToolUse);
        check(bare, "{\"a\": 1}", None, &[words("{\"a\": 1}")], StopReason::EndTurn);
        check(bare, "so {}", None, &[words("so {}")], StopReason::EndTurn);
        assert_eq!(CallFormat::of_template("{\"name\": .., \"parameters\": ..}"), CallFormat::Bare);
        assert_eq!(CallFormat::of_template("<tool_call> parameters"), CallFormat::Tagged);
    }
}
