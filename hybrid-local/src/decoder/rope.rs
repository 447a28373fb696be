//! Rotary positions: Su and others, "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
//!
//! A head's columns are pairs, column `i` with column `i + half`; the pair turns by an angle of its own for each position. Models
//! that were trained on short texts read long ones by turning some pairs more slowly.

use std::f64::consts::TAU;

use candle_core::{Device, Tensor};
use hybrid_core::{Error, Result};

/// How a model's positions turn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// The base of the frequencies: pair `i` of `n` turns by `theta^(-i / n)` for each position.
    pub(crate) theta: f64,
    pub(crate) scaling: Scaling,
}

/// How the frequencies are changed for long texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// Every pair turns this many times more slowly.
    Linear {
        factor: f64,
    },
    /// Slow pairs turn `factor` times more slowly, quick ones as before, and those between somewhat.
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        original_context: usize,
    },
    /// Peng and others, "YaRN: Efficient Context Window Extension of Large Language Models", 2023.
    Yarn {
        factor: f64,
        original_context: usize,
        beta_fast: f64,
        beta_slow: f64,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// Whether the range of pairs between is widened to whole numbers.
        truncate: bool,
    },
    /// Each pair's frequency is divided by a number of its own.
    Divisors(Vec<f32>),
    /// Ding and others, "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024: a divisor for each pair, others where the
    /// model is used with more positions than it was first trained on. Which of them hold is one choice for all texts, so that keys that
    /// lie in a cache stay right as a text grows; vLLM and llama.cpp choose by the context too.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original_context: usize,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
    },
}

impl Rope {
    /// Positions without scaling.
    #[cfg(any(test, feature = "embedder"))]
    pub(crate) fn plain(theta: f64) -> Self {
        Self { theta, scaling: Scaling::None }
    }

    /// Checks the numbers of a head with `pairs` pairs.
    ///
    /// # Errors
    /// `Corrupt` that names the number that makes no sense.
    pub(crate) fn check(&self, pairs: usize) -> Result<()> {
        let positive = |name: &'static str, value: f64| {
            if value > 0.0 && value <= 1e18 {
                return Ok(());
            }
            Err(Error::corrupt("read rotary positions", "the number has to be positive and finite")
                .with("name", name)
                .with("value", value))
        };
        let context = |value: usize| positive("original_max_position_embeddings", value as f64);
        let divisors = |name: &'static str, divisors: &[f32]| {
            if divisors.len() != pairs {
                return Err(Error::corrupt(
                    "read rotary positions",
                    "there have to be as many numbers as pairs of columns",
                )
                .with("name", name)
                .with("found", divisors.len())
                .with("pairs", pairs));
            }
            divisors.iter().try_for_each(|&by| positive(name, f64::from(by)))
        };
        positive("theta", self.theta)?;
        match &self.scaling {
            Scaling::None => Ok(()),
            Scaling::Linear { factor } => positive("factor", *factor),
            Scaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_frequency_factor)?;
                positive("high_freq_factor - low_freq_factor", high_frequency_factor - low_frequency_factor)?;
                context(*original_context)
            }
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate: _ } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                context(*original_context)
            }
            Scaling::Divisors(by) => divisors("rope_freqs", by),
            Scaling::Long { short, long, original_context, attention_factor } => {
                divisors("short_factor", short)?;
                divisors("long_factor", long)?;
                positive("attention_factor", *attention_factor)?;
                context(*original_context)
            }
        }
    }

    /// By what angle each of `pairs` pairs turns for one position, in radians, in a model that is used with `context` positions.
    pub(crate) fn frequencies(&self, pairs: usize, context: usize) -> Vec<f32> {
        let plain = (0..pairs).map(|i| self.theta.powf(-(i as f64) / pairs as f64));
        match &self.scaling {
            Scaling::None => plain.map(|frequency| frequency as f32).collect(),
            Scaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
            Scaling::Divisors(divisors) => plain.zip(divisors).map(|(frequency, by)| frequency as f32 / by).collect(),
            Scaling::Long { short, long, original_context, .. } => {
                let divisors = if context > *original_context { long } else { short };
                plain.zip(divisors).map(|(frequency, by)| (frequency / f64::from(*by)) as f32).collect()
            }
            Scaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => plain
                .map(|frequency| {
                    // How often the pair turned in the longest text that the model was trained on.
                    let turns = *original_context as f64 * frequency / TAU;
                    let share = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    blend(frequency, *factor, share)
                })
                .collect(),
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                // The pair that turned so often in the longest text that the model was trained on.
                let pair =
                    |turns: f64| pairs as f64 * (*original_context as f64 / (turns * TAU)).ln() / self.theta.ln();
                let (low, high) = match (pair(*beta_fast), pair(*beta_slow)) {
                    (low, high) if *truncate => (low.floor(), high.ceil()),
                    range => range,
                };
                let (low, high) = (low.max(0.0), high.min(2.0 * pairs as f64 - 1.0));
                let width = if high == low { 1e-3 } else { high - low };
                let slowed = |i: usize| (i as f64 - low) / width;
                plain.enumerate().map(|(i, frequency)| blend(frequency, *factor, 1.0 - slowed(i))).collect()
            }
        }
    }

    /// What sines and cosines are multiplied by.
    pub(crate) fn amplitude(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } | Scaling::Long { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }
}

/// What a head's pairs turn by for one position, and what sines and cosines are multiplied by.
#[derive(Debug)]
pub(crate) struct Frequencies {
    turns: Vec<f32>,
    amplitude: f32,
}

impl Frequencies {
    /// Those of a head with `pairs` pairs, in a model that is used with `context` positions.
    pub(crate) fn of(rope: &Rope, pairs: usize, context: usize) -> Self {
        Self { turns: rope.frequencies(pairs, context), amplitude: rope.amplitude() }
    }

    /// Cosines and sines of positions, each `[positions, 1, pairs]`. Angles are in single precision, as the reference has them.
    pub(crate) fn turns(&self, positions: &[f32], device: &Device) -> candle_core::Result<[Tensor; 2]> {
        let angles = positions.iter().flat_map(|position| self.turns.iter().map(move |turn| position * turn));
        let angles: Vec<f32> = angles.collect();
        let tensor = |of: fn(f32) -> f32| {
            let values = angles.iter().map(|angle| of(*angle) * self.amplitude).collect();
            Tensor::from_vec(values, (positions.len(), 1, self.turns.len()), device)
        };
        Ok([tensor(f32::cos)?, tensor(f32::sin)?])
    }
}

/// A share from 0 to 1 of the frequency as it is, and the rest of it slowed.
fn blend(frequency: f64, factor: f64, share: f64) -> f32 {
    let share = share.clamp(0.0, 1.0);
    (frequency * share + frequency / factor * (1.0 - share)) as f32
}

/// By how much YaRN sharpens the attention where the model does not say, equation 22 of the paper.
pub(crate) fn yarn_attention_factor(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

/// The same of LongRoPE, as Phi 3 has it, for a context `factor` times as long as the first.
pub(crate) fn long_attention_factor(factor: f64, original_context: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_pairs_keep_their_frequency_and_slow_ones_are_slowed_by_the_factor() {
        let plain = Rope::plain(5e5).frequencies(32, 1);
        assert_eq!(plain[0], 1.0);
        let llama3 = Scaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192,
        };
        let yarn = Scaling::Yarn {
            factor: 8.0,
            original_context: 8192,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.2,
            truncate: true,
        };
        for scaling in [llama3, yarn] {
            let scaled = Rope { theta: 5e5, scaling }.frequencies(32, 1);
            let ratios: Vec<f32> = scaled.iter().zip(&plain).map(|(scaled, plain)| plain / scaled).collect();
            assert!((ratios[0] - 1.0).abs() < 1e-6 && (ratios[31] - 8.0).abs() < 1e-4, "{ratios:?}");
            assert!(ratios.is_sorted_by(|a, b| *a <= b + 1e-5), "{ratios:?}");
        }
        let halved = Rope { theta: 1e4, scaling: Scaling::Divisors(vec![1.0, 2.0]) }.frequencies(2, 1);
        assert_eq!(halved, [1.0, 0.005]);
        let long = Scaling::Long {
            short: vec![1.0, 1.0],
            long: vec![1.0, 4.0],
            original_context: 64,
            attention_factor: long_attention_factor(4.0, 64),
        };
        let long = Rope { theta: 1e4, scaling: long };
        assert_eq!((long.frequencies(2, 64), long.frequencies(2, 65)), (vec![1.0, 0.01], vec![1.0, 0.0025]));
        assert!((long.amplitude() - (4f32 / 3.0).sqrt()).abs() < 1e-6);
        assert!(long.check(3).unwrap_err().to_string().contains("short_factor"));
    }
}
