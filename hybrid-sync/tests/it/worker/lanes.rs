use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use hybrid_core::{Clock, Depth, Result};
use hybrid_sync::worker::{JobContext, JobHandler, Resource, Summary, WorkerOptions};
use serde_json::Value;

use super::{Kitchen, LEASE, Script};

/// How many run now, and the most that ever did.
#[derive(Debug, Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    /// Ten minutes of work.
    async fn work(&self, clock: &dyn Clock) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        clock.sleep(std::time::Duration::from_secs(600)).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

fn working(gauge: &Arc<Gauge>) -> Script {
    let gauge = gauge.clone();
    Script::new(move |context| {
        let gauge = gauge.clone();
        async move {
            gauge.work(&*context.clock).await;
            Ok(Value::Null)
        }
    })
}

/// Work of another kind, on the processor.
struct Sweep(Arc<Gauge>);

#[async_trait]
impl JobHandler for Sweep {
    const KIND: &'static str = "sweep";
    type Payload = Value;
    type Output = ();

    async fn run(&self, job: &JobContext, _payload: Value) -> Result<()> {
        self.0.work(&*job.clock).await;
        Ok(())
    }
}

#[tokio::test]
async fn one_accelerator_job_runs_at_a_time_and_no_more_are_taken() {
    let kitchen = Kitchen::new(1);
    let gauge = Arc::new(Gauge::default());
    let worker = kitchen.start_script(&working(&gauge).on(Resource::Accelerator));
    for _ in 0..5 {
        kitchen.submit_script().await;
    }
    kitchen.advance(60).await;
    assert_eq!(kitchen.depth().await, Depth { ready: 4, leased: 1, delayed: 0 });
    kitchen.advance(3600).await;
    assert_eq!(gauge.most(), 1);
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 0));
    assert_eq!(worker.stop().await, Summary { succeeded: 5, ..Summary::default() });
}

#[tokio::test]
async fn lanes_are_as_many_as_asked() {
    let kitchen = Kitchen::new(1);
    let gauge = Arc::new(Gauge::default());
    let lanes = [(Resource::Cpu, 3)].into();
    let worker =
        kitchen.start(kitchen.builder(WorkerOptions { lanes, ..WorkerOptions::default() }).handler(working(&gauge)));
    for _ in 0..9 {
        kitchen.submit_script().await;
    }
    kitchen.advance(1805).await;
    assert_eq!(gauge.most(), 3);
    assert_eq!(worker.stop().await.succeeded, 9);
}

#[tokio::test]
async fn a_job_whose_lane_is_taken_is_held_and_loses_no_delivery() {
    // One delivery each: one given back would be dead.
    let kitchen = Kitchen::new(1);
    let (oven, broom) = (Arc::new(Gauge::default()), Arc::new(Gauge::default()));
    let lanes = [(Resource::Accelerator, 1), (Resource::Cpu, 1)].into();
    let worker = kitchen.start(
        kitchen
            .builder(WorkerOptions { lanes, ..WorkerOptions::default() })
            .handler(working(&oven).on(Resource::Accelerator))
            .handler(Sweep(broom.clone())),
    );
    for _ in 0..3 {
        kitchen.submit_script().await;
    }
    for _ in 0..3 {
        kitchen.submit(&kitchen.job("sweep")).await;
    }
    kitchen.advance(5 * LEASE.as_secs()).await;
    // As many as lanes are here: one runs, one is held.
    assert_eq!(kitchen.depth().await, Depth { ready: 4, leased: 2, delayed: 0 });
    kitchen.advance(2 * 3600).await;
    assert_eq!((oven.most(), broom.most()), (1, 1));
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 0));
    assert!(kitchen.wire.nacks().is_empty());
    assert_eq!(worker.stop().await, Summary { succeeded: 6, ..Summary::default() });
}
