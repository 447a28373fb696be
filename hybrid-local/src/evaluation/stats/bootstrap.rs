use hybrid_core::Interval;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{mean, variance};

/// Differences below this are rounding.
const ROUNDING: f64 = 1e-12;

/// The bootstrap: what a mean might have been, had the cases been drawn again (Efron and Tibshirani 1993, *An Introduction to the Bootstrap*).
///
/// The same seed, stream and values give the same result on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The seed of the random numbers.
    pub seed: u64,
    /// Which of the seed's independent streams is used, so that each question has its own.
    pub stream: u64,
    /// How often the cases are drawn again.
    pub resamples: u32,
}

/// The mean of paired differences with what the bootstrap says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedMean {
    /// The mean with its interval.
    pub difference: Interval,
    /// The two-sided p-value of no difference.
    pub p: f64,
}

impl Bootstrap {
    /// The mean of `values` with its percentile interval (chapter 13).
    pub fn mean(self, values: &[f64], confidence: f64) -> Interval {
        let mut means = Vec::with_capacity(self.resamples as usize);
        self.each_resample(values, |mean, _| means.push(mean));
        percentiles(mean(values), means, confidence)
    }

    /// The mean of paired `differences` with its percentile interval and a two-sided p-value of no difference.
    ///
    /// The p-value is that of the studentised statistic (chapters 12 and 16): how often `|m* - m| / s*` of a resample reaches `|m| / s`, counted as
    /// `(1 + hits) / (1 + resamples)`. With few changed cases a resample easily misses them all, so the p-value is never below `2^(1 - changed)`,
    /// the least that flipping the signs of as many differences could give.
    pub fn paired(self, differences: &[f64], confidence: f64) -> PairedMean {
        let (centre, spread) = (mean(differences), variance(differences));
        let (mut means, mut hits) = (Vec::with_capacity(self.resamples as usize), 0_u32);
        self.each_resample(differences, |mean, variance| {
            let off = mean - centre;
            // Both sides squared and multiplied out, so that a resample without spread needs no division.
            if off.abs() > ROUNDING && off * off * spread >= centre * centre * variance {
                hits += 1;
            }
            means.push(mean);
        });
        let changed = differences.iter().filter(|difference| difference.abs() > ROUNDING).count();
        let least = libm::exp2(1.0 - changed as f64);
        let p = match centre.abs() > ROUNDING {
            true => (f64::from(hits) + 1.0) / (f64::from(self.resamples) + 1.0),
            false => 1.0,
        };
        PairedMean { difference: percentiles(centre, means, confidence), p: p.max(least).min(1.0) }
    }

    /// Calls `see` with mean and sample variance of each resample.
    fn each_resample(self, values: &[f64], mut see: impl FnMut(f64, f64)) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(seed);
        random.set_stream(self.stream);
        let n = values.len();
        if n == 0 {
            return;
        }
        for _ in 0..self.resamples {
            let (mut sum, mut squares) = (0.0, 0.0);
            for _ in 0..n {
                // The upper half of the product: even to within n / 2⁶⁴, and the same in every version of every library.
                let index = (u128::from(random.next_u64()) * n as u128) >> 64;
                let value = values[index as usize];
                sum += value;
                squares += value * value;
            }
            let mean = sum / n as f64;
            let variance = if n > 1 { ((squares - sum * mean) / (n - 1) as f64).max(0.0) } else { 0.0 };
            see(mean, variance);
        }
    }
}

fn percentiles(value: f64, mut means: Vec<f64>, confidence: f64) -> Interval {
    if means.is_empty() {
        return Interval { value, low: value, high: value };
    }
    means.sort_by(f64::total_cmp);
    let outside = ((0.5 * (1.0 - confidence)) * means.len() as f64) as usize;
    Interval { value, low: means[outside].min(value), high: means[means.len() - 1 - outside].max(value) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUICK: Bootstrap = Bootstrap { seed: 7, stream: 0, resamples: 1000 };

    /// Skewed values with mean 1: the exponential distribution.
    fn skewed(random: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
        (0..n).map(|_| -libm::log(1.0 - (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_and_another_stream_does_not() {
        let values = skewed(&mut ChaCha8Rng::from_seed([1; 32]), 40);
        assert_eq!(QUICK.paired(&values, 0.95), QUICK.paired(&values, 0.95));
        assert_ne!(QUICK.mean(&values, 0.95), Bootstrap { stream: 1, ..QUICK }.mean(&values, 0.95));
        assert_ne!(QUICK.mean(&values, 0.95), Bootstrap { seed: 8, ..QUICK }.mean(&values, 0.95));
    }

    #[test]
    fn the_draws_never_change() {
        // Verdicts are compared across versions and machines: whoever changes the way of drawing changes them all. The figures
        // come from another implementation of ChaCha8, with its 64-bit stream number.
        let interval = Bootstrap { seed: 42, stream: 3, resamples: 200 }.mean(&[0.0, 0.1, 0.4, 0.9, 1.0], 0.95);
        assert_eq!(
            format!("{:.6} {:.6} {:.6}", interval.value, interval.low, interval.high),
            "0.480000 0.120000 0.840000"
        );
    }

    #[test]
    fn the_interval_covers_about_as_often_as_it_says() {
        let mut random = ChaCha8Rng::from_seed([2; 32]);
        let rounds = 400;
        let covered = (0..rounds)
            .filter(|&stream| {
                let interval = Bootstrap { stream, ..QUICK }.mean(&skewed(&mut random, 60), 0.95);
                (interval.low..=interval.high).contains(&1.0)
            })
            .count();
        // Percentile intervals of skewed values are known to cover a little too little.
        assert!((364..=390).contains(&covered), "{covered} of {rounds}");
    }

    #[test]
    fn equal_versions_are_told_apart_no_more_often_than_the_level_says() {
        let mut random = ChaCha8Rng::from_seed([3; 32]);
        let rounds = 400;
        let wrong = (0..rounds)
            .filter(|&stream| {
                // One in five cases changed, by an even amount either way.
                let differences: Vec<f64> = skewed(&mut random, 50)
                    .into_iter()
                    .map(
                        |value| {
                            if value < 0.223 { (random.next_u64() as f64 / u64::MAX as f64) * 2.0 - 1.0 } else { 0.0 }
                        },
                    )
                    .collect();
                Bootstrap { stream, ..QUICK }.paired(&differences, 0.95).p < 0.05
            })
            .count();
        assert!(wrong <= 28, "{wrong} of {rounds}");
    }

    #[test]
    fn a_real_difference_is_found_and_a_handful_of_cases_proves_nothing() {
        let mut better = vec![0.0; 60];
        better[..20].fill(0.4);
        assert!(QUICK.paired(&better, 0.95).p < 0.01);
        assert!(QUICK.paired(&better, 0.95).difference.low > 0.0);
        // Without the bound of the sign flips these would look certain.
        assert_eq!(QUICK.paired(&[0.5; 4], 0.95).p, 0.125);
        assert_eq!(QUICK.paired(&[], 0.95).p, 1.0);
        assert_eq!(QUICK.paired(&[0.3], 0.95).p, 1.0);
        assert!(QUICK.paired(&[0.5; 12], 0.95).p < 0.01);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_p_value_is_a_probability_and_takes_no_side(differences in prop::collection::vec(-1.0..=1.0f64, 0..40)) {
            let here = QUICK.paired(&differences, 0.95);
            let there = QUICK.paired(&differences.iter().map(|difference| -difference).collect::<Vec<_>>(), 0.95);
            prop_assert!((0.0..=1.0).contains(&here.p));
            prop_assert_eq!(here.p, there.p);
            prop_assert!((here.difference.low + there.difference.high).abs() < 1e-9);
            prop_assert!(here.difference.low <= here.difference.value && here.difference.value <= here.difference.high);
        }
    }
}
