use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hybrid_core::{ArtifactStoreExt, Clock, Depth, Error, ErrorKind};
use hybrid_sync::worker::{Resource, Summary, WorkerOptions};
use serde_json::Value;
use tokio::sync::Notify;

use super::{Kitchen, LEASE, Script, wire::Line};
use crate::time::settle;

/// A handler that ends when `done` is notified.
fn until(done: &Arc<Notify>) -> Script {
    let done = done.clone();
    Script::new(move |_| {
        let done = done.clone();
        async move {
            done.notified().await;
            Ok(Value::from("bread"))
        }
    })
}

#[tokio::test]
async fn a_heartbeat_keeps_a_long_job() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let script = until(&done);
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    kitchen.advance(20 * LEASE.as_secs()).await;
    assert_eq!(kitchen.depth().await, Depth { leased: 1, ..Depth::default() });
    let beats = kitchen.wire.extends.load(Ordering::Relaxed);
    assert!((55..=60).contains(&beats), "a beat each third of a lease: {beats}");
    done.notify_one();
    settle().await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 1);
    assert_eq!(script.runs(), 1);
    assert_eq!(worker.stop().await, Summary { succeeded: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_heartbeat_outlives_a_short_outage_of_the_queue() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let worker = kitchen.start_script(&until(&done));
    let job = kitchen.submit_script().await;
    settle().await;
    for line in [Line::Down, Line::Good, Line::Down, Line::Good] {
        *kitchen.wire.extend.lock().unwrap() = line;
        kitchen.advance(25).await;
    }
    done.notify_one();
    settle().await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 1);
    worker.stop().await;
}

/// What a cancelled handler tries to write all the same.
fn stubborn(clock: &Kitchen) -> (Script, Arc<Mutex<Option<Duration>>>) {
    let cancelled_at = Arc::new(Mutex::new(None));
    let (at, clock) = (cancelled_at.clone(), clock.clock.clone());
    let script = Script::new(move |context| {
        let (at, clock) = (at.clone(), clock.clone());
        async move {
            let began = clock.monotonic();
            context.cancel.cancelled().await;
            *at.lock().unwrap() = Some(clock.monotonic().since(began));
            let refused = context.store.create(&context.effect_key("late")?, "late".into()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::LeaseLost);
            Ok(Value::from("never seen"))
        }
    });
    (script, cancelled_at)
}

#[tokio::test]
async fn a_lost_lease_cancels_its_holder_which_then_writes_nothing() {
    for (line, latest) in [(Line::LeaseLost, 20), (Line::Down, 50), (Line::Silent, 50)] {
        let kitchen = Kitchen::new(5);
        let (script, cancelled_at) = stubborn(&kitchen);
        let worker = kitchen.start_script(&script);
        let job = kitchen.submit_script().await;
        settle().await;
        *kitchen.wire.extend.lock().unwrap() = line;
        // Once the first delivery is there nothing more is received, so that the second run does not blur the picture.
        *kitchen.wire.receive.lock().unwrap() = Line::Silent;
        kitchen.advance(latest - 5).await;
        assert_eq!(*cancelled_at.lock().unwrap(), None, "{line:?}");
        kitchen.advance(5).await;
        assert_eq!(*cancelled_at.lock().unwrap(), Some(Duration::from_secs(latest)), "{line:?}");
        assert!(Duration::from_secs(latest) < LEASE);
        assert_eq!(kitchen.objects().await, 0, "{line:?}");
        assert!(kitchen.wire.nacks().is_empty());
        assert_eq!(worker.stop().await, Summary { lost: 1, ..Summary::default() });
        assert!(kitchen.result(&job).await.is_none());
    }
}

#[tokio::test]
async fn a_lease_that_is_lost_while_the_machine_sleeps_is_noticed_before_the_result() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let script = until(&done);
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    settle().await;
    // The handler is the first to act after an hour of sleep: its end and the passed time come in one moment.
    done.notify_one();
    kitchen.clock.advance(Duration::from_secs(3600));
    settle().await;
    // The first run wrote nothing; the second delivery does the job.
    assert!(kitchen.result(&job).await.is_none_or(|result| result.attempts == 2));
    done.notify_one();
    kitchen.advance(5).await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 2);
    assert_eq!(worker.stop().await, Summary { lost: 1, succeeded: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_result_is_not_written_when_the_queue_says_at_the_last_moment_that_the_lease_is_lost() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let worker = kitchen.start_script(&until(&done));
    kitchen.submit_script().await;
    settle().await;
    *kitchen.wire.extend.lock().unwrap() = Line::LeaseLost;
    *kitchen.wire.receive.lock().unwrap() = Line::Silent;
    done.notify_one();
    settle().await;
    assert_eq!(kitchen.objects().await, 0);
    assert_eq!(worker.stop().await, Summary { lost: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_holder_that_does_not_listen_is_dropped_after_its_grace() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let kitchen = Kitchen::new(5);
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = dropped.clone();
    let script = Script::new(move |_| {
        let flag = Flag(flag.clone());
        async move {
            let _flag = flag;
            std::future::pending().await
        }
    });
    let worker = kitchen.start_script(&script);
    kitchen.submit_script().await;
    settle().await;
    *kitchen.wire.extend.lock().unwrap() = Line::LeaseLost;
    *kitchen.wire.receive.lock().unwrap() = Line::Silent;
    let grace = WorkerOptions::default().cancel_grace.as_secs();
    kitchen.advance(20 + grace - 5).await;
    assert!(!dropped.load(Ordering::Relaxed));
    kitchen.advance(5).await;
    assert!(dropped.load(Ordering::Relaxed));
    assert_eq!(worker.stop().await.lost, 1);
}

#[tokio::test]
async fn two_workers_on_one_job_leave_one_result() {
    let kitchen = Kitchen::new(5);
    let meet = Arc::new(tokio::sync::Barrier::new(2));
    let script = Script::new(move |context| {
        let meet = meet.clone();
        async move {
            // Both are past their look for a result before either ends.
            meet.wait().await;
            context.store.create_same(&context.effect_key("effect")?, "the same".into()).await?;
            Ok(Value::Null)
        }
    });
    // One lane each, so that neither takes both messages.
    let start = |name: &str| {
        let (name, lanes) = (name.to_owned(), [(Resource::Cpu, 1)].into());
        kitchen
            .start(kitchen.builder(WorkerOptions { name, lanes, ..WorkerOptions::default() }).handler(script.clone()))
    };
    let (first, second) = (start("oven-1"), start("oven-2"));
    let job = kitchen.submit_script().await;
    kitchen.submit(&job).await;
    settle().await;
    assert_eq!(script.runs(), 2);
    assert_eq!(kitchen.objects().await, 2);
    assert_eq!(kitchen.depth().await, Depth::default());
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!((first.succeeded + second.succeeded, first.repeated + second.repeated), (1, 1));
}

#[tokio::test]
async fn one_worker_does_not_run_one_job_twice_at_a_time() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let script = until(&done);
    let worker = kitchen.start_script(&script);
    let job = kitchen.submit_script().await;
    kitchen.submit(&job).await;
    // The duplicate is held, however long it takes, and uses one delivery alone.
    kitchen.advance(3 * LEASE.as_secs()).await;
    assert_eq!(kitchen.depth().await.leased, 2);
    assert_eq!(script.runs(), 1);
    done.notify_one();
    settle().await;
    assert_eq!(script.runs(), 1);
    assert_eq!(kitchen.depth().await, Depth::default());
    assert_eq!(worker.stop().await, Summary { succeeded: 1, repeated: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_redelivery_of_a_finished_job_is_acked_and_not_run() {
    let kitchen = Kitchen::new(5);
    let script = Script::succeeding();
    let worker = kitchen.start_script(&script);
    *kitchen.wire.ack.lock().unwrap() = Line::Down;
    let job = kitchen.submit_script().await;
    settle().await;
    assert!(kitchen.result(&job).await.is_some());
    // The worker dies before its ack goes through.
    worker.task.abort();
    settle().await;
    *kitchen.wire.ack.lock().unwrap() = Line::Good;
    let second = kitchen.start_script(&script);
    kitchen.advance(2 * LEASE.as_secs()).await;
    assert_eq!(script.runs(), 1);
    assert_eq!(kitchen.depth().await, Depth::default());
    assert_eq!(second.stop().await, Summary { repeated: 1, ..Summary::default() });
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 1);
}

#[tokio::test]
async fn an_ack_that_does_not_go_through_is_tried_again_while_the_lease_lasts() {
    let kitchen = Kitchen::new(1);
    let worker = kitchen.start_script(&Script::succeeding());
    *kitchen.wire.ack.lock().unwrap() = Line::Down;
    kitchen.submit_script().await;
    kitchen.advance(3 * LEASE.as_secs()).await;
    *kitchen.wire.ack.lock().unwrap() = Line::Good;
    kitchen.advance(LEASE.as_secs()).await;
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 0));
    assert_eq!(worker.stop().await.succeeded, 1);
}

#[tokio::test]
async fn a_result_waits_for_a_store_that_is_away() {
    use crate::faults::{Faults, Faulty};
    let kitchen = Kitchen::new(1);
    let faults = Faults::none();
    let away = faults.clone();
    let script = Script::new(move |_| {
        // It goes away while the job runs.
        away.offline.store(true, Ordering::Relaxed);
        async { Ok(Value::from("hours of work")) }
    });
    let store = Arc::new(Faulty { inner: super::store(&kitchen), faults: faults.clone() });
    let worker = kitchen.start(
        hybrid_sync::worker::Worker::builder(kitchen.wire.clone(), store)
            .clock(Arc::new(kitchen.clock.clone()))
            .options(WorkerOptions { lease: LEASE, ..WorkerOptions::default() })
            .handler(script.clone()),
    );
    let job = kitchen.submit_script().await;
    kitchen.advance(3600).await;
    assert_eq!(kitchen.depth().await.leased, 1);
    faults.offline.store(false, Ordering::Relaxed);
    kitchen.advance(60).await;
    assert_eq!(kitchen.result(&job).await.unwrap().output::<String>().unwrap(), "hours of work");
    assert_eq!(script.runs(), 1);
    worker.stop().await;
}

#[test]
fn an_effect_has_the_jobs_own_key_and_never_the_results() {
    use hybrid_core::{Cancellation, NoProgress};
    let kitchen = Kitchen::new(1);
    let job = Arc::new(kitchen.job("script"));
    let context = hybrid_sync::worker::JobContext {
        job: job.clone(),
        attempt: 1,
        last_attempt: false,
        cancel: Cancellation::new(),
        progress: Arc::new(NoProgress),
        store: super::store(&kitchen),
        clock: Arc::new(kitchen.clock.clone()),
    };
    assert_eq!(context.effect_key("plan").unwrap().as_str(), format!("t/default/jobs/{}/plan", job.id));
    for bad in ["result", "result/x", "job", "dead/x", "", "../x"] {
        assert_eq!(
            context.effect_key(bad).map_err(|error: Error| error.kind()).unwrap_err(),
            ErrorKind::InvalidInput,
            "{bad}"
        );
    }
}
