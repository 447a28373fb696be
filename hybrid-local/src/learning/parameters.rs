//! Parameters that learn by AdamW, whatever network they are of.

use std::collections::BTreeMap;

use candle_core::{DType, Result as TensorResult, Tensor, Var};
use hybrid_core::Result;

use crate::{
    device::tensor_error,
    ops::{Rates, Step, update},
    tensors::{Array, Tensors, take_f32},
};

/// Parameters by name.
pub(crate) type Parameters = BTreeMap<String, Parameter>;

#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) value: Var,
    /// `[2, …]`: see [`update`].
    moments: Var,
}

impl Parameter {
    pub(crate) fn new(value: Var) -> Result<Self> {
        let moments = Var::zeros([&[2], value.dims()].concat(), DType::F32, value.device());
        Ok(Self { moments: moments.map_err(tensor_error("begin training"))?, value })
    }

    /// Moves it against its gradient.
    pub(crate) fn update(&self, gradient: &Tensor, step: Step, learning: f64, weight_decay: f64) -> TensorResult<()> {
        // Biases and norms are not drawn to zero.
        let decay = if self.value.dims().len() > 1 { weight_decay } else { 0.0 };
        update(&self.value, &self.moments, gradient, step, Rates { learning, decay })
    }
}

/// Parameters that begin at these values.
pub(crate) fn parameters(values: BTreeMap<String, Var>) -> Result<Parameters> {
    values.into_iter().map(|(name, value)| Ok((name, Parameter::new(value)?))).collect()
}

/// The parameters' values, on the host.
pub(crate) fn values(parameters: &Parameters) -> Result<Tensors> {
    let value = |(name, parameter): (&String, &Parameter)| Ok((name.clone(), array(&parameter.value)?));
    parameters.iter().map(value).collect::<TensorResult<_>>().map_err(tensor_error("write model"))
}

/// Sets the parameters to these values.
pub(crate) fn set_values(parameters: &Parameters, mut values: Tensors) -> Result<()> {
    parameters.iter().try_for_each(|(name, parameter)| set(&parameter.value, &mut values, name))
}

/// All that [`restore`] needs to go on.
pub(crate) fn state(parameters: &Parameters) -> Result<Tensors> {
    let mut state = Tensors::new();
    let fail = tensor_error("save checkpoint");
    for (name, Parameter { value, moments }) in parameters {
        state.insert(format!("value.{name}"), array(value).map_err(fail)?);
        state.insert(format!("moments.{name}"), array(moments).map_err(fail)?);
    }
    Ok(state)
}

/// Takes values and moments out of a state.
pub(crate) fn restore(parameters: &Parameters, state: &mut Tensors) -> Result<()> {
    for (name, Parameter { value, moments }) in parameters {
        set(value, state, &format!("value.{name}"))?;
        set(moments, state, &format!("moments.{name}"))?;
    }
    Ok(())
}

fn array(var: &Var) -> TensorResult<Array> {
    Ok(Array::f32(var.dims(), var.flatten_all()?.to_vec1()?))
}

fn set(var: &Var, values: &mut Tensors, name: &str) -> Result<()> {
    let values = take_f32(values, name, var.dims())?;
    let set = || var.set(&Tensor::from_vec(values, var.shape(), var.device())?);
    set().map_err(tensor_error("restore checkpoint"))
}
