//! The proof that a loss reaches every parameter.

use std::collections::BTreeSet;

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

/// The parameters of a run that gradients have not yet been seen to reach.
#[derive(Debug)]
pub(crate) struct Unproven(BTreeSet<String>);

impl Unproven {
    /// All of these.
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a String>) -> Self {
        Self(names.into_iter().cloned().collect())
    }

    /// Checks, until it has been seen once of each, that a step's loss reaches the parameters. `weighs` says whether a row that is learnt from sees
    /// more than itself.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) fn check<'g>(&mut self, weighs: bool, gradient: impl Fn(&str) -> Option<&'g Tensor>) -> Result<()> {
        let before = self.0.clone();
        for name in &before {
            // While B is zero nothing reaches A; the step whose gradient reaches B moves it.
            let behind = name.strip_suffix("lora_a").is_some_and(|place| before.contains(&format!("{place}lora_b")));
            // What sees itself alone has nothing to weigh, so that queries and keys do not matter.
            let waits = behind || !weighs && (name.contains(".q_") || name.contains(".k_"));
            // What is added to all keys changes no softmax: the gradient is zero but for rounding.
            let zero = waits || name.ends_with(".key.bias");
            prove(name, gradient(name), if zero { Proof::Finite } else { Proof::FiniteAndNotZero })?;
            if !waits {
                self.0.remove(name);
            }
        }
        Ok(())
    }

    /// Asks for no more proofs.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a parameter's gradient has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// There and finite: it is zero by its nature.
    Finite,
    FiniteAndNotZero,
}

/// As [`check`] for one parameter's gradient.
fn prove(name: &str, gradient: Option<&Tensor>, proof: Proof) -> Result<()> {
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
        // Queries are looked at once there is something to weigh, and A once B has moved.
        let gradients = |names: &[(&str, f32)]| -> std::collections::BTreeMap<String, Tensor> {
            let tensor = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
            names.iter().map(|(name, value)| ((*name).to_owned(), tensor(*value))).collect()
        };
        let steps: [(bool, [f32; 3], bool); 5] = [
            (false, [0.0, 0.0, 1.0], true),
            (false, [0.0, 0.0, 1.0], true),
            (true, [0.0, 1.0, 1.0], true),
            (false, [0.0, 0.0, 1.0], true),
            (true, [0.0, 1.0, 1.0], false),
        ];
        let names = ["q_proj.lora_a", "q_proj.lora_b", "up_proj.lora_b"].map(|name| format!("layers.0.{name}"));
        let mut unproven = Unproven::new(&names);
        for (weighs, values, passes) in steps {
            let all: Vec<_> = names.iter().map(String::as_str).zip(values).collect();
            let found = gradients(&all);
            assert_eq!(unproven.check(weighs, |name| found.get(name)).is_ok(), passes, "{values:?}");
        }

        let infinite = (var(0.0), used);
        let gradients = infinite.0.log().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(check([("log", &infinite.0)], &gradients).is_err());
    }
}
