//! From judgments to the lines that Bedrock learns from.

use hybrid_core::{
    Digest, Error, Judgment, Result, Task,
    task::{Chat, ChatRequest, ContentPart, Message, ResponseFormat, Role, SystemPart},
};
use serde_json::{Value, json};

const OPERATION: &str = "read judgments";

/// How an example is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Converse's messages, under the schema's version `bedrock-conversation-2024`.
    Conversation,
    /// One `prompt` and one `completion`, for base models that know no conversation.
    PromptCompletion,
    /// The Messages API's `system` and `messages`, both of plain text, for Claude 3.
    Messages,
}

/// The two files, one JSON object a line, and how many lines each has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Examples {
    pub(super) train: String,
    pub(super) valid: String,
    pub(super) count: u64,
}

impl Examples {
    /// Writes the judgments, in order; the share `hold_out` of them, drawn by `seed` and the judgments' ids, is for validation.
    ///
    /// # Errors
    /// `InvalidInput` that names the judgment of which no example can be made, or if there is none.
    pub(super) fn write(judgments: &[Judgment], format: Format, hold_out: f64, seed: u64) -> Result<Self> {
        if judgments.is_empty() {
            return Err(Error::invalid(OPERATION, "the dataset has no judgments; capture some before training"));
        }
        let held_out = held_out(judgments, hold_out, seed);
        let (mut train, mut valid) = (String::new(), String::new());
        for (judgment, held_out) in judgments.iter().zip(held_out) {
            let example = read(judgment).and_then(|(request, answer)| format.write(&request, &answer));
            let line = example.map_err(|error| error.with("judgment", judgment.id))?.to_string();
            let file = if held_out { &mut valid } else { &mut train };
            file.push_str(&line);
            file.push('\n');
        }
        Ok(Self { train, valid, count: judgments.len() as u64 })
    }
}

/// Which judgments validate: those whose digests with the seed are the smallest, so that one judgment more moves few others.
fn held_out(judgments: &[Judgment], share: f64, seed: u64) -> Vec<bool> {
    let wanted = if share > 0.0 { ((judgments.len() as f64 * share) as usize).max(1) } else { 0 };
    let mut order: Vec<_> = (0..judgments.len()).collect();
    order.sort_by_cached_key(|&i| *Digest::of(format!("{seed} {}", judgments[i].id).as_bytes()).as_bytes());
    let mut held_out = vec![false; judgments.len()];
    // One is left to learn from.
    order.iter().take(wanted.min(judgments.len() - 1)).for_each(|&i| held_out[i] = true);
    held_out
}

fn refuse(message: &'static str) -> Error {
    Error::invalid(OPERATION, message)
}

/// A judgment's conversation and the answer that is right.
fn read(judgment: &Judgment) -> Result<(ChatRequest, String)> {
    if judgment.task != Chat::NAME {
        return Err(refuse("the judgment is of another task")
            .with("task", &judgment.task)
            .with("expected", Chat::NAME));
    }
    let request: ChatRequest = serde_json::from_value(judgment.input.clone())
        .map_err(|error| refuse("the judgment's input is no chat request").with_source(error))?;
    let answer = judgment.decision.pointer("/answers/0").and_then(Value::as_str);
    let answer = answer.filter(|answer| !answer.trim().is_empty());
    let answer = answer.ok_or_else(|| refuse(r#"the judgment's decision has no text as {"answers": ["…"]}"#))?;
    Ok((request, answer.to_owned()))
}

impl Format {
    /// As plans name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::PromptCompletion => "prompt_completion",
            Self::Messages => "messages",
        }
    }

    fn write(self, request: &ChatRequest, answer: &str) -> Result<Value> {
        let system = check(request)?;
        match self {
            Self::Conversation => {
                let message = |message: &Message| {
                    let texts: Vec<_> = texts(message).map(|text| json!({ "text": text })).collect();
                    json!({"role": role(message), "content": texts})
                };
                let mut messages: Vec<_> = request.messages.iter().map(message).collect();
                messages.push(json!({"role": "assistant", "content": [{"text": answer}]}));
                let mut example = json!({"schemaVersion": "bedrock-conversation-2024", "messages": messages});
                if !system.is_empty() {
                    example["system"] = system.iter().map(|text| json!({ "text": text })).collect();
                }
                Ok(example)
            }
            Self::PromptCompletion => {
                let [only] = request.messages.as_slice() else {
                    return Err(refuse("the format prompt_completion has one message of the user and no more; use the format conversation")
                        .with("messages", request.messages.len()));
                };
                let prompt: Vec<_> = system.into_iter().chain([texts(only).collect::<String>()]).collect();
                Ok(json!({"prompt": prompt.join("\n\n"), "completion": answer}))
            }
            Self::Messages => {
                let message =
                    |message: &Message| json!({"role": role(message), "content": texts(message).collect::<String>()});
                let mut messages: Vec<_> = request.messages.iter().map(message).collect();
                messages.push(json!({"role": "assistant", "content": answer}));
                let mut example = json!({ "messages": messages });
                if !system.is_empty() {
                    example["system"] = system.join("\n\n").into();
                }
                Ok(example)
            }
        }
    }
}

/// Checks that an example can say all that the request does, and gives the texts that come before the conversation.
fn check(request: &ChatRequest) -> Result<Vec<String>> {
    if !request.tools.is_empty() {
        return Err(
            refuse("Bedrock's examples have no tools; leave judgments about their use out").with("field", "tools")
        );
    }
    if request.response_format != ResponseFormat::default() {
        return Err(refuse("Bedrock's examples have no format of the answer").with("field", "response_format"));
    }
    for (i, message) in request.messages.iter().enumerate() {
        let expected = if i % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != expected {
            return Err(refuse("user and assistant have to take turns, beginning with the user")
                .with("message", i)
                .with("role", format_args!("{:?}", message.role)));
        }
        if texts(message).count() != message.content.len() || message.text().trim().is_empty() {
            return Err(refuse("a message has to be of text alone").with("message", i));
        }
    }
    if request.messages.len().is_multiple_of(2) {
        return Err(refuse("the last message has to be the user's").with("messages", request.messages.len()));
    }
    let text = |part: &SystemPart| match part {
        SystemPart::Text(text) => Ok(text.clone()),
        _ => Err(refuse("what comes before the conversation has to be text alone").with("field", "system")),
    };
    request.system.iter().map(text).collect()
}

fn role(message: &Message) -> &'static str {
    if message.role == Role::User { "user" } else { "assistant" }
}

fn texts(message: &Message) -> impl Iterator<Item = &str> {
    message.content.iter().filter_map(|part| match part {
        ContentPart::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use hybrid_core::{
        ErrorKind, IdSource, JudgmentId, SeededIds, Timestamp,
        task::{FunctionTool, ImagePart, MediaSource},
    };

    use super::*;

    fn judgment(ids: &dyn IdSource, request: &ChatRequest, decision: Value) -> Judgment {
        Judgment::new(
            JudgmentId::next(ids),
            "chat",
            serde_json::to_value(request).unwrap(),
            decision,
            Timestamp::UNIX_EPOCH,
        )
    }

    fn right(text: &str) -> Value {
        json!({"answers": [text, "also right"]})
    }

    fn write(judgment: &Judgment, format: Format) -> Result<Value> {
        let examples = Examples::write(std::slice::from_ref(judgment), format, 0.0, 1)?;
        Ok(serde_json::from_str(&examples.train).unwrap())
    }

    #[test]
    fn a_conversation_ends_with_the_right_answer() {
        let ids = SeededIds::default();
        let request = ChatRequest::user("Do you have rye?")
            .with_message(Message::assistant("We do."))
            .with_message(Message::user("Süß\n\"too\"?"))
            .with_system("You sell bread.");
        let found = write(&judgment(&ids, &request, right("No.")), Format::Conversation).unwrap();
        let expected = json!({
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "You sell bread."}],
            "messages": [
                {"role": "user", "content": [{"text": "Do you have rye?"}]},
                {"role": "assistant", "content": [{"text": "We do."}]},
                {"role": "user", "content": [{"text": "Süß\n\"too\"?"}]},
                {"role": "assistant", "content": [{"text": "No."}]},
            ],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_single_turn_can_be_a_prompt_with_its_completion() {
        let ids = SeededIds::default();
        let request = ChatRequest::user("Do you have rye?").with_system("You sell bread.");
        let found = write(&judgment(&ids, &request, right("Yes.")), Format::PromptCompletion).unwrap();
        assert_eq!(found, json!({"prompt": "You sell bread.\n\nDo you have rye?", "completion": "Yes."}));
        let turns = request.with_message(Message::assistant("Yes.")).with_message(Message::user("How much?"));
        let error = write(&judgment(&ids, &turns, right("3")), Format::PromptCompletion).unwrap_err();
        assert!(error.to_string().contains("format conversation"), "{error}");
    }

    #[test]
    fn claude_reads_plain_texts() {
        let ids = SeededIds::default();
        let request = ChatRequest::user("Do you have rye?")
            .with_message(Message::assistant("We do."))
            .with_message(Message::user("Süß\n\"too\"?"))
            .with_system("You sell bread.");
        let found = write(&judgment(&ids, &request, right("No.")), Format::Messages).unwrap();
        let expected = json!({
            "system": "You sell bread.",
            "messages": [
                {"role": "user", "content": "Do you have rye?"},
                {"role": "assistant", "content": "We do."},
                {"role": "user", "content": "Süß\n\"too\"?"},
                {"role": "assistant", "content": "No."},
            ],
        });
        assert_eq!(found, expected);
        let bare = write(&judgment(&ids, &ChatRequest::user("hi"), right("Hi.")), Format::Messages).unwrap();
        assert_eq!(bare.get("system"), None);
    }

    #[test]
    fn what_no_example_can_say_is_refused_by_the_judgments_id() {
        let ids = SeededIds::default();
        let user = ChatRequest::user("hi");
        let image = Message::user("look").with(ImagePart::new("image/png", MediaSource::default()));
        let mut classify = judgment(&ids, &user, right("x"));
        classify.task = "classify".to_owned();
        let mut unreadable = judgment(&ids, &user, right("x"));
        unreadable.input = json!({"text": "hi"});
        let bad = [
            classify,
            unreadable,
            judgment(&ids, &user, json!({"label": "x"})),
            judgment(&ids, &user, right(" ")),
            judgment(&ids, &ChatRequest::default(), right("x")),
            judgment(&ids, &ChatRequest::new([image]), right("x")),
            judgment(&ids, &user.clone().with_tool(FunctionTool::new("weigh", json!({"type": "object"}))), right("x")),
            judgment(&ids, &user.clone().with_message(Message::user("again")), right("x")),
            judgment(&ids, &user.clone().with_message(Message::assistant("hi")), right("x")),
        ];
        for bad in bad {
            let error = write(&bad, Format::Conversation).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.context("judgment"), Some(&*bad.id.to_string()), "{error}");
        }
        assert_eq!(Examples::write(&[], Format::Conversation, 0.0, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn every_judgment_is_in_one_of_the_files_and_the_seed_decides_which() {
        let ids = SeededIds::default();
        let judgments: Vec<_> =
            (0..20).map(|i| judgment(&ids, &ChatRequest::user(format!("question {i}")), right("x"))).collect();
        let write = |share, seed| Examples::write(&judgments, Format::Conversation, share, seed).unwrap();
        let split = write(0.2, 1);
        assert_eq!((split.train.lines().count(), split.valid.lines().count(), split.count), (16, 4, 20));
        let mut all: Vec<_> = split.train.lines().chain(split.valid.lines()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20);
        assert_eq!(split, write(0.2, 1));
        assert_ne!(split, write(0.2, 2));
        assert_eq!(write(0.0, 1).valid, "");
        let one = Examples::write(&judgments[..1], Format::Conversation, 0.5, 1).unwrap();
        assert_eq!((one.train.lines().count(), one.valid.as_str()), (1, ""));
    }
}
