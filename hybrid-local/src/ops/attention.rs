//! Attention of each text over itself, all heads, for the processor: no padding, no mask, no tensor of all scores.
//!
//! A head of a text is one unit of work: its scores fit into a core's cache, and the backward pass computes them anew.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    fused::{cpu_slice, slice, tensor},
    kernels::{Strides, padded, product, softmax, softmax_slopes, vectorised},
};

/// Texts that lie one after another in the rows of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Spans(Arc<[usize]>);

impl Spans {
    /// Spans of these lengths.
    pub(crate) fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0;
        let ends = lengths.into_iter().map(|length| {
            end += length;
            end
        });
        Self(ends.collect())
    }

    /// For each text its first row and its number of rows.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let starts = [0].into_iter().chain(self.0.iter().copied());
        starts.zip(self.0.iter().copied()).map(|(start, end)| (start, end - start))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.last().copied().unwrap_or_default()
    }

    /// Each of `heads` heads of each text.
    pub(super) fn units(&self, heads: usize) -> Vec<Unit> {
        let all = self.iter().flat_map(|(start, length)| (0..heads).map(move |head| Unit { start, length, head }));
        all.collect()
    }
}

/// `softmax(Q Kᵀ / √d) V` for each head of each text; queries, keys and values are `[rows, heads · d]`.
pub(super) struct Attention {
    pub(super) spans: Spans,
    pub(super) heads: usize,
}

/// One head of one text.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) head: usize,
}

/// The shape of all units.
#[derive(Clone, Copy)]
pub(super) struct Width {
    /// Columns of the whole tensor.
    pub(super) hidden: usize,
    /// Columns of a head.
    pub(super) head: usize,
}

impl Attention {
    fn units(&self) -> Vec<Unit> {
        self.spans.units(self.heads)
    }

    fn width(&self, hidden: usize) -> Width {
        Width { hidden, head: hidden / self.heads }
    }

    /// Puts units' `[length, padded head]` results, of which each has `parts`, into tensors of all rows.
    fn gather(&self, units: &[Vec<f32>], parts: usize, width: Width) -> Vec<Vec<f32>> {
        let stride = padded(width.head);
        let mut wholes = vec![vec![0f32; self.spans.rows() * width.hidden]; parts];
        for (unit, values) in self.units().into_iter().zip(units) {
            let size = unit.length * stride;
            for (whole, part) in wholes.iter_mut().zip(values.chunks_exact(size)) {
                unit.put(whole, width, part);
            }
        }
        wholes
    }
}

impl Unit {
    fn rows(self, values: &[f32], width: Width) -> impl Iterator<Item = &[f32]> {
        let first = self.start * width.hidden + self.head * width.head;
        (0..self.length).map(move |row| &values[first + row * width.hidden..][..width.head])
    }

    /// Puts `[length, padded head]` values at the unit's place in a tensor of all rows.
    pub(super) fn put(self, whole: &mut [f32], width: Width, values: &[f32]) {
        for (row, values) in values.chunks_exact(padded(width.head)).enumerate() {
            let from = (self.start + row) * width.hidden + self.head * width.head;
            whole[from..from + width.head].copy_from_slice(&values[..width.head]);
        }
    }

    /// The unit's rows as `[length, padded head]`, times `factor`.
    #[inline(always)]
    pub(super) fn across(self, values: &[f32], width: Width, factor: f32) -> Vec<f32> {
        let stride = padded(width.head);
        let mut out = vec![0f32; self.length * stride];
        for (out, row) in out.chunks_exact_mut(stride).zip(self.rows(values, width)) {
            for (out, value) in out.iter_mut().zip(row) {
                *out = value * factor;
            }
        }
        out
    }

    /// The unit's rows as columns: `[head, padded length]`.
    #[inline(always)]
    pub(super) fn down(self, values: &[f32], width: Width) -> Vec<f32> {
        let stride = padded(self.length);
        let mut out = vec![0f32; width.head * stride];
        for (column, row) in self.rows(values, width).enumerate() {
            for (i, value) in row.iter().enumerate() {
                out[i * stride + column] = *value;
            }
        }
        out
    }

    /// The attention of each row to each, `[length, padded length]`, of queries that are scaled.
    #[inline(always)]
    fn shares(self, queries: &[f32], keys: &[f32], width: Width) -> Vec<f32> {
        let (stride, length) = (padded(width.head), self.length);
        let columns = padded(length);
        let mut shares = vec![0f32; length * columns];
        product(&mut shares, queries, Strides(stride, 1), &self.down(keys, width), width.head, columns);
        for row in shares.chunks_exact_mut(columns) {
            let (row, rest) = row.split_at_mut(length);
            softmax(row);
            rest.fill(0.0);
        }
        shares
    }

    #[inline(always)]
    fn forward(self, [queries, keys, values]: [&[f32]; 3], width: Width) -> Vec<f32> {
        let (stride, columns) = (padded(width.head), padded(self.length));
        let queries = self.across(queries, width, scale(width));
        let shares = self.shares(&queries, keys, width);
        let mut out = vec![0f32; self.length * stride];
        let values = self.across(values, width, 1.0);
        product(&mut out, &shares, Strides(columns, 1), &values, self.length, stride);
        out
    }

    /// The gradients of queries, keys and values, one after another.
    #[inline(always)]
    fn backward(self, [queries, keys, values, gradient]: [&[f32]; 4], width: Width) -> Vec<f32> {
        let (length, stride, columns) = (self.length, padded(width.head), padded(self.length));
        let queries = self.across(queries, width, scale(width));
        let shares = self.shares(&queries, keys, width);
        let gradient = self.across(gradient, width, 1.0);
        // Of the shares first, then, through the softmax, of the scores.
        let mut scores = vec![0f32; length * columns];
        product(&mut scores, &gradient, Strides(stride, 1), &self.down(values, width), width.head, columns);
        softmax_slopes(&mut scores, &shares, columns);
        let mut out = vec![0f32; 3 * length * stride];
        let (of_queries, rest) = out.split_at_mut(length * stride);
        let (of_keys, of_values) = rest.split_at_mut(length * stride);
        let keys = self.across(keys, width, scale(width));
        product(of_queries, &scores, Strides(columns, 1), &keys, length, stride);
        product(of_keys, &scores, Strides(1, columns), &queries, length, stride);
        product(of_values, &shares, Strides(1, columns), &gradient, length, stride);
        out
    }
}

fn scale(width: Width) -> f32 {
    1.0 / (width.head as f32).sqrt()
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        layout: &Layout,
        keys: &CpuStorage,
        of_keys: &Layout,
        values: &CpuStorage,
        of_values: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [slice(queries, layout)?, slice(keys, of_keys)?, slice(values, of_values)?];
        let width = self.width(layout.shape().dims2()?.1);
        let unit = |unit: Unit| vectorised(|| unit.forward(inputs, width));
        let units: Vec<_> = self.units().into_par_iter().map(unit).collect();
        let out = self.gather(&units, 1, width).swap_remove(0);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let read = [queries, keys, values, &gradient].map(Tensor::storage_and_layout);
        let inputs = [cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?, cpu_slice(&read[3])?];
        let width = self.width(gradient.dim(1)?);
        let unit = |unit: Unit| vectorised(|| unit.backward(inputs, width));
        let units: Vec<_> = self.units().into_par_iter().map(unit).collect();
        let mut gradients = self.gather(&units, 3, width).into_iter().map(|values| tensor(values, queries.dims()));
        let mut next = || gradients.next().transpose();
        Ok((next()?, next()?, next()?))
    }
}
