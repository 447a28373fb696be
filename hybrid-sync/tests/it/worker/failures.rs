use std::{sync::Arc, time::Duration};

use hybrid_core::{DeadLetters, Depth, Error, ErrorKind, MAX_DELAY, MAX_OBJECT_BYTES, MessageId};
use hybrid_sync::{
    Backoff,
    job::Outcome,
    worker::{Summary, WorkerOptions, is_permanent},
};
use serde_json::{Value, json};

use super::{Kitchen, Script};
use crate::time::settle;

fn failing(error: impl Fn() -> Error + Send + Sync + 'static) -> Script {
    Script::new(move |_| {
        let error = error();
        async { Err(error) }
    })
}

#[tokio::test]
async fn a_temporary_failure_comes_again_after_a_growing_jittered_delay() {
    let kitchen = Kitchen::new(6);
    let retry = Backoff { first: Duration::from_secs(100), cap: Duration::from_secs(100_000) };
    let script = failing(|| Error::unavailable("ask", "away"));
    let worker =
        kitchen.start(kitchen.builder(WorkerOptions { retry, ..WorkerOptions::default() }).handler(script.clone()));
    let mut twin = kitchen.job("script");
    kitchen.submit(&twin).await;
    twin.id = kitchen.job("script").id;
    kitchen.submit(&twin).await;
    kitchen.advance(7 * 900).await;
    let nacks = kitchen.wire.nacks();
    assert_eq!(nacks.len(), 12);
    // Whatever cap was asked, a queue takes no longer delay.
    assert!(nacks.iter().all(|delay| *delay <= MAX_DELAY), "{nacks:?}");
    let distinct: std::collections::BTreeSet<_> = nacks.iter().filter(|delay| !delay.is_zero()).collect();
    assert_eq!(distinct.len(), 10, "two jobs that fail together come back apart: {nacks:?}");
    assert!(nacks[..2].iter().all(|delay| *delay <= retry.first), "{nacks:?}");
    assert!(nacks.iter().max() > Some(&(retry.first * 2)), "{nacks:?}");
    assert_eq!(script.runs(), 12);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_waits_as_long_as_the_failing_side_asks() {
    for (asked, expected) in [(300, 300), (5000, 900)] {
        let kitchen = Kitchen::new(5);
        let script = failing(move || {
            Error::new(ErrorKind::RateLimited, "ask", "slow down").with_retry_after(Duration::from_secs(asked))
        });
        let worker = kitchen.start_script(&script);
        kitchen.submit_script().await;
        settle().await;
        assert_eq!(kitchen.wire.nacks(), [Duration::from_secs(expected)]);
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_permanent_failure_is_the_result_at_once() {
    let permanent = [
        ErrorKind::InvalidInput,
        ErrorKind::TooLarge,
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::Untrusted,
        ErrorKind::PolicyDenied,
    ];
    for kind in permanent {
        assert!(is_permanent(kind));
        let kitchen = Kitchen::new(5);
        let script = failing(move || Error::new(kind, "knead", "too wet").with("water", "90 %"));
        let worker = kitchen.start_script(&script);
        let job = kitchen.submit_script().await;
        settle().await;
        let result = kitchen.result(&job).await.unwrap();
        let error = result.output::<Value>().unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains("knead: too wet (water: 90 %)"), "{error}");
        assert_eq!((kitchen.depth().await, script.runs()), (Depth::default(), 1));
        assert_eq!(worker.stop().await, Summary { failed: 1, ..Summary::default() });
    }
}

#[tokio::test]
async fn what_may_go_away_is_never_a_result() {
    use ErrorKind::*;
    for kind in [
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unavailable,
        RateLimited,
        Timeout,
        Cancelled,
        StorageFull,
        ResourceExhausted,
        Internal,
        LeaseLost,
    ] {
        assert!(!is_permanent(kind));
        let kitchen = Kitchen::new(5);
        let worker = kitchen.start_script(&failing(move || Error::new(kind, "knead", "later")));
        kitchen.submit_script().await;
        settle().await;
        assert_eq!(kitchen.objects().await, 0, "{kind:?}");
        assert_eq!(worker.stop().await, Summary { retried: 1, ..Summary::default() }, "{kind:?}");
    }
}

#[tokio::test]
async fn a_payload_that_does_not_fit_fails_the_job() {
    let kitchen = Kitchen::new(5);
    let script = Script::succeeding();
    let worker = kitchen.start_script(&script);
    let mut job = kitchen.job("script");
    job.payload = json!({ "flour": 1 });
    kitchen.submit(&job).await;
    settle().await;
    let Outcome::Failure(failure) = kitchen.result(&job).await.unwrap().outcome else { panic!("a failure") };
    assert_eq!(failure.error_kind(), ErrorKind::InvalidInput);
    assert_eq!(script.runs(), 0);
    worker.stop().await;
}

#[tokio::test]
async fn an_output_that_no_object_can_hold_fails_the_job() {
    let kitchen = Kitchen::new(5);
    let script = Script::new(|_| async { Ok(Value::from("x".repeat(MAX_OBJECT_BYTES))) });
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    settle().await;
    assert_eq!(kitchen.result(&job).await.unwrap().output::<Value>().unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(worker.stop().await.failed, 1);
}

#[tokio::test]
async fn a_panic_is_a_failure_that_is_tried_again() {
    let kitchen = Kitchen::new(5);
    let script = Script::new(|context| async move {
        assert!(context.attempt > 1, "the oven is off");
        Ok(Value::Null)
    });
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    kitchen.advance(30).await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 2);
    assert_eq!(worker.stop().await, Summary { retried: 1, succeeded: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_used_up_job_lies_with_the_dead_letters_without_a_result_and_a_redrive_can_succeed() {
    let kitchen = Kitchen::new(2);
    let mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let oven = mended.clone();
    let script = Script::new(move |context| {
        let works = oven.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(context.last_attempt, context.attempt == 2);
        async move { if works { Ok(Value::Null) } else { Err(Error::internal("bake", "the oven is off")) } }
    });
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    kitchen.advance(60).await;
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 1));
    // It died with its last failure, not a lease or a delay later.
    assert_eq!(kitchen.wire.nacks()[1], Duration::ZERO);
    assert!(kitchen.result(&job).await.is_none());

    mended.store(true, std::sync::atomic::Ordering::Relaxed);
    kitchen.queue.redrive(&[MessageId("1".to_owned())]).await.unwrap();
    kitchen.advance(5).await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 1);
    assert_eq!(worker.stop().await, Summary { retried: 1, dead: 1, succeeded: 1, ..Summary::default() });
}
