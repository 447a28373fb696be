//! The statistics behind a verdict: exact tests, intervals, and what a golden set can tell at all.
//!
//! All of it is deterministic on every machine: elementary functions come from `libm`, random numbers from a seeded ChaCha8.

mod bootstrap;
mod holm;
mod mcnemar;
mod normal;
mod power;
mod wilson;

pub use bootstrap::{Bootstrap, PairedMean};
pub use holm::holm;
pub use mcnemar::{mcnemar, paired_difference};
pub use power::{detectable_mean, detectable_share};
pub use wilson::wilson;

/// The confidence of every interval in a report.
pub const CONFIDENCE: f64 = 0.95;
/// The power at which a minimum detectable effect is stated.
pub const POWER: f64 = 0.8;

/// The arithmetic mean; zero of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The sample variance, with `n - 1` below; zero of fewer than two values.
pub(super) fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values);
    values.iter().map(|value| (value - centre) * (value - centre)).sum::<f64>() / (values.len() - 1) as f64
}
