//! Requests on their way: what was asked, which answers wait, which are being written.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use hybrid_core::{
    BackendProfile, CallContext, Error, Event, Monotonic, ReplyMeta, Result, TenantId, Usage,
    task::{Chat, ChatDelta},
};
use tokio::sync::mpsc::UnboundedSender;

use super::OPERATION;
use crate::decoder::{adapter::Adapter, codec::Prepared, network::Cache, writer::Writer};

/// An adapter that requests may name.
#[derive(Debug)]
pub(in crate::decoder) struct Numbered {
    /// Unlike that of any other adapter of the engine, and not zero.
    pub(in crate::decoder) number: u64,
    pub(in crate::decoder) adapter: Adapter,
}

/// A request to the engine.
#[derive(Debug)]
pub(in crate::decoder) struct Job {
    pub(in crate::decoder) prepared: Arc<Prepared>,
    pub(in crate::decoder) seed: u64,
    /// What the model wears for this request.
    pub(in crate::decoder) adapter: Option<Arc<Numbered>>,
    pub(in crate::decoder) context: CallContext,
    /// Who answers.
    pub(in crate::decoder) profile: Arc<BackendProfile>,
    pub(in crate::decoder) started: Monotonic,
    /// Where the answer goes. An answer has an end, and so has what waits here for a slow reader; nobody else is kept waiting for it.
    pub(in crate::decoder) events: UnboundedSender<Result<Event<Chat>>>,
}

/// Who may begin where whom ended: what was read for another tenant or with other weights is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    tenant: TenantId,
    adapter: u64,
}

impl Job {
    pub(super) fn owner(&self) -> Owner {
        let adapter = self.adapter.as_ref().map_or(0, |numbered| numbered.number);
        Owner { tenant: self.context.tenant.clone(), adapter }
    }
}

/// A request that was let in or waits.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) job: Job,
    pub(super) usage: Usage,
    /// Answers that have not ended.
    pub(super) left: u32,
    /// What the network made of the whole prompt, for the answers after the first.
    pub(super) first: Option<Vec<f32>>,
}

impl Request {
    pub(super) fn new(job: Job) -> Self {
        let left = job.prepared.answers();
        Self { job, usage: Usage::default(), left, first: None }
    }

    /// Whether somebody waits for the answer; an error to tell if somebody does, but in vain.
    pub(super) fn check(&self) -> Result<(), Option<Error>> {
        if self.job.events.is_closed() {
            return Err(None);
        }
        self.job.context.check(OPERATION).map_err(Some)
    }

    /// Whoever does not read any more is noticed between the passes.
    pub(super) fn tell(&self, deltas: Vec<ChatDelta>) {
        deltas.into_iter().for_each(|delta| drop(self.job.events.send(Ok(Event::Delta(delta)))));
    }

    pub(super) fn fail(self, error: Error) {
        drop(self.job.events.send(Err(error)));
    }

    pub(super) fn succeed(self) {
        let Job { prepared, context, profile, started, events, .. } = self.job;
        let end = ReplyMeta::of(&profile, context.clock.monotonic().since(started), self.usage).map(|mut meta| {
            meta.notes.clone_from(&prepared.notes);
            Event::Done(meta)
        });
        drop(events.send(end));
    }
}

/// Requests by number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    all: HashMap<u64, Request>,
    next: u64,
}

impl Requests {
    pub(super) fn add(&mut self, job: Job) -> u64 {
        self.next += 1;
        self.all.insert(self.next, Request::new(job));
        self.next
    }

    pub(super) fn get(&mut self, number: u64) -> Option<&mut Request> {
        self.all.get_mut(&number)
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.all.contains_key(&number)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Request> {
        self.all.remove(&number)
    }

    /// Lets go of the requests that nobody waits for; gives whether there were any.
    pub(super) fn sweep(&mut self) -> bool {
        let ended = self.all.iter().filter_map(|(number, request)| Some((*number, request.check().err()?)));
        let ended: Vec<(u64, Option<Error>)> = ended.collect();
        let any = !ended.is_empty();
        for (number, error) in ended {
            if let (Some(request), Some(error)) = (self.all.remove(&number), error) {
                request.fail(error);
            }
        }
        any
    }
}

/// An answer that is not begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) request: u64,
    pub(super) choice: u32,
}

/// Answers that are not begun: in order for each tenant, and tenants take turns.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    tenants: VecDeque<(TenantId, VecDeque<Waiter>)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    pub(super) fn push(&mut self, tenant: &TenantId, waiter: Waiter) {
        match self.tenants.iter_mut().find(|(other, _)| other == tenant) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => self.tenants.push_back((tenant.clone(), [waiter].into())),
        }
    }

    /// Puts the further answers of a request that is being answered before all others.
    pub(super) fn push_first(&mut self, tenant: &TenantId, waiters: impl DoubleEndedIterator<Item = Waiter>) {
        let at = self.tenants.iter().position(|(other, _)| other == tenant);
        let entry = at.and_then(|at| self.tenants.remove(at));
        let (tenant, mut own) = entry.unwrap_or_else(|| (tenant.clone(), VecDeque::new()));
        waiters.rev().for_each(|waiter| own.push_front(waiter));
        self.tenants.push_front((tenant, own));
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<Waiter> {
        self.tenants.front()?.1.front().copied()
    }

    /// Takes away whose turn it was.
    pub(super) fn pop(&mut self) {
        if let Some((tenant, mut waiters)) = self.tenants.pop_front() {
            waiters.pop_front();
            if !waiters.is_empty() {
                self.tenants.push_back((tenant, waiters));
            }
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Waiter) -> bool) {
        self.tenants.iter_mut().for_each(|(_, waiters)| waiters.retain(&keep));
        self.tenants.retain(|(_, waiters)| !waiters.is_empty());
    }
}

/// An answer that is being written, or whose prompt is being read.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: u64,
    pub(super) owner: Owner,
    pub(super) adapter: Option<Arc<Numbered>>,
    /// The prompt, and what was written. The cache has those that were read.
    pub(super) tokens: Vec<u32>,
    pub(super) cache: Cache,
    /// Tokens of memory that are set aside for it.
    pub(super) reserved: usize,
    pub(super) writer: Writer,
    /// What the network made of all tokens, if they were read by another answer already.
    pub(super) logits: Option<Vec<f32>>,
}

impl Sequence {
    pub(super) fn unread(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }
}
