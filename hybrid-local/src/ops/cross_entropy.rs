//! The loss of tokens: one pass over the logits forward, one backward, and no tensor of all shares but the gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    fused::{cpu_slice, slice, tensor},
    kernels::{exp, vectorised},
};

/// For each row of logits `[rows, vocabulary]` minus the logarithm of its target's share, times its weight: `[rows]`.
pub(super) struct CrossEntropy {
    pub(super) targets: Arc<[u32]>,
    pub(super) weights: Arc<[f32]>,
}

/// The largest of a row, and the logarithm of the sum of its exponentials.
#[inline(always)]
fn log_sum(row: &[f32]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for &value in row {
        max = if value > max { value } else { max };
    }
    let mut sum = 0f64;
    for block in row.chunks(256) {
        sum += f64::from(block.iter().map(|value| exp(value - max)).sum::<f32>());
    }
    max + sum.ln() as f32
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let logits = slice(logits, layout)?;
        if self.targets.len() != rows
            || self.weights.len() != rows
            || self.targets.iter().any(|&at| at as usize >= columns)
        {
            candle_core::bail!("{rows} rows of {columns} logits have other targets");
        }
        let row = |(row, (&target, weight)): (&[f32], (&u32, &f32))| {
            weight * (vectorised(|| log_sum(row)) - row[target as usize])
        };
        let rows_in = logits.par_chunks_exact(columns).zip(self.targets.par_iter().zip(self.weights.par_iter()));
        Ok((CpuStorage::F32(rows_in.map(row).collect()), Shape::from(rows)))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let read = [logits.storage_and_layout(), gradient.storage_and_layout()];
        let (values, gradient) = (cpu_slice(&read[0])?, cpu_slice(&read[1])?);
        let columns = logits.dim(1)?;
        let mut out = vec![0f32; values.len()];
        let rows = out.par_chunks_exact_mut(columns).zip(values.par_chunks_exact(columns)).enumerate();
        rows.for_each(|(i, (out, row))| {
            vectorised(|| {
                let (sum, factor) = (log_sum(row), self.weights[i] * gradient[i]);
                for (out, value) in out.iter_mut().zip(row) {
                    *out = factor * exp(value - sum);
                }
                out[self.targets[i] as usize] -= factor;
            });
        });
        tensor(out, logits.dims()).map(Some)
    }
}
