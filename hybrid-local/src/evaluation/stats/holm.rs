/// The adjusted p-values of a family of tests, in the order given: whoever rejects those below α is wrong about any of them with a chance of at
/// most α, however the tests depend on each other (Holm 1979, *Scandinavian Journal of Statistics* 6:65–70).
///
/// ```
/// use hybrid_local::evaluation::stats::holm;
///
/// assert_eq!(holm(&[0.01, 0.5, 0.02]), [0.03, 0.5, 0.04]);
/// ```
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        let left = (p_values.len() - rank) as f64;
        largest = largest.max((left * p_values[index]).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_textbook_example_holds() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[]), Vec::<f64>::new());
        assert_eq!(holm(&[0.7, 0.8]), [1.0, 1.0]);
    }

    proptest! {
        #[test]
        fn adjusting_raises_keeps_the_order_and_begins_with_bonferroni(p_values in prop::collection::vec(0.0..=1.0f64, 1..12)) {
            let adjusted = holm(&p_values);
            for (i, &p) in p_values.iter().enumerate() {
                prop_assert!((p..=1.0).contains(&adjusted[i]));
                for (j, &q) in p_values.iter().enumerate() {
                    prop_assert!(p > q || adjusted[i] <= adjusted[j]);
                }
            }
            let least = p_values.iter().copied().fold(1.0, f64::min);
            let bonferroni = (least * p_values.len() as f64).min(1.0);
            prop_assert!((adjusted.iter().copied().fold(1.0, f64::min) - bonferroni).abs() < 1e-12);
        }
    }
}
