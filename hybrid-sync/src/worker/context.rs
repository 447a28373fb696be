use std::sync::Arc;

use hybrid_core::{ArtifactStore, Cancellation, Clock, Error, Key, Progress, Result};

use crate::job::Job;

/// What a handler is given beside its payload.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// The job: id, tenant, request, trace.
    pub job: Arc<Job>,
    /// Which delivery this is, from one.
    pub attempt: u32,
    /// Whether the job goes to the dead letters if this attempt fails.
    pub last_attempt: bool,
    /// Raised when the lease is lost or the worker stops: end soon and write nothing more.
    pub cancel: Cancellation,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// The bucket. `create` and `delete` answer [`LeaseLost`](hybrid_core::ErrorKind::LeaseLost) once the lease is lost.
    pub store: Arc<dyn ArtifactStore>,
    /// The worker's clock.
    pub clock: Arc<dyn Clock>,
}

impl JobContext {
    /// The key of an effect of this job: `t/<tenant>/jobs/<id>/<name>`, the same in each attempt.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the name is `result` (the worker's own), or no part of a key.
    pub fn effect_key(&self, name: &str) -> Result<Key> {
        let Job { id, tenant, .. } = &*self.job;
        if name == "result" || name.starts_with("result/") {
            return Err(Error::invalid("name effect", "the name is the result's; choose another").with("job", id));
        }
        Key::new(format!("t/{tenant}/jobs/{id}/{name}"))
    }
}
