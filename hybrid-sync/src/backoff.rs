use std::time::Duration;

/// Exponential back-off with full jitter: the wait before try *n + 1* is uniform in `0..=min(cap, first · 2^(n-1))`.
///
/// Full jitter spreads callers that failed together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
/// A wait is a pure function of seed and try, so a run can be repeated.
///
/// ```
/// use std::time::Duration;
/// use hybrid_sync::Backoff;
///
/// let backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// assert!(backoff.wait(7, 3) <= Duration::from_secs(4));
/// assert!(backoff.wait(7, 99) <= Duration::from_secs(60));
/// assert_eq!(backoff.wait(7, 3), backoff.wait(7, 3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure.
    pub first: Duration,
    /// The longest wait at all.
    pub cap: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row, at least one.
    pub fn wait(&self, seed: u64, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.cap);
        let random = mix(seed.wrapping_add(mix(u64::from(failures))));
        // 53 bits are what a double holds: uniform in [0, 1).
        ceiling.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// A seed that is the same for the same bytes and unlike that of others.
pub(crate) fn seed_of(seed: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mix(seed), |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(state ^ u64::from_le_bytes(word))
    })
}

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_spread_and_stay_below_the_cap() {
        let backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(900) };
        let mean = |failures| {
            let waits = (0..1000).map(|seed| backoff.wait(seed, failures));
            assert!(waits.clone().all(|wait| wait <= backoff.cap));
            waits.sum::<Duration>() / 1000
        };
        for failures in 1..=6 {
            let expected = Duration::from_secs(1 << (failures - 1)) / 2;
            let found = mean(failures);
            assert!(found > expected.mul_f64(0.9) && found < expected.mul_f64(1.1), "{failures}: {found:?}");
        }
        assert!(mean(u32::MAX) > Duration::from_secs(400));
    }
}
