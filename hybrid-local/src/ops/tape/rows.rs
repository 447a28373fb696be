//! What a decoder does to its rows between products, and the loss at its end.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{
    super::{
        Gating,
        causal::Causal,
        cross_entropy::descend,
        kernels::{Onto, add_all},
        rows::{gate_back, gate_forward, norm_back, norm_forward, turn},
    },
    Buffer, Flow, Slopes, Tape, Value,
    linear::{put, with},
};

impl Tape {
    /// `a + b`; `b` is given up.
    pub(crate) fn add(&mut self, a: &Value, b: Value) -> Value {
        let (first, second, columns) = (a.id, b.id, b.columns);
        let wanted = self.wants(a) || self.wants(&b);
        let mut sum = self.own(b.values);
        add_all(&mut sum, &a.values);
        self.leave(Arc::new(sum), columns, wanted, move |flow, gradient| {
            flow.give(first, Arc::clone(&gradient));
            flow.give(second, gradient);
            Ok(())
        })
    }

    /// `x / √(mean(x²) + epsilon) · (scale + offset)` of rows as long as the scale.
    pub(crate) fn norm(&mut self, x: &Value, scale: &Tensor, offset: f32, epsilon: f32) -> Result<Value> {
        let factors: Vec<f32> = with(scale, |scale| scale.iter().map(|scale| scale + offset).collect())?;
        let mut out = self.buffers.take(x.values.len());
        norm_forward(&mut out, &x.values, &factors, epsilon);
        let of_scale = scale.track_op().then(|| scale.clone());
        let wanted = self.wants(x) || of_scale.is_some();
        let (input, kept) = (x.id, Arc::clone(&x.values));
        let back = move |flow: &mut Flow<'_>, gradient: Arc<Buffer>| {
            let mut sums = None;
            if flow.wants(input) {
                flow.write(input, kept.len(), |out, onto| {
                    sums = Some(norm_back(out, onto, [&kept, &gradient], &factors, epsilon));
                });
            } else {
                let mut nowhere = flow.buffers.take(kept.len());
                sums = Some(norm_back(&mut nowhere, Onto::Nothing, [&kept, &gradient], &factors, epsilon));
            }
            match (&of_scale, sums) {
                (Some(scale), Some(sums)) => flow.slopes.write(scale, |out, onto| put(out, &sums, onto)),
                _ => Ok(()),
            }
        };
        Ok(self.leave(Arc::new(out), x.columns, wanted, back))
    }

    /// Turns the pairs of every head by cosines and sines `[rows, 1, pairs]`; the value is given up.
    pub(crate) fn turn(&mut self, x: Value, turns: &[Tensor; 2], heads: usize) -> Result<Value> {
        let turned = move |values: &mut [f32], turns: &[Tensor; 2], way: f32| -> Result<()> {
            let pairs = turns[0].dim(2)?;
            with(&turns[0], |cosines| with(&turns[1], |sines| turn(values, [cosines, sines], [heads, pairs], way)))??
        };
        let (input, columns, wanted) = (x.id, x.columns, self.wants(&x));
        let mut out = self.own(x.values);
        turned(&mut out, turns, 1.0)?;
        let turns = turns.clone();
        Ok(self.leave(Arc::new(out), columns, wanted, move |flow, gradient| {
            let mut gradient = Arc::try_unwrap(gradient).unwrap_or_else(|shared| flow.buffers.copy(&shared));
            turned(&mut gradient, &turns, -1.0)?;
            flow.give(input, Arc::new(gradient));
            Ok(())
        }))
    }

    /// The attention of each row over itself and those before it.
    pub(crate) fn attend(&mut self, inputs: [Value; 3], causal: Causal) -> Value {
        let columns = inputs[0].columns;
        let wanted = inputs.iter().any(|input| self.wants(input));
        let mut out = self.buffers.take(inputs[0].values.len());
        causal.forward(&mut out, inputs.each_ref().map(|input| &**input.values), columns);
        self.leave(Arc::new(out), columns, wanted, move |flow, gradient| {
            let [queries, keys, values] = inputs.each_ref().map(|input| &**input.values);
            let [mut of_queries, mut of_keys, mut of_values] =
                inputs.each_ref().map(|input| flow.buffers.take(input.values.len()));
            let found = [&mut of_queries[..], &mut of_keys[..], &mut of_values[..]];
            causal.back(found, [queries, keys, values, &gradient], columns);
            for (input, gradient) in inputs.iter().zip([of_queries, of_keys, of_values]) {
                flow.give(input.id, Arc::new(gradient));
            }
            Ok(())
        })
    }

    /// `activation(gate) · up`.
    pub(crate) fn gate(&mut self, gate: Value, up: Value, gating: Gating) -> Value {
        let (columns, wanted) = (gate.columns, self.wants(&gate) || self.wants(&up));
        let mut out = self.buffers.take(gate.values.len());
        gate_forward(gating, &mut out, &gate.values, &up.values);
        self.leave(Arc::new(out), columns, wanted, move |flow, gradient| {
            let mut of_gate = flow.buffers.take(gradient.len());
            let mut of_up = flow.buffers.take(gradient.len());
            gate_back(gating, [&mut of_gate, &mut of_up], [&gate.values, &up.values, &gradient]);
            flow.give(gate.id, Arc::new(of_gate));
            flow.give(up.id, Arc::new(of_up));
            Ok(())
        })
    }

    /// The sum over rows of minus the logarithm of the target's share, times the row's weight, and all gradients from there; the logits'
    /// memory becomes their gradient's. The gradient of the first value that was entered is returned too.
    pub(crate) fn descend(
        self,
        logits: Value,
        targets: &[u32],
        weights: &[f32],
        slopes: &mut Slopes,
    ) -> Result<(f64, Option<Arc<Buffer>>)> {
        let Value { id, columns, values } = logits;
        let mut values = self.own(values);
        let losses = descend(&mut values, columns, targets, weights)?;
        let loss = losses.iter().map(|loss| f64::from(*loss)).sum();
        let end = Value { id, columns, values: Arc::new(self.buffers.take(0)) };
        Ok((loss, self.back(end, Arc::new(values), slopes)?))
    }

    /// The buffer, or a copy if others read it.
    fn own(&self, values: Arc<Buffer>) -> Buffer {
        Arc::try_unwrap(values).unwrap_or_else(|shared| self.buffers.copy(&shared))
    }
}
