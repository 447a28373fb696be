/// The share of a standard normal distribution below `z`.
fn cumulative(z: f64) -> f64 {
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// The point below which the share `p` of a standard normal distribution lies, by halving to the last bit.
pub(super) fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle;
        }
        if cumulative(middle) < p { low = middle } else { high = middle }
    }
}

/// How many standard deviations around the centre hold the share `confidence`.
pub(super) fn two_sided(confidence: f64) -> f64 {
    quantile(0.5 + 0.5 * confidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [
            (0.5, 0.0),
            (0.8, 0.841_621_233_572_914_3),
            (0.975, 1.959_963_984_540_054),
            (0.995, 2.575_829_303_548_900_4),
        ] {
            assert!((quantile(p) - z).abs() < 1e-12, "{p}: {}", quantile(p));
            assert!((quantile(1.0 - p) + z).abs() < 1e-12, "{p}");
        }
        assert!((two_sided(0.95) - 1.959_963_984_540_054).abs() < 1e-12);
    }
}
