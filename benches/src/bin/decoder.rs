//! Measures a decoder on the processor beside llama.cpp, round by round in one run, and prints one Markdown table.
//!
//! `cargo run --release -p hybrid-benches --bin decoder [-- q4_k_m q4_0 q8_0]`. Models of random weights, with the sizes of Qwen3-0.6B, are written once, below `target/bench-scratch`.

use std::{num::NonZero, path::Path, thread::available_parallelism};

use hybrid_benches::{
    decoder::{KINDS, Rates, SIDE, STREAMS, make, ours, peer, run},
    must,
    peers::python,
    report::{ROUNDS, some_rounds},
    statistics::median,
    table::{Figure, markdown},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Started by itself, as what is measured.
    if let [side, file, streams] = &arguments[..]
        && side == SIDE
    {
        return run(Path::new(file), must(streams.parse()));
    }
    let python = python();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench-scratch/decoder"));
    let threads = available_parallelism().map_or(2, NonZero::get);
    let mut figures = Vec::new();
    for (kind, file) in KINDS.iter().zip(make(python.as_ref(), folder)) {
        if !arguments.is_empty() && !arguments.iter().any(|chosen| chosen == kind) {
            continue;
        }
        eprintln!("measuring {kind}");
        let measure = |streams| {
            let mut ours = ours(&file, threads, streams);
            let mut peer = peer(python.as_ref(), &file, threads, streams);
            // The first round warms up.
            ours.measure();
            peer.measure();
            let rounds = some_rounds(ROUNDS, || ours.measure(), || peer.measure());
            ours.end();
            peer.end();
            rounds
        };
        let rounds = measure(1);
        let (prefill_goal, decode_goal) = if *kind == "q4_k_m" { (1.1, 1.05) } else { (1.0, 1.0) };
        let pairs = |rounds: &[(Rates, Rates)], of: fn(&Rates) -> f64| {
            rounds.iter().map(|(ours, peer)| (of(ours), of(peer))).collect::<Vec<_>>()
        };
        let name = |what: &str| format!("decoder {kind}: {what}");
        let rate = |what: &str, rounds: &[(f64, f64)], goal| {
            Figure::rate(&name(what), "tokens/s", "llama.cpp", rounds, Some(goal))
        };
        figures.push(rate("prompt of 512 tokens", &pairs(&rounds, |rates| rates.prefill), prefill_goal));
        figures.push(rate("answer of 64 tokens", &pairs(&rounds, |rates| rates.decode), decode_goal));
        let peaks = pairs(&rounds, |rates| rates.peak_mib);
        let (ours, peer) = (median(peaks.iter().map(|peaks| peaks.0)), median(peaks.iter().map(|peaks| peaks.1)));
        figures.push(Figure {
            name: name("peak memory"),
            ours: format!("{ours:.0} MiB"),
            peer: format!("{peer:.0} MiB (llama.cpp)"),
            ratio: format!("{:.2}×", ours / peer),
            goal: "≤ 1×".to_owned(),
            met: Some(ours <= peer),
        });
        let together = format!("{STREAMS} answers at a time, prompts and answers of 64 tokens");
        figures.push(rate(&together, &pairs(&measure(STREAMS), |rates| rates.decode), 1.2));
    }
    print!("{}", markdown(&figures));
}
