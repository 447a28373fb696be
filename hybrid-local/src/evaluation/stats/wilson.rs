use hybrid_core::Interval;

use super::normal::two_sided;

/// The share `successes / cases` with its score interval (Wilson 1927, *JASA* 22:209–212), without continuity correction.
///
/// Its coverage is near the nominal one on average for small sets and shares near 0 and 1 too, where the textbook interval fails
/// (Brown, Cai and DasGupta 2001, *Statistical Science* 16:101–133). Of no cases at all nothing is known: from 0 to 1.
///
/// ```
/// use hybrid_local::evaluation::stats::wilson;
///
/// let share = wilson(8, 10, 0.95);
/// assert_eq!(format!("{:.2} [{:.3}, {:.3}]", share.value, share.low, share.high), "0.80 [0.490, 0.943]");
/// ```
pub fn wilson(successes: u64, cases: u64, confidence: f64) -> Interval {
    if cases == 0 {
        return Interval { value: 0.0, low: 0.0, high: 1.0 };
    }
    let (n, z) = (cases as f64, two_sided(confidence));
    let share = successes.min(cases) as f64 / n;
    let shrink = 1.0 + z * z / n;
    let centre = (share + z * z / (2.0 * n)) / shrink;
    let half = z / shrink * libm::sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n));
    // The ends are exact where rounding would leave them a hair off.
    Interval {
        value: share,
        low: if successes == 0 { 0.0 } else { centre - half },
        high: if successes >= cases { 1.0 } else { centre + half },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_known_values() {
        let known = [
            (8, 10, 0.490_162_471_536_641_8, 0.943_317_848_545_624_7),
            (0, 10, 0.0, 0.277_532_799_862_889_2),
            (10, 10, 0.722_467_200_137_110_8, 1.0),
            // Newcombe 1998, Statistics in Medicine 17:857-872, table I.
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
        ];
        for (successes, cases, low, high) in known {
            let interval = wilson(successes, cases, 0.95);
            assert!(
                (interval.low - low).abs() < 5e-5 && (interval.high - high).abs() < 5e-5,
                "{successes}/{cases}: {interval:?}"
            );
        }
        assert_eq!(wilson(0, 0, 0.95), Interval { value: 0.0, low: 0.0, high: 1.0 });
    }

    #[test]
    fn the_interval_covers_as_often_as_it_says() {
        // The exact coverage at n = 50, averaged over shares: every count with its binomial weight.
        let n = 50u64;
        let mut covered = 0.0;
        for step in 1..200 {
            let share = f64::from(step) / 200.0;
            let mut weight = libm::pow(1.0 - share, n as f64);
            for k in 0..=n {
                let interval = wilson(k, n, 0.95);
                if (interval.low..=interval.high).contains(&share) {
                    covered += weight / 199.0;
                }
                weight *= (n - k) as f64 / (k + 1) as f64 * share / (1.0 - share);
            }
        }
        assert!((0.945..0.96).contains(&covered), "{covered}");
    }
}
