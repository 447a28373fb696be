//! The worker: takes jobs off a queue, runs their handlers under a lease, and leaves one result for each in the bucket.
//!
//! # What it promises
//! - **One result.** A job's result is created once, after everything else, under a key of the job's own; then the message is acked. A redelivery of
//!   a finished job is acked without running. Two workers on one job leave one result.
//! - **A lost lease stops its holder.** The lease is extended at a third of its length. An answer that it is lost, or silence until near its
//!   end by this machine's monotonic clock, raises [`JobContext::cancel`]; from then on [`JobContext::store`] refuses writes
//!   and no result is written. Right before the result the lease is extended once more.
//! - **Lanes.** A job runs in a lane of its handler's [`Resource`]: one for the accelerator unless told otherwise. A message is
//!   received only while there are fewer jobs here than lanes in all; one whose own lane is taken is held under its lease until that is free, since giving it back
//!   would cost it a delivery.
//! - **Failures.** An error that can never go away ([`is_permanent`]) and a payload that does not fit become the job's result at once. Every other
//!   error and a panic give the message back with exponential back-off and full jitter.
//! - **Used-up jobs have no result.** After the last delivery the message is with the dead letters, and no result is
//!   written: a result is for good, so a redriven job would be acked unseen. [`DeadJobs`](crate::job::DeadJobs) tells of it. Who waits for a result sets a time
//!   limit.
//! - **Strangers.** A message that is no job, a kind that is not known here, or a role that this worker has not, is given back with the same back-off, so
//!   that another worker may take it; each time costs a delivery, and what nobody takes ends with the dead letters.
//! - **Offline.** A queue or store that is away is asked again with back-off for as long as it takes; a finished handler's result is kept
//!   and written later if the lease lasts.
//! - **Working hours.** Outside of them nothing is received; jobs that run go on to their end.
//! - **Drain.** When [`Worker::run`] is cancelled nothing more is received, jobs that wait for a lane are given back, those that run
//!   have [`WorkerOptions::drain_grace`] to end; then they are cancelled and given back without a delay. That costs a job no delivery, but on a queue that cannot take one back
//!   ([`Guarantees::free_release`](hybrid_core::Guarantees::free_release)).
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use std::{sync::Arc, time::Duration};
//! use async_trait::async_trait;
//! use hybrid_core::{
//!     Cancellation, JobKind, Result, SystemClock, SystemIds, TenantId,
//!     memory::{MemoryQueue, MemoryStore},
//! };
//! use hybrid_sync::{job::{Job, submit, wait_for_result}, worker::{JobContext, JobHandler, Worker}};
//!
//! struct Shout;
//!
//! #[async_trait]
//! impl JobHandler for Shout {
//!     const KIND: &'static str = "shout";
//!     type Payload = String;
//!     type Output = String;
//!
//!     async fn run(&self, _job: &JobContext, payload: String) -> Result<String> {
//!         Ok(payload.to_uppercase())
//!     }
//! }
//!
//! let (queue, store) = (Arc::new(MemoryQueue::default()), Arc::new(MemoryStore::default()));
//! let worker = Worker::builder(queue.clone(), store.clone()).handler(Shout).build()?;
//! let cancel = Cancellation::new();
//! let running = tokio::spawn({ let cancel = cancel.clone(); async move { worker.run(cancel).await } });
//!
//! let job = Job::new(&SystemIds::default(), &SystemClock, TenantId::single(), JobKind::new("shout")?, "fresh bread")?;
//! submit(&queue, &store, &job).await?;
//! let result = wait_for_result(&store, &job.tenant, job.id, &SystemClock, Duration::from_millis(1)).await?;
//! assert_eq!(result.output::<String>()?, "FRESH BREAD");
//! cancel.cancel();
//! assert_eq!(running.await.map(|summary| summary.succeeded).ok(), Some(1));
//! # Ok::<(), hybrid_core::Error>(()) }).unwrap();
//! ```

mod attempt;
mod context;
mod handler;
mod hours;
mod lease;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use hybrid_core::{
    ArtifactStore, Clock, Error, ErrorKind, JobKind, JobQueue, MAX_DELAY, NoProgress, Progress, Result, SystemClock,
};

pub use context::JobContext;
pub use handler::{JobHandler, Resource};
pub use hours::WorkingHours;
pub use run::{Summary, Worker};

use crate::{Backoff, job::Job};
use handler::{AnyHandler, Typed};
use run::Shared;

/// Whether an error can never go away by trying again, so that it becomes the job's result at once.
pub fn is_permanent(kind: ErrorKind) -> bool {
    use ErrorKind::*;
    // Rights and credentials come and go: a job that lacks them waits for somebody.
    matches!(kind, InvalidInput | TooLarge | Corrupt | Unsupported | Untrusted | PolicyDenied)
}

/// How a [`Worker`] works.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerOptions {
    /// The worker's name in results and logs; `worker` by default.
    pub name: String,
    /// The roles it has: it runs jobs that ask for one of them, and jobs that ask for none.
    pub roles: BTreeSet<String>,
    /// How many jobs of each resource run at a time; where absent one for the accelerator, two for the CPU, eight for the network.
    pub lanes: BTreeMap<Resource, usize>,
    /// How long each lease is, extended at a third of it; 60 s by default. A job whose worker has died comes again after it.
    pub lease: Duration,
    /// How long one call waits for a message; 20 s by default.
    pub wait: Duration,
    /// The back-off of failed jobs; from 10 s to 900 s by default. The cap is at most [`MAX_DELAY`].
    pub retry: Backoff,
    /// The back-off while the queue or the store is away; from 1 s to 60 s by default.
    pub offline: Backoff,
    /// Where jitter comes from, beside the job's id.
    pub seed: u64,
    /// When messages are received; always by default.
    pub hours: WorkingHours,
    /// How long running jobs may go on after the worker was told to stop; 30 s by default.
    pub drain_grace: Duration,
    /// How long a cancelled handler may take to end before it is dropped; 10 s by default.
    pub cancel_grace: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            name: "worker".to_owned(),
            roles: BTreeSet::new(),
            lanes: BTreeMap::new(),
            lease: Duration::from_secs(60),
            wait: Duration::from_secs(20),
            retry: Backoff { first: Duration::from_secs(10), cap: MAX_DELAY },
            offline: Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(60) },
            seed: 0,
            hours: WorkingHours::always(),
            drain_grace: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(10),
        }
    }
}

type ProgressOf = Arc<dyn Fn(&Job) -> Arc<dyn Progress> + Send + Sync>;

/// Assembles a [`Worker`].
pub struct WorkerBuilder {
    queue: Arc<dyn JobQueue>,
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    options: WorkerOptions,
    handlers: Vec<(&'static str, Arc<dyn AnyHandler>)>,
    progress: ProgressOf,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("options", &self.options)
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Begins a worker that takes jobs from `queue` and leaves results in `store`.
    pub fn builder(queue: Arc<dyn JobQueue>, store: Arc<dyn ArtifactStore>) -> WorkerBuilder {
        WorkerBuilder {
            queue,
            store,
            clock: Arc::new(SystemClock),
            options: WorkerOptions::default(),
            handlers: Vec::new(),
            progress: Arc::new(|_| Arc::new(NoProgress)),
        }
    }
}

impl WorkerBuilder {
    /// Takes time from `clock` instead of the machine.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Works as `options` say.
    #[must_use]
    pub fn options(mut self, options: WorkerOptions) -> Self {
        self.options = options;
        self
    }

    /// Runs jobs of the kind `H::KIND` with `handler`.
    #[must_use]
    pub fn handler<H: JobHandler>(mut self, handler: H) -> Self {
        self.handlers.push((H::KIND, Arc::new(Typed(handler))));
        self
    }

    /// Gives each job the progress sink that `sink` makes for it.
    #[must_use]
    pub fn progress(mut self, sink: impl Fn(&Job) -> Arc<dyn Progress> + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(sink);
        self
    }

    /// The worker.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names the setting: no handler, two handlers of one kind, a kind that is no name, a resource without
    /// a lane, a lease under one second or over twelve hours.
    pub fn build(self) -> Result<Worker> {
        let Self { queue, store, clock, mut options, handlers, progress } = self;
        let invalid = |message: &'static str| Error::invalid("build worker", message);
        let longest_lease = Duration::from_secs(12 * 3600);
        if !(Duration::from_secs(1)..=longest_lease).contains(&options.lease) {
            return Err(invalid("the lease must be 1 s to 12 h").with("lease", format_args!("{:?}", options.lease)));
        }
        options.retry.cap = options.retry.cap.min(MAX_DELAY);
        let mut by_kind = BTreeMap::new();
        let mut lanes = BTreeMap::new();
        for (kind, handler) in handlers {
            let resource = handler.resource();
            let count = options.lanes.get(&resource).copied().unwrap_or(resource.default_lanes());
            if count == 0 {
                return Err(invalid("a handler's resource has no lane")
                    .with("kind", kind)
                    .with("resource", format_args!("{resource:?}")));
            }
            lanes.insert(resource, count);
            if by_kind.insert(JobKind::new(kind)?, handler).is_some() {
                return Err(invalid("two handlers have one kind").with("kind", kind));
            }
        }
        if by_kind.is_empty() {
            return Err(invalid("there is no handler"));
        }
        Ok(Worker::new(Shared::new(queue, store, clock, options, by_kind, lanes, progress)))
    }
}
