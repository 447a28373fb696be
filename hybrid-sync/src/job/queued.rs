use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Cancellation, Clock, DataPolicy, Digest, Document, Error, ErrorKind, IdSource,
    JobEnd, JobFailure, JobId, JobOrder, JobQueue, JobStatus, Jobs, Key, Outbox, Result, TenantId,
};

use super::{Job, Outcome, dead, read_result, result_key, submit, waiting::Waiting};

/// Orders jobs over a queue and reads their results from the bucket: the [`Jobs`] port between the two halves.
///
/// The order itself is kept at `t/<tenant>/jobs/<id>/job` before it is sent, so that a job is known before it is done.
///
/// # When the queue is away
/// Without more an order fails then, with [`Unavailable`](ErrorKind::Unavailable): right where no disk lasts, as in a cloud function. With an
/// [outbox](Self::with_outbox) an order is taken as soon as the bucket has it and this machine's list names it; [`run`](Self::run) carries the list to the
/// queue, for as long as that takes. Nothing leaves the list before the queue has it, so a crash loses nothing; at worst a job is sent twice, and the worker
/// still makes one result.
#[derive(Debug)]
pub struct QueuedJobs {
    queue: Arc<dyn JobQueue>,
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    waiting: Option<Waiting>,
}

impl QueuedJobs {
    /// Orders over `queue`, with orders and results in `store`.
    pub fn new(
        queue: Arc<dyn JobQueue>,
        store: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { queue, store, clock, ids, waiting: None }
    }

    /// The same with a list of its own on this machine between the order and the queue; [`run`](Self::run) must be running.
    #[must_use]
    pub fn with_outbox(mut self, outbox: Arc<dyn Outbox>) -> Self {
        self.waiting = Some(Waiting::new(outbox));
        self
    }

    /// How many orders wait for the queue.
    ///
    /// # Errors
    /// Those of the outbox.
    pub async fn pending(&self) -> Result<u64> {
        match &self.waiting {
            Some(waiting) => waiting.len().await,
            None => Ok(0),
        }
    }

    /// Sends all orders that wait now; answers with how many messages the queue took.
    ///
    /// An order that the queue refuses holds up no other. One that it will never take, being over the queue's own limit, ends the job: its result is the
    /// refusal, and that is no error here.
    ///
    /// # Errors
    /// Those of outbox, queue and bucket, the first after all that could be carried; what is not on the queue stays on the list.
    /// [`Unsupported`](ErrorKind::Unsupported) if a newer version of this software has left orders here: upgrade again.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub async fn drain(&self) -> Result<u64> {
        match &self.waiting {
            Some(waiting) => waiting.drain(&*self.queue, &*self.store, &*self.clock).await,
            None => Ok(0),
        }
    }

    /// Sends orders as they come until `cancel` is raised, with back-off while the queue is away, at most `longest_wait`: for a task of its own. Call
    /// [`drain`](Self::drain) afterwards to send the rest before a planned stop.
    pub async fn run(&self, cancel: Cancellation, longest_wait: Duration) {
        let Some(waiting) = &self.waiting else { return };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = waiting.run(&*self.queue, &*self.store, &*self.clock, longest_wait) => {}
        }
    }

    async fn ordered(&self, tenant: &TenantId, id: JobId) -> Result<Option<Job>> {
        let key = order_key(tenant, id)?;
        match self.store.get(&key).await {
            Ok(bytes) => Job::decode(&bytes).map(Some).map_err(|error| error.with("key", key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that an order that the bucket has reaches the queue.
    async fn pass_on(&self, job: &Job, repeated: bool) -> Result<()> {
        let Some(waiting) = &self.waiting else { return submit(&*self.queue, &*self.store, job).await.map(drop) };
        // A fresh order has no result to look for.
        if repeated && self.store.exists(&result_key(&job.tenant, job.id)?).await? {
            return Ok(());
        }
        waiting.append(job).await
    }
}

#[async_trait]
impl Jobs for QueuedJobs {
    async fn submit(&self, order: JobOrder) -> Result<JobId> {
        let id = id_of(&order)?;
        let JobOrder { tenant, kind, payload, input, policy, key: _, request, trace } = order;
        let mut job = Job::new(&*self.ids, &*self.clock, tenant, kind, payload)?;
        (job.id, job.input, job.policy) = (id.unwrap_or(job.id), input, policy);
        (job.request, job.trace) = (request, trace);
        // Refused before anything is kept.
        job.to_message()?.validate()?;
        let repeated = match self.store.create(&order_key(&job.tenant, job.id)?, job.encode()?).await {
            Ok(()) => false,
            // Ordered before: what is sent again is what was ordered then.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                job = self.ordered(&job.tenant, job.id).await?.ok_or(error)?;
                true
            }
            Err(error) => return Err(error),
        };
        self.pass_on(&job, repeated).await?;
        Ok(job.id)
    }

    async fn status(&self, tenant: &TenantId, id: JobId) -> Result<Option<JobStatus>> {
        let Some(job) = self.ordered(tenant, id).await? else { return Ok(None) };
        let end = read_result(&*self.store, tenant, id).await?.map(|result| JobEnd {
            finished: result.finished,
            outcome: match result.outcome {
                Outcome::Success(output) => Ok(output),
                Outcome::Failure(failure) => Err(JobFailure { kind: failure.error_kind(), message: failure.message }),
            },
        });
        let stalled = match end {
            Some(_) => None,
            None => dead::stalled(&*self.store, tenant, id).await?,
        };
        Ok(Some(JobStatus { kind: job.kind, submitted: job.submitted, request: job.request, stalled, end }))
    }
}

/// The key of an order: `t/<tenant>/jobs/<id>/job`.
fn order_key(tenant: &TenantId, id: JobId) -> Result<Key> {
    Key::new(format!("t/{tenant}/jobs/{id}/job"))
}

/// The id that an order with a key has whenever it comes: an RFC 9562 version 8 UUID of tenant, key and content.
fn id_of(order: &JobOrder) -> Result<Option<JobId>> {
    let Some(key) = &order.key else { return Ok(None) };
    let content = (&order.tenant, key, &order.kind, &order.payload, order.input);
    let content = match &order.policy {
        DataPolicy::Anywhere => serde_json::to_vec(&content),
        // What was ordered with more freedom is never run in the place of a stricter order.
        policy => serde_json::to_vec(&(content, policy)),
    };
    let content =
        content.map_err(|error| Error::internal("identify job", "the order cannot be written").with_source(error))?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Digest::of(&content).as_bytes()[..16]);
    Ok(Some(JobId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())))
}
