use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hybrid_core::{Depth, Error};
use hybrid_sync::worker::{Resource, Summary, Worker, WorkerOptions};
use serde_json::Value;
use tokio::sync::Notify;

use super::{Kitchen, Script, wire::Line};
use crate::{
    faults::{Faults, Faulty},
    time::settle,
};

fn options() -> WorkerOptions {
    WorkerOptions {
        drain_grace: Duration::from_secs(120),
        cancel_grace: Duration::from_secs(10),
        ..WorkerOptions::default()
    }
}

/// Ends when notified, or a moment after it is cancelled.
fn polite(done: &Arc<Notify>) -> Script {
    let done = done.clone();
    Script::new(move |context| {
        let done = done.clone();
        async move {
            tokio::select! {
                () = done.notified() => Ok(Value::Null),
                () = context.cancel.cancelled() => Err(Error::cancelled("bake", "told to stop")),
            }
        }
    })
}

#[tokio::test]
async fn a_stopping_worker_lets_running_jobs_end_and_takes_no_more() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let script = polite(&done);
    let worker = kitchen.start(kitchen.builder(options()).handler(script.clone()));
    let job = kitchen.submit_script().await;
    settle().await;
    worker.cancel.cancel();
    settle().await;
    kitchen.submit_script().await;
    // Longer than a lease: the heartbeat goes on.
    kitchen.advance(100).await;
    assert!(!worker.task.is_finished());
    done.notify_one();
    settle().await;
    assert_eq!(worker.task.await.unwrap(), Summary { succeeded: 1, ..Summary::default() });
    assert!(kitchen.result(&job).await.is_some());
    assert_eq!((script.runs(), kitchen.depth().await), (1, Depth { ready: 1, ..Depth::default() }));
}

#[tokio::test]
async fn after_the_grace_jobs_are_cancelled_and_come_back_at_once() {
    for deaf in [false, true] {
        let kitchen = Kitchen::new(5);
        let script = if deaf { Script::new(|_| std::future::pending()) } else { polite(&Arc::default()) };
        let worker = kitchen.start(kitchen.builder(options()).handler(script));
        kitchen.submit_script().await;
        settle().await;
        worker.cancel.cancel();
        kitchen.advance(115).await;
        assert!(!worker.task.is_finished());
        kitchen.advance(if deaf { 15 } else { 5 }).await;
        assert_eq!(worker.task.await.unwrap(), Summary { given_back: 1, ..Summary::default() });
        assert_eq!(kitchen.depth().await, Depth { ready: 1, ..Depth::default() });
        assert_eq!(kitchen.objects().await, 0);
    }
}

#[tokio::test]
async fn a_job_that_ends_while_it_is_cancelled_has_its_result() {
    let kitchen = Kitchen::new(5);
    let script = Script::new(|context| async move {
        context.cancel.cancelled().await;
        Ok(Value::from("saved"))
    });
    let worker = kitchen.start(kitchen.builder(options()).handler(script));
    let job = kitchen.submit_script().await;
    settle().await;
    worker.cancel.cancel();
    kitchen.advance(120).await;
    assert_eq!(worker.task.await.unwrap().succeeded, 1);
    assert!(kitchen.result(&job).await.is_some());
}

#[tokio::test]
async fn jobs_that_wait_for_a_lane_go_back_at_once() {
    let kitchen = Kitchen::new(5);
    let done = Arc::new(Notify::new());
    let script = polite(&done).on(Resource::Accelerator);
    // A second resource gives a second slot, which the second job takes to wait in.
    struct Idle;
    #[async_trait::async_trait]
    impl hybrid_sync::worker::JobHandler for Idle {
        const KIND: &'static str = "idle";
        type Payload = Value;
        type Output = ();
        async fn run(&self, _job: &hybrid_sync::worker::JobContext, _payload: Value) -> hybrid_core::Result<()> {
            Ok(())
        }
    }
    let lanes = [(Resource::Cpu, 1)].into();
    let worker =
        kitchen.start(kitchen.builder(WorkerOptions { lanes, ..options() }).handler(script.clone()).handler(Idle));
    kitchen.submit_script().await;
    kitchen.submit_script().await;
    settle().await;
    assert_eq!(kitchen.depth().await.leased, 2);
    worker.cancel.cancel();
    settle().await;
    assert_eq!(kitchen.depth().await, Depth { ready: 1, leased: 1, delayed: 0 });
    done.notify_one();
    settle().await;
    assert_eq!(worker.task.await.unwrap(), Summary { succeeded: 1, given_back: 1, ..Summary::default() });
    assert_eq!(script.runs(), 1);
}

#[tokio::test]
async fn a_store_that_never_answers_does_not_keep_a_worker_from_stopping() {
    let kitchen = Kitchen::new(5);
    let faults = Faults::none();
    let silence = faults.clone();
    let script = Script::new(move |_| {
        silence.silent.store(true, Ordering::Relaxed);
        async { Ok(Value::Null) }
    });
    let store = Arc::new(Faulty { inner: super::store(&kitchen), faults });
    let clock = Arc::new(kitchen.clock.clone());
    let worker =
        kitchen.start(Worker::builder(kitchen.wire.clone(), store).clock(clock).options(options()).handler(script));
    kitchen.submit_script().await;
    settle().await;
    worker.cancel.cancel();
    kitchen.advance(120 + 25).await;
    assert!(worker.task.is_finished());
}

#[tokio::test]
async fn a_queue_that_never_answers_does_not_keep_a_worker_from_stopping() {
    let kitchen = Kitchen::new(5);
    let worker = kitchen.start(kitchen.builder(options()).handler(polite(&Arc::default())));
    kitchen.submit_script().await;
    settle().await;
    for line in [&kitchen.wire.nack, &kitchen.wire.ack, &kitchen.wire.receive] {
        *line.lock().unwrap() = Line::Silent;
    }
    worker.cancel.cancel();
    kitchen.advance(120 + 25).await;
    assert!(worker.task.is_finished());
}
