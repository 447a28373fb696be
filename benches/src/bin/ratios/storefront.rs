//! What the storefront adds to a bare axum handler: to a request, to a stream, to a start.

use std::time::Duration;

use hybrid_benches::{
    guard::Guarded,
    http::{Server, TOKENS},
    report::{rounds, some_rounds},
    scratch,
    start::{Kind, Started},
    statistics::median,
    table::{Figure, time},
};
use tokio::runtime::Runtime;

const BARE: &str = "bare axum handler";

/// Connections that are kept, one caller on each.
const CONNECTIONS: [usize; 3] = [1, 16, 128];

pub(super) fn http(runtime: &Runtime) -> Vec<Figure> {
    let (storefront, bare) = (Server::storefront(runtime), Server::bare(runtime));
    // The first connections fill caches that the others find full.
    let _ = (storefront.ask(16, 4_000), bare.ask(16, 4_000));
    let figures = |connections: usize| {
        let requests = if connections == 1 { 8_000 } else { 24_000 };
        let asked = rounds(|| storefront.ask(connections, requests), || bare.ask(connections, requests));
        let name = format!("http: classify, {connections} {}", plural(connections));
        let times = |of: fn(&hybrid_benches::http::Asked) -> Duration| -> Vec<_> {
            asked.iter().map(|(ours, peer)| (of(ours), of(peer))).collect()
        };
        let rates: Vec<_> = asked.iter().map(|(ours, peer)| (ours.rate, peer.rate)).collect();
        [
            Figure::rate(&name, "requests/s", BARE, &rates, None),
            Figure::added(&format!("{name}, p50"), BARE, &times(|asked| asked.p50), None),
            Figure::added(&format!("{name}, p99"), BARE, &times(|asked| asked.p99), None),
        ]
    };
    CONNECTIONS.into_iter().flat_map(figures).collect()
}

pub(super) fn stream(runtime: &Runtime) -> Vec<Figure> {
    let (storefront, bare) = (Server::storefront(runtime), Server::bare(runtime));
    let _ = (storefront.read(16, 64), bare.read(16, 64));
    let figures = |connections: usize| {
        let answers = if connections == 1 { 200 } else { 512 };
        let read = rounds(|| storefront.read(connections, answers), || bare.read(connections, answers));
        let name = format!("stream: chat, {TOKENS} tokens an answer, {connections} {}", plural(connections));
        let rates: Vec<_> = read.iter().map(|(ours, peer)| (ours.rate, peer.rate)).collect();
        let first: Vec<_> = read.iter().map(|(ours, peer)| (ours.first, peer.first)).collect();
        [
            Figure::rate(&name, "tokens/s", "bare axum SSE handler", &rates, None),
            Figure::added(&format!("{name}, first byte, p50"), "bare axum SSE handler", &first, None),
        ]
    };
    CONNECTIONS.into_iter().flat_map(figures).collect()
}

pub(super) fn guard(runtime: &Runtime) -> Vec<Figure> {
    const REQUESTS: usize = 4_000;
    let folder = scratch();
    let (bare, limited) = (Guarded::bare(), Guarded::limited());
    let written = Guarded::audited(&folder.path().join("written"), false);
    let synced = Guarded::audited(&folder.path().join("synced"), true);
    let alone = |guarded: &Guarded| rounds(|| guarded.alone(runtime, REQUESTS), || bare.alone(runtime, REQUESTS));
    let together = |guarded: &Guarded| rounds(|| guarded.together(runtime, 64, 50), || bare.together(runtime, 64, 50));
    let (neither, goal) = ("neither quota nor audit", Some(Duration::from_micros(20)));
    vec![
        Figure::added("guard: a request with quotas, p50", neither, &alone(&limited), goal),
        Figure::added("guard: a request with an audit, p50, entry with the system", neither, &alone(&written), goal),
        Figure::added("guard: of 64 callers with an audit, entry with the system", neither, &together(&written), goal),
        Figure::added("guard: of 64 callers with an audit, entry on the disk", neither, &together(&synced), None),
    ]
}

pub(super) fn start(_: &Runtime) -> Vec<Figure> {
    const STARTS: usize = 15;
    // The first run brings the program into memory.
    let _ = (Kind::Storefront.start(), Kind::Bare.start());
    let starts = some_rounds(STARTS, || Kind::Storefront.start(), || Kind::Bare.start());
    let first_byte: Vec<_> = starts.iter().map(|(ours, peer)| (ours.first_byte, peer.first_byte)).collect();
    let middle = |of: fn(&Started) -> Duration| {
        let of = |side: fn(&(Started, Started)) -> &Started| median(starts.iter().map(|s| of(side(s)).as_secs_f64()));
        [of(|(ours, _)| ours), of(|(_, peer)| peer)].map(Duration::from_secs_f64).map(time)
    };
    let told = |name: &str, of| {
        let [ours, peer] = middle(of);
        Figure::told(name, ours, format!("{peer} ({BARE})"))
    };
    vec![
        Figure::added("start: from exec to the first byte of an answer", BARE, &first_byte, None),
        told("start: of that, until it listens", |started| started.listening),
        told("start: of that, in its own code", |started| started.own),
    ]
}

fn plural(connections: usize) -> &'static str {
    if connections == 1 { "connection" } else { "connections" }
}
