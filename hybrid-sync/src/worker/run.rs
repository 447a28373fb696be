use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hybrid_core::{ArtifactStore, Cancellation, Clock, Delivery, JobId, JobKind, JobQueue, ReceiveOptions};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
};

use super::{
    ProgressOf, Resource, WorkerOptions,
    attempt::{Attempt, Ending},
    handler::AnyHandler,
};
use crate::backoff::seed_of;

/// Takes jobs off a queue and runs their handlers. See [the module](super) for what it promises.
#[derive(Debug)]
pub struct Worker(Arc<Shared>);

/// How the deliveries of one [`Worker::run`] ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Jobs whose result says success.
    pub succeeded: u64,
    /// Jobs whose result says failure.
    pub failed: u64,
    /// Deliveries that failed and come again.
    pub retried: u64,
    /// Jobs whose last delivery failed.
    pub dead: u64,
    /// Deliveries of jobs that had their result already.
    pub repeated: u64,
    /// Deliveries that were no job for this worker.
    pub misfits: u64,
    /// Deliveries whose lease was lost.
    pub lost: u64,
    /// Deliveries given back because the worker stopped.
    pub given_back: u64,
}

/// How often a closed worker looks at the clock.
const CLOSED_PAUSE: Duration = Duration::from_secs(60);
/// The least time between two calls that bring nothing, for queues that answer without waiting.
const EMPTY_PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Works until `cancel` is raised and what runs has ended or been given back.
    ///
    /// Needs a tokio runtime; one with several threads keeps heartbeats apart from handlers. One call at a time is meant: two share the lanes.
    ///
    /// # Cancel safety
    /// Dropping it drops the handlers that run, as a crash would: their jobs come again when the leases have ended.
    pub async fn run(&self, cancel: Cancellation) -> Summary {
        let Shared { clock, options, .. } = &*self.0;
        let stop = Cancellation::new();
        let mut jobs = Jobs::default();
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.receive(&mut jobs, &cancel, &stop) => {}
        }
        tracing::info!(running = jobs.tasks.len(), "worker stops");
        tokio::select! {
            biased;
            () = jobs.all() => return jobs.summary,
            () = clock.sleep(options.drain_grace) => stop.cancel(),
        }
        // Handlers have their grace to end, then the messages go back; a port that never answers is not waited for.
        tokio::select! {
            biased;
            () = jobs.all() => {}
            () = clock.sleep(options.cancel_grace * 2 + EMPTY_PAUSE) => tracing::warn!(left = jobs.tasks.len(), "jobs are dropped as they are"),
        }
        jobs.summary
    }

    async fn receive(&self, jobs: &mut Jobs, draining: &Cancellation, stop: &Cancellation) {
        let Shared { queue, clock, options, slots, .. } = &*self.0;
        let seed = seed_of(options.seed, options.name.as_bytes());
        let mut failures = 0;
        loop {
            jobs.ended();
            // Never closed; and if it were, there would be nothing to do.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let wait = options.hours.open_for(clock.now(), options.wait);
            if wait.is_zero() && !options.hours.is_open(clock.now()) {
                drop(slot);
                clock.sleep(CLOSED_PAUSE).await;
                continue;
            }
            let asked = clock.monotonic();
            // One at a time: a job is taken only by who can start it, or will be the next who can.
            match queue.receive(ReceiveOptions { max: 1, wait, lease: options.lease }).await {
                Ok(mut deliveries) => {
                    failures = 0;
                    match deliveries.pop() {
                        Some(delivery) => jobs.start(self.0.clone(), delivery, draining, stop, slot),
                        None => {
                            let pause = EMPTY_PAUSE.saturating_sub(clock.monotonic().since(asked));
                            clock.sleep(pause).await;
                        }
                    }
                }
                Err(error) => {
                    failures += 1;
                    // Not less than the first pause, so that an unlucky draw does not ask at once.
                    let wait =
                        EMPTY_PAUSE + options.offline.wait(seed, failures).max(error.retry_after().unwrap_or_default());
                    tracing::warn!(%error, failures, ?wait, "no messages can be received");
                    drop(slot);
                    clock.sleep(wait).await;
                }
            }
        }
    }
}

/// The deliveries under way.
#[derive(Default)]
struct Jobs {
    tasks: JoinSet<Ending>,
    summary: Summary,
}

impl Jobs {
    fn start(
        &mut self,
        worker: Arc<Shared>,
        delivery: Delivery,
        draining: &Cancellation,
        stop: &Cancellation,
        slot: OwnedSemaphorePermit,
    ) {
        let attempt = Attempt { worker, delivery, draining: draining.clone(), stop: stop.clone() };
        self.tasks.spawn(async move {
            let ending = attempt.run().await;
            drop(slot);
            ending
        });
    }

    /// Counts those that have ended.
    fn ended(&mut self) {
        while let Some(ending) = self.tasks.try_join_next() {
            self.summary.count(ending);
        }
    }

    /// Waits for all.
    async fn all(&mut self) {
        while let Some(ending) = self.tasks.join_next().await {
            self.summary.count(ending);
        }
    }
}

impl Summary {
    fn count(&mut self, ending: Result<Ending, JoinError>) {
        let counter = match ending {
            Ok(Ending::Succeeded) => &mut self.succeeded,
            Ok(Ending::Failed) => &mut self.failed,
            Ok(Ending::Retried) => &mut self.retried,
            Ok(Ending::Dead) => &mut self.dead,
            Ok(Ending::Repeated) => &mut self.repeated,
            Ok(Ending::Misfit) => &mut self.misfits,
            Ok(Ending::Lost) => &mut self.lost,
            Ok(Ending::GivenBack) => &mut self.given_back,
            Err(error) => {
                // Handlers' panics are caught where they run; this one is ours, or a progress sink's. The lease ends and the job comes again.
                tracing::error!(%error, "a job's task has failed");
                &mut self.lost
            }
        };
        *counter += 1;
    }
}

/// What the jobs of one worker share.
pub(super) struct Shared {
    pub(super) queue: Arc<dyn JobQueue>,
    pub(super) store: Arc<dyn ArtifactStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) options: WorkerOptions,
    pub(super) handlers: BTreeMap<JobKind, Arc<dyn AnyHandler>>,
    pub(super) progress: ProgressOf,
    pub(super) running: Running,
    lanes: BTreeMap<Resource, Semaphore>,
    /// As many as lanes in all.
    slots: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(
        queue: Arc<dyn JobQueue>,
        store: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        options: WorkerOptions,
        handlers: BTreeMap<JobKind, Arc<dyn AnyHandler>>,
        lanes: BTreeMap<Resource, usize>,
        progress: ProgressOf,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(lanes.values().sum()));
        let lanes = lanes.into_iter().map(|(resource, count)| (resource, Semaphore::new(count))).collect();
        Self { queue, store, clock, options, handlers, progress, running: Running::default(), lanes, slots }
    }

    /// Waits for a free lane; every handler's resource has one.
    pub(super) async fn lane(&self, resource: Resource) -> Option<tokio::sync::SemaphorePermit<'_>> {
        match self.lanes.get(&resource) {
            Some(lane) => lane.acquire().await.ok(),
            None => None,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("options", &self.options)
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}

/// The jobs that run in this process, so that none runs twice at a time.
#[derive(Debug, Default)]
pub(super) struct Running {
    ids: Mutex<BTreeSet<JobId>>,
    freed: Notify,
}

/// The right to run one job in this process.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    running: &'a Running,
    id: JobId,
}

impl Running {
    /// Waits until the job does not run here.
    pub(super) async fn claim(&self, id: JobId) -> Claim<'_> {
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Listening starts before the look, so that an end in between is not missed.
            freed.as_mut().enable();
            if self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
                return Claim { running: self, id };
            }
            freed.await;
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.running.ids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.running.freed.notify_waiters();
    }
}
