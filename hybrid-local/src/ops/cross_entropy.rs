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

/// Replaces each row of logits by the gradient of its loss times its weight, and gives the losses times the weights.
#[cfg(feature = "decoder")]
pub(super) fn descend(logits: &mut [f32], columns: usize, targets: &[u32], weights: &[f32]) -> Result<Vec<f32>> {
    check(logits.len() / columns.max(1), columns, targets, weights)?;
    let rows = logits.par_chunks_exact_mut(columns).zip(targets.par_iter().zip(weights));
    let row = |(row, (&target, &weight)): (&mut [f32], (&u32, &f32))| {
        vectorised(|| {
            let sum = log_sum(row);
            let loss = weight * (sum - row[target as usize]);
            slopes(row, sum, weight, target);
            loss
        })
    };
    Ok(rows.map(row).collect())
}

/// Replaces a row of logits by the gradient of `factor` times its loss.
#[inline(always)]
fn slopes(row: &mut [f32], sum: f32, factor: f32, target: u32) {
    for value in &mut *row {
        *value = factor * exp(*value - sum);
    }
    row[target as usize] -= factor;
}

fn check(rows: usize, columns: usize, targets: &[u32], weights: &[f32]) -> Result<()> {
    if targets.len() != rows || weights.len() != rows || targets.iter().any(|&at| at as usize >= columns) {
        candle_core::bail!("{rows} rows of {columns} logits have other targets");
    }
    Ok(())
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let logits = slice(logits, layout)?;
        check(rows, columns, &self.targets, &self.weights)?;
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
        let mut out = values.to_vec();
        out.par_chunks_exact_mut(columns).enumerate().for_each(|(i, row)| {
            vectorised(|| slopes(row, log_sum(row), self.weights[i] * gradient[i], self.targets[i]));
        });
        tensor(out, logits.dims()).map(Some)
    }
}
