//! The storefront: answers customers with the version in service, captures judgment, and picks new versions up by itself.
//!
//! That is all it does without flags. [`Surface`] has the rest, a flag each: keys, limits, a budget, an audit, orders for the kitchen with files, and chat
//! and embeddings of [models](ModelUrl) that others serve.
//!
//! ```sh
//! cargo run --bin apikey -- --tenant bakery --subject shop     # into keys.json
//! cargo run --bin storefront -- --api-keys keys.json --requests-per-minute 600 --audit --jobs --chat openai+http://localhost:1234/v1#qwen3-8b
//! cargo run --bin kitchen
//! ```

mod models;
mod surface;

use std::{fs::File, net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser;
use hybrid_cloud::storefront::Storefront as Http;
use hybrid_core::{
    Cancellation, ChannelName, DatasetName, Digest, Error, ErrorKind, ModelName, Result,
    task::{Classify, ClassifyRequest},
};
use hybrid_local::{Device, SqliteOutbox, TextClassifierLoader};
use hybrid_sync::{
    capture::{Capture, CaptureOptions, Drained},
    live::{LiveEvent, LiveModel},
    registry::{Namespace, Registry},
};
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};

use crate::{data::LABELS, kitchen::signals, locations::Locations, log::say, site::Site};
pub use models::{ModelUrl, OfferedModel, OpenAiKey};
pub use surface::{Batch, Running, Surface};

/// Serves a site's model over HTTP.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// The model to serve, and the dataset that judgments go to.
    #[arg(long, default_value = "bakery")]
    pub model: ModelName,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// What it offers beside the model, and to whom.
    #[command(flatten)]
    pub surface: Surface,
}

/// How long requests in flight have to finish when the storefront stops.
const GRACE: Duration = Duration::from_secs(10);

/// A running storefront.
#[derive(Debug)]
pub struct Storefront {
    address: SocketAddr,
    live: LiveModel<Classify>,
    events: broadcast::Receiver<LiveEvent>,
    capture: Arc<Capture>,
    surface: Running,
    site: Site,
    stop: Cancellation,
    tasks: JoinSet<()>,
    _lock: File,
}

/// How a version came into service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PickUp {
    /// Bytes fetched from the bucket; what was there already does not move.
    pub bytes_moved: u64,
    /// Time to fetch and verify, beside the serving path.
    pub fetch: Duration,
    /// Time to load and warm up, beside the serving path.
    pub load: Duration,
    /// Time in which requests changed over.
    pub swap: Duration,
}

impl Storefront {
    /// Starts serving the site's model and nothing else. A version that was in service before is in service again when this returns.
    ///
    /// # Errors
    /// An address in use, a folder that cannot be opened, a damaged outbox.
    pub async fn start(site: &Site, model: ModelName, listen: SocketAddr) -> Result<Self> {
        Self::start_with(site, model, listen, &Surface::default()).await
    }

    /// The same with more on offer.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`Surface::open`].
    pub async fn start_with(site: &Site, model: ModelName, listen: SocketAddr, surface: &Surface) -> Result<Self> {
        let _lock = site.lock("storefront")?;
        let folder = site.storefront();
        let outbox = Arc::new(SqliteOutbox::open(folder.join("outbox.db"))?);
        let writer = surface.writer()?;
        let capture = Arc::new(Capture::new(outbox, site.store(), site.clock(), writer, CaptureOptions::default()));

        let loader = Arc::new(TextClassifierLoader::new(Device::cpu()));
        let registry = Registry::new(site.store(), Namespace::root());
        let live = LiveModel::builder(
            registry,
            model.clone(),
            ChannelName::stable(),
            site.trust()?,
            loader,
            folder.join("models"),
        )
        .clock(site.clock())
        .poll_interval(Duration::from_millis(200))
        .warm_up(ClassifyRequest::one("Are you open?"))
        .build()
        .await?;

        let status = live.watch();
        let http = Http::builder()
            .clock(site.clock())
            .classify(model.as_str(), Arc::new(live.clone()))
            .judgments(Arc::clone(&capture) as _, DatasetName::new(model.as_str())?)
            .labels(LABELS)
            .ready_when("model", move || match status.borrow().serving {
                Some(_) => Ok(()),
                None => Err(Error::unavailable("check readiness", "no version is in service yet")),
            });
        let (stop, mut tasks) = (Cancellation::new(), JoinSet::new());
        let (http, surface) = surface.open(http, site, &mut tasks, &stop).await?;
        let http = http.build()?;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "listen",
                "the address cannot be listened on; choose another with --listen",
            )
            .with("address", listen)
            .with_source(error)
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::internal("listen", "the listener has no address").with_source(error))?;

        let events = live.subscribe();
        tasks.spawn({
            let stop = stop.clone();
            async move {
                let router = http.router();
                http.serve(listener, router, stop.cancelled_owned(), GRACE).await;
            }
        });
        tasks.spawn({
            let (live, stop) = (live.clone(), stop.clone());
            async move { live.run(stop).await }
        });
        tasks.spawn({
            let (capture, stop) = (Arc::clone(&capture), stop.clone());
            async move { capture.run(stop, Duration::from_secs(5)).await }
        });
        Ok(Self { address, live, events, capture, surface, site: site.clone(), stop, tasks, _lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of the version in service.
    pub fn version(&self) -> Option<u64> {
        self.live.status().serving.map(|serving| serving.version)
    }

    /// Carries all captured judgment to the bucket now.
    ///
    /// # Errors
    /// Those of outbox and store; nothing is lost.
    pub async fn drain(&self) -> Result<Drained> {
        self.capture.drain().await
    }

    /// Waits until the version with this manifest is in service; answers how it came there, unless it was in service before.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) after `limit`, with what went wrong last.
    pub async fn serving(&mut self, manifest: Digest, limit: Duration) -> Result<Option<PickUp>> {
        let mut status = self.live.watch();
        let there = status.wait_for(|status| status.serving.is_some_and(|serving| serving.manifest == manifest));
        if tokio::time::timeout(limit, there).await.is_err() {
            let why = self.live.status().last_error.unwrap_or_else(|| "nothing went wrong yet".to_owned());
            return Err(Error::timeout("pick up version", "the storefront did not pick the version up")
                .with("manifest", manifest)
                .with("last error", why));
        }
        let mut took = None;
        while let Ok(event) = self.events.try_recv() {
            if let LiveEvent::Swapped { to, bytes_moved, fetch, load, swap, .. } = event
                && to.manifest == manifest
            {
                took = Some(PickUp { bytes_moved, fetch, load, swap });
            }
        }
        Ok(took)
    }

    /// Finishes requests in flight, sends what was captured, and stops.
    ///
    /// # Errors
    /// Those of the last drain; what it could not send stays in the outbox.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.surface.finish(&self.site).await;
        self.capture.drain().await.map(drop)
    }
}

/// Runs the storefront until it is asked to stop.
///
/// # Errors
/// As [`Storefront::start`] and [`Storefront::stop`].
pub async fn run(args: Args) -> Result<()> {
    let site = Site::open(&args.locations).await?;
    let storefront = Storefront::start_with(&site, args.model, args.listen, &args.surface).await?;
    say(std::io::stdout(), format_args!("http://{}", storefront.address()));
    signals().await;
    storefront.stop().await
}
