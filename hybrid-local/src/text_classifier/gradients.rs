//! What every training step shares: the loss, and the proof that it reaches every parameter.

use candle_core::{D, Tensor, Var, backprop::GradStore};
use hybrid_core::{Error, Result};

use super::tensor_error;

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

/// Checks that the loss reaches every parameter: fused operators of the tensor library return results with no gradient and say nothing.
///
/// # Errors
/// `Internal` that names the first parameter whose gradient is missing, not finite or zero throughout.
pub(super) fn check<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, gradients: &GradStore) -> Result<()> {
    let mut parameters = parameters.into_iter();
    parameters.try_for_each(|(name, parameter)| prove(name, parameter, gradients, Proof::FiniteAndNotZero))
}

/// What a parameter's gradient has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// There and finite: it is zero by its nature.
    Finite,
    FiniteAndNotZero,
}

/// As [`check`] for one parameter.
pub(super) fn prove(name: &str, parameter: &Var, gradients: &GradStore, proof: Proof) -> Result<()> {
    let refuse = |message: &'static str| Err(Error::internal("check gradients", message).with("parameter", name));
    let Some(gradient) = gradients.get(parameter) else {
        return refuse("the parameter has no gradient: an operator on its way to the loss is not differentiable");
    };
    let size = gradient.abs().and_then(|g| g.sum_all()?.to_scalar::<f32>()).map_err(tensor_error("check gradients"))?;
    if !size.is_finite() {
        return refuse("the parameter's gradient is not finite");
    }
    if size == 0.0 && proof == Proof::FiniteAndNotZero {
        return refuse("the parameter's gradient is zero throughout: nothing would be learnt");
    }
    Ok(())
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

    #[test]
    fn parameters_that_the_loss_does_not_reach_are_named() {
        let var = |value: f32| Var::new(&[value], &Device::Cpu).unwrap();
        let (used, unused, dead) = (var(2.0), var(3.0), var(4.0));
        let loss = ((used.sqr().unwrap() + dead.affine(0.0, 1.0).unwrap()).unwrap()).sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        assert!(check([("used", &used)], &gradients).is_ok());
        for (name, var) in [("unused", &unused), ("dead", &dead)] {
            assert_eq!(check([(name, var)], &gradients).unwrap_err().context("parameter"), Some(name));
        }
        let infinite = (var(0.0), used);
        let gradients = infinite.0.log().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(check([("log", &infinite.0)], &gradients).is_err());
    }
}
