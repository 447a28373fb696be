//! The live model: what customers see while versions come, fail and go.

mod on_demand;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, BackendProfile, BoxStream, CallContext, Cancellation, ChannelName, Digest, Error, ErrorKind, Event,
    InferenceBackend, Limits, Locality, Manifest, ManualClock, ModelLoader, Reply, ReplyMeta, RequestId, Result,
    SeededIds, ServedModel, TenantId, Usage,
    inference::{collect_reply, stream_reply},
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse},
};
use hybrid_sync::{
    live::{LiveEvent, LiveModel, Refresh},
    registry::{Namespace, Registry},
};
use tokio::sync::{Semaphore, broadcast};

use super::site::{DAY, FailingStore, Site, model, now};

/// Answers with the text of its version's file, once its gate lets it.
#[derive(Debug)]
struct Label {
    label: String,
    profile: Arc<BackendProfile>,
    gate: Arc<Semaphore>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Label {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl InferenceBackend<Classify> for Label {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, _cx: &CallContext, _request: ClassifyRequest) -> Result<Reply<Classify>> {
        if self.label == "cannot warm up" {
            return Err(Error::internal("infer", "nan"));
        }
        if self.label == "too slow to warm up" {
            return Err(Error::timeout("infer", "no answer"));
        }
        drop(self.gate.acquire().await);
        let result = Classification { label: self.label.clone(), confidence: 1.0, scores: Vec::new() };
        Ok(Reply {
            response: ClassifyResponse { results: vec![result] },
            meta: ReplyMeta::of(&self.profile, Duration::ZERO, Usage::default())?,
        })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

#[derive(Debug)]
pub(crate) struct Loader {
    gate: Arc<Semaphore>,
    dropped: Arc<AtomicUsize>,
    loads: AtomicUsize,
}

#[async_trait]
impl ModelLoader<Classify> for Loader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let label = std::fs::read_to_string(folder.join("label.txt")).unwrap();
        if label == "cannot load" {
            return Err(Error::corrupt("load model", "a tensor has another shape"));
        }
        let profile = Arc::new(BackendProfile {
            name: "label".to_owned(),
            model: ServedModel {
                name: manifest.model.to_string(),
                version: Some(manifest.version),
                manifest: Some(digest),
            },
            locality: Locality::Device,
            limits: Limits::default(),
            price: None,
        });
        Ok(Arc::new(Label { label, profile, gate: Arc::clone(&self.gate), dropped: Arc::clone(&self.dropped) }))
    }
}

pub(crate) struct Storefront {
    pub(crate) site: Site,
    pub(crate) clock: ManualClock,
    pub(crate) loader: Arc<Loader>,
}

impl Storefront {
    pub(crate) fn new() -> Self {
        let loader = Loader { gate: Arc::new(Semaphore::new(1)), dropped: Arc::default(), loads: AtomicUsize::new(0) };
        Self { site: Site::new(), clock: ManualClock::at(now()), loader: Arc::new(loader) }
    }

    pub(crate) async fn open(&self, registry: Registry, require_fresh: bool) -> LiveModel<Classify> {
        LiveModel::builder(
            registry,
            model(),
            ChannelName::stable(),
            self.site.trust(),
            self.loader.clone(),
            self.site.cache("cache"),
        )
        .clock(Arc::new(self.clock.clone()))
        .ids(Arc::new(SeededIds::default()))
        .poll_interval(Duration::from_secs(10))
        .warm_up(ClassifyRequest::one("warm"))
        .require_fresh(require_fresh)
        .build()
        .await
        .unwrap()
    }

    pub(crate) async fn live(&self) -> LiveModel<Classify> {
        self.open(self.site.registry.clone(), false).await
    }

    pub(crate) async fn release_label(&self, version: u64, label: &str, incumbent: Option<Digest>) -> Digest {
        let draft = self.site.draft(version, &[("label.txt", label.as_bytes().to_vec())]);
        let manifest = self.site.publish(draft).await.unwrap().manifest;
        self.site.append(manifest, incumbent).await.unwrap();
        manifest
    }
}

fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

async fn ask(live: &LiveModel<Classify>) -> Result<Reply<Classify>> {
    live.infer(&context(), ClassifyRequest::one("hello")).await
}

pub(crate) async fn label(live: &LiveModel<Classify>) -> String {
    ask(live).await.unwrap().response.results[0].label.clone()
}

/// Waits for what another thread does, and fails rather than hang.
async fn eventually(condition: impl Fn() -> bool) {
    let limit = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < limit, "it never came to pass");
        tokio::task::yield_now().await;
    }
}

fn failures(events: &mut broadcast::Receiver<LiveEvent>) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|event| match event {
            LiveEvent::Failed { why, .. } => Some(why),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn versions_are_picked_up_and_replies_name_them() {
    let front = Storefront::new();
    let live = front.live().await;
    let mut events = live.subscribe();
    let error = ask(&live).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("bakery") && error.to_string().contains("stable"), "{error}");
    assert_eq!(live.refresh().await.unwrap(), Refresh::Unreleased);
    assert_eq!(live.profile().model.version, None);

    let one = front.site.release(1, None).await;
    assert!(matches!(live.refresh().await.unwrap(), Refresh::Swapped { version: 1, bytes_moved: 7, .. }));
    assert_eq!(label(&live).await, "label-1");
    assert_eq!(live.refresh().await.unwrap(), Refresh::Unchanged);

    let two = front.site.release(2, Some(one)).await;
    live.refresh().await.unwrap();
    let reply = ask(&live).await.unwrap();
    assert_eq!((reply.meta.model.version, reply.meta.model.manifest), (Some(2), Some(two)));
    assert_eq!(live.profile().model.manifest, Some(two));
    let status = live.status();
    assert_eq!((status.serving.unwrap().manifest, status.seq, status.last_error), (two, Some(2), None));
    let swaps: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .filter(|event| matches!(event, LiveEvent::Swapped { .. }))
        .collect();
    assert_eq!(swaps.len(), 2);

    front.site.append(one, Some(two)).await.unwrap();
    assert!(matches!(live.refresh().await.unwrap(), Refresh::Swapped { version: 1, bytes_moved: 0, .. }));
    assert_eq!(label(&live).await, "label-1");
}

#[tokio::test]
async fn a_request_in_flight_finishes_on_the_version_that_it_began_with() {
    let front = Storefront::new();
    let live = front.live().await;
    let one = front.site.release(1, None).await;
    live.refresh().await.unwrap();
    let held = front.loader.gate.clone().acquire_owned().await.unwrap();
    let (cx, other) = (context(), context());
    let mut in_flight = std::pin::pin!(live.infer(&cx, ClassifyRequest::one("a")));
    let mut streaming = std::pin::pin!(live.stream(&other, ClassifyRequest::one("a")));
    assert!(futures_util::poll!(&mut in_flight).is_pending());
    assert!(futures_util::poll!(&mut streaming).is_pending());

    front.site.release(2, Some(one)).await;
    let swap = live.refresh();
    // The warm-up of version 2 waits behind the requests in flight; they must not wait for it.
    let (swapped, first, stream) = tokio::join!(swap, in_flight, async {
        drop(held);
        streaming.await
    });
    assert!(matches!(swapped.unwrap(), Refresh::Swapped { version: 2, .. }));
    assert_eq!(first.unwrap().meta.model.version, Some(1));
    assert_eq!(label(&live).await, "label-2");
    assert_eq!(front.loader.dropped.load(Ordering::SeqCst), 0, "an open stream keeps its version");
    let folded = collect_reply(stream.unwrap()).await.unwrap();
    assert_eq!(folded.response.results[0].label, "label-1");
    eventually(|| front.loader.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_version_that_fails_is_reported_remembered_and_leaves_the_old_one_in_service() {
    for bad in ["cannot load", "cannot warm up", "too slow to warm up"] {
        let front = Storefront::new();
        let live = front.live().await;
        let one = front.site.release(1, None).await;
        live.refresh().await.unwrap();
        let two = front.release_label(2, bad, Some(one)).await;
        let mut events = live.subscribe();
        live.refresh().await.unwrap_err();
        assert_eq!(failures(&mut events).len(), 1);
        assert_eq!(label(&live).await, "label-1");
        assert!(live.status().last_error.is_some());

        // Not in a hot loop: it is held, and the hold doubles.
        let loads = front.loader.loads.load(Ordering::SeqCst);
        for _ in 0..5 {
            assert!(matches!(live.refresh().await.unwrap(), Refresh::Held { manifest, .. } if manifest == two));
        }
        assert_eq!(front.loader.loads.load(Ordering::SeqCst), loads);
        assert!(live.status().last_error.is_some());
        front.clock.advance(Duration::from_secs(40));
        live.refresh().await.unwrap_err();
        front.clock.advance(Duration::from_secs(79));
        assert!(matches!(live.refresh().await.unwrap(), Refresh::Held { .. }));

        // The next version is not held back by it.
        front.site.release(3, Some(two)).await;
        live.refresh().await.unwrap();
        assert_eq!(label(&live).await, "label-3");
        assert_eq!(live.status().last_error, None);
    }
}

#[tokio::test]
async fn a_damaged_version_never_takes_the_old_one_down_and_loads_once_it_is_sound() {
    let front = Storefront::new();
    let live = front.live().await;
    let one = front.site.release(1, None).await;
    live.refresh().await.unwrap();
    let before = front.site.keys().await;
    front.site.release(2, Some(one)).await;
    let blob = front
        .site
        .keys()
        .await
        .into_iter()
        .find(|key| key.as_str().starts_with("blobs/") && !before.contains(key))
        .unwrap();
    front.site.store.corrupt(&blob, "label-X".into());
    assert_eq!(live.refresh().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(label(&live).await, "label-1");
    front.site.store.corrupt(&blob, "label-2".into());
    front.clock.advance(Duration::from_secs(3600));
    live.refresh().await.unwrap();
    assert_eq!(label(&live).await, "label-2");
}

#[tokio::test]
async fn a_restart_serves_the_version_that_was_in_service_though_the_bucket_is_away() {
    let front = Storefront::new();
    let live = front.live().await;
    let one = front.site.release(1, None).await;
    live.refresh().await.unwrap();
    front.release_label(2, "cannot load", Some(one)).await;
    live.refresh().await.unwrap_err();
    drop(live);
    let away = Registry::new(FailingStore::away(), Namespace::root());
    let live = front.open(away, false).await;
    assert_eq!(label(&live).await, "label-1", "the one in service, not the newest");
    assert_eq!(live.status().seq, Some(2));
    live.refresh().await.unwrap_err();
    assert_eq!(label(&live).await, "label-1");
    drop(live);
    // A damaged cache is not served, and not fatal.
    std::fs::write(front.site.cache("cache").join(one.to_string()).join("label.txt"), "label-X").unwrap();
    let live = front.open(Registry::new(FailingStore::away(), Namespace::root()), false).await;
    assert_eq!(ask(&live).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(live.status().last_error.is_some());
}

#[tokio::test]
async fn a_stale_channel_is_told_and_refused_only_where_the_policy_says_so() {
    let front = Storefront::new();
    front.site.release(1, None).await;
    let tolerant = front.live().await;
    tolerant.refresh().await.unwrap();
    assert!(ask(&tolerant).await.unwrap().meta.notes.is_empty());
    let strict = front.open(front.site.registry.clone(), true).await;
    strict.refresh().await.unwrap();
    let mut events = tolerant.subscribe();
    front.clock.advance(91 * DAY);
    // Staleness shows without a look at the channel.
    assert_eq!(ask(&tolerant).await.unwrap().meta.notes[0].code, "stale");
    let streamed = tolerant.stream(&context(), ClassifyRequest::one("a")).await.unwrap();
    assert_eq!(collect_reply(streamed).await.unwrap().meta.notes[0].code, "stale");
    assert_eq!(ask(&strict).await.unwrap_err().kind(), ErrorKind::Unavailable);
    tolerant.refresh().await.unwrap();
    assert!(tolerant.status().stale);
    assert!(matches!(events.try_recv().unwrap(), LiveEvent::Stale { .. }));
    front.site.channel().renew("n", &front.site.release, now().plus(91 * DAY), DAY).await.unwrap();
    strict.refresh().await.unwrap();
    assert!(ask(&strict).await.unwrap().meta.notes.is_empty());
}

#[tokio::test]
async fn the_loop_polls_backs_off_and_stops() {
    let front = Storefront::new();
    let live = front.live().await;
    let first = "channels/bakery/stable/00000000000000000001".parse().unwrap();
    front.site.store.create(&first, "no statement".into()).await.unwrap();
    let cancel = Cancellation::new();
    let task = tokio::spawn({
        let (live, cancel) = (live.clone(), cancel.clone());
        async move { live.run(cancel).await }
    });
    let mut status = live.watch();
    status.wait_for(|status| status.last_error.is_some()).await.unwrap();
    front.site.store.delete(&first).await.unwrap();
    front.site.release(1, None).await;
    for _ in 0..20 {
        eventually(|| front.clock.sleepers() > 0).await;
        if live.status().serving.is_some() {
            break;
        }
        front.clock.advance(Duration::from_secs(10));
    }
    assert_eq!(label(&live).await, "label-1");
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_version_for_another_task_is_refused_before_it_is_loaded() {
    let front = Storefront::new();
    let live = front.live().await;
    let mut draft = front.site.draft(1, &[("label.txt", b"x".to_vec())]);
    draft.task = "chat".to_owned();
    let manifest = front.site.publish(draft).await.unwrap().manifest;
    front.site.append(manifest, None).await.unwrap();
    assert_eq!(live.refresh().await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(front.loader.loads.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_or_waits_while_versions_swap() {
    let front = Storefront::new();
    front.loader.gate.add_permits(64);
    let live = front.live().await;
    let mut incumbent = front.site.release(1, None).await;
    live.refresh().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (live, stop) = (live.clone(), Arc::clone(&stop));
        clients.spawn(async move {
            let mut served = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                ask(&live).await.unwrap();
                served += 1;
                tokio::task::yield_now().await;
            }
            served
        });
    }
    for version in 2..12 {
        incumbent = front.site.release(version, Some(incumbent)).await;
        let Refresh::Swapped { version: swapped, .. } = live.refresh().await.unwrap() else {
            panic!("expected a swap")
        };
        assert_eq!(swapped, version);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(clients.join_all().await.into_iter().all(|served| served > 0));
    // All but the version in service are gone in the end.
    eventually(|| front.loader.dropped.load(Ordering::SeqCst) == 10).await;
}

#[tokio::test]
async fn the_swap_itself_takes_less_than_a_millisecond() {
    let front = Storefront::new();
    let live = LiveModel::builder(
        front.site.registry.clone(),
        model(),
        ChannelName::stable(),
        front.site.trust(),
        front.loader.clone() as Arc<dyn ModelLoader<Classify>>,
        front.site.cache("cache"),
    )
    .build()
    .await
    .unwrap();
    // The statements of these tests were issued at a time that is long past by the machine's clock or not yet come, so they carry their own.
    let system = hybrid_core::Clock::now(&hybrid_core::SystemClock);
    let mut incumbent = None;
    let mut swaps = Vec::new();
    for version in 1..12 {
        let draft = front.site.draft(version, &[("label.txt", vec![version as u8])]);
        let manifest = front.site.publish(draft).await.unwrap().manifest;
        let release =
            hybrid_sync::registry::Release { manifest, incumbent, why: String::new(), nonce: version.to_string() };
        front.site.channel().append(release, &front.site.release, system, DAY).await.unwrap();
        incumbent = Some(manifest);
        if let Refresh::Swapped { swap, .. } = live.refresh().await.unwrap() {
            swaps.push(swap);
        }
    }
    swaps.sort_unstable();
    // The median, because a busy machine may take the thread away in the middle of any one.
    assert!(swaps[swaps.len() / 2] < Duration::from_millis(1), "{swaps:?}");
}
