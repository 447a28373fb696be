//! Measures the training of a decoder on the processor beside torch and PEFT, step by step in one run, and prints one Markdown table.
//!
//! `cargo run --release -p hybrid-benches --bin training [-- lora full]`.

use std::{num::NonZero, thread::available_parallelism};

use hybrid_benches::{
    must,
    peers::python,
    report::some_rounds,
    statistics::median,
    table::{Figure, markdown},
    training::{KINDS, SIDE, Sizes, Step, ours, peer, run},
};

/// Steps of which the median counts.
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Started by itself, as what is measured.
    if let [side, kind, sizes] = &arguments[..]
        && side == SIDE
    {
        return run(kind, must(serde_json::from_str(sizes)));
    }
    let python = python();
    let threads = available_parallelism().map_or(2, NonZero::get);
    let (sizes, mut figures) = (Sizes::SMALL, Vec::new());
    for kind in KINDS.into_iter().filter(|kind| arguments.is_empty() || arguments.iter().any(|chosen| chosen == kind)) {
        eprintln!("measuring {kind}");
        let (mut ours, mut peer) = (ours(kind, sizes, threads), peer(python.as_ref(), kind, sizes, threads));
        // The first steps warm up.
        for _ in 0..2 {
            ours.measure();
            peer.measure();
        }
        let rounds = some_rounds(ROUNDS, || ours.measure(), || peer.measure());
        ours.end();
        peer.end();
        let pairs = |of: fn(&Step) -> f64| rounds.iter().map(|(ours, peer)| (of(ours), of(peer))).collect::<Vec<_>>();
        let (against, most) = if kind == "lora" { ("torch + PEFT", Some(0.6)) } else { ("torch", None) };
        let name = |what: &str| format!("training {kind}, 29.5 M, {} × {} tokens: {what}", sizes.texts, sizes.tokens);
        figures.push(Figure::rate(&name("a step"), "tokens/s", against, &pairs(|step| step.tokens), Some(1.0)));
        let peaks = pairs(|step| step.peak_mib);
        let (ours, peer) = (median(peaks.iter().map(|peaks| peaks.0)), median(peaks.iter().map(|peaks| peaks.1)));
        figures.push(Figure {
            name: name("peak memory"),
            ours: format!("{ours:.0} MiB"),
            peer: format!("{peer:.0} MiB ({against})"),
            ratio: format!("{:.2}×", ours / peer),
            goal: most.map(|most| format!("≤ {most}×")).unwrap_or_default(),
            met: most.map(|most| ours <= most * peer),
        });
    }
    print!("{}", markdown(&figures));
}
