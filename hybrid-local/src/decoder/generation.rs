//! From a request to an answer, a token at a time.

use std::collections::BTreeSet;

use bytes::Bytes;
use hybrid_core::{
    Error, Note, Result, Timestamp, Usage,
    task::{ChatDelta, ChatRequest, Logprobs, Role, Sampling, StopReason, TokenLogprob, TopLogprob},
};

use super::{
    answer::{Answer, CallFormat, Next},
    defaults::Defaults,
    network::{Cache, Network, Part, Wanted},
    prompt::{self, Calls, Prompt},
    sampling::{Sampler, chances},
    template::Templates,
    tokens::{Joiner, Tokens},
};

const OPERATION: &str = "chat";
/// Tokens of a prompt that are read between two looks at whether the answer is still wanted.
const PORTION: usize = 256;
/// The most answers to one request.
const MAX_ANSWERS: u32 = 128;

/// A model that is ready to answer.
#[derive(Debug)]
pub(super) struct Decoder {
    network: Network,
    tokens: Tokens,
    templates: Templates,
    defaults: Defaults,
    format: CallFormat,
    /// The most tokens of prompt and answer together.
    context: usize,
}

/// A request that the model can answer.
#[derive(Debug)]
pub(super) struct Prepared {
    prompt: Vec<u32>,
    sampling: Sampling,
    calls: Calls,
    /// Whether the template has begun the model's thoughts.
    thinking: bool,
    /// Ids of the calls that the conversation has.
    ids: BTreeSet<String>,
    pub(super) notes: Vec<Note>,
}

impl Decoder {
    pub(super) fn new(
        network: Network,
        tokens: Tokens,
        templates: Templates,
        defaults: Defaults,
        context: usize,
    ) -> Self {
        let format = CallFormat::of_template(templates.text());
        Self { network, tokens, templates, defaults, format, context }
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
        let (Prompt { conversation, calls, notes }, sampling) = prompt::map(request, now)?;
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
        Ok(Prepared { prompt, sampling, calls, thinking: text.trim_end().ends_with("<think>"), ids, notes })
    }

    /// Answers, and gives each piece to `emit`; `check` is asked between the steps whether to go on.
    ///
    /// # Errors
    /// Those of `check` and `emit`; `Internal` if the network gives no numbers.
    pub(super) fn generate(
        &self,
        prepared: &Prepared,
        seed: u64,
        check: &dyn Fn() -> Result<()>,
        emit: &mut dyn FnMut(ChatDelta) -> Result<()>,
    ) -> Result<Usage> {
        let mut cache = self.network.cache(self.context);
        let first = self.read(&prepared.prompt, &mut cache, check)?;
        let mut usage = Usage { input_tokens: prepared.prompt.len() as u64, ..Usage::default() };
        for choice in 0..prepared.sampling.n.unwrap_or(1) {
            cache.truncate(prepared.prompt.len());
            let sampler = Sampler::new(&prepared.sampling, &self.defaults, &prepared.prompt, seed, choice);
            let answer = Answer::new(
                choice,
                &prepared.sampling.stop,
                self.format,
                prepared.calls,
                prepared.thinking,
                prepared.ids.clone(),
            );
            emit(ChatDelta::Start { choice, role: Role::Assistant, name: None })?;
            let mut writing = Writing { decoder: self, prepared, choice, sampler, answer, joiner: Joiner::default() };
            let (reason, sequence) = writing.write(first.clone(), &mut cache, &mut usage, check, emit)?;
            emit(ChatDelta::Stop { choice, reason, sequence })?;
        }
        Ok(usage)
    }

    /// Reads a prompt in portions; gives the logits of what comes next.
    fn read(&self, prompt: &[u32], cache: &mut Cache, check: &dyn Fn() -> Result<()>) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let portions = prompt.len().div_ceil(PORTION);
        for (i, tokens) in prompt.chunks(PORTION).enumerate() {
            check()?;
            let wanted = if i + 1 == portions { Wanted::Last } else { Wanted::None };
            logits = self.network.forward(&mut [Part { tokens, cache, wanted, adapter: None }])?;
        }
        logits.pop().ok_or_else(|| Error::internal(OPERATION, "the network gave no logits"))
    }
}

/// One answer as it is written.
struct Writing<'a> {
    decoder: &'a Decoder,
    prepared: &'a Prepared,
    choice: u32,
    sampler: Sampler,
    answer: Answer,
    joiner: Joiner,
}

impl Writing<'_> {
    fn write(
        &mut self,
        mut logits: Vec<f32>,
        cache: &mut Cache,
        usage: &mut Usage,
        check: &dyn Fn() -> Result<()>,
        emit: &mut dyn FnMut(ChatDelta) -> Result<()>,
    ) -> Result<(StopReason, Option<String>)> {
        let Prepared { prompt, sampling, .. } = self.prepared;
        let (most, room) = (sampling.max_tokens.unwrap_or(u32::MAX), self.decoder.context - prompt.len());
        let tokens = &self.decoder.tokens;
        let mut written = 0;
        let (mut cut, mut sequence) = (None, None);
        loop {
            check()?;
            let before = sampling.logprobs.map(|_| logits.clone());
            let token = self.sampler.draw(&mut logits)?;
            written += 1;
            usage.output_tokens += 1;
            if self.decoder.defaults.ends.contains(&token) {
                break;
            }
            usage.reasoning_tokens += u64::from(self.answer.is_thinking());
            if let Some(before) = before {
                emit(self.logprobs(&before, token, usize::from(sampling.logprobs.unwrap_or_default()))?)?;
            }
            let text = self.joiner.push(token, tokens)?;
            let next = self.answer.push(&text);
            self.answer.take().into_iter().try_for_each(&mut *emit)?;
            (cut, sequence) = match next {
                Next::Stop(stop) => (Some(StopReason::StopSequence), Some(stop)),
                Next::Called => (Some(StopReason::ToolUse), None),
                Next::More if written == most => (Some(StopReason::MaxTokens), None),
                Next::More if written as usize == room => (Some(StopReason::ContextWindowExceeded), None),
                Next::More => (None, None),
            };
            if cut.is_some() {
                break;
            }
            let part = Part { tokens: &[token], cache, wanted: Wanted::Last, adapter: None };
            let next = self.decoder.network.forward(&mut [part])?.pop();
            logits = next.ok_or_else(|| Error::internal(OPERATION, "the network gave no logits"))?;
        }
        if sequence.is_none() {
            let rest = self.joiner.finish(tokens)?;
            if let Next::Stop(stop) = self.answer.push(&rest) {
                (cut, sequence) = (Some(StopReason::StopSequence), Some(stop));
            }
        }
        let reason = self.answer.finish(cut);
        self.answer.take().into_iter().try_for_each(&mut *emit)?;
        Ok((reason, sequence))
    }

    fn logprobs(&self, logits: &[f32], token: u32, top: usize) -> Result<ChatDelta> {
        let (own, top) = chances(logits, token, top);
        let spelled = |token: u32| -> Result<(String, Bytes)> {
            let text = self.decoder.tokens.spell(token)?;
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
        Ok(ChatDelta::Logprobs { choice: self.choice, logprobs: Logprobs { content, ..Logprobs::default() } })
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, path::Path};

    use hybrid_core::ErrorKind;

    use super::*;
    use crate::{Device, decoder::files::ModelFiles};

    /// A fixture that takes long conversations.
    fn decoder() -> Decoder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder/qwen2");
        let ModelFiles { mut config, weights, tokenizer, templates, defaults } = ModelFiles::open(&folder).unwrap();
        config.context = 2_000;
        let tokens = Tokens::new(tokenizer, config.vocabulary).unwrap();
        let network = Network::read(config, &*weights, Device::cpu().tensors()).unwrap();
        Decoder::new(network, tokens, Templates::compile(templates).unwrap(), defaults, 2_000)
    }

    #[test]
    fn a_long_prompt_is_read_in_portions_as_if_at_once_and_can_be_stopped_between_them() {
        let decoder = decoder();
        let prompt: Vec<u32> = (0..2 * PORTION as u32 + 7).map(|i| 3 + i * 31 % 300).collect();
        let ours = decoder.read(&prompt, &mut decoder.network.cache(2_000), &|| Ok(())).unwrap();
        let mut cache = decoder.network.cache(2_000);
        let whole = decoder.network.forward(&mut [Part {
            tokens: &prompt,
            cache: &mut cache,
            wanted: Wanted::Last,
            adapter: None,
        }]);
        for (a, b) in ours.iter().zip(&whole.unwrap()[0]) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
        let looks = Cell::new(0);
        let stop = || {
            looks.set(looks.get() + 1);
            if looks.get() == 3 { Err(Error::cancelled("test", "enough")) } else { Ok(()) }
        };
        let error = decoder.read(&prompt, &mut decoder.network.cache(2_000), &stop).unwrap_err();
        assert_eq!((error.kind(), looks.get()), (ErrorKind::Cancelled, 3));
    }

    #[test]
    fn an_answer_stops_when_it_is_not_wanted_though_nothing_of_it_was_told() {
        let decoder = decoder();
        let prepared = decoder.prepare(ChatRequest::user("ten rolls"), Timestamp::UNIX_EPOCH).unwrap();
        for last in [1, 2, 9] {
            let looks = Cell::new(0);
            let check = || {
                looks.set(looks.get() + 1);
                if looks.get() > last { Err(Error::cancelled("test", "enough")) } else { Ok(()) }
            };
            let error = decoder.generate(&prepared, 1, &check, &mut |_| Ok(())).unwrap_err();
            assert_eq!((error.kind(), looks.get()), (ErrorKind::Cancelled, last + 1));
        }
    }
}
