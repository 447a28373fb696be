//! Seeded randomness that says what it is for: every draw depends on the plan's seed, a purpose and a number alone, so a run that goes
//! on from a checkpoint draws what it would have drawn.

use hybrid_core::Hasher;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// A stream of random numbers, the same on every machine: ChaCha8 keyed with SHA-256 of seed, purpose and index.
#[derive(Clone, Debug)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn of(seed: u64, purpose: &str, index: [u64; 2]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(&seed.to_le_bytes());
        index.iter().for_each(|index| hasher.update(&index.to_le_bytes()));
        hasher.update(purpose.as_bytes());
        Self(ChaCha8Rng::from_seed(*hasher.finish().as_bytes()))
    }

    /// Uniform in `0..bound`; `bound` must not be zero. The bias is below `bound / 2^64`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `count` numbers of which a `share` (to 1/65,536) is zero and the rest one over the other share, so that the mean is one.
    pub(crate) fn mask(&mut self, count: usize, share: f64) -> Vec<f32> {
        let (limit, kept) = ((share * 65_536.0) as u16, (1.0 / (1.0 - share)) as f32);
        let mut draws = vec![0u8; 2 * count];
        self.0.fill_bytes(&mut draws);
        let keep = |draw: &[u8; 2]| if u16::from_le_bytes(*draw) < limit { 0.0 } else { kept };
        draws.as_chunks().0.iter().map(keep).collect()
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `count` draws from the normal distribution with mean 0 and deviation `scale` (Box and Muller).
    pub(crate) fn normal(&mut self, count: usize, scale: f64) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
                (radius * (std::f64::consts::TAU * self.uniform()).cos() * scale) as f32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_and_numbers_have_streams_of_their_own() {
        let draw = |seed, purpose, index| Random::of(seed, purpose, index).uniform().to_bits();
        let all = [
            draw(1, "a", [0, 0]),
            draw(2, "a", [0, 0]),
            draw(1, "b", [0, 0]),
            draw(1, "a", [1, 0]),
            draw(1, "a", [0, 1]),
        ];
        assert!((0..all.len()).all(|i| !all[..i].contains(&all[i])));
        assert_eq!(draw(1, "a", [0, 0]), all[0]);
    }

    #[test]
    fn normal_draws_have_the_mean_and_deviation_asked_for() {
        let draws = Random::of(7, "test", [0, 0]).normal(20_000, 2.0);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.05 && (variance.sqrt() - 2.0).abs() < 0.05, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_mask_leaves_out_its_share_and_keeps_the_mean() {
        for share in [0.0, 0.1, 0.5] {
            let mask = Random::of(7, "test", [0, 0]).mask(40_001, share);
            let zeros = mask.iter().filter(|&&x| x == 0.0).count() as f64 / 40_001.0;
            let mean = mask.iter().map(|&x| f64::from(x)).sum::<f64>() / 40_001.0;
            assert!((zeros - share).abs() < 0.01 && (mean - 1.0).abs() < 0.02, "{share}: {zeros}, {mean}");
        }
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<_> = (0..100).collect();
        Random::of(3, "test", [0, 0]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
