//! Measures each figure beside its peer or bound, round by round in one run, and prints one Markdown table.
//!
//! `cargo run --release -p hybrid-benches --bin ratios [-- store queue registry classify swap http stream guard start]`; without names, all of them.

mod storefront;

use std::{fs, hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use hybrid_benches::{
    classifier, context,
    linear::{self, LinearClassifier},
    must, noise,
    peers::Peers,
    queue::{self, Load},
    registry::{CHANGED, Site, TENSOR_BYTES, bound, write_model},
    report::{self, ROUNDS, rounds},
    scratch, start,
    statistics::median,
    store::{BareFolder, SIZES, key},
    swap::{LiveSite, Spread, TEXT, measure},
    table::{Figure, time},
    timed,
};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, InferenceBackend, ServedModel,
    task::{Classify, ClassifyRequest},
};
use hybrid_local::FolderStore;
use tokio::runtime::Runtime;

fn main() {
    // Started by itself, as what is measured.
    if start::is_asked() {
        return start::run();
    }
    report::print(&[
        ("store", store),
        ("queue", queue),
        ("registry", registry),
        ("classify", classify),
        ("swap", swap),
        ("http", storefront::http),
        ("stream", storefront::stream),
        ("guard", storefront::guard),
        ("start", storefront::start),
    ]);
}

fn store(runtime: &Runtime) -> Vec<Figure> {
    const OBJECTS: u64 = 100;
    let (folder, bare_folder) = (scratch(), scratch());
    let store: Arc<dyn ArtifactStore> = Arc::new(must(FolderStore::open(folder.path())));
    let (bare, peer) = (BareFolder::new(bare_folder.path()), "bare system calls");
    let mut next = 0;
    let mut figures = Vec::new();
    for (size_name, size) in SIZES {
        let bytes = Bytes::from(noise(size, 1));
        let rate = |elapsed: Duration| OBJECTS as f64 / elapsed.as_secs_f64();
        let creates = rounds(
            || {
                let create = || {
                    for _ in 0..OBJECTS {
                        next += 1;
                        must(runtime.block_on(store.create(&key(next), bytes.clone())));
                    }
                };
                rate(timed(create).0)
            },
            || rate(timed(|| (0..OBJECTS).for_each(|_| drop(bare.create(&bytes)))).0),
        );
        figures.push(Figure::rate(&format!("store: create {size_name}"), "/s", peer, &creates, None));
        let (ours, path) = (key(next), bare.create(&bytes));
        let reads = rounds(
            || rate(timed(|| (0..OBJECTS).for_each(|_| drop(black_box(must(runtime.block_on(store.get(&ours))))))).0),
            || rate(timed(|| (0..OBJECTS).for_each(|_| drop(black_box(must(fs::read(&path)))))).0),
        );
        figures.push(Figure::rate(&format!("store: read {size_name}"), "/s", peer, &reads, None));
    }
    figures
}

fn queue(runtime: &Runtime) -> Vec<Figure> {
    let peers = match Peers::build() {
        Ok(peers) => peers,
        Err(why) => {
            eprintln!("{why}");
            return vec![Figure::told("queue", "not measured".to_owned(), "peers are not built".to_owned())];
        }
    };
    let loads = [(1, 1, 1_000), (1, 10, 5_000), (16, 1, 2_000)];
    let figure = |(callers, per_send, messages)| {
        let load = Load { messages, callers, per_send };
        let rate = |elapsed: Duration| messages as f64 / elapsed.as_secs_f64();
        let rates = rounds(
            || {
                let folder = scratch();
                rate(queue::carry(runtime, &queue::open(folder.path()), load))
            },
            || rate(peers.queue(scratch().path(), load)),
        );
        Figure::rate(&format!("queue: {load}"), "messages/s", "apalis-sqlite", &rates, Some(2.0))
    };
    loads.map(figure).into()
}

fn registry(runtime: &Runtime) -> Vec<Figure> {
    let inputs = scratch();
    let file = write_model(&inputs.path().join("model"), TENSOR_BYTES, 0);
    let changed_file = write_model(&inputs.path().join("changed"), TENSOR_BYTES, CHANGED);
    let size = must(fs::metadata(&file.path)).len() as f64 / f64::from(1 << 20);
    let rate = |elapsed: Duration| size / elapsed.as_secs_f64();
    let (mut publishes, mut fetches, mut moved) = (Vec::new(), Vec::new(), (0, 0));
    for round in 0..ROUNDS {
        let folder = scratch();
        let store = Arc::new(must(FolderStore::open(folder.path().join("store"))));
        let site = Site::new(store, folder.path());
        let bound = |name: &str| rate(bound(&file.path, &folder.path().join(name)));
        let before = bound("before");
        let (publish, first) = timed(|| runtime.block_on(site.publish(1, file.clone(), None)));
        let between = bound("between");
        let (fetch, _) = timed(|| runtime.block_on(site.fetch(first.manifest)));
        let after = bound("after");
        // The bound on both sides of each, so that a disk that slows down or speeds up does it to both.
        publishes.push((rate(publish), f64::midpoint(before, between)));
        fetches.push((rate(fetch), f64::midpoint(between, after)));
        if round == 0 {
            let second = runtime.block_on(site.publish(2, changed_file.clone(), Some(first.manifest)));
            let fetched = runtime.block_on(site.fetch(second.manifest));
            moved = (second.bytes_moved, fetched.bytes_moved);
        }
    }
    let peer = "SHA-256 + durable copy";
    let changed = CHANGED * TENSOR_BYTES as u64;
    let bytes_moved = |name: &str, bytes: u64| Figure {
        name: format!("registry: {name}, 5 % of the tensors changed"),
        ours: format!("{bytes} bytes moved"),
        peer: format!("{changed} bytes changed"),
        ratio: format!("{:.4}×", bytes as f64 / changed as f64),
        goal: "≤ 1.01×".to_owned(),
        met: Some(bytes as f64 <= 1.01 * changed as f64),
    };
    vec![
        Figure::rate("registry: publish 128 MiB", "MiB/s", peer, &publishes, Some(0.8)),
        Figure::rate("registry: fetch 128 MiB", "MiB/s", peer, &fetches, Some(0.8)),
        bytes_moved("publish", moved.0),
        bytes_moved("fetch", moved.1),
    ]
}

fn classify(runtime: &Runtime) -> Vec<Figure> {
    let (folder, cx) = (scratch(), context());
    let backend = runtime.block_on(classifier::train(folder.path()));
    let messages = classifier::messages();
    let per_second = |size: usize| {
        let all = || {
            for batch in messages.chunks_exact(size) {
                black_box(must(runtime.block_on(backend.infer(&cx, ClassifyRequest::many(batch)))));
            }
        };
        let count = messages.len() / size * size;
        count as f64 / timed(all).0.as_secs_f64()
    };
    let singles_and_batches = rounds(|| per_second(1), || per_second(32));
    let told = |name: &str, rates: Vec<f64>| {
        let rate = median(rates);
        let each = time(Duration::from_secs_f64(rate.recip()));
        Figure::told(&format!("classify: {name}"), format!("{rate:.0} messages/s"), format!("{each} a message"))
    };
    let (singles, batches) = singles_and_batches.into_iter().unzip();
    vec![told("one message a request", singles), told("32 messages a request", batches), port(runtime)]
}

/// What a call costs beside its work: the request's copy, the call through the trait object, the checks, two looks at the clock, the reply's meta.
fn port(runtime: &Runtime) -> Figure {
    const CALLS: u32 = 100_000;
    let (cx, weights, request) = (context(), linear::weights(1), ClassifyRequest::one(TEXT));
    let backend: Arc<dyn InferenceBackend<Classify>> =
        Arc::new(LinearClassifier::new(weights.clone(), ServedModel::named("linear")));
    let through_port = async || {
        for _ in 0..CALLS {
            black_box(must(backend.infer(black_box(&cx), request.clone()).await));
        }
    };
    let plain = || {
        for _ in 0..CALLS {
            black_box(must(linear::classify(black_box(&weights), &request.inputs)));
        }
    };
    let calls = rounds(|| timed(|| runtime.block_on(through_port())).0 / CALLS, || timed(plain).0 / CALLS);
    Figure::added("classify: a call through the port", "plain function", &calls, Some(Duration::from_micros(1)))
}

fn swap(runtime: &Runtime) -> Vec<Figure> {
    const SWAPS: usize = 100;
    let folder = scratch();
    let mut live = runtime.block_on(LiveSite::new(folder.path()));
    let rounds: Vec<_> = (0..ROUNDS).map(|_| measure(runtime, &mut live, SWAPS)).collect();
    let slowest: Vec<_> = rounds.iter().map(|round| (round.slowest_beside, round.slowest_quiet)).collect();
    let told = |spreads: Vec<Spread>| {
        let middle = |of: fn(&Spread) -> Duration| {
            time(Duration::from_secs_f64(median(spreads.iter().map(|spread| of(spread).as_secs_f64()))))
        };
        format!("{} / {} / {}", middle(|spread| spread.p50), middle(|spread| spread.p99), middle(|spread| spread.max))
    };
    vec![
        Figure::added("swap: slowest request beside it", "no swap", &slowest, Some(Duration::from_millis(1))),
        Figure::told(
            "swap: p50 / p99 / slowest of all requests",
            told(rounds.iter().map(|round| round.beside).collect()),
            format!("{} (no swap)", told(rounds.iter().map(|round| round.quiet).collect())),
        ),
    ]
}
