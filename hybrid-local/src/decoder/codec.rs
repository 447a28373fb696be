//! The two ends of a model that are text: a request becomes tokens, and tokens become an answer.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use hybrid_core::{
    Error, Note, Result, Timestamp,
    task::{ChatDelta, ChatRequest, Logprobs, Sampling, TokenLogprob, TopLogprob},
};

use super::{
    answer::{CallFormat, THINK},
    constraint::{Constraint, Constraints},
    defaults::Defaults,
    prompt::{self, Calls, Prompt},
    sampling::chances,
    template::Templates,
    tokens::Tokens,
};

const OPERATION: &str = "chat";
/// The most answers to one request.
const MAX_ANSWERS: u32 = 128;

/// All of a model but its network.
#[derive(Debug)]
pub(super) struct Codec {
    pub(super) tokens: Tokens,
    templates: Templates,
    pub(super) defaults: Defaults,
    pub(super) format: CallFormat,
    /// Made when the first answer has to have a form.
    constraints: OnceLock<std::result::Result<Constraints, Arc<Error>>>,
    /// The most tokens of prompt and answer together.
    context: usize,
}

/// A request that the model can answer.
#[derive(Debug)]
pub(super) struct Prepared {
    /// At least one token, and fewer than the context has.
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: Sampling,
    pub(super) calls: Calls,
    /// What the answer has to be.
    pub(super) constraint: Option<Constraint>,
    /// Whether the template has begun the model's thoughts.
    pub(super) thinking: bool,
    /// Ids of the calls that the conversation has.
    pub(super) ids: BTreeSet<String>,
    pub(super) notes: Vec<Note>,
    /// The tokens that an answer may have before the context is full.
    pub(super) room: usize,
}

impl Prepared {
    /// How many answers are wanted.
    pub(super) fn answers(&self) -> u32 {
        self.sampling.n.unwrap_or(1)
    }

    /// The most tokens that the prompt and one answer may have.
    pub(super) fn most_tokens(&self) -> usize {
        self.prompt.len() + self.room.min(self.sampling.max_tokens.map_or(usize::MAX, |most| most as usize))
    }
}

impl Codec {
    pub(super) fn new(tokens: Tokens, templates: Templates, defaults: Defaults, context: usize) -> Self {
        let format = CallFormat::of_template(templates.text());
        Self { tokens, templates, defaults, format, constraints: OnceLock::new(), context }
    }

    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Writes a request's conversation as the model reads it.
    ///
    /// # Errors
    /// `Unsupported` that names what the model cannot do; `InvalidInput` with the template's reason; `TooLarge` that names the lengths of
    /// prompt and context.
    pub(super) fn prepare(&self, request: ChatRequest, now: Timestamp) -> Result<Prepared> {
        let ids = request.messages.iter().flat_map(|message| message.tool_uses()).map(|call| call.id.clone()).collect();
        let (Prompt { conversation, calls, form, thinking: wanted, notes }, sampling) = prompt::map(request, now)?;
        if let Some(n) = sampling.n.filter(|n| *n > MAX_ANSWERS) {
            return Err(Error::unsupported(OPERATION, "so many answers are not given at once")
                .with("field", "sampling.n")
                .with("value", n)
                .with("limit", MAX_ANSWERS));
        }
        let text = self.templates.fill(conversation)?;
        let prompt = self.tokens.encode(&text)?;
        if prompt.is_empty() {
            return Err(Error::unsupported(OPERATION, "the model's template makes nothing of the conversation"));
        }
        if prompt.len() >= self.context {
            return Err(Error::too_large(OPERATION, "the conversation fills the model's context; shorten it")
                .with("tokens", prompt.len())
                .with("context", self.context));
        }
        let (thinking, room) = (text.trim_end().ends_with(THINK), self.context - prompt.len());
        let begun = if thinking { Some(true) } else { wanted.filter(|wanted| !wanted) };
        let constraint = form.map(|form| self.constraints()?.constrain(&form, self.format, begun)).transpose()?;
        Ok(Prepared { prompt, sampling, calls, constraint, thinking, ids, notes, room })
    }

    fn constraints(&self) -> Result<&Constraints> {
        let made =
            self.constraints.get_or_init(|| Constraints::new(&self.tokens, &self.defaults.ends).map_err(Arc::new));
        made.as_ref().map_err(|error| {
            Error::unsupported(OPERATION, "the model's answers cannot be held to a form")
                .with("field", "response_format")
                .with_source(Arc::clone(error))
        })
    }

    /// Tells the chances of a token that was drawn, and of the `top` likeliest.
    pub(super) fn logprobs(&self, choice: u32, logits: &[f32], token: u32, top: usize) -> Result<ChatDelta> {
        let (own, top) = chances(logits, token, top);
        let spelled = |token: u32| -> Result<(String, Bytes)> {
            let text = self.tokens.spell(token)?;
            let whole = !text.contains(char::REPLACEMENT_CHARACTER);
            let bytes = if whole { Bytes::copy_from_slice(text.as_bytes()) } else { Bytes::new() };
            Ok((text, bytes))
        };
        let others = top.into_iter().map(|other| {
            let (token, bytes) = spelled(other.token)?;
            Ok(TopLogprob { token, bytes, logprob: other.logprob })
        });
        let top = others.collect::<Result<_>>()?;
        let (token, bytes) = spelled(own.token)?;
        let content = vec![TokenLogprob { token, bytes, logprob: own.logprob, top }];
        Ok(ChatDelta::Logprobs { choice, logprobs: Logprobs { content, ..Logprobs::default() } })
    }
}
