//! Measures an embedder on the processor beside onnxruntime, round by round in one run, and prints one Markdown table.
//!
//! `cargo run --release -p hybrid-benches --bin embedder`. A model of random weights, with the sizes of all-MiniLM-L6-v2, is written once, below `target/bench-scratch`.

use std::{num::NonZero, path::Path, thread::available_parallelism};

use hybrid_benches::{
    embedder::{SIDE, TEXTS, TOKENS, make, ours, peer, run},
    peers::python,
    report::{ROUNDS, some_rounds},
    table::{Figure, markdown},
};

/// How far apart the two sides' vectors, of length 1, may be in any number.
const APART: f32 = 1e-4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Started by itself, as what is measured.
    if let [side, folder] = &arguments[..]
        && side == SIDE
    {
        return run(Path::new(folder));
    }
    let python = python();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench-scratch/embedder"));
    let threads = available_parallelism().map_or(2, NonZero::get);
    make(python.as_ref(), folder);
    let (mut ours, mut peer) = (ours(folder, threads), peer(python.as_ref(), folder, threads));
    // The first round warms up.
    let (own, theirs) = (ours.measure(), peer.measure());
    for (own, theirs) in own.vectors.iter().flatten().zip(theirs.vectors.iter().flatten()) {
        assert!((own - theirs).abs() < APART, "the two sides do not embed the same: {own} and {theirs}");
    }
    let rounds = some_rounds(ROUNDS, || ours.measure(), || peer.measure());
    ours.end();
    peer.end();
    let figures: Vec<Figure> = TOKENS
        .iter()
        .enumerate()
        .map(|(i, tokens)| {
            let rates: Vec<_> = rounds.iter().map(|(ours, peer)| (ours.rates[i], peer.rates[i])).collect();
            let name = format!("embedder of MiniLM's sizes, f32: {TEXTS} texts of {tokens} tokens");
            Figure::rate(&name, "texts/s", "onnxruntime", &rates, Some(1.0))
        })
        .collect();
    print!("{}", markdown(&figures));
}
