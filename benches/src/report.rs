//! Groups of figures: which are measured, and how two sides take turns.

use std::io::{self, Write};

use tokio::runtime::Runtime;

use crate::{
    runtime,
    table::{Figure, markdown},
};

/// Rounds of which the median counts.
pub const ROUNDS: usize = 5;

/// A group: its name, and what measures it.
pub type Group = (&'static str, fn(&Runtime) -> Vec<Figure>);

/// Measures the groups that the command line names, or all of them, and prints one Markdown table.
pub fn print(groups: &[Group]) {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = chosen.iter().find(|name| groups.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = groups.iter().map(|(name, _)| *name).collect();
        eprintln!("unknown group {unknown:?}; known are {}", known.join(", "));
        std::process::exit(2);
    }
    let runtime = runtime();
    let mut figures = Vec::new();
    for (name, group) in groups {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("measuring {name}");
            figures.extend(group(&runtime));
        }
    }
    // A closed pipe is no reason to fail.
    let _ = io::stdout().write_all(markdown(&figures).as_bytes());
}

/// Runs both sides [`ROUNDS`] times.
pub fn rounds<T>(ours: impl FnMut() -> T, peer: impl FnMut() -> T) -> Vec<(T, T)> {
    some_rounds(ROUNDS, ours, peer)
}

/// Runs both sides once a round, the one that begins taking turns.
pub fn some_rounds<T>(count: usize, mut ours: impl FnMut() -> T, mut peer: impl FnMut() -> T) -> Vec<(T, T)> {
    let round = |i: usize| {
        if i.is_multiple_of(2) {
            let ours = ours();
            (ours, peer())
        } else {
            let peer = peer();
            (ours(), peer)
        }
    };
    (0..count).map(round).collect()
}
