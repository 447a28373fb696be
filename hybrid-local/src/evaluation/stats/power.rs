use super::normal::{quantile, two_sided};

/// The smallest difference between two shares that McNemar's test at level `alpha` finds with probability `power`, if the share `changed` of `cases`
/// comes out differently under the two versions; `None` if so few cases can show no difference.
///
/// After Connor (1987, *Biometrics* 43:207–211): the δ with `√n·δ = z(1-α/2)·√ψ + z(power)·√(ψ - δ²)`. Since a difference of δ needs at least that
/// share of changed cases, ψ is `changed` or δ, whichever is larger. A normal approximation: the exact test needs slightly more.
pub fn detectable_share(cases: u64, changed: f64, alpha: f64, power: f64) -> Option<f64> {
    let (root, z_alpha, z_power) = (libm::sqrt(cases as f64), two_sided(1.0 - alpha), quantile(power));
    let found = |delta: f64| {
        let psi = changed.max(delta);
        z_alpha * libm::sqrt(psi) + z_power * libm::sqrt((psi - delta * delta).max(0.0)) <= delta * root
    };
    if !found(1.0) {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if found(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// The smallest mean of paired differences with this standard deviation that a two-sided test at level `alpha` finds with probability `power`:
/// `(z(1-α/2) + z(power)) · deviation / √cases`; `None` if there is no deviation to judge by.
pub fn detectable_mean(cases: u64, deviation: f64, alpha: f64, power: f64) -> Option<f64> {
    (cases > 1 && deviation > 0.0)
        .then(|| (two_sided(1.0 - alpha) + quantile(power)) * deviation / libm::sqrt(cases as f64))
}

#[cfg(test)]
mod tests {
    use super::{super::mcnemar, *};

    /// How often the exact test finds that the candidate is better, over every outcome of `n` cases.
    fn exact_power(n: u64, changed: f64, delta: f64) -> f64 {
        let (fix, regress) = (0.5 * (changed + delta), 0.5 * (changed - delta));
        let ln = |share: f64, count: u64| if count == 0 { 0.0 } else { count as f64 * libm::log(share) };
        let ln_factorial = |count: u64| libm::lgamma(count as f64 + 1.0);
        let mut power = 0.0;
        for fixes in 0..=n {
            for regressions in 0..=(n - fixes).min(fixes) {
                if mcnemar(fixes, regressions) < 0.05 {
                    let same = n - fixes - regressions;
                    power += libm::exp(
                        ln_factorial(n) - ln_factorial(fixes) - ln_factorial(regressions) - ln_factorial(same)
                            + ln(fix, fixes)
                            + ln(regress, regressions)
                            + ln(1.0 - changed, same),
                    );
                }
            }
        }
        power
    }

    #[test]
    fn an_effect_of_that_size_is_found_about_that_often() {
        for (n, changed) in [(150, 0.1), (150, 0.3), (300, 0.12)] {
            let delta = detectable_share(n, changed, 0.05, 0.8).unwrap();
            let power = exact_power(n, changed, delta);
            assert!((0.7..0.82).contains(&power), "{n} cases, {changed} changed: {delta} is found with {power}");
        }
    }

    #[test]
    fn few_cases_show_little() {
        assert_eq!(detectable_share(3, 0.0, 0.05, 0.8), None);
        assert_eq!(detectable_share(0, 0.0, 0.05, 0.8), None);
        // If all of the change goes one way, n·δ ≥ z² cases of it are the least: 3.84 of 400 and something for the power.
        let delta = detectable_share(400, 0.0, 0.05, 0.8).unwrap();
        assert!((0.0096..0.02).contains(&delta), "{delta}");
        let at = |n| detectable_share(n, 0.1, 0.05, 0.8).unwrap();
        assert!(at(100) > at(400) && at(400) > at(1600));
    }

    #[test]
    fn the_mean_follows_its_formula() {
        let delta = detectable_mean(100, 0.5, 0.05, 0.8).unwrap();
        assert!((delta - 2.801_585_218 * 0.05).abs() < 1e-9, "{delta}");
        assert_eq!(detectable_mean(100, 0.0, 0.05, 0.8), None);
    }
}
