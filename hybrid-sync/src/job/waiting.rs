//! Orders that the bucket has and the queue not yet.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, Digest, Document, Error, ErrorKind, JobQueue, Key, Outbox, Result, TenantId,
};
use tokio::sync::{Mutex, Notify};

use super::Job;
use crate::backoff::{Backoff, seed_of};

/// How many orders one call of the queue gets at most.
const BATCH: usize = 100;

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

    pub(super) async fn drain(&self, queue: &dyn JobQueue, store: &dyn ArtifactStore) -> Result<u64> {
        let _one = self.draining.lock().await;
        let (mut left, mut after, mut sent, mut refused) = (self.outbox.len().await?, 0, 0, None);
        while left > 0 {
            let records = self.outbox.pending(after, BATCH).await?;
            let Some((last, _)) = records.last() else { break };
            after = *last;
            left = left.saturating_sub(records.len() as u64);
            let outcome = self.send(queue, store, records).await?;
            sent += outcome.0;
            refused = refused.or(outcome.1);
        }
        if sent > 0 {
            tracing::debug!(sent, "orders are on the queue");
        }
        refused.map_or(Ok(sent), Err)
    }

    /// Sends orders and takes off the list what the queue has; answers with how many that are, and why the first of the others is not among them.
    async fn send(
        &self,
        queue: &dyn JobQueue,
        store: &dyn ArtifactStore,
        records: Vec<(u64, Bytes)>,
    ) -> Result<(u64, Option<Error>)> {
        let (mut numbers, mut messages, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for (number, bytes) in records {
            match Job::decode(&bytes) {
                Ok(job) => {
                    messages.push(job.to_message()?);
                    numbers.push(number);
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error.with("record", number)),
                Err(error) => {
                    tracing::error!(%error, record = number, "an order in the outbox is damaged; it goes to quarantine");
                    quarantine(store, bytes).await?;
                    done.push(number);
                }
            }
        }
        let outcomes = if messages.is_empty() { Vec::new() } else { queue.send(messages).await? };
        let (mut sent, mut refused) = (0, None);
        for (number, outcome) in numbers.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    done.push(number);
                    sent += 1;
                }
                Err(error) => {
                    refused.get_or_insert(error.with("record", number));
                }
            }
        }
        self.outbox.remove(&done).await?;
        Ok((sent, refused))
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
            match self.drain(queue, store).await {
                Ok(_) => {
                    failures = 0;
                    self.more.notified().await;
                }
                Err(error) => {
                    failures += 1;
                    // Never without a pause, whatever the jitter says.
                    let wait = backoff.wait(seed, failures).max(Duration::from_millis(100));
                    let wait = wait.max(error.retry_after().unwrap_or_default());
                    tracing::warn!(%error, failures, ?wait, "orders do not reach the queue; the list keeps them");
                    clock.sleep(wait).await;
                }
            }
        }
    }
}

async fn quarantine(store: &dyn ArtifactStore, record: Bytes) -> Result<()> {
    let key = Key::new(format!("t/{}/quarantine/orders/{}", TenantId::single(), Digest::of(&record)))?;
    store.create_same(&key, record).await
}
