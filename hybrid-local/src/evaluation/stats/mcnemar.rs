use hybrid_core::Interval;

use super::normal::two_sided;

/// The two-sided p-value of the exact McNemar test: how likely a split at least as uneven as `fixes` against `regressions` is if both versions are
/// equally good.
///
/// Cases that both versions get right, or both wrong, say nothing (McNemar 1947, *Psychometrika* 12:153–157). Of the others each is a fix with
/// probability ½, so that the fewer of the two follow a binomial distribution; the p-value is twice its lower tail, at most 1. No normal approximation
/// and so no continuity correction (Edwards 1948, *Psychometrika* 13:185–187) is needed.
///
/// ```
/// use hybrid_local::evaluation::stats::mcnemar;
///
/// assert!((mcnemar(9, 1) - 0.021484375).abs() < 1e-12); // 2 · (1 + 10) / 2¹⁰
/// ```
pub fn mcnemar(fixes: u64, regressions: u64) -> f64 {
    if fixes == regressions {
        return 1.0;
    }
    let (n, fewer) = (fixes.saturating_add(regressions), fixes.min(regressions));
    let ln_last = ln_choose(n, fewer) - n as f64 * std::f64::consts::LN_2;
    // The tail relative to its last and largest term, downwards until the rest cannot be seen.
    let (mut tail, mut term) = (1.0, 1.0);
    for k in (1..=fewer).rev() {
        term *= k as f64 / (n - k + 1) as f64;
        tail += term;
        if term < tail * f64::EPSILON * 0.01 {
            break;
        }
    }
    libm::exp(std::f64::consts::LN_2 + ln_last + libm::log(tail)).min(1.0)
}

/// The difference of two shares on the same cases, `(fixes - regressions) / cases`, with its interval after Agresti and Min (2005, *Statistics in
/// Medicine* 24:729–740): the Wald interval with half a case added to each cell of the two-by-two table.
pub fn paired_difference(fixes: u64, regressions: u64, cases: u64, confidence: f64) -> Interval {
    if cases == 0 {
        return Interval { value: 0.0, low: -1.0, high: 1.0 };
    }
    let value = (fixes as f64 - regressions as f64) / cases as f64;
    let (better, worse, n) = (fixes as f64 + 0.5, regressions as f64 + 0.5, cases as f64 + 2.0);
    let centre = (better - worse) / n;
    let half = two_sided(confidence) * libm::sqrt(better + worse - (better - worse) * (better - worse) / n) / n;
    Interval { value, low: (centre - half).clamp(-1.0, value), high: (centre + half).clamp(value, 1.0) }
}

/// The logarithm of the number of ways to choose `k` of `n`.
fn ln_choose(n: u64, k: u64) -> f64 {
    libm::lgamma(n as f64 + 1.0) - libm::lgamma(k as f64 + 1.0) - libm::lgamma((n - k) as f64 + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-10 * expected
    }

    #[test]
    fn the_p_value_has_the_known_values() {
        // In exact rational arithmetic; 121 against 59 is the example of statsmodels' documentation of `mcnemar`.
        let known = [
            (0, 0, 1.0),
            (0, 5, 0.0625),
            (6, 0, 0.03125),
            (1, 9, 0.021_484_375),
            (12, 3, 0.035_156_25),
            (10, 25, 0.016_673_847_800_120_71),
            (40, 60, 0.056_887_933_640_981),
            (121, 59, 4.434_449_263_755_176e-6),
            (500, 600, 0.002_819_544_991_436_427_5),
        ];
        for (fixes, regressions, p) in known {
            assert!(close(mcnemar(fixes, regressions), p), "{fixes} {regressions}: {}", mcnemar(fixes, regressions));
        }
    }

    #[test]
    fn the_p_value_is_what_counting_every_outcome_gives() {
        for n in 0..=16u32 {
            for fixes in 0..=n {
                // Every way in which n coins can fall that is at least as uneven.
                let uneven = fixes.abs_diff(n - fixes);
                let as_uneven = (0..1u32 << n)
                    .filter(|coins| coins.count_ones().abs_diff(n - coins.count_ones()) >= uneven)
                    .count();
                let p = as_uneven as f64 / f64::from(1u32 << n);
                assert!(close(mcnemar(fixes.into(), (n - fixes).into()), p), "{fixes} of {n}");
            }
        }
    }

    #[test]
    fn a_great_many_cases_neither_overflow_nor_vanish() {
        assert_eq!(mcnemar(3_000_000, 0), 0.0);
        assert_eq!(mcnemar(u64::MAX, u64::MAX), 1.0);
        // z = 2 without continuity correction; the exact value lies a little above 0.0455.
        let p = mcnemar(501_000, 499_000);
        assert!((0.0454..0.0457).contains(&p), "{p}");
    }

    #[test]
    fn the_interval_of_a_difference_is_that_of_the_paper() {
        // 0.5 added to each cell: (16.5 - 5.5) / 102 ± 1.96 · sqrt(22 - 121 / 102) / 102.
        let interval = paired_difference(16, 5, 100, 0.95);
        assert!((interval.value - 0.11).abs() < 1e-12);
        assert!((interval.low - 0.020_179).abs() < 1e-5 && (interval.high - 0.195_507).abs() < 1e-5, "{interval:?}");
    }

    proptest! {
        #[test]
        fn the_p_value_is_a_probability_and_takes_no_side(fixes in 0..5000u64, regressions in 0..5000u64) {
            let p = mcnemar(fixes, regressions);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert_eq!(p, mcnemar(regressions, fixes));
            prop_assert!(mcnemar(fixes + 1, regressions) <= p || fixes < regressions + 1);
        }

        #[test]
        fn the_interval_of_a_difference_holds_it(fixes in 0..500u64, regressions in 0..500u64, same in 0..500u64) {
            let cases = fixes + regressions + same;
            let here = paired_difference(fixes, regressions, cases, 0.95);
            prop_assert!(here.low <= here.value && here.value <= here.high && here.low >= -1.0 && here.high <= 1.0);
            let there = paired_difference(regressions, fixes, cases, 0.95);
            prop_assert!((here.low + there.high).abs() < 1e-12 && (here.high + there.low).abs() < 1e-12);
        }
    }
}
