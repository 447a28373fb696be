//! Requests to a live model while another thread swaps its versions.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hybrid_core::{
    CandidateFile, ChannelName, Clock, Digest, FileName, InferenceBackend, SystemClock, SystemIds,
    memory::MemoryStore,
    task::{Classify, ClassifyRequest},
};
use hybrid_sync::{
    live::{LiveModel, Refresh},
    registry::Release,
};
use tokio::runtime::Runtime;

use crate::{
    context,
    linear::{LinearLoader, WEIGHTS, weights},
    must,
    registry::{Site, model},
    statistics::{median, quantile},
};

/// A message as long as customers write them.
pub const TEXT: &str =
    "Could I change my Saturday order to three rye loaves and a dozen poppy seed rolls, please? Marta";

/// A live model over memory with two published versions.
#[derive(Debug)]
pub struct LiveSite {
    /// The model that serves.
    pub model: LiveModel<Classify>,
    site: Site,
    versions: [Digest; 2],
    serving: usize,
}

impl LiveSite {
    /// With the first version in service and files below `folder`.
    pub async fn new(folder: &Path) -> Self {
        let site = Site::new(Arc::new(MemoryStore::default()), folder);
        let mut versions = Vec::new();
        for version in [1, 2] {
            let path = folder.join(format!("weights-{version}"));
            must(fs::write(&path, weights(version)));
            let file = CandidateFile { name: must(FileName::new(WEIGHTS)), path };
            versions.push(site.publish(version, file, None).await.manifest);
        }
        let (registry, trust, cache) = (site.registry.clone(), site.trust(), site.cache());
        let model = LiveModel::builder(registry, model(), ChannelName::stable(), trust, Arc::new(LinearLoader), cache)
            .warm_up(ClassifyRequest::one(TEXT));
        let mut live =
            Self { model: must(model.build().await), site, versions: [versions[0], versions[1]], serving: 1 };
        live.append(None).await;
        live.swap().await;
        // Both are in the cache from here on.
        live.release().await;
        live.swap().await;
        live
    }

    /// Appends the statement that puts the other version in service, as a kitchen does.
    pub async fn release(&mut self) {
        self.append(Some(self.versions[self.serving])).await;
    }

    /// Looks at the channel, verifies, loads, warms up and swaps, as a storefront does.
    pub async fn swap(&self) {
        let refreshed = must(self.model.refresh().await);
        assert!(matches!(refreshed, Refresh::Swapped { .. }), "{refreshed:?}");
    }

    async fn append(&mut self, incumbent: Option<Digest>) {
        self.serving = 1 - self.serving;
        let release = Release::new(self.versions[self.serving], incumbent, "bench", &SystemIds::default());
        let channel = self.site.registry.channel(&model(), &ChannelName::stable());
        must(channel.append(release, &self.site.release, SystemClock.now(), Duration::from_secs(86_400)).await);
    }
}

/// How long requests took with swaps beside them and without.
#[derive(Clone, Copy, Debug)]
pub struct Latencies {
    /// Of all requests that ran while nothing was swapped.
    pub quiet: Spread,
    /// Of all requests that ran while a version was fetched, verified, loaded and swapped.
    pub beside: Spread,
    /// The slowest request of a span without a swap, median over the spans.
    pub slowest_quiet: Duration,
    /// The slowest request beside a swap, median over the swaps.
    pub slowest_beside: Duration,
}

/// Where requests lie between the fastest and the slowest.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// How many.
    pub requests: usize,
    /// Half of them are faster.
    pub p50: Duration,
    /// 99 of 100 are faster.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

/// One thread asks without a pause while this one swaps `swaps` times, each after a span without a swap that is as long.
pub fn measure(runtime: &Runtime, live: &mut LiveSite, swaps: usize) -> Latencies {
    let stop = Arc::new(AtomicBool::new(false));
    let (asker, origin) = (thread::spawn(ask(&live.model, &stop)), Instant::now());
    let mut spans = Vec::with_capacity(swaps);
    let mut length = Duration::from_millis(5);
    for _ in 0..swaps {
        runtime.block_on(live.release());
        let quiet = origin.elapsed();
        thread::sleep(length);
        let begun = origin.elapsed();
        runtime.block_on(live.swap());
        let ended = origin.elapsed();
        length = ended - begun;
        spans.push((quiet..begun, begun..ended));
    }
    stop.store(true, Ordering::Relaxed);
    let requests = must(asker.join().map_err(|_| "the asking thread failed"));
    // A request counts where it ended: what stalls it lies before that.
    let took = |span: &std::ops::Range<Duration>| -> Vec<Duration> {
        let ended = |at: Duration| requests.partition_point(|(end, _)| end.duration_since(origin) < at);
        requests[ended(span.start)..ended(span.end)].iter().map(|(_, took)| *took).collect()
    };
    let (quiet, beside): (Vec<_>, Vec<_>) = spans.iter().map(|(quiet, beside)| (took(quiet), took(beside))).unzip();
    Latencies {
        slowest_quiet: median_of_slowest(&quiet),
        slowest_beside: median_of_slowest(&beside),
        quiet: spread(quiet.concat()),
        beside: spread(beside.concat()),
    }
}

/// Asks until told to stop; each request's end and how long it took, in order.
fn ask(model: &LiveModel<Classify>, stop: &Arc<AtomicBool>) -> impl FnOnce() -> Vec<(Instant, Duration)> + use<> {
    let (model, stop) = (Arc::new(model.clone()) as Arc<dyn InferenceBackend<Classify>>, Arc::clone(stop));
    move || {
        let runtime = must(tokio::runtime::Builder::new_current_thread().build());
        let (cx, request) = (context(), ClassifyRequest::one(TEXT));
        let mut requests = Vec::with_capacity(1 << 20);
        while !stop.load(Ordering::Relaxed) {
            let request = request.clone();
            let started = Instant::now();
            must(runtime.block_on(model.infer(&cx, request)));
            let ended = Instant::now();
            requests.push((ended, ended - started));
        }
        requests
    }
}

fn median_of_slowest(spans: &[Vec<Duration>]) -> Duration {
    Duration::from_secs_f64(median(spans.iter().filter_map(|span| span.iter().max()).map(Duration::as_secs_f64)))
}

fn spread(mut took: Vec<Duration>) -> Spread {
    took.sort_unstable();
    let at = |q| quantile(&took, q);
    Spread { requests: took.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
}
