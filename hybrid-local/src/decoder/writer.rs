//! One answer as it is written: logits go in, tokens and pieces of text come out.

use std::sync::Arc;

use hybrid_core::{
    Result, Usage,
    task::{ChatDelta, Role, StopReason},
};

use super::{
    answer::{Answer, Next},
    codec::{Codec, Prepared},
    constraint::Constraint,
    sampling::Sampler,
    tokens::Joiner,
};

/// The answer number `choice` to a request.
#[derive(Debug)]
pub(super) struct Writer {
    prepared: Arc<Prepared>,
    choice: u32,
    sampler: Sampler,
    answer: Answer,
    joiner: Joiner,
    constraint: Option<Constraint>,
    written: usize,
    thought: usize,
}

impl Writer {
    pub(super) fn new(codec: &Codec, prepared: &Arc<Prepared>, seed: u64, choice: u32) -> Self {
        let Prepared { prompt, sampling, calls, thinking, ids, .. } = &**prepared;
        let mut answer = Answer::new(choice, &sampling.stop, codec.format, *calls, *thinking, ids.clone());
        if prepared.constraint.is_some() {
            answer.skip_space();
        }
        Self {
            prepared: Arc::clone(prepared),
            choice,
            answer,
            sampler: Sampler::new(sampling, &codec.defaults, prompt, seed, choice),
            joiner: Joiner::default(),
            constraint: prepared.constraint.as_ref().map(Constraint::fork),
            written: 0,
            thought: 0,
        }
    }

    /// Draws the token after all that came before, which made these logits; `None` if the answer ends with it.
    ///
    /// # Errors
    /// `Internal` if a logit is no finite number, or the answer's form cannot be followed.
    pub(super) fn write(
        &mut self,
        codec: &Codec,
        mut logits: Vec<f32>,
        deltas: &mut Vec<ChatDelta>,
    ) -> Result<Option<u32>> {
        let prepared = Arc::clone(&self.prepared);
        let (sampling, choice) = (&prepared.sampling, self.choice);
        if self.written == 0 {
            deltas.push(ChatDelta::Start { choice, role: Role::Assistant, name: None });
        }
        let before = sampling.logprobs.map(|_| logits.clone());
        let ends = &codec.defaults.ends;
        let constrain = |logits: &mut [f32]| self.constraint.as_mut().map_or(Ok(()), |form| form.mask(logits, ends));
        let token = self.sampler.draw(&mut logits, constrain)?;
        self.written += 1;
        if ends.contains(&token) {
            return self.end(codec, None, deltas);
        }
        let is_whole = match &mut self.constraint {
            Some(form) => !form.accept(token)?,
            None => false,
        };
        self.thought += usize::from(self.answer.is_thinking());
        if let Some(before) = before {
            deltas.push(codec.logprobs(choice, &before, token, usize::from(sampling.logprobs.unwrap_or_default()))?);
        }
        let text = self.joiner.push(token, &codec.tokens)?;
        let next = self.answer.push(&text);
        deltas.append(&mut self.answer.take());
        let most = sampling.max_tokens.map_or(usize::MAX, |most| most as usize);
        let cut = match next {
            Next::Stop(stop) => (StopReason::StopSequence, Some(stop)),
            Next::Called => (StopReason::ToolUse, None),
            Next::More if is_whole => return self.end(codec, None, deltas),
            Next::More if self.written >= most => (StopReason::MaxTokens, None),
            Next::More if self.written >= prepared.room => (StopReason::ContextWindowExceeded, None),
            Next::More => return Ok(Some(token)),
        };
        self.end(codec, Some(cut), deltas)
    }

    /// Adds what was written to `usage`.
    pub(super) fn count(&self, usage: &mut Usage) {
        usage.output_tokens += self.written as u64;
        usage.reasoning_tokens += self.thought as u64;
    }

    fn end(
        &mut self,
        codec: &Codec,
        cut: Option<(StopReason, Option<String>)>,
        deltas: &mut Vec<ChatDelta>,
    ) -> Result<Option<u32>> {
        let (mut cut, mut sequence) = cut.unzip();
        if sequence.as_ref().is_none_or(Option::is_none) {
            let rest = self.joiner.finish(&codec.tokens)?;
            if let Next::Stop(stop) = self.answer.push(&rest) {
                (cut, sequence) = (Some(StopReason::StopSequence), Some(Some(stop)));
            }
        }
        let reason = self.answer.finish(cut);
        deltas.append(&mut self.answer.take());
        deltas.push(ChatDelta::Stop { choice: self.choice, reason, sequence: sequence.flatten() });
        Ok(None)
    }
}
