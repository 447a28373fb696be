//! Orders that the bucket has and the queue not yet.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, Digest, Document, Error, ErrorKind, JobQueue, Key, Outbox, Result, TenantId,
};
use tokio::sync::{Mutex, Notify};

use super::{Failure, Job, JobResult, Outcome, result_key};
use crate::backoff::{Backoff, seed_of};

/// How many orders one call of the queue gets at most.
const BATCH: usize = 100;
/// Who has ended a job that the queue would not have.
const ENDED_BY: &str = "outbox";

/// What one drain did.
#[derive(Debug, Default)]
struct Carried {
    /// How many orders the queue took.
    sent: u64,
    /// Why the first of those that stay is not among them; the others are carried all the same.
    kept: Option<Error>,
}

impl Carried {
    fn keep(&mut self, error: Error, record: u64) {
        self.kept.get_or_insert(error.with("record", record));
    }
}

/// A durable list of orders on their way to the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    outbox: Arc<dyn Outbox>,
    more: Notify,
    /// One drain at a time.
    draining: Mutex<()>,
}

impl Waiting {
    pub(super) fn new(outbox: Arc<dyn Outbox>) -> Self {
        Self { outbox, more: Notify::new(), draining: Mutex::default() }
    }

    pub(super) async fn len(&self) -> Result<u64> {
        self.outbox.len().await
    }

    pub(super) async fn append(&self, job: &Job) -> Result<()> {
        self.outbox.append(job.encode()?).await?;
        self.more.notify_one();
        Ok(())
    }

    pub(super) async fn drain(
        &self,
        queue: &dyn JobQueue,
        store: &dyn ArtifactStore,
        clock: &dyn Clock,
    ) -> Result<u64> {
        let Carried { sent, kept } = self.carry(queue, store, clock).await?;
        kept.map_or(Ok(sent), Err)
    }

    /// Carries what can be carried; an error means that queue or list are away as a whole.
    async fn carry(&self, queue: &dyn JobQueue, store: &dyn ArtifactStore, clock: &dyn Clock) -> Result<Carried> {
        let _one = self.draining.lock().await;
        let (mut left, mut after, mut carried) = (self.outbox.len().await?, 0, Carried::default());
        while left > 0 {
            let records = self.outbox.pending(after, BATCH).await?;
            let Some((last, _)) = records.last() else { break };
            after = *last;
            left = left.saturating_sub(records.len() as u64);
            self.send(queue, store, clock, records, &mut carried).await?;
        }
        if carried.sent > 0 {
            tracing::debug!(sent = carried.sent, "orders are on the queue");
        }
        Ok(carried)
    }

    /// Sends orders, and takes off the list what the queue has and what it will never have.
    async fn send(
        &self,
        queue: &dyn JobQueue,
        store: &dyn ArtifactStore,
        clock: &dyn Clock,
        records: Vec<(u64, Bytes)>,
        carried: &mut Carried,
    ) -> Result<()> {
        let (mut jobs, mut messages, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for (number, bytes) in records {
            match Job::decode(&bytes).and_then(|job| Ok((job.to_message()?, job))) {
                Ok((message, job)) => {
                    messages.push(message);
                    jobs.push((number, job));
                }
                // A later version of this software reads it.
                Err(error) if error.kind() == ErrorKind::Unsupported => carried.keep(error, number),
                Err(error) => {
                    tracing::error!(%error, record = number, "an order in the outbox is damaged; it goes to quarantine");
                    match quarantine(store, bytes).await {
                        Ok(()) => done.push(number),
                        Err(error) => carried.keep(error, number),
                    }
                }
            }
        }
        let outcomes = if messages.is_empty() { Vec::new() } else { queue.send(messages).await? };
        for ((number, job), outcome) in jobs.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    done.push(number);
                    carried.sent += 1;
                }
                Err(error) if is_for_good(&error) => {
                    tracing::error!(%error, job = %job.id, "the queue refuses an order for good; the job has failed");
                    match fail(store, clock, &job, &error).await {
                        Ok(()) => done.push(number),
                        Err(error) => carried.keep(error, number),
                    }
                }
                Err(error) => carried.keep(error, number),
            }
        }
        self.outbox.remove(&done).await
    }

    pub(super) async fn run(
        &self,
        queue: &dyn JobQueue,
        store: &dyn ArtifactStore,
        clock: &dyn Clock,
        longest_wait: Duration,
    ) {
        let backoff = Backoff { first: Duration::from_secs(1), cap: longest_wait };
        let seed = seed_of(0, b"orders");
        let mut failures = 0;
        loop {
            let (error, away) = match self.carry(queue, store, clock).await {
                Ok(Carried { kept: None, .. }) => {
                    failures = 0;
                    self.more.notified().await;
                    continue;
                }
                Ok(Carried { kept: Some(error), .. }) => (error, false),
                Err(error) => (error, true),
            };
            failures += 1;
            // Never without a pause, whatever the jitter says.
            let wait = backoff.wait(seed, failures).max(Duration::from_millis(100));
            let wait = wait.max(error.retry_after().unwrap_or_default());
            if away {
                tracing::warn!(%error, failures, ?wait, "orders do not reach the queue; the list keeps them");
                clock.sleep(wait).await;
            } else {
                tracing::warn!(%error, failures, ?wait, "some orders do not reach the queue; the list keeps them");
                // What comes after them need not wait for them.
                tokio::select! {
                    () = clock.sleep(wait) => {}
                    () = self.more.notified() => {}
                }
            }
        }
    }
}

/// Whether the queue will never have this very message. What it refuses for another's fault, such as missing rights or a full disk, it may take later.
fn is_for_good(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::InvalidInput)
}

/// Ends a job that no worker will ever see, so that who ordered it hears of it.
async fn fail(store: &dyn ArtifactStore, clock: &dyn Clock, job: &Job, error: &Error) -> Result<()> {
    let now = clock.now();
    let result = JobResult {
        job: job.id,
        kind: job.kind.clone(),
        outcome: Outcome::Failure(Failure::new(error)),
        worker: ENDED_BY.to_owned(),
        started: now,
        finished: now,
        attempts: 0,
        request: job.request.clone(),
        trace: job.trace.clone(),
    };
    match store.create(&result_key(&job.tenant, job.id)?, result.encode()?).await {
        // The same order, sent before in a form that the queue took.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        created => created,
    }
}

async fn quarantine(store: &dyn ArtifactStore, record: Bytes) -> Result<()> {
    let key = Key::new(format!("t/{}/quarantine/orders/{}", TenantId::single(), Digest::of(&record)))?;
    store.create_same(&key, record).await
}
