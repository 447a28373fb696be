//! The loss of classes.

use candle_core::{D, Tensor};

/// The mean cross-entropy of `[batch, labels]` logits against `[batch, labels]` target shares.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    // The maximum only keeps the exponentials small; its gradient cancels out.
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_shares = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    (log_shares * targets)?.sum_all()?.neg()? / logits.dim(0)? as f64
}

/// `[batch, labels]` target shares: each right label's one, of which `smoothing` is spread over all labels evenly.
pub(super) fn smooth_targets(targets: &[usize], labels: usize, smoothing: f64) -> Vec<f32> {
    let share = smoothing / labels as f64;
    let mut dense = vec![share as f32; targets.len() * labels];
    for (row, &target) in targets.iter().enumerate() {
        dense[row * labels + target] = (1.0 - smoothing + share) as f32;
    }
    dense
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_loss_is_the_one_worked_out_by_hand() {
        let logits = Tensor::new(&[[1000.0f32, 1000.0], [0.0, 3f32.ln()]], &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(smooth_targets(&[0, 1], 2, 0.0), (2, 2), &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &targets).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - (2f32.ln() - 0.75f32.ln()) / 2.0).abs() < 1e-6, "{loss}");
        assert_eq!(smooth_targets(&[1], 2, 0.2), [0.1, 0.9]);
    }
}
