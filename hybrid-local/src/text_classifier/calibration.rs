//! Calibrated probabilities: temperature scaling and its measure.
//!
//! Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.

/// Logits of texts that the model has not learnt from, with the right label's index for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Unseen {
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) labels: Vec<usize>,
}

/// Bounds of a temperature. Data that is all right or all wrong would otherwise drive it to zero or to infinity.
pub(super) const TEMPERATURES: std::ops::RangeInclusive<f64> = 0.05..=20.0;
const ECE_BINS: usize = 15;

impl Unseen {
    /// The temperature that gives the least mean loss: where the derivative of the loss by the inverse temperature, which only grows, is zero.
    pub(super) fn best_temperature(&self) -> f64 {
        let (mut low, mut high) = ((1.0 / TEMPERATURES.end()).ln(), (1.0 / TEMPERATURES.start()).ln());
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if self.slope(middle.exp()) > 0.0 { high = middle } else { low = middle }
        }
        // Logarithm and power may round to just outside.
        (1.0 / f64::midpoint(low, high).exp()).clamp(*TEMPERATURES.start(), *TEMPERATURES.end())
    }

    fn slope(&self, inverse: f64) -> f64 {
        self.pairs()
            .map(|(logits, label)| {
                let probabilities = softmax(logits, 1.0 / inverse);
                let expected: f64 = probabilities.iter().zip(logits).map(|(p, &z)| p * f64::from(z)).sum();
                expected - f64::from(logits[label])
            })
            .sum()
    }

    /// The mean negative log-likelihood of the right labels.
    pub(super) fn loss(&self, temperature: f64) -> f64 {
        let sum: f64 = self.pairs().map(|(logits, label)| -log_softmax(logits, temperature, label)).sum();
        sum / self.labels.len().max(1) as f64
    }

    /// The share of texts whose best label is the right one.
    pub(super) fn accuracy(&self) -> f64 {
        let right = self.pairs().filter(|(logits, label)| best(logits) == *label).count();
        right as f64 / self.labels.len().max(1) as f64
    }

    /// The expected calibration error over 15 bins of equal width: the mean gap between confidence and accuracy, weighted by the bins' sizes.
    pub(super) fn ece(&self, temperature: f64) -> f64 {
        let mut bins = [(0.0f64, 0.0f64); ECE_BINS];
        for (logits, label) in self.pairs() {
            let winner = best(logits);
            let confidence = softmax(logits, temperature)[winner];
            let bin = ((confidence * ECE_BINS as f64) as usize).min(ECE_BINS - 1);
            bins[bin].0 += confidence;
            bins[bin].1 += f64::from(u8::from(winner == label));
        }
        bins.iter().map(|(confidence, right)| (confidence - right).abs()).sum::<f64>() / self.labels.len().max(1) as f64
    }

    fn pairs(&self) -> impl Iterator<Item = (&[f32], usize)> {
        self.logits.iter().map(Vec::as_slice).zip(self.labels.iter().copied())
    }
}

/// Probabilities of logits at a temperature.
pub(super) fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<_> = logits.iter().map(|&z| (f64::from(z - max) / temperature).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

fn log_softmax(logits: &[f32], temperature: f64, label: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled = |z: f32| f64::from(z - max) / temperature;
    scaled(logits[label]) - logits.iter().map(|&z| scaled(z).exp()).sum::<f64>().ln()
}

fn best(logits: &[f32]) -> usize {
    let order = |&(i, a): &(usize, &f32), &(j, b): &(usize, &f32)| a.total_cmp(b).then(j.cmp(&i));
    logits.iter().enumerate().max_by(order).map_or(0, |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Labels drawn from the very probabilities that `true_logits` say, and a model that is `factor` times as sure.
    fn drawn(factor: f32) -> Unseen {
        let mut random = Random::of(5, "calibration test", [0, 0]);
        let mut unseen = Unseen::default();
        for _ in 0..4_000 {
            let logits = random.normal(4, 1.5);
            let mut left = random.uniform();
            let shares = softmax(&logits, 1.0);
            let label = shares
                .iter()
                .position(|share| {
                    left -= share;
                    left < 0.0
                })
                .unwrap_or(3);
            unseen.logits.push(logits.iter().map(|z| z * factor).collect());
            unseen.labels.push(label);
        }
        unseen
    }

    #[test]
    fn the_temperature_undoes_too_much_and_too_little_confidence() {
        for factor in [0.25f32, 1.0, 4.0] {
            let unseen = drawn(factor);
            let temperature = unseen.best_temperature();
            assert!((temperature / f64::from(factor) - 1.0).abs() < 0.08, "factor {factor}: {temperature}");
            let near = [temperature * 0.9, temperature * 1.1];
            assert!(near.iter().all(|&other| unseen.loss(temperature) < unseen.loss(other)));
            assert!(unseen.ece(temperature) < 0.03);
            assert!(factor == 1.0 || unseen.ece(1.0) > 0.1);
        }
    }

    #[test]
    fn data_that_is_all_right_or_all_wrong_has_a_temperature_within_bounds() {
        for label in [0, 1] {
            let unseen = Unseen { logits: vec![vec![2.0, -2.0]; 3], labels: vec![label; 3] };
            let (found, bound) = (unseen.best_temperature(), [TEMPERATURES.start(), TEMPERATURES.end()][label]);
            assert!(TEMPERATURES.contains(&found) && (found - bound).abs() < 1e-9, "{found}");
        }
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        // Confidences 0.8, 0.8, 0.6; right, wrong, right.
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let unseen = Unseen {
            logits: vec![vec![logit(0.8), 0.0], vec![logit(0.8), 0.0], vec![0.0, logit(0.6)]],
            labels: vec![0, 1, 1],
        };
        assert!((unseen.accuracy() - 2.0 / 3.0).abs() < 1e-9);
        assert!((unseen.ece(1.0) - (0.6 + 0.4) / 3.0).abs() < 1e-6);
        let loss = -(0.8f64.ln() + 0.2f64.ln() + 0.6f64.ln()) / 3.0;
        assert!((unseen.loss(1.0) - loss).abs() < 1e-6);
    }
}
