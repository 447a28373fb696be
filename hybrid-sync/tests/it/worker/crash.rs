use std::sync::Arc;

use hybrid_core::{ArtifactStoreExt, Depth, Error, JobQueue};
use hybrid_sync::worker::{Worker, WorkerOptions};
use serde_json::Value;

use super::{Kitchen, LEASE, Script, store};
use crate::faults::{Faults, Faulty, Side};

/// Makes an effect in two steps, completing what an earlier run has left.
fn baking() -> Script {
    Script::new(|context| async move { bake(&context).await })
}

fn builder(kitchen: &Kitchen, faults: &Arc<Faults>) -> hybrid_sync::worker::WorkerBuilder {
    let queue: Arc<dyn JobQueue> = Arc::new(Faulty { inner: kitchen.queue.clone(), faults: faults.clone() });
    Worker::builder(queue, Arc::new(Faulty { inner: store(kitchen), faults: faults.clone() }))
        .clock(Arc::new(kitchen.clock.clone()))
        .options(WorkerOptions { lease: LEASE, ..WorkerOptions::default() })
        .handler(baking())
}

/// What must be in the end, whatever happened.
async fn check(kitchen: &Kitchen, job: &hybrid_sync::job::Job, case: &str) {
    let result = kitchen.result(job).await.unwrap_or_else(|| panic!("{case}: no result"));
    assert_eq!(result.output::<String>().unwrap(), "bread", "{case}");
    assert_eq!(kitchen.objects().await, 3, "{case}");
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 0), "{case}");
}

/// How many calls a job takes, the next wait for a message among them.
async fn calls_of_a_clean_run() -> usize {
    let kitchen = Kitchen::new(5);
    let faults = Faults::none();
    let worker = kitchen.start(builder(&kitchen, &faults));
    let job = kitchen.submit_script().await;
    kitchen.advance(5).await;
    check(&kitchen, &job, "clean").await;
    worker.stop().await;
    faults.count()
}

#[tokio::test]
async fn a_worker_that_dies_at_any_call_leaves_a_job_that_another_completes() {
    for at in 0..calls_of_a_clean_run().await {
        for side in [Side::Before, Side::After] {
            let kitchen = Kitchen::new(5);
            let dying = kitchen.start(builder(&kitchen, &Faults::crash(at, side)));
            let job = kitchen.submit_script().await;
            kitchen.advance(5).await;
            dying.task.abort();
            let second = kitchen.start(builder(&kitchen, &Faults::none()));
            kitchen.advance(3 * LEASE.as_secs()).await;
            check(&kitchen, &job, &format!("{at} {side:?}")).await;
            second.stop().await;
        }
    }
}

#[tokio::test]
async fn one_call_that_fails_or_whose_answer_is_lost_costs_no_job() {
    for at in 0..calls_of_a_clean_run().await + 2 {
        for side in [Side::Before, Side::After] {
            let kitchen = Kitchen::new(5);
            let worker = kitchen.start(builder(&kitchen, &Faults::once(at, side)));
            let job = kitchen.submit_script().await;
            kitchen.advance(3 * LEASE.as_secs()).await;
            check(&kitchen, &job, &format!("{at} {side:?}")).await;
            worker.stop().await;
        }
    }
}

#[tokio::test]
async fn a_handlers_own_trouble_with_the_store_is_tried_again() {
    let kitchen = Kitchen::new(5);
    let script = Script::new(|context| async move {
        if context.attempt == 1 {
            return Err(Error::unavailable("read object", "away"));
        }
        bake(&context).await
    });
    let worker = kitchen.start(kitchen.builder(WorkerOptions::default()).handler(script));
    let job = kitchen.submit_script().await;
    kitchen.advance(60).await;
    check(&kitchen, &job, "second attempt").await;
    worker.stop().await;
}

async fn bake(context: &hybrid_sync::worker::JobContext) -> hybrid_core::Result<Value> {
    for step in ["dough", "bread"] {
        context.store.create_same(&context.effect_key(step)?, step.into()).await?;
    }
    Ok(Value::from("bread"))
}
