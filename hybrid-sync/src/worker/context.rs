use std::sync::Arc;

use hybrid_core::{
    ArtifactStore, CallContext, Cancellation, Clock, Digest, Error, FileId, Key, Progress, RequestId, Result,
};

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
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the name is `result`, `job` or `dead`, which are others', or no part of a key.
    pub fn effect_key(&self, name: &str) -> Result<Key> {
        let Job { id, tenant, .. } = &*self.job;
        if ["result", "job", "dead"].contains(&name.split('/').next().unwrap_or_default()) {
            return Err(Error::invalid("name effect", "the name is taken; choose another")
                .with("job", id)
                .with("name", name));
        }
        Key::new(format!("t/{tenant}/jobs/{id}/{name}"))
    }

    /// The context of a call that the job makes: in the name of the request that ordered it, under its data policy, and ended with the job's lease.
    ///
    /// # Errors
    /// Those of a [`RequestId`], which a job's id always keeps.
    pub fn call(&self) -> Result<CallContext> {
        let request = match &self.job.request {
            Some(request) => request.clone(),
            None => self.job.id.to_string().parse::<RequestId>()?,
        };
        let mut call = CallContext::new(self.job.tenant.clone(), request).with_policy(self.job.policy.clone());
        (call.cancel, call.clock, call.trace) = (self.cancel.clone(), Arc::clone(&self.clock), self.job.trace.clone());
        Ok(call)
    }

    /// The id of the job's file of answers, the same in each attempt: a version 7 UUID of the time of the order.
    pub fn output_file(&self) -> FileId {
        let mut random = [0; 10];
        random.copy_from_slice(&Digest::of(self.job.id.as_uuid().as_bytes()).as_bytes()[..10]);
        let millis = u64::try_from(self.job.submitted.unix_micros() / 1000).unwrap_or_default();
        FileId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}
