//! The jobs port: work that one side orders and the other does in its own time.

use std::fmt::Debug;

use async_trait::async_trait;
use serde_json::Value;

use crate::{DataPolicy, ErrorKind, FileId, JobId, JobKind, RequestId, Result, TenantId, Timestamp};

/// Where jobs are ordered and their results collected: the port between a storefront and whatever carries work to the kitchen.
///
/// # Behavior
/// - A job is durable when [`submit`](Self::submit) returns its id; it will be done, or fail, once, however long the other side is away.
/// - An order with a [`key`](JobOrder::key) may be submitted again, by any process: it is the same job. One key with another kind, payload
///   or policy is another job.
/// - The job's data goes where the order's [`policy`](JobOrder::policy) lets it, and nowhere else.
/// - [`status`](Self::status) knows a tenant's own jobs alone. It never waits for the other side.
///
/// # Cancel safety
/// A dropped `submit` may or may not have ordered the job; with a key, submit again.
#[async_trait]
pub trait Jobs: Debug + Send + Sync + 'static {
    /// Orders work.
    async fn submit(&self, order: JobOrder) -> Result<JobId>;
    /// How a job stands; `None` where the tenant has no such job.
    async fn status(&self, tenant: &TenantId, id: JobId) -> Result<Option<JobStatus>>;
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOrder {
    /// Whose job it is.
    pub tenant: TenantId,
    /// What kind of work.
    pub kind: JobKind,
    /// What the handler of that kind is given.
    pub payload: Value,
    /// The [file](crate::Files) of the tenant that it is about.
    pub input: Option<FileId>,
    /// Where the job's data may go: that of the call that orders it.
    pub policy: DataPolicy,
    /// Makes a repeated order the same job.
    pub key: Option<RequestId>,
    /// The customer request that led to it.
    pub request: Option<RequestId>,
    /// The caller's trace, as a W3C `traceparent` value.
    pub trace: Option<String>,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq)]
pub struct JobStatus {
    /// Its kind.
    pub kind: JobKind,
    /// When it was ordered, by the wall clock of whoever took the order.
    pub submitted: Timestamp,
    /// The customer request that led to it.
    pub request: Option<RequestId>,
    /// Since when it stands still: its deliveries are used up, and it goes on, or ends, when someone has looked at it.
    pub stalled: Option<Timestamp>,
    /// How it ended; `None` while it waits, runs or stands still.
    pub end: Option<JobEnd>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEnd {
    /// When, by the worker's wall clock.
    pub finished: Timestamp,
    /// The handler's output, or why it can never succeed.
    pub outcome: std::result::Result<Value, JobFailure>,
}

/// Why a job can never succeed as it was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What is wrong, in words that name nothing of the kitchen's own: no path, no host.
    pub message: String,
}
