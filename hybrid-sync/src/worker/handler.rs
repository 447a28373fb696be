use std::fmt;

use async_trait::async_trait;
use hybrid_core::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::JobContext;

/// Does the work of one kind of job.
///
/// # Behavior
/// - A job may run more than once: after a crash, a lost lease, a duplicate delivery. Effects are therefore create-once and keyed by the job
///   ([`JobContext::effect_key`]), and a run completes what an earlier one has left.
/// - One process never runs one job twice at a time, so a scratch folder named after the job's id is the handler's own.
/// - When [`JobContext::cancel`] is raised the handler ends soon; what it returns then does not count. One that does not end is dropped at its
///   next await.
/// - Work that computes for long runs on a blocking thread (`tokio::task::spawn_blocking`) and looks at `cancel` itself: dropping
///   the future does not stop it.
#[async_trait]
pub trait JobHandler: Send + Sync + 'static {
    /// The kind of jobs it does: a [`JobKind`](hybrid_core::JobKind).
    const KIND: &'static str;
    /// What a job's payload is read as.
    type Payload: DeserializeOwned + Send;
    /// What a successful result holds.
    type Output: Serialize + Send;

    /// What the job needs to itself while it runs.
    fn resource(&self) -> Resource {
        Resource::Cpu
    }

    /// Does a job.
    ///
    /// # Errors
    /// A permanent kind (see [`is_permanent`](super::is_permanent)) fails the job for good; every other is tried again.
    async fn run(&self, job: &JobContext, payload: Self::Payload) -> Result<Self::Output>;
}

/// What a job needs to itself while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// The GPU or its like: training, inference in bulk.
    Accelerator,
    /// Processor cores.
    Cpu,
    /// Mostly waiting for others.
    Network,
}

impl Resource {
    pub(super) fn default_lanes(self) -> usize {
        match self {
            Self::Accelerator => 1,
            Self::Cpu => 2,
            Self::Network => 8,
        }
    }
}

/// A handler whose types have been forgotten.
#[async_trait]
pub(super) trait AnyHandler: fmt::Debug + Send + Sync {
    fn resource(&self) -> Resource;
    async fn run(&self, job: &JobContext, payload: Value) -> Result<Value>;
}

pub(super) struct Typed<H>(pub(super) H);

impl<H: JobHandler> fmt::Debug for Typed<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(H::KIND)
    }
}

#[async_trait]
impl<H: JobHandler> AnyHandler for Typed<H> {
    fn resource(&self) -> Resource {
        self.0.resource()
    }

    async fn run(&self, job: &JobContext, payload: Value) -> Result<Value> {
        let payload = serde_json::from_value(payload).map_err(|error| {
            Error::invalid("read job payload", "the payload does not fit the kind")
                .with("kind", H::KIND)
                .with_source(error)
        })?;
        let output = self.0.run(job, payload).await?;
        serde_json::to_value(output).map_err(|error| {
            Error::invalid("write job output", "the output cannot be written as JSON")
                .with("kind", H::KIND)
                .with_source(error)
        })
    }
}
