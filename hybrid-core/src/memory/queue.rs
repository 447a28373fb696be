use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::select;
use tokio::sync::Notify;

use crate::{
    Clock, DeadLetter, DeadLetters, Delivery, Depth, Error, Guarantees, JobQueue, MessageId, Monotonic, NewMessage,
    Receipt, ReceiveOptions, Result, SystemClock, Timestamp, check_delay,
};

/// A [`JobQueue`] with [`DeadLetters`] in memory. Clones share their messages.
#[derive(Clone, Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: MemoryQueueOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Notify,
}

/// How a [`MemoryQueue`] behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryQueueOptions {
    /// How many deliveries a message may have, at least one.
    pub max_deliveries: u32,
    /// Whether messages of one group come one after the other, in the order sent.
    pub ordered: bool,
}

impl Default for MemoryQueueOptions {
    fn default() -> Self {
        Self { max_deliveries: 5, ordered: false }
    }
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    last_lease: u64,
    messages: BTreeMap<u64, Message>,
    dead: BTreeMap<u64, (Message, Timestamp)>,
}

#[derive(Clone, Debug)]
struct Message {
    new: NewMessage,
    sent: Timestamp,
    attempts: u32,
    /// When it can be received, or when its lease ends.
    visible: Monotonic,
    /// The number of the lease it is held under.
    lease: Option<u64>,
}

impl MemoryQueue {
    /// An empty queue whose time is `clock`'s.
    pub fn new(options: MemoryQueueOptions, clock: Arc<dyn Clock>) -> Self {
        let options = MemoryQueueOptions { max_deliveries: options.max_deliveries.max(1), ..options };
        let shared = Shared { options, clock, state: Mutex::default(), changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// The state as it is now: leases that have run out are over, messages whose deliveries are used up are dead.
    fn state(&self) -> (MutexGuard<'_, State>, Monotonic) {
        let Shared { options, clock, state, .. } = &*self.shared;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.monotonic();
        let due: Vec<u64> =
            state.messages.iter().filter(|(_, message)| message.visible <= now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(message) = state.messages.get_mut(&id) else { continue };
            message.lease = None;
            if message.attempts >= options.max_deliveries
                && let Some(message) = state.messages.remove(&id)
            {
                state.dead.insert(id, (message, clock.now()));
            }
        }
        (state, now)
    }

    fn lease_ready(&self, max: usize, lease: Duration) -> Vec<Delivery> {
        let (mut state, now) = self.state();
        let State { last_lease, messages, .. } = &mut *state;
        let mut busy_groups = BTreeSet::new();
        let mut deliveries = Vec::new();
        for (id, message) in messages {
            if deliveries.len() == max {
                break;
            }
            if self.shared.options.ordered
                && let Some(group) = &message.new.group
                && !busy_groups.insert(group.clone())
            {
                continue;
            }
            if message.visible > now {
                continue;
            }
            *last_lease += 1;
            message.lease = Some(*last_lease);
            message.attempts += 1;
            message.visible = now.plus(lease);
            deliveries.push(Delivery {
                id: MessageId(id.to_string()),
                body: message.new.body.clone(),
                group: message.new.group.clone(),
                trace: message.new.trace.clone(),
                sent: message.sent,
                attempt: message.attempts,
                max_attempts: Some(self.shared.options.max_deliveries),
                receipt: Receipt(format!("{id}.{last_lease}")),
            });
        }
        deliveries
    }

    /// How long until a message may become ready without anyone calling.
    fn next_change(&self) -> Option<Duration> {
        let (state, now) = self.state();
        state.messages.values().map(|message| message.visible.since(now)).filter(|wait| !wait.is_zero()).min()
    }
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new(MemoryQueueOptions::default(), Arc::new(SystemClock))
    }
}

impl State {
    /// The message held under the lease of `receipt`, if it still is.
    fn held(&mut self, receipt: &Receipt, now: Monotonic) -> Result<(u64, &mut Message)> {
        let parsed = receipt.0.split_once('.').and_then(|(id, lease)| Some((id.parse().ok()?, lease.parse().ok()?)));
        let (id, lease): (u64, u64) = parsed
            .ok_or_else(|| Error::invalid("find lease", "not a receipt of this queue").with("receipt", &receipt.0))?;
        self.messages
            .get_mut(&id)
            .filter(|message| message.lease == Some(lease) && message.visible > now)
            .map(|message| (id, message))
            .ok_or_else(|| Error::lease_lost("find lease", "the lease has ended").with("message", id))
    }
}

#[async_trait]
impl JobQueue for MemoryQueue {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            exclusive_lease: true,
            exact_depth: true,
            ordered: self.shared.options.ordered,
            free_release: true,
        }
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        let (mut state, now) = self.state();
        let sent = self.shared.clock.now();
        let answers = messages
            .into_iter()
            .map(|new| {
                new.validate()?;
                state.last_id += 1;
                let id = state.last_id;
                let visible = now.plus(new.delay);
                state.messages.insert(id, Message { new, sent, attempts: 0, visible, lease: None });
                Ok(MessageId(id.to_string()))
            })
            .collect();
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        let ReceiveOptions { max, wait, lease } = options;
        let end = self.shared.clock.monotonic().plus(wait);
        loop {
            // Listening starts before the look, so that a message sent in between is not missed.
            let changed = self.shared.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let deliveries = self.lease_ready(max.max(1), lease);
            let left = end.since(self.shared.clock.monotonic());
            if !deliveries.is_empty() || left.is_zero() {
                return Ok(deliveries);
            }
            let nap = self.next_change().map_or(left, |next| next.min(left));
            select(changed, self.shared.clock.sleep(nap)).await;
        }
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        let (mut state, now) = self.state();
        let answers = leases
            .iter()
            .map(|(receipt, lease)| {
                state.held(receipt, now)?.1.visible = now.plus(*lease);
                Ok(())
            })
            .collect();
        drop(state);
        // A lease that was shortened ends before the waiting receivers would look again.
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let (mut state, now) = self.state();
        let answers = receipts
            .iter()
            .map(|receipt| {
                let (id, _) = state.held(receipt, now)?;
                state.messages.remove(&id);
                Ok(())
            })
            .collect();
        drop(state);
        // In an ordered queue an ack lets the next of its group through.
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        let (mut state, now) = self.state();
        let answers = receipts
            .iter()
            .map(|(receipt, delay)| {
                check_delay(*delay)?;
                let (_, message) = state.held(receipt, now)?;
                message.lease = None;
                message.visible = now.plus(*delay);
                Ok(())
            })
            .collect();
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let (mut state, now) = self.state();
        let answers = receipts
            .iter()
            .map(|receipt| {
                let (_, message) = state.held(receipt, now)?;
                (message.lease, message.visible) = (None, now);
                message.attempts -= 1;
                Ok(())
            })
            .collect();
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(answers)
    }

    async fn depth(&self) -> Result<Depth> {
        let (state, now) = self.state();
        let mut depth = Depth::default();
        for message in state.messages.values() {
            match message.lease {
                Some(_) => depth.leased += 1,
                None if message.visible > now => depth.delayed += 1,
                None => depth.ready += 1,
            }
        }
        Ok(depth)
    }
}

#[async_trait]
impl DeadLetters for MemoryQueue {
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>> {
        let (state, _) = self.state();
        let after = after.map_or(Ok(0), numeric)?;
        Ok(state
            .dead
            .range(after.saturating_add(1)..)
            .take(max)
            .map(|(id, (message, died))| DeadLetter {
                id: MessageId(id.to_string()),
                body: message.new.body.clone(),
                group: message.new.group.clone(),
                sent: message.sent,
                died: Some(*died),
                attempts: message.attempts,
            })
            .collect())
    }

    async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        let (mut state, now) = self.state();
        let mut count = 0;
        for id in ids {
            if let Ok(id) = numeric(id)
                && let Some((message, _)) = state.dead.remove(&id)
            {
                state.messages.insert(id, Message { attempts: 0, visible: now, lease: None, ..message });
                count += 1;
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(count)
    }

    async fn purge(&self, ids: &[MessageId]) -> Result<u64> {
        let (mut state, _) = self.state();
        let mut count = 0;
        for id in ids {
            count += u64::from(numeric(id).is_ok_and(|id| state.dead.remove(&id).is_some()));
        }
        Ok(count)
    }
}

fn numeric(id: &MessageId) -> Result<u64> {
    id.0.parse().map_err(|_| Error::invalid("find dead letter", "not an id of this queue").with("id", &id.0))
}
