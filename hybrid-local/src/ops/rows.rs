//! What a decoder does to its rows between products, for the processor: each operator is one pass forward and one backward.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Gating,
    fused::{cpu_slice, slice, tensor},
    kernels::{Onto, add, by_rows, dot, exp, rows_per_share, sum_vectors, vectorised},
};

/// Rows divided by the root of their mean square, times a scale for each column.
pub(super) struct RootMeanSquare {
    pub(super) epsilon: f32,
    /// Whether gradients of input and scale are asked for.
    pub(super) wanted: [bool; 2],
}

/// One over the root of a row's mean square.
#[inline(always)]
fn inverse(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

/// Rows as long as `scale`.
pub(super) fn norm_forward(out: &mut [f32], x: &[f32], scale: &[f32], epsilon: f32) {
    let columns = scale.len();
    by_rows(out, columns, |first, out| {
        for (out, x) in out.chunks_exact_mut(columns).zip(x[first * columns..].chunks_exact(columns)) {
            let inverse = inverse(x, epsilon);
            for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
                *out = x * inverse * scale;
            }
        }
    });
}

/// Puts the input's gradient into `out`; that of the scale is returned.
pub(super) fn norm_back(
    out: &mut [f32],
    onto: Onto,
    [x, gradient]: [&[f32]; 2],
    scale: &[f32],
    epsilon: f32,
) -> Vec<f32> {
    let columns = scale.len();
    let rows = rows_per_share(columns);
    let share = |(share, out): (usize, &mut [f32])| {
        vectorised(|| {
            let (mut of_scale, mut slopes) = (vec![0f32; columns], vec![0f32; columns]);
            let from = share * rows * columns;
            let inputs = x[from..].chunks_exact(columns).zip(gradient[from..].chunks_exact(columns));
            for (out, (x, gradient)) in out.chunks_exact_mut(columns).zip(inputs) {
                let inverse = inverse(x, epsilon);
                for (((slope, of_scale), (x, gradient)), scale) in
                    slopes.iter_mut().zip(&mut of_scale).zip(x.iter().zip(gradient)).zip(scale)
                {
                    *slope = gradient * scale;
                    *of_scale += gradient * x * inverse;
                }
                let along = dot(&slopes, x) / columns as f32 * inverse * inverse;
                for (slope, x) in slopes.iter_mut().zip(x) {
                    *slope = inverse * (*slope - x * along);
                }
                match onto {
                    Onto::Nothing => out.copy_from_slice(&slopes),
                    Onto::Before => add(out, &slopes),
                }
            }
            of_scale
        })
    };
    let sums: Vec<_> = out.par_chunks_mut(rows * columns).enumerate().map(share).collect();
    sum_vectors(sums, columns)
}

impl CustomOp2 for RootMeanSquare {
    fn name(&self) -> &'static str {
        "root mean square norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        scale: &CpuStorage,
        of_scale: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (slice(x, of_x)?, slice(scale, of_scale)?);
        let mut out = vec![0f32; x.len()];
        norm_forward(&mut out, x, scale, self.epsilon);
        Ok((CpuStorage::F32(out), of_x.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let read = [x, scale, &gradient].map(Tensor::storage_and_layout);
        let (values, factors, gradients) = (cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?);
        let mut out = vec![0f32; values.len()];
        let sums = norm_back(&mut out, Onto::Nothing, [values, gradients], factors, self.epsilon);
        let [of_x, of_scale] = self.wanted;
        Ok((
            of_x.then(|| tensor(out, x.dims())).transpose()?,
            of_scale.then(|| tensor(sums, scale.dims())).transpose()?,
        ))
    }
}

/// `activation(gate) · up`.
pub(super) struct Gate {
    pub(super) gating: Gating,
    pub(super) wanted: [bool; 2],
}

impl Gate {
    /// The activation and its slope at `x`.
    ///
    /// Both activations are `x · σ(v)`: Silu with `v = x`, Gelu by the hyperbolic tangent with `v = √(8/π) (x + 0.044715 x³)`.
    #[inline(always)]
    fn at(gating: Gating, x: f32) -> (f32, f32) {
        const ROOT: f32 = 1.595_769;
        const CUBE: f32 = 0.044_715;
        let (v, slope) = match gating {
            Gating::Silu => (x, 1.0),
            Gating::Gelu => (ROOT * (x + CUBE * x * x * x), ROOT * (1.0 + 3.0 * CUBE * x * x)),
        };
        let share = 1.0 / (1.0 + exp(-v));
        (x * share, share + x * share * (1.0 - share) * slope)
    }

    #[inline(always)]
    fn forward(gating: Gating, out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = Self::at(gating, *gate).0 * up;
        }
    }

    #[inline(always)]
    fn backward(gating: Gating, [of_gate, of_up]: [&mut [f32]; 2], [gate, up, gradient]: [&[f32]; 3]) {
        let outs = of_gate.iter_mut().zip(of_up);
        for ((of_gate, of_up), ((gate, up), gradient)) in outs.zip(gate.iter().zip(up).zip(gradient)) {
            let (value, slope) = Self::at(gating, *gate);
            *of_gate = gradient * up * slope;
            *of_up = gradient * value;
        }
    }
}

/// Elements of a share of a gate's work.
const SHARE: usize = 8 << 10;

pub(super) fn gate_forward(gating: Gating, out: &mut [f32], gate: &[f32], up: &[f32]) {
    let shares = out.par_chunks_mut(SHARE).zip(gate.par_chunks(SHARE)).zip(up.par_chunks(SHARE));
    shares.for_each(|((out, gate), up)| {
        vectorised(|| match gating {
            Gating::Silu => Gate::forward(Gating::Silu, out, gate, up),
            Gating::Gelu => Gate::forward(Gating::Gelu, out, gate, up),
        });
    });
}

/// Fills the gradients of gate and up.
pub(super) fn gate_back(gating: Gating, [of_gate, of_up]: [&mut [f32]; 2], [gate, up, gradient]: [&[f32]; 3]) {
    let outs = of_gate.par_chunks_mut(SHARE).zip(of_up.par_chunks_mut(SHARE));
    let inputs = gate.par_chunks(SHARE).zip(up.par_chunks(SHARE)).zip(gradient.par_chunks(SHARE));
    outs.zip(inputs).for_each(|((of_gate, of_up), ((gate, up), gradient))| {
        let (outs, inputs) = ([of_gate, of_up], [gate, up, gradient]);
        vectorised(|| match gating {
            Gating::Silu => Gate::backward(Gating::Silu, outs, inputs),
            Gating::Gelu => Gate::backward(Gating::Gelu, outs, inputs),
        });
    });
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        of_gate: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, of_gate)?, slice(up, of_up)?);
        let mut out = vec![0f32; gate.len()];
        gate_forward(self.gating, &mut out, gate, up);
        Ok((CpuStorage::F32(out), of_gate.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let read = [gate, up, &gradient].map(Tensor::storage_and_layout);
        let (gates, ups, gradients) = (cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?);
        let (mut of_gate, mut of_up) = (vec![0f32; gates.len()], vec![0f32; gates.len()]);
        gate_back(self.gating, [&mut of_gate, &mut of_up], [gates, ups, gradients]);
        let [wants_gate, wants_up] = self.wanted;
        Ok((
            wants_gate.then(|| tensor(of_gate, gate.dims())).transpose()?,
            wants_up.then(|| tensor(of_up, up.dims())).transpose()?,
        ))
    }
}

/// Turns, in place, the pairs of every head of rows of heads by cosines and sines `[rows, pairs]`, column `i` with column `i + pairs`; `way` is one,
/// or minus one to turn back.
pub(super) fn turn(
    values: &mut [f32],
    [cosines, sines]: [&[f32]; 2],
    [heads, pairs]: [usize; 2],
    way: f32,
) -> Result<()> {
    let rows = cosines.len() / pairs.max(1);
    let columns = values.len() / rows.max(1);
    let size = columns / heads.max(1);
    if values.len() != rows * heads * size || 2 * pairs > size || cosines.len() != sines.len() {
        candle_core::bail!("{} numbers are no rows of {heads} heads that {rows} positions turn", values.len());
    }
    by_rows(values, columns, |first, values| {
        for (row, values) in values.chunks_exact_mut(columns).enumerate() {
            let at = (first + row) * pairs;
            let (cosines, sines) = (&cosines[at..][..pairs], &sines[at..][..pairs]);
            for head in values.chunks_exact_mut(size) {
                let (a, rest) = head.split_at_mut(pairs);
                for (((a, b), cosine), sine) in a.iter_mut().zip(rest).zip(cosines).zip(sines) {
                    let sine = sine * way;
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    });
    Ok(())
}

/// Turns the pairs of every head of `[rows, heads, size]` by cosines and sines `[rows, 1, pairs]`.
pub(super) struct Turn {
    /// One, or minus one to turn back.
    pub(super) way: f32,
}

impl CustomOp3 for Turn {
    fn name(&self) -> &'static str {
        "turn"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        cosines: &CpuStorage,
        of_cosines: &Layout,
        sines: &CpuStorage,
        of_sines: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, cosines, sines) = (slice(x, of_x)?, slice(cosines, of_cosines)?, slice(sines, of_sines)?);
        let (heads, pairs) = (of_x.shape().dims3()?.1, of_cosines.shape().dims3()?.2);
        let mut out = x.to_vec();
        turn(&mut out, [cosines, sines], [heads, pairs], self.way)?;
        Ok((CpuStorage::F32(out), of_x.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cosines: &Tensor,
        sines: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Self { way: -self.way };
        Ok((Some(gradient.contiguous()?.apply_op3_no_bwd(cosines, sines, &back)?), None, None))
    }
}
