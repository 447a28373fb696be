//! The kitchen: a worker that trains, judges, publishes and releases on its own schedule, on a machine you own, and works through files for customers.
//!
//! | kind | what it does | needs | who orders |
//! |---|---|---|---|
//! | `train` | trains a plan or a set of them, judges, publishes and releases the best | | `train` |
//! | `evaluate` | judges a version on a golden set | | `order` |
//! | `quantize` | makes a GGUF file of a model and measures what it lost | `--features decoder` | `order` |
//! | `label` | labels each line of a file with the version in service | | `/v1/jobs`, `order` |
//! | `enrich` | asks a model about each row, answers by a schema | `--chat` | `/v1/jobs`, `order` |
//! | `summarise` | makes one text of all rows | `--chat` | `/v1/jobs`, `order` |
//! | `embed` | puts a vector of each row into the kitchen's own index, `kitchen/vectors.db`, which no customer queries | `--embed`, `--index` | `order` |
//!
//! A job that this kitchen lacks something for is given back, for another that has it. That costs it a delivery each time, after waits that grow to 15 minutes: with the 20
//! deliveries of a site's queue it goes to the dead letters after one and a half to three hours, and its customer sees it stand still. Once there is a kitchen for it,
//! `dead redrive` sends it on.
//!
//! Each reports its progress, is resumed where it was after a crash, and leaves one result.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use clap::Parser;
use futures_util::future::join;
use hybrid_core::{Cancellation, Error, ErrorKind, Progress, ProgressEvent, Result};
use hybrid_local::DeviceChoice;
use hybrid_sync::{
    job::DeadJobs,
    worker::{JobContext, JobHandler, Resource, Worker, WorkerBuilder, WorkerOptions},
};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinHandle};

#[cfg(feature = "decoder")]
use crate::quantize_job::QuantizeHandler;
use crate::{
    batch_jobs::{BatchArgs, Batches, Part},
    evaluate_job::EvaluateHandler,
    label_job::LabelHandler,
    locations::Locations,
    log::say,
    models::Models,
    renewal::renew_channels,
    serving::Channels,
    site::Site,
    train_job::TrainHandler,
};

/// How often dead letters are looked at.
const DEAD_EVERY: Duration = Duration::from_secs(300);

/// Runs a kitchen on a site's queue and bucket.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// This worker's name.
    #[arg(long, default_value = "kitchen-1")]
    pub name: String,
    /// Where to compute: auto, cpu, metal or cuda:n.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// The models of batches.
    #[command(flatten)]
    pub batch: BatchArgs,
    /// How long a job is held without a heartbeat, in milliseconds: how soon another kitchen takes over from one that died.
    #[arg(long, default_value_t = 30_000)]
    pub lease_ms: u64,
    /// How long a job in hand may go on once the kitchen is asked to stop, in seconds; then it is given back.
    #[arg(long, default_value_t = 30)]
    pub drain_s: u64,
    /// Write what happens to standard output, one JSON object a line.
    #[arg(long)]
    pub events: bool,
    /// Stop when standard input ends, for a parent process that may die.
    #[arg(long)]
    pub until_input_ends: bool,
}

/// What a kitchen says on standard output with `--events`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum KitchenEvent {
    /// It takes jobs now.
    Ready {
        /// Its process id.
        pid: u32,
        /// The kinds of jobs that it does.
        #[serde(default)]
        kinds: Vec<String>,
        /// The kinds that it leaves to others, each with what it would need.
        #[serde(default)]
        lacking: Vec<String>,
    },
    /// A job has come further.
    Progress(ProgressEvent),
    /// A try of a job has failed; another may follow.
    Failed {
        /// Why, for a person.
        error: String,
        /// No try can succeed before somebody frees space.
        disk_full: bool,
    },
}

/// Runs the kitchen until it is asked to stop; the job in hand has [`Args::drain_s`] to end.
///
/// # Errors
/// What keeps it from starting: a folder, a key, a device.
pub async fn run(args: Args) -> Result<()> {
    let site = Site::open(&args.locations).await?;
    let _lock = site.lock("kitchen")?;
    let progress: Arc<dyn Progress> = if args.events { Arc::new(EventLines) } else { Arc::new(LogLines) };
    let options = WorkerOptions {
        name: args.name,
        lease: Duration::from_millis(args.lease_ms),
        drain_grace: Duration::from_secs(args.drain_s),
        ..WorkerOptions::default()
    };
    let channels = Channels::open(&site)?;
    let queue = site.queue().await?;
    let dead = queue.dead.map(|letters| DeadJobs::new(letters, site.store(), site.clock()));
    let builder = Worker::builder(queue.jobs, site.store())
        .clock(site.clock())
        .options(options)
        .progress(move |_job| Arc::clone(&progress));
    let mut menu = Menu { builder, events: args.events, kinds: Vec::new(), lacking: Vec::new() };
    menu = menu.with(Ok(TrainHandler::open(&site, &channels, args.device)?));
    menu = menu.with(Ok(EvaluateHandler::open(&site, &channels, args.device)?));
    menu = menu.with(Ok(LabelHandler::open(&site, &channels, args.device)?));
    let Batches { enrich, summarise, embed } = Batches::open(&args.batch, &site, &Models::open(args.device)?).await?;
    menu = menu.with(enrich).with(summarise).with(embed);
    #[cfg(feature = "decoder")]
    let menu = menu.with(Ok(QuantizeHandler::open(&site, args.device)?));
    let Menu { builder, kinds, lacking, .. } = menu;
    let worker = builder.build()?;

    let stop = Cancellation::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = signals() => {}
            () = input_ends(), if args.until_input_ends => {}
        }
        asked.cancel();
    });
    if args.events {
        tell(&KitchenEvent::Ready { pid: std::process::id(), kinds, lacking });
    } else {
        let (bucket, queue) = site.locations().described();
        let kinds = kinds.join(", ");
        say(std::io::stderr(), format_args!("ready: takes {kinds} from {queue} for {bucket}; stops on Ctrl-C"));
        for kind in lacking {
            say(std::io::stderr(), format_args!("not {kind}"));
        }
    }
    let renewal = tokio::spawn(renew_channels(channels, site.clock(), stop.clone()));
    let telling = async {
        if let Some(dead) = &dead {
            dead.run(DEAD_EVERY, stop.clone()).await;
        }
    };
    together(join(worker.run(stop.clone()), telling), renewal, stop.clone()).await
}

/// Waits for work that ends when `stop` is raised, and for the renewal beside it. If that ends by itself the work is stopped too: a kitchen that no longer renews must
/// not look well until its channels expire.
async fn together(work: impl Future, mut renewal: JoinHandle<()>, stop: Cancellation) -> Result<()> {
    let mut work = std::pin::pin!(work);
    let ended = tokio::select! {
        _ = &mut work => renewal.await,
        ended = &mut renewal => {
            if !stop.is_cancelled() {
                tracing::error!(error = ?ended.as_ref().err(), "channels are no longer renewed; the kitchen stops");
                stop.cancel();
                work.await;
                return Err(early(ended.err()));
            }
            work.await;
            ended
        }
    };
    ended.map_err(|error| early(Some(error)))
}

fn early(error: Option<JoinError>) -> Error {
    let early = Error::internal("renew channels", "the task ended early; start the kitchen again");
    match error {
        Some(error) => early.with_source(error),
        None => early,
    }
}

/// What a kitchen takes, and what it lacks something for.
struct Menu {
    builder: WorkerBuilder,
    events: bool,
    kinds: Vec<String>,
    lacking: Vec<String>,
}

impl Menu {
    /// A part that the kitchen has, or of which it says what is lacking; jobs of such a kind are left to others.
    fn with<H: JobHandler>(mut self, part: Part<H>) -> Self {
        let events = self.events;
        match part {
            Ok(handler) => {
                self.kinds.push(H::KIND.to_owned());
                self.builder = self.builder.handler(Told { handler, events });
            }
            Err(needs) => self.lacking.push(format!("{}, which needs {needs}", H::KIND)),
        }
        self
    }
}

/// A handler whose failures are told as events, beside what the worker makes of them.
struct Told<H> {
    handler: H,
    events: bool,
}

#[async_trait]
impl<H: JobHandler> JobHandler for Told<H> {
    const KIND: &'static str = H::KIND;
    type Payload = H::Payload;
    type Output = H::Output;

    fn resource(&self) -> Resource {
        self.handler.resource()
    }

    async fn run(&self, job: &JobContext, payload: H::Payload) -> Result<H::Output> {
        let done = self.handler.run(job, payload).await;
        if let Err(error) = &done
            && self.events
        {
            tell(&KitchenEvent::Failed { error: error.to_string(), disk_full: error.kind() == ErrorKind::StorageFull });
        }
        done
    }
}

/// Waits for an interrupt or a request to terminate.
pub async fn signals() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}

/// Waits on a thread of its own, which no end of the program waits for: a read of standard input cannot be called off.
async fn input_ends() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}

fn tell(event: &KitchenEvent) {
    if let Ok(line) = serde_json::to_string(event) {
        say(std::io::stdout(), line);
    }
}

#[derive(Debug)]
struct EventLines;

impl Progress for EventLines {
    fn report(&self, event: ProgressEvent) {
        tell(&KitchenEvent::Progress(event));
    }
}

/// Tells progress in the log.
#[derive(Debug)]
pub(crate) struct LogLines;

impl Progress for LogLines {
    fn report(&self, event: ProgressEvent) {
        tracing::info!(
            stage = event.stage,
            done = event.done,
            total = event.total,
            unit = event.unit,
            "{}",
            event.message
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use super::*;

    #[tokio::test]
    async fn a_renewal_that_ends_by_itself_ends_the_kitchen_and_says_so() {
        let stop = Cancellation::new();
        let renewal = tokio::spawn(async { panic!("a bug") });
        let ended = together(stop.clone().cancelled_owned(), renewal, stop.clone()).await.unwrap_err();
        assert!(stop.is_cancelled() && ended.to_string().contains("renew channels"), "{ended}");

        let (stop, until) = (Cancellation::new(), Cancellation::new());
        let renewal = tokio::spawn(stop.clone().cancelled_owned());
        until.cancel();
        let asked = async {
            until.cancelled().await;
            stop.cancel();
        };
        together(asked, renewal, stop.clone()).await.unwrap();
    }
}
