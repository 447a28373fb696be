//! Who did what with which model version, and what it cost.

use std::{fmt, sync::Arc};

use hybrid_core::{BoxFuture, Money, Note, RequestId, Result, ServedModel, TenantId, Timestamp, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod chain;
mod file;
mod segment;
mod ship;

pub use chain::{Verified, audit_prefix, verify_bucket, verify_folder};
pub use file::{AuditLog, AuditLogOptions};

/// Where audit entries go: the port between the storefront and whatever keeps them.
///
/// # Behavior
/// - An entry is queued when [`append`](Self::append) returns, and durable when the future it gave has ended with `Ok`. Dropping the future takes
///   nothing back.
/// - Entries are kept in the order in which they were queued, and never changed.
/// - An entry whose future ended with an error may be kept or not.
/// - `append` itself waits for no disk and no other thread. It may hand a small entry to the system's memory, which takes microseconds. A sink that
///   cannot keep up answers with an error.
pub trait AuditSink: fmt::Debug + Send + Sync + 'static {
    /// Queues `entry`; the future ends when it is durable.
    fn append(&self, entry: AuditEntry) -> BoxFuture<'static, Result<()>>;
}

/// What is kept of one call. A streamed answer has two entries: when it begins, before a byte of it leaves, and when it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When it happened, by the storefront's clock.
    pub at: Timestamp,
    /// Whose call it was.
    pub tenant: TenantId,
    /// Who within the tenant.
    pub subject: String,
    /// With which credential, by its public name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The request.
    pub request: RequestId,
    /// What was done: a [task's name](hybrid_core::Task::NAME) or `judgments`.
    pub action: String,
    /// With which model, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<AuditedModel>,
    /// How it went.
    pub outcome: Outcome,
    /// What it used, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What it cost, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Money>,
    /// What its reader was told beside the answer, such as a fallback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// What was asked and answered: `{"request", "response"?}`, only where the [options](AuditOptions) ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
}

/// The model of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedModel {
    /// The name under which it was asked for.
    pub offered: String,
    /// The backend that answered, or that was asked where none did.
    pub backend: String,
    /// The model and its version, as the reply names it; where there is none, as the backend's profile does.
    pub served: ServedModel,
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// A streamed answer begins.
    Begun,
    /// It was done.
    Done,
    /// It failed, with the kind of error.
    Failed(String),
    /// It was cut off: the client hung up, or the storefront stopped.
    Cut,
}

/// How a storefront audits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// What happens to a call whose entry cannot be kept.
    pub on_failure: AuditFailure,
    /// Whether entries hold what was asked and answered. Off by default.
    pub content: bool,
}

/// What happens to a call whose entry cannot be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditFailure {
    /// It is refused: its answer does not leave. What it cost is spent none the less.
    #[default]
    Refuse,
    /// It goes on, with a warning, and is [counted](super::Storefront::unaudited).
    Continue,
}

/// A sink and how it is used.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) sink: Arc<dyn AuditSink>,
    pub(super) options: AuditOptions,
}
