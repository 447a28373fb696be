//! Measures the provider's adapters beside its own software, on servers of the test kit, and prints one Markdown table.
//!
//! `cargo run --release -p hybrid-benches --features cloud --bin cloud [-- s3 sqs model function]`; without names, all of them.

use std::{cell::RefCell, fs, process::Command, sync::Arc, time::Duration};

use hybrid_benches::{
    cloud::{
        cli::Cli,
        function::{self, Kind, Service, Started},
        s3::{self, LISTED, LISTINGS, LOADS, Load},
        sqs::{self, BATCH, CALLERS},
    },
    must,
    registry::{Site, TENSORS, write_model},
    report::{self, rounds, some_rounds},
    scratch,
    statistics::median,
    table::{Figure, time},
    timed,
};
use tokio::runtime::Runtime;

const SDK: &str = "bare SDK";
/// The share of the SDK's throughput that an adapter must reach.
const GOAL: Option<f64> = Some(0.95);

fn main() {
    // Started by itself, as what is measured.
    if function::is_asked() {
        return function::run();
    }
    report::print(&[("s3", s3), ("sqs", sqs), ("model", model), ("function", function)]);
}

fn s3(runtime: &Runtime) -> Vec<Figure> {
    let site = s3::Site::start(runtime);
    let (ours, bare) = site.sides();
    let mut figures = Vec::new();
    for load in LOADS {
        let Load { name, size, objects, callers, reads } = load;
        let (unit, each) = if size < 1 << 20 { ("/s", 1.0) } else { ("MiB/s", size as f64 / f64::from(1 << 20)) };
        let rate = |took: Duration| objects as f64 * each / took.as_secs_f64();
        // The first calls make connections, and what is read.
        let (_, mine) = site.put(runtime, &ours, load);
        let (_, theirs) = site.put(runtime, &bare, load);
        let put = |side| {
            settle();
            rate(site.put(runtime, side, load).0)
        };
        let puts = rounds(|| put(&ours), || put(&bare));
        // Either reads what the other has written.
        let get = |side, names| reads as f64 * rate(site.get(runtime, side, load, names));
        let gets = rounds(|| get(&ours, &theirs), || get(&bare, &mine));
        let named = |verb: &str| format!("s3: {verb} {name}, {callers} callers");
        figures.push(Figure::rate(&named("create"), unit, SDK, &puts, GOAL));
        figures.push(Figure::rate(&named("read"), unit, SDK, &gets, GOAL));
    }
    let (_, listed) = site.put(runtime, &ours, Load { objects: LISTED, size: 16, ..LOADS[0] });
    let rate = |took: Duration| (LISTED * LISTINGS) as f64 / took.as_secs_f64();
    let lists = rounds(|| rate(site.list(runtime, &ours, &listed)), || rate(site.list(runtime, &bare, &listed)));
    figures.push(Figure::rate(&format!("s3: list {LISTED} objects"), "objects/s", SDK, &lists, GOAL));
    figures
}

/// What one turn leaves to be written must not slow the next.
fn settle() {
    assert!(must(Command::new("sync").status()).success(), "sync failed");
}

fn sqs(runtime: &Runtime) -> Vec<Figure> {
    const TURNS: usize = 15;
    let site = sqs::Site::start(runtime);
    let rate = |took: Duration| (CALLERS * BATCH * TURNS) as f64 / took.as_secs_f64();
    // The first calls make the connections.
    let _ = (site.ours(runtime, 1), site.bare(runtime, 1));
    let rates = rounds(|| rate(site.ours(runtime, TURNS)), || rate(site.bare(runtime, TURNS)));
    let name = format!("sqs: send, receive, ack, {BATCH} a call, {CALLERS} callers");
    vec![Figure::rate(&name, "messages/s", SDK, &rates, GOAL)]
}

fn model(runtime: &Runtime) -> Vec<Figure> {
    const MIB: usize = 256;
    const TURNS: usize = 9;
    let site = s3::Site::start(runtime);
    let (cli, folder) = (Cli::install(site.server()), scratch());
    let file = write_model(&folder.path().join("model"), (MIB << 20) / TENSORS as usize / 4 * 4, 0);
    let path = file.path.display().to_string();
    let copy = |round: usize| (site.url(&format!("copy-{round}")), folder.path().join(format!("copy-{round}")));
    let rate = |took: Duration| MIB as f64 / took.as_secs_f64();
    // What the command line needs to start at all is not its copying: it is measured beside each of its copies, and taken off in a row of its own.
    let starts = RefCell::new(Vec::new());
    let moved = |from: &str, to: &str| {
        let start = cli.start();
        settle();
        starts.borrow_mut().push(start.as_secs_f64());
        let took = cli.copy(from, to);
        [rate(took), rate(took.saturating_sub(start))]
    };

    // Where a round has published, and what.
    let mut published = Vec::new();
    let mut uploads = 0..TURNS;
    let publishes = some_rounds(
        TURNS,
        || {
            let home = folder.path().join(format!("site-{}", published.len()));
            must(fs::create_dir(&home));
            let registry = Site::new(Arc::new(site.store(&format!("registry-{}", published.len()))), &home);
            settle();
            let (took, version) = timed(|| runtime.block_on(registry.publish(1, file.clone(), None)));
            published.push((registry, version.manifest));
            [rate(took); 2]
        },
        || moved(&path, &copy(uploads.next().unwrap_or_default()).0),
    );
    let (mut versions, mut downloads) = (published.iter(), 0..TURNS);
    let fetches = some_rounds(
        TURNS,
        || {
            let (registry, manifest) = must(versions.next().ok_or("a round has published nothing"));
            settle();
            [rate(timed(|| runtime.block_on(registry.fetch(*manifest))).0); 2]
        },
        || {
            let (url, file) = copy(downloads.next().unwrap_or_default());
            moved(&url, &file.display().to_string())
        },
    );
    let (whole, copying) = (format!("{} s3 cp", cli.version()), format!("{} s3 cp, without its start", cli.version()));
    let start = median(starts.take());
    let start = format!("{} ({} doing nothing)", time(Duration::from_secs_f64(start)), cli.version());
    let mut figures = Vec::new();
    for (verb, way, rounds) in [("publish", "to", publishes), ("fetch", "from", fetches)] {
        let name = format!("model: {verb} {MIB} MiB {way} S3");
        let of = |i: usize| rounds.iter().map(|(ours, peer)| (ours[i], peer[i])).collect::<Vec<_>>();
        figures.push(Figure::rate(&name, "MiB/s", &whole, &of(0), Some(1.0)));
        figures.push(Figure::rate(&name, "MiB/s", &copying, &of(1), None));
    }
    figures.push(Figure::told("model: the command line's own start", String::new(), start));
    figures
}

fn function(runtime: &Runtime) -> Vec<Figure> {
    const STARTS: usize = 9;
    let service = RefCell::new(Service::start(runtime));
    let call = |kind| service.borrow_mut().call(runtime, kind);
    // The first run brings the program into memory.
    let _ = (call(Kind::Storefront), call(Kind::Bare));
    let starts = some_rounds(STARTS, || call(Kind::Storefront), || call(Kind::Bare));
    let peer = "bare axum handler, model in its program";
    let times =
        |of: fn(&Started) -> Duration| -> Vec<_> { starts.iter().map(|(ours, peer)| (of(ours), of(peer))).collect() };
    vec![
        Figure::added("function: from exec until ready for a request", peer, &times(|started| started.ready), None),
        Figure::added("function: from exec to the first answer", peer, &times(|started| started.answered), None),
    ]
}
