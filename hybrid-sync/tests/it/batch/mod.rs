//! Job kinds over rows, with workers that die at any call.

mod embed;
mod enrich;
mod summarise;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, BackendProfile, BoxStream, CallContext, Cancellation, DataPolicy, Event, FileId, Files,
    InferenceBackend, JobKind, JobQueue, Limits, Locality, ManualClock, NewFile, Reply, ReplyMeta, Result, SeededIds,
    ServedModel, Task, TenantId, Usage,
    inference::stream_reply,
    memory::{MemoryQueue, MemoryQueueOptions, MemoryStore},
};
use hybrid_sync::{
    job::{self, Job, JobResult},
    worker::{Worker, WorkerBuilder, WorkerOptions},
};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::{
    faults::{Faults, Faulty, Side},
    time::{advance, settle},
};

const LEASE: Duration = Duration::from_secs(60);

/// A queue and a bucket, with their time.
struct Site {
    clock: ManualClock,
    queue: MemoryQueue,
    store: MemoryStore,
    ids: SeededIds,
}

impl Site {
    fn new() -> Self {
        let clock = ManualClock::at("2026-03-06T12:00:00Z".parse().unwrap());
        let options = MemoryQueueOptions { max_deliveries: 5, ordered: false };
        let queue = MemoryQueue::new(options, Arc::new(clock.clone()));
        let store = MemoryStore::new(Arc::new(clock.clone()));
        Self { clock, queue, store, ids: SeededIds::new(1) }
    }

    fn files(&self) -> Files {
        Files::new(Arc::new(self.store.clone()), Arc::new(self.clock.clone()))
    }

    /// A job over a file of `text`, on the queue.
    async fn order(&self, kind: &str, payload: impl Serialize, text: &str) -> Job {
        self.order_under(DataPolicy::Anywhere, kind, payload, text).await
    }

    async fn order_under(&self, policy: DataPolicy, kind: &str, payload: impl Serialize, text: &str) -> Job {
        let tenant = TenantId::single();
        let mut upload = self.files().upload(&tenant, FileId::next(&self.ids));
        upload.write(text.to_owned().into()).await.unwrap();
        let file = upload.finish(NewFile::new("rows.jsonl", "batch")).await.unwrap();
        let mut job = Job::new(&self.ids, &self.clock, tenant, JobKind::new(kind).unwrap(), payload).unwrap();
        (job.input, job.policy) = (Some(file.id), policy);
        job::submit(&self.queue, &self.store, &job).await.unwrap();
        job
    }

    fn worker(&self, faults: &Arc<Faults>, handlers: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Running {
        let queue: Arc<dyn JobQueue> = Arc::new(Faulty { inner: self.queue.clone(), faults: faults.clone() });
        let store: Arc<dyn ArtifactStore> = Arc::new(Faulty { inner: self.store.clone(), faults: faults.clone() });
        let options = WorkerOptions { lease: LEASE, ..WorkerOptions::default() };
        let builder = Worker::builder(queue, store).clock(Arc::new(self.clock.clone())).options(options);
        let worker = handlers(builder).build().unwrap();
        let cancel = Cancellation::new();
        let token = cancel.clone();
        Running { cancel, task: tokio::spawn(async move { worker.run(token).await }) }
    }

    /// Moves time until every task waits for more of it.
    async fn advance(&self, secs: u64) {
        for _ in 0..40 {
            settle().await;
        }
        advance(&self.clock, Duration::from_secs(secs), Duration::from_secs(5)).await;
        for _ in 0..40 {
            settle().await;
        }
    }

    async fn result(&self, job: &Job) -> JobResult {
        job::read_result(&self.store, &job.tenant, job.id).await.unwrap().expect("the job has no result")
    }

    /// Runs a job to its end with one worker that nothing happens to.
    async fn run(&self, job: &Job, handlers: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> JobResult {
        let worker = self.worker(&Faults::none(), handlers);
        self.advance(5).await;
        worker.stop().await;
        self.result(job).await
    }

    async fn text(&self, id: &str) -> String {
        let id = id.strip_prefix("file-").unwrap().parse().unwrap();
        let file = self.files().get(&TenantId::single(), id).await.unwrap().unwrap();
        let parts: Vec<_> = self.files().read(&TenantId::single(), &file).try_collect().await.unwrap();
        String::from_utf8(parts.concat()).unwrap()
    }
}

struct Running {
    cancel: Cancellation,
    task: JoinHandle<hybrid_sync::worker::Summary>,
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        for _ in 0..10 {
            settle().await;
        }
        self.task.await.unwrap();
    }
}

type Answer<T> = dyn Fn(<T as Task>::Request) -> Result<<T as Task>::Response> + Send + Sync;

/// A backend that answers by a function, and counts.
struct Clerk<T: Task> {
    profile: Arc<BackendProfile>,
    answer: Box<Answer<T>>,
    asked: AtomicUsize,
    requests: Mutex<Vec<T::Request>>,
}

impl<T: Task> fmt::Debug for Clerk<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clerk")
    }
}

impl<T: Task> Clerk<T> {
    fn new(answer: impl Fn(T::Request) -> Result<T::Response> + Send + Sync + 'static) -> Arc<Self> {
        Self::taking(None, answer)
    }

    /// One that takes at most `batch` inputs at a time.
    fn taking(
        batch: Option<usize>,
        answer: impl Fn(T::Request) -> Result<T::Response> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let profile = BackendProfile {
            name: "clerk".to_owned(),
            model: ServedModel::named("clerk"),
            locality: Locality::Device,
            limits: Limits { batch, ..Limits::default() },
            price: None,
        };
        Arc::new(Self {
            profile: Arc::new(profile),
            answer: Box::new(answer),
            asked: AtomicUsize::new(0),
            requests: Mutex::default(),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl<T: Task> InferenceBackend<T> for Clerk<T> {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>> {
        T::validate(&request)?;
        cx.admit("infer", &self.profile.locality)?;
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap().push(request.clone());
        let response = (self.answer)(request)?;
        let usage = Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() };
        Ok(Reply { response, meta: ReplyMeta::of(&self.profile, Duration::ZERO, usage)? })
    }

    async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

/// Kills a worker at each call that a whole run makes, before and after its effect, lets another end the job, and shows each end to `check`.
async fn killed_anywhere<F>(
    order: impl AsyncFn(&Site) -> Job,
    handlers: impl Fn(WorkerBuilder, &Site) -> WorkerBuilder,
    check: impl Fn(Site, JobResult, String) -> F,
) where
    F: Future<Output = ()>,
{
    let site = Site::new();
    let faults = Faults::none();
    let job = order(&site).await;
    let worker = site.worker(&faults, |builder| handlers(builder, &site));
    site.advance(5).await;
    let calls = faults.count();
    worker.stop().await;
    let result = site.result(&job).await;
    check(site, result, "clean".to_owned()).await;
    assert!(calls > 10, "{calls}");
    for at in 0..calls {
        for side in [Side::Before, Side::After] {
            let site = Site::new();
            let job = order(&site).await;
            let dying = site.worker(&Faults::crash(at, side), |builder| handlers(builder, &site));
            site.advance(5).await;
            dying.task.abort();
            let second = site.worker(&Faults::none(), |builder| handlers(builder, &site));
            site.advance(3 * LEASE.as_secs()).await;
            second.stop().await;
            let result = site.result(&job).await;
            check(site, result, format!("killed {side:?} call {at}")).await;
        }
    }
}
