//! Parameters that learn by AdamW: what fine-tuning shares, whatever network they are of.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use hybrid_core::Result;

use super::{
    settings::Settings,
    tensor_error,
    tensors::{Array, Tensors, Values, take_f32},
    training::StepAt,
};
use crate::{
    Device,
    ops::{Rates, Step, squares, update},
};

/// Parameters by name; those of the head have names that begin with `head.`.
pub(super) type Parameters = BTreeMap<String, Parameter>;

#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) value: Var,
    /// `[2, …]`: see [`update`].
    moments: Var,
}

impl Parameter {
    pub(super) fn new(value: Var, device: &Device) -> Result<Self> {
        let moments = [&[2], value.dims()].concat();
        let moments = Var::zeros(moments, DType::F32, device.tensors()).map_err(tensor_error("begin training"))?;
        Ok(Self { value, moments })
    }
}

/// How parameters are moved.
#[derive(Clone, Debug)]
pub(super) struct Optimiser {
    learning_rate: f64,
    head_learning_rate: f64,
    weight_decay: f64,
    warm_up: f64,
    clip_norm: f64,
}

impl Optimiser {
    pub(super) fn read(settings: &Settings<'_>, learning_rate: f64) -> Result<Self> {
        Ok(Self {
            learning_rate: settings.number("learning_rate", learning_rate, 1e-8..=1.0)?,
            head_learning_rate: settings.number("head_learning_rate", 1e-3, 1e-8..=1.0)?,
            weight_decay: settings.number("weight_decay", 0.01, 0.0..=1.0)?,
            warm_up: settings.number("warm_up", 0.1, 0.0..=0.9)?,
            clip_norm: settings.number("clip_norm", 1.0, 1e-3..=1e6)?,
        })
    }

    /// Moves the parameters that have a gradient, all of one step.
    pub(super) fn step(
        &self,
        parameters: &Parameters,
        gradient: impl Fn(&str, &Var) -> Option<Tensor>,
        at: StepAt,
    ) -> candle_core::Result<()> {
        let mut reached = Vec::with_capacity(parameters.len());
        let mut sum = 0.0;
        for (name, parameter) in parameters {
            if let Some(gradient) = gradient(name, &parameter.value) {
                sum += squares(&gradient)?;
                reached.push((name, parameter, gradient));
            }
        }
        let clip = (self.clip_norm / (sum.sqrt() + 1e-12)).min(1.0);
        let step = Step { number: at.step + 1, clip };
        for (name, Parameter { value, moments }, gradient) in reached {
            update(value, moments, &gradient, step, self.rates(name, value.dims(), at))?;
        }
        Ok(())
    }

    fn rates(&self, name: &str, shape: &[usize], at: StepAt) -> Rates {
        let rate = if name.starts_with("head.") { self.head_learning_rate } else { self.learning_rate };
        Rates {
            learning: rate * self.rate_share(at.step, at.planned),
            // Biases and norms are not drawn to zero.
            decay: if shape.len() > 1 { self.weight_decay } else { 0.0 },
        }
    }

    /// The learning rate's share at a step: rising to one over the warm-up, then falling to zero, both in a line.
    fn rate_share(&self, step: usize, planned: usize) -> f64 {
        let warm_up = (self.warm_up * planned as f64).ceil();
        let step = step as f64;
        if step < warm_up { (step + 1.0) / warm_up } else { (planned as f64 - step) / (planned as f64 - warm_up) }
    }
}

/// The parameters' values, finished.
pub(super) fn values(parameters: &Parameters) -> Result<Tensors> {
    let value = |(name, parameter): (&String, &Parameter)| Ok((name.clone(), array(&parameter.value)?));
    parameters.iter().map(value).collect::<candle_core::Result<_>>().map_err(tensor_error("write classifier"))
}

/// All that [`restore`] needs to go on.
pub(super) fn state(parameters: &Parameters) -> Result<Tensors> {
    let mut state = Tensors::new();
    let fail = tensor_error("save checkpoint");
    for (name, Parameter { value, moments }) in parameters {
        state.insert(format!("value.{name}"), array(value).map_err(fail)?);
        state.insert(format!("moments.{name}"), array(moments).map_err(fail)?);
    }
    Ok(state)
}

pub(super) fn restore(parameters: &Parameters, mut state: Tensors, device: &Device) -> Result<()> {
    for (name, Parameter { value, moments }) in parameters {
        for (kind, var) in [("value", value), ("moments", moments)] {
            let values = take_f32(&mut state, &format!("{kind}.{name}"), var.dims())?;
            let set = || var.set(&Tensor::from_vec(values, var.shape(), device.tensors())?);
            set().map_err(tensor_error("restore checkpoint"))?;
        }
    }
    Ok(())
}

fn array(var: &Var) -> candle_core::Result<Array> {
    Ok(Array { shape: var.dims().to_vec(), values: Values::F32(var.flatten_all()?.to_vec1()?) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_in_a_line() {
        let optimiser = |warm_up: f64| {
            let values = [("warm_up".to_owned(), json!(warm_up))].into();
            Optimiser::read(&Settings::new(&values), 1e-3).unwrap()
        };
        let shares: Vec<_> = (0..10).map(|step| optimiser(0.2).rate_share(step, 10)).collect();
        assert_eq!(shares[..3], [0.5, 1.0, 1.0]);
        assert!((shares[9] - 0.125).abs() < 1e-12 && shares[2..].is_sorted_by(|a, b| a > b));
        assert_eq!(optimiser(0.0).rate_share(0, 10), 1.0);
    }
}
