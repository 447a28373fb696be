use std::sync::Arc;

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, Digest, Document, Error, ErrorKind, IdSource, JobEnd, JobFailure, JobId,
    JobOrder, JobQueue, JobStatus, Jobs, Key, Result, TenantId,
};

use super::{Job, Outcome, read_result, submit};

/// Orders jobs over a queue and reads their results from the bucket: the [`Jobs`] port between the two halves.
///
/// The order itself is kept at `t/<tenant>/jobs/<id>/job` before it is sent, so that a job is known before it is done.
#[derive(Debug)]
pub struct QueuedJobs {
    queue: Arc<dyn JobQueue>,
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl QueuedJobs {
    /// Orders over `queue`, with orders and results in `store`.
    pub fn new(
        queue: Arc<dyn JobQueue>,
        store: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { queue, store, clock, ids }
    }

    async fn ordered(&self, tenant: &TenantId, id: JobId) -> Result<Option<Job>> {
        let key = order_key(tenant, id)?;
        match self.store.get(&key).await {
            Ok(bytes) => Job::decode(&bytes).map(Some).map_err(|error| error.with("key", key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Jobs for QueuedJobs {
    async fn submit(&self, order: JobOrder) -> Result<JobId> {
        let id = id_of(&order)?;
        let JobOrder { tenant, kind, payload, key: _, request, trace } = order;
        let mut job = Job::new(&*self.ids, &*self.clock, tenant, kind, payload)?;
        (job.id, job.request, job.trace) = (id.unwrap_or(job.id), request, trace);
        // Refused before anything is kept.
        hybrid_core::NewMessage::new(job.to_body()?).validate()?;
        match self.store.create(&order_key(&job.tenant, job.id)?, job.encode()?).await {
            Ok(()) => {}
            // Ordered before: what is sent again is what was ordered then.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                job = self.ordered(&job.tenant, job.id).await?.ok_or(error)?;
            }
            Err(error) => return Err(error),
        }
        submit(&*self.queue, &*self.store, &job).await?;
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
        Ok(Some(JobStatus { kind: job.kind, submitted: job.submitted, end }))
    }
}

/// The key of an order: `t/<tenant>/jobs/<id>/job`.
fn order_key(tenant: &TenantId, id: JobId) -> Result<Key> {
    Key::new(format!("t/{tenant}/jobs/{id}/job"))
}

/// The id that an order with a key has whenever it comes: an RFC 9562 version 8 UUID of tenant, key and content.
fn id_of(order: &JobOrder) -> Result<Option<JobId>> {
    let Some(key) = &order.key else { return Ok(None) };
    let content = serde_json::to_vec(&(&order.tenant, key, &order.kind, &order.payload))
        .map_err(|error| Error::internal("identify job", "the order cannot be written").with_source(error))?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Digest::of(&content).as_bytes()[..16]);
    Ok(Some(JobId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())))
}
