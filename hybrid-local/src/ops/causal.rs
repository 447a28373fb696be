//! Attention of each token over itself and those before it in its sequence, for the processor: heads of queries may share those of keys and
//! values, and a window may end what is seen.
//!
//! A head of keys of a sequence is one unit of work; the backward pass computes the shares anew.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    attention::{Spans, Unit, Width},
    fused::{cpu_slice, slice, tensor},
    kernels::{Strides, add, padded, product, softmax, softmax_slopes, vectorised},
};

/// `softmax(scale Q Kᵀ) V` for each head: queries are `[rows, heads · size]`, keys and values `[rows, key heads · size]`.
pub(super) struct Causal {
    pub(super) spans: Spans,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) scale: f32,
    /// How many tokens, its own included, a token sees.
    pub(super) window: Option<usize>,
}

/// How wide the rows of queries and of keys are.
#[derive(Clone, Copy)]
struct Widths {
    queries: Width,
    keys: Width,
}

impl Causal {
    /// A head of keys of each sequence.
    fn units(&self) -> Vec<Unit> {
        self.spans.units(self.key_heads)
    }

    fn widths(&self, columns: usize) -> Widths {
        let head = columns / self.heads;
        Widths { queries: Width { hidden: columns, head }, keys: Width { hidden: head * self.key_heads, head } }
    }

    /// The heads of queries that a unit's head of keys serves.
    fn sharing(&self, unit: Unit) -> impl Iterator<Item = Unit> {
        let group = self.heads / self.key_heads;
        (unit.head * group..(unit.head + 1) * group).map(move |head| Unit { head, ..unit })
    }

    /// The attention of each row, `[length, padded length]`, of queries that are scaled and keys as columns.
    #[inline(always)]
    fn shares(&self, length: usize, queries: &[f32], keys: &[f32], size: usize) -> Vec<f32> {
        let columns = padded(length);
        let mut shares = vec![0f32; length * columns];
        product(&mut shares, queries, Strides(padded(size), 1), keys, size, columns);
        for (row, shares) in shares.chunks_exact_mut(columns).enumerate() {
            let first = self.window.map_or(0, |window| (row + 1).saturating_sub(window));
            shares[..first].fill(0.0);
            softmax(&mut shares[first..=row]);
            shares[row + 1..].fill(0.0);
        }
        shares
    }

    /// For each head that shares the keys its rows, `[heads, length, padded size]`.
    #[inline(always)]
    fn forward(&self, unit: Unit, [queries, keys, values]: [&[f32]; 3], widths: Widths) -> Vec<f32> {
        let (size, length) = (widths.keys.head, unit.length);
        let (stride, columns) = (padded(size), padded(length));
        let (keys, values) = (unit.down(keys, widths.keys), unit.across(values, widths.keys, 1.0));
        let mut all = Vec::with_capacity(self.heads / self.key_heads * length * stride);
        for head in self.sharing(unit) {
            let shares = self.shares(length, &head.across(queries, widths.queries, self.scale), &keys, size);
            let mut out = vec![0f32; length * stride];
            product(&mut out, &shares, Strides(columns, 1), &values, length, stride);
            all.extend(out);
        }
        all
    }

    /// The gradients of keys, of values, and of the queries of each head that shares them, each `[length, padded size]`.
    #[inline(always)]
    fn backward(&self, unit: Unit, [queries, keys, values, gradient]: [&[f32]; 4], widths: Widths) -> Vec<f32> {
        let (size, length) = (widths.keys.head, unit.length);
        let (stride, columns) = (padded(size), padded(length));
        let part = length * stride;
        let (keys_down, values_down) = (unit.down(keys, widths.keys), unit.down(values, widths.keys));
        let keys = unit.across(keys, widths.keys, self.scale);
        let mut all = vec![0f32; 2 * part];
        let mut own = vec![0f32; part];
        for head in self.sharing(unit) {
            let queries = head.across(queries, widths.queries, self.scale);
            let gradient = head.across(gradient, widths.queries, 1.0);
            let shares = self.shares(length, &queries, &keys_down, size);
            // Of the shares first, then, through the softmax, of the scores.
            let mut scores = vec![0f32; length * columns];
            product(&mut scores, &gradient, Strides(stride, 1), &values_down, size, columns);
            softmax_slopes(&mut scores, &shares, columns);
            let (of_keys, of_values) = all[..2 * part].split_at_mut(part);
            product(&mut own, &scores, Strides(1, columns), &queries, length, stride);
            add(of_keys, &own);
            product(&mut own, &shares, Strides(1, columns), &gradient, length, stride);
            add(of_values, &own);
            product(&mut own, &scores, Strides(columns, 1), &keys, length, stride);
            all.extend_from_slice(&own);
        }
        all
    }
}

impl CustomOp3 for Causal {
    fn name(&self) -> &'static str {
        "causal attention"
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
        let widths = self.widths(layout.shape().dims2()?.1);
        let units = self.units();
        let done: Vec<_> = units.par_iter().map(|unit| vectorised(|| self.forward(*unit, inputs, widths))).collect();
        let mut out = vec![0f32; inputs[0].len()];
        for (unit, rows) in units.into_iter().zip(done) {
            let part = unit.length * padded(widths.keys.head);
            self.sharing(unit)
                .zip(rows.chunks_exact(part))
                .for_each(|(head, rows)| head.put(&mut out, widths.queries, rows));
        }
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
        let widths = self.widths(queries.dim(1)?);
        let units = self.units();
        let done: Vec<_> = units.par_iter().map(|unit| vectorised(|| self.backward(*unit, inputs, widths))).collect();
        let mut out = [vec![0f32; inputs[0].len()], vec![0f32; inputs[1].len()], vec![0f32; inputs[1].len()]];
        for (unit, rows) in units.into_iter().zip(done) {
            let part = unit.length * padded(widths.keys.head);
            let mut parts = rows.chunks_exact(part);
            let [of_queries, of_keys, of_values] = &mut out;
            for (of, rows) in [of_keys, of_values].into_iter().zip(&mut parts) {
                unit.put(of, widths.keys, rows);
            }
            self.sharing(unit).zip(parts).for_each(|(head, rows)| head.put(of_queries, widths.queries, rows));
        }
        let [of_queries, of_keys, of_values] = out;
        Ok((
            Some(tensor(of_queries, queries.dims())?),
            Some(tensor(of_keys, keys.dims())?),
            Some(tensor(of_values, values.dims())?),
        ))
    }
}
