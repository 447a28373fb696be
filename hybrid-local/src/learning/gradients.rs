//! The proof that a loss reaches every parameter.

use candle_core::{Tensor, Var, backprop::GradStore};
use hybrid_core::{Error, Result};

use crate::device::tensor_error;

/// Checks that the loss reaches every parameter: fused operators of the tensor library return results with no gradient and say nothing.
///
/// # Errors
/// `Internal` that names the first parameter whose gradient is missing, not finite or zero throughout.
pub(crate) fn check<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, gradients: &GradStore) -> Result<()> {
    let mut parameters = parameters.into_iter();
    parameters.try_for_each(|(name, parameter)| prove(name, gradients.get(parameter), Proof::FiniteAndNotZero))
}

/// What a parameter's gradient has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// There and finite: it is zero by its nature.
    Finite,
    FiniteAndNotZero,
}

/// As [`check`] for one parameter's gradient.
pub(crate) fn prove(name: &str, gradient: Option<&Tensor>, proof: Proof) -> Result<()> {
    let refuse = |message: &'static str| Err(Error::internal("check gradients", message).with("parameter", name));
    let Some(gradient) = gradient else {
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
