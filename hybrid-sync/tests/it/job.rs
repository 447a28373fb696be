//! Jobs and their results as they lie on the queue and in the bucket.

use std::{sync::Arc, time::Duration};

use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Document, Error, ErrorKind, JobKind, JobQueue, ManualClock, ReceiveOptions,
    RequestId, SeededIds, TenantId, Timestamp,
    memory::{MemoryQueue, MemoryStore},
};
use hybrid_sync::job::{
    Failure, Job, JobResult, Outcome, Submission, read_result, result_key, submit, wait_for_result,
};
use serde_json::{Value, json};

use crate::{
    faults::{Faults, Faulty, Side},
    time::{advance, settle},
};

fn job(ids: &SeededIds) -> Job {
    let kind = JobKind::new("train").unwrap();
    let tenant = TenantId::new("bakery").unwrap();
    Job::new(ids, &ManualClock::default(), tenant, kind, json!({ "loaves": 2 })).unwrap()
}

fn result(job: &Job, outcome: Outcome) -> JobResult {
    JobResult {
        job: job.id,
        kind: job.kind.clone(),
        outcome,
        worker: "oven-1".to_owned(),
        started: Timestamp::UNIX_EPOCH,
        finished: Timestamp::UNIX_EPOCH,
        attempts: 1,
        request: job.request.clone(),
        trace: job.trace.clone(),
    }
}

async fn store_result(store: &MemoryStore, job: &Job, result: &JobResult) {
    store.create(&result_key(&job.tenant, job.id).unwrap(), result.encode().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_message_carries_the_job_its_tenants_group_and_its_trace_without_delay() {
    let (queue, store) = (MemoryQueue::default(), MemoryStore::default());
    let mut job = job(&SeededIds::default());
    job.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    job.request = Some("request-1".parse::<RequestId>().unwrap());
    job.role = Some("gpu".to_owned());
    let Submission::Sent(id) = submit(&queue, &store, &job).await.unwrap() else { panic!("nothing was sent") };
    let delivery = queue.receive(ReceiveOptions::default()).await.unwrap().remove(0);
    assert_eq!((&delivery.id, delivery.group.as_deref(), &delivery.trace), (&id, Some("bakery"), &job.trace));
    assert_eq!(Job::decode(delivery.body.as_bytes()).unwrap(), job);
}

#[tokio::test]
async fn a_job_is_sent_again_until_it_has_a_result_and_not_after() {
    let (queue, store) = (MemoryQueue::default(), MemoryStore::default());
    let job = job(&SeededIds::default());
    for _ in 0..2 {
        assert!(matches!(submit(&queue, &store, &job).await.unwrap(), Submission::Sent(_)));
    }
    store_result(&store, &job, &result(&job, Outcome::Success(Value::Null))).await;
    assert_eq!(submit(&queue, &store, &job).await.unwrap(), Submission::Done);
    assert_eq!(queue.depth().await.unwrap().ready, 2);
}

#[tokio::test]
async fn a_job_is_not_sent_while_nobody_can_say_whether_it_is_done_and_a_queues_error_names_it() {
    let (queue, store) = (MemoryQueue::default(), MemoryStore::default());
    let job = job(&SeededIds::default());
    let away = Faulty { inner: store.clone(), faults: Faults::once(0, Side::Before) };
    assert_eq!(submit(&queue, &away, &job).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(queue.depth().await.unwrap().ready, 0);
    let down = Faulty { inner: queue, faults: Faults::once(0, Side::Before) };
    let error = submit(&down, &store, &job).await.unwrap_err();
    assert_eq!(error.context("job"), Some(job.id.to_string().as_str()));
}

#[test]
fn what_a_job_lacks_is_left_out_and_what_is_unknown_is_passed_over() {
    let job = job(&SeededIds::default());
    let json: Value = serde_json::from_str(&job.to_body().unwrap()).unwrap();
    let mut fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["format", "id", "kind", "payload", "submitted", "tenant"]);
    let mut newer = json.clone();
    newer["colour"] = json!("blue");
    assert_eq!(Job::decode(newer.to_string().as_bytes()).unwrap(), job);
    newer["format"] = json!("hybrid.job/2");
    assert_eq!(Job::decode(newer.to_string().as_bytes()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_result_lies_under_its_tenant_and_job_and_no_other_is_taken_for_it() {
    let (store, ids) = (MemoryStore::default(), SeededIds::default());
    let (mine, other) = (job(&ids), job(&ids));
    let key = result_key(&mine.tenant, mine.id).unwrap();
    assert_eq!(key.as_str(), format!("t/bakery/jobs/{}/result", mine.id));
    assert_eq!(read_result(&store, &mine.tenant, mine.id).await.unwrap(), None);

    let stranger = result(&other, Outcome::Success(Value::Null));
    store.create(&key, stranger.encode().unwrap()).await.unwrap();
    let error = read_result(&store, &mine.tenant, mine.id).await.unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::Corrupt, Some(key.as_str())));
    assert_eq!(error.context("found"), Some(other.id.to_string().as_str()));

    store.corrupt(&key, "no result".into());
    let error = read_result(&store, &mine.tenant, mine.id).await.unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::Corrupt, Some(key.as_str())));

    let sound = result(&mine, Outcome::Success(json!({ "loaves": 2 })));
    store.corrupt(&key, sound.encode().unwrap());
    assert_eq!(read_result(&store, &mine.tenant, mine.id).await.unwrap(), Some(sound));
    assert!(store.exists(&key).await.unwrap());
}

#[tokio::test]
async fn who_waits_waits_out_a_store_that_is_away_and_hears_of_a_result_that_is_none() {
    let (store, clock, job) = (MemoryStore::default(), ManualClock::default(), job(&SeededIds::default()));
    let faults = Faults::none();
    let away = Arc::new(Faulty { inner: store.clone(), faults: Arc::clone(&faults) });
    let wait = || {
        let (store, clock, job) = (Arc::clone(&away), clock.clone(), job.clone());
        let poll = Duration::from_secs(5);
        tokio::spawn(async move { wait_for_result(&*store, &job.tenant, job.id, &clock, poll).await })
    };
    faults.offline.store(true, std::sync::atomic::Ordering::Relaxed);
    let waiting = wait();
    advance(&clock, Duration::from_secs(50), Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    // It looks at once, and then each five seconds.
    assert_eq!(faults.count(), 11);
    faults.offline.store(false, std::sync::atomic::Ordering::Relaxed);
    let failed = result(&job, Outcome::Failure(Failure::new(&Error::too_large("read", "a lot"))));
    store_result(&store, &job, &failed).await;
    advance(&clock, Duration::from_secs(5), Duration::from_secs(5)).await;
    assert_eq!(waiting.await.unwrap().unwrap(), failed);

    store.corrupt(&result_key(&job.tenant, job.id).unwrap(), "no result".into());
    let waiting = wait();
    settle().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_output_of_another_shape_is_named_and_a_failure_says_what_was_wrong() {
    let job = job(&SeededIds::default());
    let succeeded = result(&job, Outcome::Success(json!({ "loaves": 2 })));
    assert_eq!(succeeded.output::<Value>().unwrap(), json!({ "loaves": 2 }));
    let error = succeeded.output::<u32>().unwrap_err();
    assert_eq!((error.kind(), error.context("job")), (ErrorKind::Corrupt, Some(job.id.to_string().as_str())));
    let failure = Failure::new(&Error::invalid("train", "no flour"));
    let error = result(&job, Outcome::Failure(failure)).output::<Value>().unwrap_err();
    assert_eq!((error.kind(), error.context("job")), (ErrorKind::InvalidInput, Some(job.id.to_string().as_str())));
    assert!(error.to_string().contains("no flour"), "{error}");
}

/// The names that lie in results: they are read by others and never change.
#[test]
fn a_failures_kind_has_its_name_for_good() {
    let names = [
        (ErrorKind::NotFound, "not_found"),
        (ErrorKind::InvalidInput, "invalid_input"),
        (ErrorKind::TooLarge, "too_large"),
        (ErrorKind::Corrupt, "corrupt"),
        (ErrorKind::Untrusted, "untrusted"),
        (ErrorKind::PolicyDenied, "policy_denied"),
        (ErrorKind::Unavailable, "unavailable"),
        (ErrorKind::Timeout, "timeout"),
        (ErrorKind::Cancelled, "cancelled"),
        (ErrorKind::Internal, "internal"),
    ];
    for (kind, name) in names {
        let failure = Failure::new(&Error::new(kind, "work", "it failed"));
        assert_eq!((failure.kind.as_str(), failure.error_kind()), (name, kind));
    }
    let unknown = Failure { kind: "from_the_future".to_owned(), message: String::new(), detail: None };
    assert_eq!(unknown.error_kind(), ErrorKind::Internal);
    let json = serde_json::to_value(Outcome::Failure(unknown)).unwrap();
    assert_eq!(json, json!({ "failure": { "kind": "from_the_future", "message": "" } }));
}

#[test]
fn what_a_customer_may_read_of_a_failure_names_nothing_of_the_kitchen() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::InvalidInput,
        ErrorKind::TooLarge,
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::Untrusted,
        ErrorKind::PolicyDenied,
        ErrorKind::PermissionDenied,
        ErrorKind::Internal,
    ] {
        let error = Error::new(kind, "read rows", "must be UTF-8")
            .with("path", "/Users/anna/kitchen/rows")
            .with("field", "rows[3]")
            .with("limit", 10)
            .with_source("open mac-studio.local");
        let failure = Failure::new(&error);
        assert_eq!(failure.message, "rows[3] must be UTF-8 (limit: 10)", "{kind:?}");
        assert_eq!(failure.detail, Some(error.to_string()), "the kitchen's people read it all");
        // Whoever runs the kitchen still hears the cause; the message of that error is the customer's too.
        let told = result(&job(&SeededIds::default()), Outcome::Failure(failure)).output::<Value>().unwrap_err();
        assert!(told.to_string().contains("mac-studio") && !told.message().contains("anna"), "{told}");
    }
    let old: Outcome = serde_json::from_str(r#"{"failure":{"kind":"corrupt","message":"x"}}"#).unwrap();
    assert_eq!(old, Outcome::Failure(Failure { kind: "corrupt".into(), message: "x".into(), detail: None }));
}
