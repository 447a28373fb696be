//! What judgments teach: conversations as the model reads them, with the tokens that are to be learnt.
//!
//! A prompt and its answer are taken to tokens each for itself, as in service, where the model goes on behind the prompt's tokens.

use std::collections::BTreeSet;

use hybrid_core::{
    Error, Judgment, Result, Task, Timestamp,
    task::{Chat, ChatRequest, Classify, ContentPart, Message, Role},
};
use serde_json::Value;

use super::settings::{Learn, Long, TrainSettings};
use crate::decoder::{prompt, template::Templates, tokens::Tokens};

const OPERATION: &str = "read judgments";

/// What tasks of judgments about plain text are called.
pub(super) const TEXT: &str = "text";

/// Tokens, and which of them are to be learnt.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(in crate::decoder) struct Sequence {
    pub(in crate::decoder) tokens: Vec<u32>,
    pub(in crate::decoder) learnt: Vec<bool>,
}

/// What one judgment teaches: one sequence, or in preference learning two, the better one first.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::decoder) struct Lesson {
    pub(in crate::decoder) sequences: Vec<Sequence>,
}

/// The lessons of a dataset, in the order of its judgments.
#[derive(Debug, Default)]
pub(in crate::decoder) struct Lessons {
    pub(in crate::decoder) all: Vec<Lesson>,
    /// Texts whose end was cut off.
    pub(super) cut: usize,
    /// Judgments left out because they are too long.
    pub(super) skipped: usize,
    /// Judgments left out of preference learning because the model had answered so or had not been asked.
    pub(super) unpaired: usize,
}

/// Writes judgments as a model reads them.
#[derive(Debug)]
pub(in crate::decoder) struct Writer<'a> {
    pub(super) tokens: &'a Tokens,
    /// `None` for a model that knows no conversations.
    pub(super) templates: Option<&'a Templates>,
    /// The tokens that end an answer.
    pub(super) ends: &'a BTreeSet<u32>,
    pub(super) settings: &'a TrainSettings,
    pub(super) max_tokens: usize,
}

impl Sequence {
    fn push(&mut self, tokens: &[u32], learnt: bool) {
        self.tokens.extend_from_slice(tokens);
        self.learnt.resize(self.tokens.len(), learnt);
    }

    /// How many tokens are learnt; the first cannot be, as nothing comes before it.
    pub(super) fn count(&self) -> usize {
        self.learnt.iter().skip(1).filter(|learnt| **learnt).count()
    }
}

impl Lesson {
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }
}

impl Writer<'_> {
    /// Writes all judgments.
    ///
    /// # Errors
    /// `InvalidInput` or `TooLarge` that names the judgment of which no lesson can be made; `InvalidInput` if there is nothing to learn.
    pub(super) fn lessons(&self, judgments: &[Judgment]) -> Result<Lessons> {
        if judgments.is_empty() {
            return Err(Error::invalid(OPERATION, "the dataset has no judgments; capture some before training"));
        }
        let mut lessons = Lessons::default();
        for judgment in judgments {
            let written = self.write(judgment, &mut lessons);
            lessons.all.extend(written.map_err(|error| error.with("judgment", judgment.id))?);
        }
        if lessons.all.is_empty() {
            return Err(Error::invalid(OPERATION, "the dataset has nothing to learn from")
                .with("judgments", judgments.len())
                .with("too long", lessons.skipped)
                .with("without another answer", lessons.unpaired));
        }
        Ok(lessons)
    }

    fn write(&self, judgment: &Judgment, lessons: &mut Lessons) -> Result<Option<Lesson>> {
        let mut sequences = match (&*judgment.task, self.settings.beta) {
            (TEXT, None) => vec![self.text(text_of(&judgment.input, "text")?)?],
            (TEXT, Some(_)) => return Err(refuse("a text is no preference; leave it out")),
            (Chat::NAME | Classify::NAME, beta) => {
                let request = request(judgment)?;
                let right = answer(judgment, &judgment.decision)?;
                let wrong = match (beta, &judgment.answer) {
                    (None, _) => None,
                    (Some(_), Some(wrong)) => Some(answer(judgment, wrong)?).filter(|wrong| *wrong != right),
                    (Some(_), None) => None,
                };
                if beta.is_some() && wrong.is_none() {
                    lessons.unpaired += 1;
                    return Ok(None);
                }
                let answers = [Some(right), wrong].into_iter().flatten();
                answers.map(|answer| self.conversation(&request, answer, judgment.at)).collect::<Result<_>>()?
            }
            (task, _) => {
                return Err(refuse("the judgment is of another task")
                    .with("task", task)
                    .with("expected", format_args!("{}, {} or {TEXT}", Chat::NAME, Classify::NAME)));
            }
        };
        let longest = sequences.iter().map(|sequence: &Sequence| sequence.tokens.len()).max().unwrap_or_default();
        if longest > self.max_tokens {
            match self.settings.long {
                Long::Refuse => {
                    let message = "the text is longer than the hyperparameter max_tokens or the model's context; raise it, or set long to cut or skip";
                    return Err(Error::too_large(OPERATION, message)
                        .with("tokens", longest)
                        .with("limit", self.max_tokens));
                }
                Long::Skip => {
                    lessons.skipped += 1;
                    return Ok(None);
                }
                Long::Cut => {
                    lessons.cut += 1;
                    for sequence in &mut sequences {
                        sequence.tokens.truncate(self.max_tokens);
                        sequence.learnt.truncate(self.max_tokens);
                    }
                }
            }
        }
        if sequences.iter().any(|sequence| sequence.count() == 0) {
            if longest > self.max_tokens {
                lessons.skipped += 1;
                return Ok(None);
            }
            return Err(refuse("the judgment has no token to learn"));
        }
        Ok(Some(Lesson { sequences }))
    }

    /// A text of which every token is learnt, with its end.
    fn text(&self, text: &str) -> Result<Sequence> {
        let mut sequence = Sequence::default();
        sequence.push(&self.tokens.encode_plain(text)?, true);
        self.end(&mut sequence);
        Ok(sequence)
    }

    fn conversation(&self, request: &ChatRequest, answer: Message, at: Timestamp) -> Result<Sequence> {
        let Some(templates) = self.templates else { return self.plain(request, &answer) };
        let mut request = request.clone();
        request.messages.push(answer);
        let last = request.messages.len() - 1;
        let whole = templates.fill_whole(prompt::whole(request.clone(), at)?)?;
        // For each message to be learnt, where it begins and ends in the text.
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for i in 0..=last {
            let learnt = i == last || self.settings.learn == Learn::Answers;
            if !learnt || request.messages[i].role != Role::Assistant {
                continue;
            }
            let until = |end: usize| ChatRequest { messages: request.messages[..end].to_vec(), ..request.clone() };
            let before = templates.fill(prompt::whole(until(i), at)?)?;
            let with =
                if i == last { whole.clone() } else { templates.fill_whole(prompt::whole(until(i + 1), at)?)? };
            if !with.starts_with(&before) || !whole.starts_with(&with) {
                return Err(refuse("the model's template writes a conversation that goes on otherwise than it began; set learn to last or all")
                    .with("message", i));
            }
            spans.push((before.len(), with.len()));
        }
        let mut sequence = Sequence::default();
        let mut next = 0;
        for (from, to) in spans {
            sequence.push(&self.tokens.encode(&whole[next..from])?, self.settings.learn == Learn::All);
            let mut own = self.tokens.encode(&whole[from..to])?;
            // What comes after an answer's end is never asked of the model.
            let end = own.iter().rposition(|token| self.ends.contains(token)).map_or(own.len(), |end| end + 1);
            let rest = own.split_off(end);
            sequence.push(&own, true);
            if to < whole.len() {
                sequence.push(&rest, self.settings.learn == Learn::All);
            }
            next = to;
        }
        self.end(&mut sequence);
        Ok(sequence)
    }

    /// Prompt and answer one after another, for a model without a template.
    fn plain(&self, request: &ChatRequest, answer: &Message) -> Result<Sequence> {
        let [only] = request.messages.as_slice() else {
            return Err(refuse("the model has no chat template, so it reads a prompt and its completion alone")
                .with("messages", request.messages.len()));
        };
        let texts = |message: &Message| message.content.iter().all(|part| matches!(part, ContentPart::Text(_)));
        if only.role != Role::User
            || !request.system.is_empty()
            || !request.tools.is_empty()
            || !texts(only)
            || !texts(answer)
        {
            return Err(refuse("the model has no chat template, so it reads a prompt and its completion alone"));
        }
        let mut sequence = Sequence::default();
        sequence.push(&self.tokens.encode_plain(&only.text())?, self.settings.learn == Learn::All);
        sequence.push(&self.tokens.encode(&answer.text())?, true);
        self.end(&mut sequence);
        Ok(sequence)
    }

    /// Ends a sequence, if it has no end yet and the model knows one.
    fn end(&self, sequence: &mut Sequence) {
        if let (Some(last), Some(end)) = (sequence.tokens.last(), self.ends.first())
            && !self.ends.contains(last)
        {
            sequence.push(&[*end], true);
        }
    }
}

fn refuse(message: &'static str) -> Error {
    Error::invalid(OPERATION, message)
}

/// What the model was asked.
fn request(judgment: &Judgment) -> Result<ChatRequest> {
    if judgment.task == Classify::NAME {
        return Ok(ChatRequest::user(text_of(&judgment.input, "text")?));
    }
    let request: ChatRequest = serde_json::from_value(judgment.input.clone())
        .map_err(|error| refuse("the judgment's input is no chat request").with_source(error))?;
    if request.messages.last().is_none_or(|message| message.role == Role::Assistant) {
        return Err(refuse("the last message of a request has to be another's than the model's"));
    }
    Ok(request)
}

/// An answer as judgments have it: `{"label": …}` of a classification, else `{"answers": ["…"]}`, of which the first counts, or
/// `{"message": …}`, which may call tools.
fn answer(judgment: &Judgment, value: &Value) -> Result<Message> {
    if judgment.task == Classify::NAME {
        return Ok(Message::assistant(text_of(value, "label")?));
    }
    if let Some(message) = value.get("message") {
        let message: Message = serde_json::from_value(message.clone())
            .map_err(|error| refuse("the judgment's message cannot be read").with_source(error))?;
        if message.role != Role::Assistant {
            return Err(
                refuse("the judgment's message has to be the model's").with("role", format_args!("{:?}", message.role))
            );
        }
        return Ok(message);
    }
    let text = value.pointer("/answers/0").and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let text = text
        .ok_or_else(|| refuse(r#"the judgment has no text as {"answers": ["…"]} and no message as {"message": …}"#))?;
    Ok(Message::assistant(text))
}

fn text_of<'a>(value: &'a Value, field: &'static str) -> Result<&'a str> {
    let text = value.get(field).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    text.ok_or_else(|| refuse("the judgment lacks a field that is a text").with("field", field))
}
