//! The worker's promises, each driven by a manual clock over the memory queue and store.

mod crash;
mod dead;
mod drain;
mod failures;
mod lanes;
mod leases;
mod orders;
mod strangers;
mod waiting;
mod wire;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use hybrid_core::{
    ArtifactStore, Cancellation, DeadLetters, Depth, JobKind, JobQueue, JobQueueExt, ManualClock, NewMessage, Result,
    SeededIds, TenantId,
    memory::{MemoryQueue, MemoryQueueOptions, MemoryStore},
};
use hybrid_sync::{
    job::{self, Job, JobResult},
    worker::{JobContext, JobHandler, Resource, Summary, Worker, WorkerBuilder, WorkerOptions},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::time::{advance, settle};
use wire::Wire;

/// The lease of all workers here.
const LEASE: Duration = Duration::from_secs(60);

/// A queue and a bucket, with their time.
struct Kitchen {
    clock: ManualClock,
    /// The queue itself.
    queue: MemoryQueue,
    /// What workers reach it through.
    wire: Arc<Wire>,
    store: MemoryStore,
    ids: SeededIds,
}

impl Kitchen {
    /// Messages may be delivered `deliveries` times.
    fn new(deliveries: u32) -> Self {
        let clock = ManualClock::at("2026-03-06T12:00:00Z".parse().unwrap());
        let options = MemoryQueueOptions { max_deliveries: deliveries, ordered: false };
        let queue = MemoryQueue::new(options, Arc::new(clock.clone()));
        let wire = Arc::new(Wire::new(queue.clone()));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        Self { clock, queue, wire, store, ids: SeededIds::new(1) }
    }

    fn builder(&self, options: WorkerOptions) -> WorkerBuilder {
        Worker::builder(self.wire.clone() as Arc<dyn JobQueue>, Arc::new(self.store.clone()))
            .clock(Arc::new(self.clock.clone()))
            .options(WorkerOptions { lease: LEASE, ..options })
    }

    fn start(&self, builder: WorkerBuilder) -> Running {
        let worker = builder.build().unwrap();
        let cancel = Cancellation::new();
        let token = cancel.clone();
        Running { cancel, task: tokio::spawn(async move { worker.run(token).await }) }
    }

    /// A worker with one handler of the kind `script`.
    fn start_script(&self, script: &Script) -> Running {
        self.start(self.builder(WorkerOptions::default()).handler(script.clone()))
    }

    fn job(&self, kind: &str) -> Job {
        Job::new(&self.ids, &self.clock, TenantId::single(), JobKind::new(kind).unwrap(), Value::from("dough")).unwrap()
    }

    async fn submit(&self, job: &Job) {
        job::submit(&self.queue, &self.store, job).await.unwrap();
    }

    async fn submit_script(&self) -> Job {
        let job = self.job("script");
        self.submit(&job).await;
        job
    }

    async fn result(&self, job: &Job) -> Option<JobResult> {
        job::read_result(&self.store, &job.tenant, job.id).await.unwrap()
    }

    /// How many objects the bucket has.
    async fn objects(&self) -> usize {
        use hybrid_core::ArtifactStoreExt;
        self.store.list_all("").await.unwrap().len()
    }

    async fn depth(&self) -> Depth {
        self.queue.depth().await.unwrap()
    }

    async fn dead(&self) -> usize {
        self.queue.list(100, None).await.unwrap().len()
    }

    async fn send_body(&self, body: &str) {
        self.queue.send_one(NewMessage::new(body)).await.unwrap();
    }

    /// Moves time in steps of five seconds.
    async fn advance(&self, secs: u64) {
        advance(&self.clock, Duration::from_secs(secs), Duration::from_secs(5)).await;
    }
}

/// A worker at work.
struct Running {
    cancel: Cancellation,
    task: JoinHandle<Summary>,
}

impl Running {
    /// Stops a worker that has nothing to do.
    async fn stop(self) -> Summary {
        self.cancel.cancel();
        settle().await;
        assert!(self.task.is_finished(), "an idle worker stops at once");
        self.task.await.unwrap()
    }
}

type Run = dyn Fn(JobContext) -> BoxFuture<'static, Result<Value>> + Send + Sync;

/// A handler of the kind `script` that does what a closure says, and counts.
#[derive(Clone)]
struct Script {
    run: Arc<Run>,
    resource: Resource,
    runs: Arc<AtomicUsize>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    fn new<F: Future<Output = Result<Value>> + Send + 'static>(
        run: impl Fn(JobContext) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { run: Arc::new(move |context| run(context).boxed()), resource: Resource::Cpu, runs: Arc::default() }
    }

    /// One that succeeds at once.
    fn succeeding() -> Self {
        Self::new(|context| async move { Ok(Value::from(context.attempt)) })
    }

    fn on(self, resource: Resource) -> Self {
        Self { resource, ..self }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl JobHandler for Script {
    const KIND: &'static str = "script";
    type Payload = String;
    type Output = Value;

    fn resource(&self) -> Resource {
        self.resource
    }

    async fn run(&self, job: &JobContext, payload: String) -> Result<Value> {
        assert_eq!(payload, "dough");
        self.runs.fetch_add(1, Ordering::Relaxed);
        (self.run)(job.clone()).await
    }
}

#[tokio::test]
async fn a_job_leaves_one_result_and_then_its_message_is_gone() {
    let kitchen = Kitchen::new(5);
    let script = Script::succeeding();
    let worker = kitchen.start(
        kitchen
            .builder(WorkerOptions { name: "oven-2".to_owned(), ..WorkerOptions::default() })
            .handler(script.clone()),
    );
    let job = kitchen.submit_script().await;
    settle().await;
    let result = kitchen.result(&job).await.unwrap();
    assert_eq!(result.output::<u32>().unwrap(), 1);
    assert_eq!((result.worker.as_str(), result.attempts, result.kind.as_str()), ("oven-2", 1, "script"));
    assert_eq!(kitchen.depth().await, Depth::default());
    assert_eq!(worker.stop().await, Summary { succeeded: 1, ..Summary::default() });

    // Submitted again it is not sent again.
    assert_eq!(job::submit(&kitchen.queue, &kitchen.store, &job).await.unwrap(), job::Submission::Done);
    assert_eq!(kitchen.depth().await, Depth::default());
}

#[tokio::test]
async fn who_waits_for_a_result_gets_it_when_it_is_there() {
    let kitchen = Kitchen::new(5);
    let job = kitchen.submit_script().await;
    let (store, clock, id) = (kitchen.store.clone(), kitchen.clock.clone(), job.id);
    let waiting = tokio::spawn(async move {
        job::wait_for_result(&store, &TenantId::single(), id, &clock, Duration::from_secs(1)).await
    });
    kitchen.advance(30).await;
    assert!(!waiting.is_finished());
    let worker = kitchen.start_script(&Script::succeeding());
    kitchen.advance(5).await;
    assert_eq!(waiting.await.unwrap().unwrap().job, job.id);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_reports_its_progress_to_its_own_sink() {
    use hybrid_core::{ProgressEvent, ProgressFn};
    let kitchen = Kitchen::new(5);
    let script = Script::new(|context| async move {
        context.progress.report(ProgressEvent::new("train", 1, 2, "steps"));
        Ok(Value::Null)
    });
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = seen.clone();
    let builder = kitchen.builder(WorkerOptions::default()).handler(script).progress(move |job| {
        let (sink, id) = (sink.clone(), job.id);
        Arc::new(ProgressFn(move |event: ProgressEvent| sink.lock().unwrap().push((id, event.stage))))
    });
    let worker = kitchen.start(builder);
    let job = kitchen.submit_script().await;
    settle().await;
    assert_eq!(*seen.lock().unwrap(), [(job.id, "train".to_owned())]);
    worker.stop().await;
}

#[test]
fn a_worker_that_cannot_work_is_not_built() {
    let kitchen = Kitchen::new(1);
    let script = Script::succeeding;
    let options = WorkerOptions::default;
    let no_lane = WorkerOptions { lanes: [(Resource::Cpu, 0)].into(), ..options() };
    let short = WorkerOptions { lease: Duration::from_millis(1), ..options() };
    for bad in [
        kitchen.builder(options()),
        kitchen.builder(options()).handler(script()).handler(script()),
        kitchen.builder(no_lane).handler(script()),
        kitchen.builder(options()).options(short).handler(script()),
    ] {
        assert_eq!(bad.build().unwrap_err().kind(), hybrid_core::ErrorKind::InvalidInput);
    }
}

fn store(kitchen: &Kitchen) -> Arc<dyn ArtifactStore> {
    Arc::new(kitchen.store.clone())
}
