//! What happens between two passes, and what a pass reads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hybrid_core::{Error, Result, task::ChatDelta};
use rayon::prelude::*;

use super::{
    OPERATION,
    kept::{Kept, WORTHWHILE, common},
    requests::{Job, Owner, Requests, Sequence, Waiter, Waiting},
};
use crate::{
    decoder::{
        codec::Codec,
        network::{Cache, Network, Part, Wanted},
        writer::Writer,
    },
    device::tensor_error,
};

/// Answers that are written side by side.
const MOST_AT_ONCE: usize = 32;
/// Tokens of prompts that a pass reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    /// While no answer is being written.
    pub(super) alone: usize,
    /// While answers are being written, which wait for it.
    pub(super) beside: usize,
}

/// On a processor a few rows keep all its units busy, so that more of them only make answers wait longer.
pub(super) const PROCESSOR: Portion = Portion { alone: 256, beside: 64 };
const ACCELERATOR: Portion = Portion { alone: 2_048, beside: 512 };
/// The least of one prompt, where several share a portion.
pub(super) const LEAST: usize = 16;

/// All requests, and the network that answers them; driven a [`step`](Self::step) at a time.
#[derive(Debug)]
pub(super) struct Scheduler {
    network: Network,
    codec: Arc<Codec>,
    /// Tokens that all caches together have memory for.
    capacity: usize,
    requests: Requests,
    waiting: Waiting,
    running: Vec<Sequence>,
    kept: Kept,
    portion: Portion,
    passes: usize,
}

impl Scheduler {
    pub(super) fn new(network: Network, codec: Arc<Codec>, capacity: usize) -> Self {
        let capacity = capacity.max(codec.context());
        let portion = if network.is_accelerated() { ACCELERATOR } else { PROCESSOR };
        Self {
            network,
            codec,
            capacity,
            requests: Requests::default(),
            waiting: Waiting::default(),
            running: Vec::new(),
            kept: Kept::default(),
            portion,
            passes: 0,
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn add(&mut self, job: Job) {
        let tenant = job.context.tenant.clone();
        let request = self.requests.add(job);
        self.waiting.push(&tenant, Waiter { request, choice: 0 });
    }

    /// Lets go, lets in, and makes one pass.
    pub(super) fn step(&mut self) {
        if self.requests.sweep() {
            self.let_go();
        }
        while let Some(waiter) = self.waiting.first() {
            match self.let_in(waiter) {
                Ok(true) => self.waiting.pop(),
                Ok(false) => break,
                Err(error) => {
                    self.waiting.pop();
                    self.fail(waiter.request, error);
                }
            }
        }
        self.pass();
    }

    /// Ends the sequences whose requests are no more. What they have read may be asked again.
    fn let_go(&mut self) {
        self.waiting.retain(|waiter| self.requests.has(waiter.request));
        let requests = &self.requests;
        for sequence in self.running.extract_if(.., |sequence| !requests.has(sequence.request)) {
            self.kept.put(&sequence.owner, sequence.tokens, sequence.cache);
        }
    }

    fn fail(&mut self, request: u64, error: Error) {
        if let Some(request) = self.requests.remove(request) {
            tracing::warn!(%error, "an answer failed");
            request.fail(error);
        }
        self.let_go();
    }

    /// Begins an answer if there is memory for it.
    fn let_in(&mut self, waiter: Waiter) -> Result<bool> {
        let Some(request) = self.requests.get(waiter.request) else { return Ok(true) };
        let (prepared, first) = (Arc::clone(&request.job.prepared), request.first.clone());
        let (owner, adapter, seed) = (request.job.owner(), request.job.adapter.clone(), request.job.seed);
        let needed = prepared.most_tokens();
        let taken: usize = self.running.iter().map(|sequence| sequence.reserved).sum();
        if self.running.len() >= MOST_AT_ONCE || taken + needed > self.capacity {
            return Ok(false);
        }
        let free = self.capacity - taken - needed;
        let tokens = &prepared.prompt;
        // Without the logits after a prompt its last token has to be read again.
        let usable = if first.is_some() { tokens.len() } else { tokens.len() - 1 };
        let (cache, begun) = self.begin(&owner, &tokens[..usable], needed, free)?;
        let reserved = needed.max(cache.room());
        if let Some(request) = self.requests.get(waiter.request)
            && waiter.choice == 0
        {
            request.usage.input_tokens = (tokens.len() - begun) as u64;
            request.usage.cache_read_tokens = begun as u64;
        }
        self.running.push(Sequence {
            request: waiter.request,
            owner,
            adapter,
            tokens: tokens.clone(),
            cache,
            reserved,
            writer: Writer::new(&self.codec, &prepared, seed, waiter.choice),
            logits: first.filter(|_| begun == tokens.len()),
        });
        Ok(true)
    }

    /// A cache for `needed` tokens that has as many of `tokens` as were read before, and how many those are; `free` more fit beside it.
    fn begin(&mut self, owner: &Owner, tokens: &[u32], needed: usize, free: usize) -> Result<(Cache, usize)> {
        let copy = tensor_error("copy cache");
        let read = |sequence: &Sequence| common(&sequence.tokens[..sequence.cache.len()], tokens);
        let own = self.running.iter().filter(|sequence| sequence.owner == *owner);
        let beside = own.map(|sequence| (read(sequence), &sequence.cache)).max_by_key(|(length, _)| *length);
        let longest = beside.as_ref().map_or(0, |(length, _)| *length);
        if let Some((length, kept)) = self.kept.take(owner, tokens, longest) {
            // Memory that is set aside for this sequence already need not be set aside for what it begins with.
            self.kept.shrink(free.saturating_sub(kept.room().saturating_sub(needed)));
            let has_room = self.kept.room() + kept.room() <= free;
            let (cache, rest) = kept.begin(length, needed, has_room).map_err(copy)?;
            rest.into_iter().for_each(|entry| self.kept.put_back(entry));
            return Ok((cache, length));
        }
        self.kept.shrink(free);
        match beside.filter(|(length, _)| *length >= WORTHWHILE) {
            Some((length, cache)) => Ok((cache.fork(length, needed).map_err(copy)?, length)),
            None => Ok((self.network.cache(needed), 0)),
        }
    }

    /// Reads the next tokens of the sequences, and writes the answers on.
    fn pass(&mut self) {
        let unread: Vec<usize> = self.running.iter().map(Sequence::unread).collect();
        let portions = portions(&unread, self.portion, self.passes);
        self.passes = self.passes.wrapping_add(1);
        let mut parts = Vec::with_capacity(self.running.len());
        for (sequence, portion) in self.running.iter_mut().zip(&portions).filter(|(_, portion)| **portion > 0) {
            let next = sequence.cache.len() + portion;
            let wanted = if next == sequence.tokens.len() { Wanted::Last } else { Wanted::None };
            let tokens = &sequence.tokens[sequence.cache.len()..next];
            let adapter = sequence.adapter.as_deref().map(|numbered| &numbered.adapter);
            parts.push(Part { tokens, cache: &mut sequence.cache, wanted, adapter });
        }
        let wanted = parts.iter().filter(|part| part.wanted == Wanted::Last).count();
        let forward = || match self.network.forward(&mut parts)? {
            logits if logits.len() == wanted => Ok(logits),
            _ => Err(Error::internal(OPERATION, "the network gave no logits")),
        };
        match guarded(forward) {
            Ok(logits) => self.write(logits),
            Err(error) => {
                // Nobody knows what is in the caches of this pass.
                let mut portions = portions.iter();
                let failed: Vec<Sequence> =
                    self.running.extract_if(.., |_| portions.next().is_some_and(|portion| *portion > 0)).collect();
                let message = "the model's pass failed; ask again";
                for sequence in failed {
                    self.fail(sequence.request, Error::internal(OPERATION, message).with("reason", &error));
                }
            }
        }
    }

    /// Gives the sequences that were read to their end the logits that came of it, in order.
    fn write(&mut self, logits: Vec<Vec<f32>>) {
        let mut logits = logits.into_iter();
        let mut further = Vec::new();
        for sequence in &mut self.running {
            let is_new = sequence.logits.is_none() && sequence.unread() == 0;
            if !is_new {
                continue;
            }
            sequence.logits = logits.next();
            if let Some(request) = self.requests.get(sequence.request)
                && request.first.is_none()
                && request.left > 1
            {
                request.first.clone_from(&sequence.logits);
                further.push((request.job.context.tenant.clone(), sequence.request, request.left));
            }
        }
        for (tenant, request, answers) in further {
            self.waiting.push_first(&tenant, (1..answers).map(|choice| Waiter { request, choice }));
        }
        let codec = &*self.codec;
        let ready = self.running.par_iter_mut().enumerate();
        let written: Vec<(usize, Result<Written>)> = ready
            .filter_map(|(at, sequence)| {
                let logits = sequence.logits.take()?;
                Some((at, guarded(|| Written::next(&mut sequence.writer, codec, logits))))
            })
            .collect();
        let mut ended = Vec::new();
        for (at, written) in written {
            let sequence = &mut self.running[at];
            let Some(request) = self.requests.get(sequence.request) else { continue };
            match written {
                Ok(Written { deltas, token }) => {
                    request.tell(deltas);
                    match token {
                        Some(token) => sequence.tokens.push(token),
                        None => ended.push(at),
                    }
                }
                Err(error) => {
                    let number = sequence.request;
                    if let Some(request) = self.requests.remove(number) {
                        tracing::warn!(%error, "an answer failed");
                        request.fail(error);
                    }
                }
            }
        }
        for at in ended.into_iter().rev() {
            self.end(at);
        }
        self.let_go();
    }

    /// Ends an answer, and with the last one the reply.
    fn end(&mut self, at: usize) {
        let Sequence { request: number, owner, tokens, cache, writer, .. } = self.running.remove(at);
        self.kept.put(&owner, tokens, cache);
        let Some(request) = self.requests.get(number) else { return };
        writer.count(&mut request.usage);
        request.left -= 1;
        if request.left == 0
            && let Some(request) = self.requests.remove(number)
        {
            request.succeed();
        }
    }
}

/// What came of one sequence's logits.
struct Written {
    deltas: Vec<ChatDelta>,
    token: Option<u32>,
}

impl Written {
    fn next(writer: &mut Writer, codec: &Codec, logits: Vec<f32>) -> Result<Self> {
        let mut deltas = Vec::new();
        let token = writer.write(codec, logits, &mut deltas)?;
        Ok(Self { deltas, token })
    }
}

/// Runs `work`, and makes an error of a panic.
fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::internal(OPERATION, "the model's code panicked").quote("panic", text))
    })
}

/// How many tokens of each sequence the next pass reads, by how many are `unread`: all of an answer, which is one at most, and of the prompts
/// as much as keeps the answers from waiting long. Half of that goes to the prompt that is read soonest, so that answers begin one after
/// another and not all at the end; the others share the rest, so that none starves. `turn` says whose share is taken first.
pub(super) fn portions(unread: &[usize], portion: Portion, turn: usize) -> Vec<usize> {
    let mut portions: Vec<usize> = unread.iter().map(|unread| (*unread).min(1)).collect();
    let mut prompts: Vec<usize> = (0..unread.len()).filter(|at| unread[*at] > 1).collect();
    let mut left = if prompts.len() < unread.len() { portion.beside } else { portion.alone };
    let Some(soonest) = (0..prompts.len()).min_by_key(|i| unread[prompts[*i]]) else { return portions };
    let half = if prompts.len() == 1 { left } else { left / 2 };
    let soonest = prompts.remove(soonest);
    portions[soonest] = unread[soonest].min(half);
    left -= portions[soonest];
    for i in 0..prompts.len() {
        let at = prompts[(turn + i) % prompts.len()];
        let share = left.div_ceil(prompts.len() - i).max(LEAST).min(left);
        portions[at] = unread[at].min(share);
        left -= portions[at];
    }
    portions
}

#[cfg(test)]
impl Scheduler {
    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Answers that are being written or whose prompts are being read.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Checks that no more memory is set aside and taken than there is.
    pub(super) fn check(&self) {
        let reserved: usize = self.running.iter().map(|sequence| sequence.reserved).sum();
        assert!(reserved + self.kept.room() <= self.capacity, "{reserved}, {}", self.kept.room());
        for sequence in &self.running {
            assert!(sequence.cache.room() <= sequence.reserved && sequence.unread() > 0, "{sequence:?}");
        }
    }

    pub(super) fn prompt_tokens_of_next_pass(&self) -> usize {
        let unread: Vec<usize> = self.running.iter().map(Sequence::unread).collect();
        portions(&unread, self.portion, self.passes).into_iter().filter(|portion| *portion > 1).sum()
    }

    /// Takes the memory of the sequences that are running away, so that the next pass fails.
    pub(super) fn damage(&mut self) {
        self.running.iter_mut().for_each(|sequence| sequence.cache.set_limit(0));
    }
}
