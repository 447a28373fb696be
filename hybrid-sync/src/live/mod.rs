//! A backend that follows a channel: it fetches what is released, verifies, loads and warms it beside the version in service, and swaps between
//! two requests.

mod builder;
mod on_demand;
mod refresh;
mod serving;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures_util::StreamExt;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, ChannelName, Clock, Digest, Error, Event, InferenceBackend,
    Limits, Locality, ModelName, Note, Reply, ReplyMeta, Result, ServedModel, Task, Timestamp,
};
use tokio::sync::{Mutex, broadcast, watch};

pub use builder::LiveModelBuilder;
pub use on_demand::OnDemand;
pub use refresh::Refresh;

use self::{
    refresh::Follower,
    serving::{Lease, Serving},
};
use crate::Backoff;

/// Follows a channel and serves the version that it names. Clones share everything.
///
/// # Behavior
/// - A request is answered by the version in service when it came; a swap waits for none and none waits for a swap. The old version is dropped off
///   the serving path once its last request has ended.
/// - A version that does not verify, load or warm up is reported, remembered, and tried again only after growing waits; the version before stays.
/// - Before a first version, requests get [`Unavailable`](hybrid_core::ErrorKind::Unavailable).
/// - After a restart the version that was in service is served from the cache, verified again, also when the store cannot be reached.
/// - The cache keeps the version in service, the one before it, and the one that the channel names; all others go, unless another process on the
///   same cache needs them (see [`prune_cache`](crate::registry::prune_cache)).
/// - A request whose data policy does not admit the place where the version runs is refused with
///   [`PolicyDenied`](hybrid_core::ErrorKind::PolicyDenied) before the version's backend sees it.
/// - When the channel's newest statement has expired, replies carry the note `stale`; with
///   [`require_fresh`](LiveModelBuilder::require_fresh), requests are refused instead.
///
/// Nothing happens by itself: call [`refresh`](Self::refresh), or spawn [`run`](Self::run).
///
/// ```no_run
/// use std::sync::Arc;
/// use hybrid_core::{
///     ArtifactStore, CallContext, Cancellation, ChannelName, InferenceBackend, ModelLoader, RequestId, Result, SystemIds, TenantId,
///     task::{Classify, ClassifyRequest},
/// };
/// use hybrid_sync::{live::LiveModel, registry::{Namespace, Registry, Trust}};
///
/// # async fn serve(bucket: Arc<dyn ArtifactStore>, trust: Trust, loader: Arc<dyn ModelLoader<Classify>>) -> Result<()> {
/// let registry = Registry::new(bucket, Namespace::root());
/// let model = LiveModel::builder(registry, "bakery".parse()?, ChannelName::stable(), trust, loader, "models").build().await?;
/// let (follower, stop) = (model.clone(), Cancellation::new());
/// tokio::spawn(async move { follower.run(stop).await });
///
/// let cx = CallContext::new(TenantId::single(), RequestId::next(&SystemIds::default()));
/// let reply = model.infer(&cx, ClassifyRequest::one("Are you open?")).await?;
/// println!("{} by {:?}", reply.response.results[0].label, reply.meta.model);
/// # Ok(())
/// # }
/// ```
pub struct LiveModel<T: Task> {
    shared: Arc<Shared<T>>,
}

struct Shared<T: Task> {
    model: ModelName,
    channel: ChannelName,
    clock: Arc<dyn Clock>,
    poll_interval: Duration,
    require_fresh: bool,
    idle: Arc<BackendProfile>,
    current: ArcSwapOption<Serving<T>>,
    /// Unix microseconds after which the newest statement is stale, and the latest time seen.
    expires: AtomicI64,
    latest: AtomicI64,
    follower: Mutex<Follower<T>>,
    events: broadcast::Sender<LiveEvent>,
    status: watch::Sender<LiveStatus>,
    seed: u64,
}

/// A version as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveVersion {
    /// The number.
    pub version: u64,
    /// The identity.
    pub manifest: Digest,
}

/// Something that happened to a live model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LiveEvent {
    /// Another version is in service.
    Swapped {
        /// The version now in service.
        to: LiveVersion,
        /// The version before.
        from: Option<LiveVersion>,
        /// Chunk bytes read from the store.
        bytes_moved: u64,
        /// Time to fetch and verify.
        fetch: Duration,
        /// Time to load and warm up.
        load: Duration,
        /// Time in which requests changed over.
        swap: Duration,
    },
    /// A look at the channel, or a version, failed; what was in service stays.
    Failed {
        /// The version that failed, if it came so far.
        manifest: Option<Digest>,
        /// The whole error.
        why: String,
    },
    /// The newest statement has expired.
    Stale {
        /// When.
        expired: Timestamp,
    },
}

/// What a live model does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveStatus {
    /// The version in service.
    pub serving: Option<LiveVersion>,
    /// The number of the newest accepted statement.
    pub seq: Option<u64>,
    /// The newest statement has expired.
    pub stale: bool,
    /// Why the last refresh did not put in service what the channel names.
    pub last_error: Option<String>,
}

impl<T: Task> LiveModel<T> {
    /// Looks at the channel once and, if it names another version, puts that in service.
    ///
    /// # Errors
    /// Those of reading the channel, of fetching, loading and warming up. What was in service stays in service.
    ///
    /// # Cancel safety
    /// Refresh again; what was fetched is kept.
    pub async fn refresh(&self) -> Result<Refresh> {
        let mut follower = self.shared.follower.lock().await;
        let result = follower.refresh(&self.shared).await;
        let trouble = match &result {
            Ok(Refresh::Held { why, .. }) => Some(why.clone()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        self.shared.note_outcome(&follower, trouble);
        follower.prune(&self.shared).await;
        result
    }

    /// Refreshes every poll interval, with growing waits while it fails, until `cancel` is raised.
    pub async fn run(&self, cancel: Cancellation) {
        let shared = &self.shared;
        let backoff = Backoff { first: shared.poll_interval, cap: shared.poll_interval.saturating_mul(16) };
        let mut failures = 0_u32;
        loop {
            let refreshed = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                refreshed = self.refresh() => refreshed,
            };
            let wait = match refreshed {
                Ok(_) => {
                    failures = 0;
                    shared.poll_interval
                }
                // Full jitter may draw next to nothing; half the interval is the least that keeps a failing store alone.
                Err(error) => {
                    failures += 1;
                    let wait = error.retry_after().unwrap_or_else(|| backoff.wait(shared.seed, failures));
                    wait.max(shared.poll_interval / 2)
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = shared.clock.sleep(wait) => {}
            }
        }
    }

    /// What it does now.
    pub fn status(&self) -> LiveStatus {
        let mut status = self.shared.status.borrow().clone();
        status.stale = self.shared.stale().is_some();
        status
    }

    /// The status as a value to wait on; it changes with each refresh that changes something.
    pub fn watch(&self) -> watch::Receiver<LiveStatus> {
        self.shared.status.subscribe()
    }

    /// The events from now on. A receiver that falls more than 64 events behind loses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<LiveEvent> {
        self.shared.events.subscribe()
    }
}

impl<T: Task> Shared<T> {
    /// When the newest statement expired, if it has.
    fn stale(&self) -> Option<Timestamp> {
        let expires = self.expires.load(Ordering::Relaxed);
        if expires == i64::MAX {
            return None;
        }
        let now = self.clock.now().unix_micros().max(self.latest.load(Ordering::Relaxed));
        (now >= expires).then(|| Timestamp::from_unix_micros(expires))
    }

    /// The version in service, and the note that its replies carry.
    fn serve(&self) -> Result<(Lease<T>, Option<Note>)> {
        let current = self.current.load_full().ok_or_else(|| {
            Error::unavailable(
                "serve model",
                "no version is in service yet; publish one, append it to the channel, and refresh",
            )
            .with("model", &self.model)
            .with("channel", &self.channel)
        })?;
        let lease = Lease::new(current);
        let Some(expired) = self.stale() else { return Ok((lease, None)) };
        if self.require_fresh {
            return Err(Error::unavailable(
                "serve model",
                "the channel's newest statement has expired and only a fresh one is to be served; renew the channel",
            )
            .with("model", &self.model)
            .with("channel", &self.channel)
            .with("expired", expired));
        }
        let detail =
            format!("nothing newer was heard on channel {} since its statement expired at {expired}", self.channel);
        Ok((lease, Some(Note { code: "stale".to_owned(), detail })))
    }

    fn note_outcome(&self, follower: &Follower<T>, last_error: Option<String>) {
        let floor = follower.floor();
        let stale = self.stale();
        let mut became_stale = None;
        self.status.send_if_modified(|status| {
            let next = LiveStatus {
                serving: self.current.load().as_ref().map(|serving| serving.version),
                seq: floor.map(|floor| floor.seq),
                stale: stale.is_some(),
                last_error,
            };
            if next.stale && !status.stale {
                became_stale = stale;
            }
            let changed = *status != next;
            *status = next;
            changed
        });
        if let Some(expired) = became_stale {
            tracing::warn!(model = %self.model, channel = %self.channel, %expired, "the channel is stale");
            self.emit(LiveEvent::Stale { expired });
        }
    }

    fn emit(&self, event: LiveEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

#[async_trait]
impl<T: Task> InferenceBackend<T> for LiveModel<T> {
    fn profile(&self) -> Arc<BackendProfile> {
        match self.shared.current.load_full().map(Lease::new) {
            Some(serving) => serving.backend().profile(),
            None => Arc::clone(&self.shared.idle),
        }
    }

    async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>> {
        T::validate(&request)?;
        let (serving, note) = self.shared.serve()?;
        admit(cx, serving.backend())?;
        let mut reply = serving.backend().infer(cx, request).await?;
        reply.meta.notes.extend(note);
        Ok(reply)
    }

    async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>> {
        T::validate(&request)?;
        let (serving, note) = self.shared.serve()?;
        admit(cx, serving.backend())?;
        let events = serving.backend().stream(cx, request).await?;
        // The stream keeps its version until it ends or is dropped.
        let events = events.map(move |event| {
            let _in_service = &serving;
            match event {
                Ok(Event::Done(meta)) => Ok(Event::Done(with_note(meta, note.clone()))),
                other => other,
            }
        });
        Ok(events.boxed())
    }
}

/// A version decides where it runs, and a later one may run elsewhere; so the data's way is checked here, whatever backend was loaded.
fn admit<T: Task>(cx: &CallContext, backend: &dyn InferenceBackend<T>) -> Result<()> {
    cx.admit("serve model", &backend.profile().locality)
}

fn with_note(mut meta: ReplyMeta, note: Option<Note>) -> ReplyMeta {
    meta.notes.extend(note);
    meta
}

/// What a live model is before it has a version.
fn idle_profile(model: &ModelName) -> BackendProfile {
    BackendProfile {
        name: model.to_string(),
        model: ServedModel::named(model.as_str()),
        locality: Locality::Device,
        limits: Limits::default(),
        price: None,
    }
}

impl<T: Task> Clone for LiveModel<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Task> fmt::Debug for LiveModel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { model, channel, .. } = &*self.shared;
        f.debug_struct("LiveModel")
            .field("model", model)
            .field("channel", channel)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
