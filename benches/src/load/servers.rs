//! The servers behind the storefront, the proxies between, and the kitchen.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use hybrid_cloud::{
    aws::AwsConfig,
    s3::{Listing, S3Location, S3Options, S3Store},
    sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
    testkit::{
        Fault, FaultProxy, Ministack, Seaweed, create_bucket,
        openai::{Answer, OpenAiServer, Request, chat_stream},
    },
};
use hybrid_core::{
    ArtifactStore, Cancellation, CandidateFile, ChannelName, Clock, Digest, FileName, JobQueue, Result, Signer as _,
    SystemClock, SystemIds,
};
use hybrid_sync::{
    registry::Release,
    worker::{JobContext, JobHandler, Resource, Worker, WorkerOptions},
};
use serde_json::Value;
use tokio::{task::JoinHandle, time::sleep};

use super::{
    Plan,
    storefront::{CHAT, KIND},
};
use crate::{
    linear::{WEIGHTS, weights},
    must,
    registry::{Site, model},
};

const BUCKET: &str = "load";
/// Pieces of a chat's answer, and the pause between two of them: a stream lasts about two seconds.
pub const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
const SLOW_DOWN: &str =
    "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// Where a process finds bucket, queue and models.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Places {
    /// The folder that parent and child share.
    #[arg(long)]
    pub folder: PathBuf,
    /// The S3 server, or the proxy before it.
    #[arg(long)]
    pub s3: String,
    /// The SQS server, or the proxy before it.
    #[arg(long)]
    pub sqs: String,
    /// The queue's URL.
    #[arg(long)]
    pub queue: String,
    /// Where the chat model's API begins.
    #[arg(long)]
    pub chat: String,
}

/// Bucket and queue.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The bucket.
    pub store: Arc<dyn ArtifactStore>,
    /// The queue.
    pub queue: Arc<dyn JobQueue>,
}

impl Places {
    /// Connects.
    pub async fn wire(&self) -> Wire {
        Wire { store: store(&self.s3).await, queue: queue(&self.sqs, &self.queue).await }
    }
}

async fn store(endpoint: &str) -> Arc<dyn ArtifactStore> {
    let config = must(AwsConfig::load(Seaweed::options(endpoint)).await);
    // SeaweedFS lists folder by folder.
    let options = S3Options { path_style: true, listing: Listing::Sorted, ..S3Options::default() };
    Arc::new(must(S3Store::new(&config, must(S3Location::new(BUCKET, "")), options)))
}

async fn queue(endpoint: &str, url: &str) -> Arc<dyn JobQueue> {
    let config = must(AwsConfig::load(Ministack::options(endpoint)).await);
    Arc::new(must(SqsQueue::open(&config, url, SqsQueueOptions::default()).await))
}

/// Everything that a storefront needs, and that may fail.
#[derive(Debug)]
pub struct Servers {
    s3: Seaweed,
    _sqs: Ministack,
    s3_proxy: FaultProxy,
    sqs_proxy: Arc<FaultProxy>,
    _chat: OpenAiServer,
    places: Places,
    site: Arc<Site>,
    versions: [Digest; 2],
    wire: Wire,
}

/// What went wrong on the wire, as was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Requests to the bucket.
    pub s3_requests: u64,
    /// How many of them were answered 503.
    pub s3_faults: u64,
    /// Requests to the queue.
    pub sqs_requests: u64,
}

impl Servers {
    /// Starts servers and proxies, and publishes two versions of the model.
    pub async fn start(plan: &Plan, folder: &Path) -> Self {
        let (s3, sqs) = must(tokio::task::spawn_blocking(|| (must(Seaweed::start()), must(Ministack::start()))).await);
        must(create_bucket(&must(s3.config(s3.endpoint()).await), BUCKET).await);
        // The wire is cut for longer than a message's deliveries would last at the usual five.
        let setup = QueueSetup { max_deliveries: 100, ..QueueSetup::new("load") };
        let queue = must(setup.create(&must(sqs.config(sqs.endpoint()).await)).await).queue;
        let s3_proxy = must(FaultProxy::start(s3.endpoint()));
        let sqs_proxy = Arc::new(must(FaultProxy::start(sqs.endpoint())));
        let chat = must(OpenAiServer::start().await);
        chat.answer_with(answer);

        let places = Places {
            folder: folder.to_owned(),
            s3: s3_proxy.endpoint().to_owned(),
            sqs: sqs_proxy.endpoint().to_owned(),
            queue,
            chat: chat.base_url(),
        };
        let wire = places.wire().await;
        let site = Arc::new(Site::new(wire.store.clone(), folder));
        for (name, signer) in [("builder.pub.pem", &site.builder), ("release.pub.pem", &site.release)] {
            must(fs::write(folder.join(name), signer.public_key_pem()));
        }
        let mut versions = Vec::new();
        for version in [1, 2] {
            let path = folder.join(format!("weights-{version}"));
            must(fs::write(&path, weights(version)));
            let file = CandidateFile { name: must(FileName::new(WEIGHTS)), path };
            versions.push(site.publish(version, file, None).await.manifest);
        }
        let fault = Fault::Answer { status: 503, body: SLOW_DOWN.to_owned() };
        s3_proxy.share(plan.share_of_503, 1, fault);
        Self {
            s3,
            _sqs: sqs,
            s3_proxy,
            sqs_proxy,
            _chat: chat,
            places,
            site,
            versions: [versions[0], versions[1]],
            wire,
        }
    }

    /// What the storefront is told.
    pub fn arguments(&self) -> Vec<String> {
        let Places { folder, s3, sqs, queue, chat } = &self.places;
        let folder = folder.display().to_string();
        let all = [("--folder", &folder), ("--s3", s3), ("--sqs", sqs), ("--queue", queue), ("--chat", chat)];
        all.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.clone()]).collect()
    }

    /// The bucket, without a proxy before it.
    pub async fn direct_store(&self) -> Arc<dyn ArtifactStore> {
        store(self.s3.endpoint()).await
    }

    /// Opens a kitchen.
    pub fn open_kitchen(&self) -> Kitchen {
        let options = WorkerOptions { lease: Duration::from_secs(15), ..WorkerOptions::default() };
        let Wire { store, queue } = self.wire.clone();
        let worker = must(Worker::builder(queue, store).options(options).handler(Echo).build());
        let stop = Cancellation::new();
        let stopped = stop.clone();
        Kitchen {
            stop,
            work: tokio::spawn(async move {
                let _ = worker.run(stopped).await;
            }),
        }
    }

    /// Puts one version into service after the other, for ever.
    pub fn releasing(&self, every: Duration) -> impl Future<Output = ()> + Send + 'static {
        let (site, versions) = (Arc::clone(&self.site), self.versions);
        async move {
            let channel = site.registry.channel(&model(), &ChannelName::stable());
            let mut incumbent = None;
            for version in versions.into_iter().cycle() {
                let next = sleep(every);
                let release = Release::new(version, incumbent, "load", &SystemIds::default());
                match channel.append(release, &site.release, SystemClock.now(), Duration::from_secs(86_400)).await {
                    Ok(_) => incumbent = Some(version),
                    // The bucket was away for too long; the next one has more luck.
                    Err(error) => eprintln!("a release did not come about: {error}"),
                }
                next.await;
            }
        }
    }

    /// Cuts the queue off and mends it, as planned.
    pub fn cutting(&self, plan: Plan) -> impl Future<Output = ()> + Send + 'static {
        let (proxy, begun) = (Arc::clone(&self.sqs_proxy), Instant::now());
        async move {
            for cut in 0..plan.cuts {
                // In the middle of each of so many equal spans.
                let middle = plan.lasts.mul_f64((f64::from(cut) + 0.5) / f64::from(plan.cuts));
                let at = middle.saturating_sub(plan.cut_for / 2);
                sleep(at.saturating_sub(begun.elapsed())).await;
                proxy.cut();
                sleep(plan.cut_for).await;
                proxy.mend();
            }
        }
    }

    /// What went wrong so far.
    pub fn faults(&self) -> Faults {
        Faults {
            s3_requests: self.s3_proxy.requests(),
            s3_faults: self.s3_proxy.faults(),
            sqs_requests: self.sqs_proxy.requests(),
        }
    }
}

/// What the scripted model says to a prompt, piece by piece.
pub fn said(prompt: &str) -> Vec<String> {
    (0..PIECES).map(|piece| format!("{prompt}, piece {piece}. ")).collect()
}

fn answer(request: &Request) -> Answer {
    let body = request.json();
    let prompt = body["messages"].as_array().and_then(|messages| messages.last()?["content"].as_str());
    let pieces = said(prompt.unwrap_or_default());
    let stream = chat_stream(CHAT, pieces.iter().map(String::as_str));
    let bytes = stream.len().div_ceil(PIECES);
    Answer::sse(stream).with_pace(bytes, PAUSE)
}

/// A kitchen at work.
#[derive(Debug)]
pub struct Kitchen {
    stop: Cancellation,
    work: JoinHandle<()>,
}

impl Kitchen {
    /// Lets it finish what it has in hand.
    pub async fn stop(self) {
        self.stop.cancel();
        must(self.work.await);
    }
}

/// Gives back what it was given.
#[derive(Debug)]
struct Echo;

#[async_trait]
impl JobHandler for Echo {
    const KIND: &'static str = KIND;
    type Payload = Value;
    type Output = Value;

    fn resource(&self) -> Resource {
        Resource::Network
    }

    async fn run(&self, _: &JobContext, payload: Value) -> Result<Value> {
        Ok(payload)
    }
}
