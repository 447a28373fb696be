//! Jobs and their results: what the storefront puts on the queue and what the kitchen leaves in the bucket.

mod dead;
mod queued;
mod waiting;

use std::time::Duration;

use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, DataPolicy, Document, Error, ErrorKind, FileId, IdSource, JobId, JobKind,
    JobQueue, JobQueueExt, Key, MessageId, NewMessage, RequestId, Result, TenantId, Timestamp,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use dead::{DeadJob, DeadJobs, Told};
pub use queued::QueuedJobs;

/// A piece of work: the document that travels as a message's body.
///
/// The body is at most [`MAX_BODY_BYTES`](hybrid_core::MAX_BODY_BYTES); what is large lies in the store, and the payload names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The id that keys the job's effects and its result.
    pub id: JobId,
    /// Chooses the handler.
    pub kind: JobKind,
    /// Whose job it is.
    pub tenant: TenantId,
    /// What the handler is given.
    pub payload: Value,
    /// The tenant's [file](hybrid_core::Files) that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<FileId>,
    /// Where its data may go; anywhere where absent.
    #[serde(default, skip_serializing_if = "DataPolicy::is_anywhere")]
    pub policy: DataPolicy,
    /// The customer request that led to the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The submitter's trace, as a W3C `traceparent` value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// When it was submitted, by the submitter's wall clock.
    pub submitted: Timestamp,
    /// The role that a worker must have to take it; any worker that knows the kind where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

impl Document for Job {
    const FORMAT: &'static str = "hybrid.job";
    const MAJOR: u32 = 1;
}

impl Job {
    /// A job with a fresh id and no file, request, trace or role, whose data may go anywhere.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the payload cannot be written as JSON.
    pub fn new(
        ids: &dyn IdSource,
        clock: &dyn Clock,
        tenant: TenantId,
        kind: JobKind,
        payload: impl Serialize,
    ) -> Result<Self> {
        let payload = serde_json::to_value(payload).map_err(|error| {
            Error::invalid("make job", "the payload cannot be written as JSON").with("kind", &kind).with_source(error)
        })?;
        let (id, submitted) = (JobId::next(ids), clock.now());
        let (input, policy, request, trace, role) = (None, DataPolicy::default(), None, None, None);
        Ok(Self { id, kind, tenant, payload, input, policy, request, trace, submitted, role })
    }

    /// The message body.
    ///
    /// # Errors
    /// As [`Document::encode`].
    pub fn to_body(&self) -> Result<String> {
        let json = String::from_utf8(self.encode()?.into())
            .map_err(|error| Error::internal("encode job", "the JSON is not UTF-8").with_source(error))?;
        // JSON may hold these two as they are, a queue may not carry them; outside of strings JSON has neither.
        Ok(json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff"))
    }

    /// The message that carries it; the tenant is its group, so that fair queues take turns.
    fn to_message(&self) -> Result<NewMessage> {
        let group = Some(self.tenant.to_string());
        Ok(NewMessage { body: self.to_body()?, group, delay: Duration::ZERO, trace: self.trace.clone() })
    }
}

/// What became of a job: the document at [`result_key`], created once, after everything else that the job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: JobKind,
    /// How it ended.
    pub outcome: Outcome,
    /// The worker that ended it; `outbox` where the queue would not take the order.
    pub worker: String,
    /// When that worker began this attempt, by its wall clock.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Which delivery it was, from one; counted anew after a redrive. None at all where no worker has had it.
    pub attempts: u32,
    /// The customer request that led to the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The submitter's trace, as a W3C `traceparent` value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl Document for JobResult {
    const FORMAT: &'static str = "hybrid.job-result";
    const MAJOR: u32 = 1;
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The handler's output.
    Success(Value),
    /// It can never succeed as it is.
    Failure(Failure),
}

/// Why a job can never succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error's kind in snake case, such as `invalid_input`.
    pub kind: String,
    /// What is wrong, with the field and the limit it names and nothing else: fit for whoever ordered the job.
    pub message: String,
    /// The whole error with its context and causes, for those who run the kitchen: it may name paths and hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Failure {
    /// The failure that `error` is.
    pub fn new(error: &Error) -> Self {
        let name = KINDS.iter().find(|(kind, _)| *kind == error.kind()).map_or("internal", |(_, name)| name);
        Self { kind: name.to_owned(), message: error.public_message(), detail: Some(format!("{error:#}")) }
    }

    /// The error's kind; [`Internal`](ErrorKind::Internal) for a name that this version does not know.
    pub fn error_kind(&self) -> ErrorKind {
        KINDS.iter().find(|(_, name)| *name == self.kind).map_or(ErrorKind::Internal, |(kind, _)| *kind)
    }
}

const KINDS: [(ErrorKind, &str); 17] = [
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::AlreadyExists, "already_exists"),
    (ErrorKind::InvalidInput, "invalid_input"),
    (ErrorKind::TooLarge, "too_large"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Untrusted, "untrusted"),
    (ErrorKind::PolicyDenied, "policy_denied"),
    (ErrorKind::PermissionDenied, "permission_denied"),
    (ErrorKind::LeaseLost, "lease_lost"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::RateLimited, "rate_limited"),
    (ErrorKind::Timeout, "timeout"),
    (ErrorKind::Cancelled, "cancelled"),
    (ErrorKind::StorageFull, "storage_full"),
    (ErrorKind::ResourceExhausted, "resource_exhausted"),
    (ErrorKind::Internal, "internal"),
];

impl JobResult {
    /// The handler's output, or its failure as an error of the same kind.
    ///
    /// # Errors
    /// The job's failure; [`Corrupt`](ErrorKind::Corrupt) if the output is not a `T`.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T> {
        match &self.outcome {
            Outcome::Success(value) => T::deserialize(value).map_err(|error| {
                Error::corrupt("read job result", "the output has another shape")
                    .with("job", self.job)
                    .with_source(error)
            }),
            Outcome::Failure(failure) => {
                let error = Error::new(failure.error_kind(), "run job", failure.message.clone()).with("job", self.job);
                Err(match &failure.detail {
                    Some(detail) => error.with_source(detail.clone()),
                    None => error,
                })
            }
        }
    }
}

/// What [`submit`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// The job is on the queue.
    Sent(MessageId),
    /// The job has its result already; nothing was sent.
    Done,
}

/// Puts a job on the queue.
///
/// # Behavior
/// - Durable when it returns.
/// - Submitting the same job again is harmless: nothing is sent once the result exists; before that a second message may be sent,
///   and the worker still makes one result. A caller that must not lose a job keeps its id and submits until it gets an answer.
/// - The tenant is the message's group, so that fair queues take turns.
///
/// # Errors
/// [`TooLarge`](ErrorKind::TooLarge) for a body over the queue's limit, and those of the queue and the store.
pub async fn submit(queue: &dyn JobQueue, store: &dyn ArtifactStore, job: &Job) -> Result<Submission> {
    if store.exists(&result_key(&job.tenant, job.id)?).await? {
        return Ok(Submission::Done);
    }
    let id = queue.send_one(job.to_message()?).await.map_err(|error| error.with("job", job.id))?;
    Ok(Submission::Sent(id))
}

/// The key of a job's result: `t/<tenant>/jobs/<id>/result`.
///
/// # Errors
/// Never for valid names; the key's own rule otherwise.
pub fn result_key(tenant: &TenantId, id: JobId) -> Result<Key> {
    Key::new(format!("t/{tenant}/jobs/{id}/result"))
}

/// A job's result, if it has one yet.
///
/// # Errors
/// Those of the store; [`Corrupt`](ErrorKind::Corrupt) if the object is no result of this job.
pub async fn read_result(store: &dyn ArtifactStore, tenant: &TenantId, id: JobId) -> Result<Option<JobResult>> {
    let key = result_key(tenant, id)?;
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let result = JobResult::decode(&bytes).map_err(|error| error.with("key", &key))?;
    if result.job != id {
        return Err(Error::corrupt("read job result", "the result is of another job")
            .with("key", &key)
            .with("found", result.job));
    }
    Ok(Some(result))
}

/// Waits for a job's result, looking every `poll`.
///
/// A store that is away for a while is waited out. A job whose deliveries are used up has no result until it is redriven, so callers
/// set a limit of their own: drop the future to stop waiting.
///
/// # Errors
/// Those of [`read_result`] that are not temporary.
pub async fn wait_for_result(
    store: &dyn ArtifactStore,
    tenant: &TenantId,
    id: JobId,
    clock: &dyn Clock,
    poll: Duration,
) -> Result<JobResult> {
    loop {
        match read_result(store, tenant, id).await {
            Ok(Some(result)) => return Ok(result),
            Ok(None) => {}
            Err(error) if error.is_temporary() => tracing::debug!(%error, job = %id, "the store is away; waiting"),
            Err(error) => return Err(error),
        }
        clock.sleep(poll).await;
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::{ManualClock, SeededIds};
    use serde_json::json;

    use super::*;

    fn job(payload: Value) -> Job {
        let kind = JobKind::new("train").unwrap();
        Job::new(&SeededIds::new(1), &ManualClock::default(), TenantId::single(), kind, payload).unwrap()
    }

    #[test]
    fn a_body_is_what_every_queue_carries_and_comes_back_whole() {
        let job = job(json!({ "text": "a\u{FFFE}b\u{FFFF}c\u{0}d\n🥐" }));
        let body = job.to_body().unwrap();
        NewMessage::new(&*body).validate().unwrap();
        assert!(body.starts_with(r#"{"format":"hybrid.job/1","#), "{body}");
        assert_eq!(Job::decode(body.as_bytes()).unwrap(), job);
    }

    #[test]
    fn a_failure_keeps_its_kind() {
        for (kind, _) in KINDS {
            assert_eq!(Failure::new(&Error::new(kind, "x", "y")).error_kind(), kind);
        }
        let result = JobResult {
            job: job(Value::Null).id,
            kind: JobKind::new("train").unwrap(),
            outcome: Outcome::Failure(Failure::new(&Error::too_large("read", "a lot"))),
            worker: "w".to_owned(),
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            attempts: 1,
            request: None,
            trace: None,
        };
        let read = JobResult::decode(&result.encode().unwrap()).unwrap();
        assert_eq!(read, result);
        assert_eq!(read.output::<Value>().unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
