//! Attention of each text over itself, all heads, for the processor: no padding, no mask, no tensor of all scores.
//!
//! A head of a text is one unit of work: its scores fit into a core's cache, and the backward pass computes them anew.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    dense::{Panels, Rows},
    fused::{cpu_slice, slice, tensor},
    kernels::{Onto, Strides, add, padded, product, softmax, softmax_slopes, vectorised},
    matrix::Matrix,
    simd::{Simd, Work, dispatch},
};

/// Rows of queries whose scores are there at a time, so that they do not grow with the square of a text's length.
const QUERIES: usize = 96;

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
    /// How far before and after its own a token sees.
    pub(super) window: Option<usize>,
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
                unit.put(whole, width, part, Onto::Nothing);
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

    /// Puts `[length, padded head]` values at the unit's place in a tensor of all rows, or adds them to what is there.
    pub(super) fn put(self, whole: &mut [f32], width: Width, values: &[f32], onto: Onto) {
        for (row, values) in values.chunks_exact(padded(width.head)).enumerate() {
            let from = (self.start + row) * width.hidden + self.head * width.head;
            let (place, values) = (&mut whole[from..from + width.head], &values[..width.head]);
            match onto {
                Onto::Nothing => place.copy_from_slice(values),
                Onto::Before => add(place, values),
            }
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

/// The attention of a unit, with where its rows go.
struct Forward<'a> {
    unit: Unit,
    /// Queries, keys and values.
    inputs: [&'a [f32]; 3],
    width: Width,
    window: Option<usize>,
    out: Vec<&'a mut [f32]>,
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (Unit { start, length, head }, width, factor) = (self.unit, self.width, scale(self.width));
        let [queries, keys, values] = self.inputs;
        let queries: Vec<&[f32]> = self.unit.rows(queries, width).collect();
        let reach = self.window.unwrap_or(length);
        let mut laid_out = None;
        for (block, out) in self.out.chunks_mut(QUERIES).enumerate() {
            let first = block * QUERIES;
            let seen = first.saturating_sub(reach)..length.min(first + out.len() + reach);
            if laid_out.as_ref().is_none_or(|(range, _, _)| *range != seen) {
                let from = (start + seen.start) * width.hidden + head * width.head;
                let shape = [seen.len(), width.head];
                let [keys, values] =
                    [keys, values].map(|values| Matrix::within(&values[from..], shape, Strides(width.hidden, 1)));
                laid_out = Some((seen.clone(), Panels::here(keys.turned()), Panels::here(values)));
            }
            let Some((_, keys, values)) = &laid_out else { continue };
            let mut shares = vec![0f32; out.len() * seen.len()];
            let mut rows: Vec<&mut [f32]> = shares.chunks_exact_mut(seen.len()).collect();
            simd.vectorise(Rows::whole(&queries[first..first + rows.len()], keys, &mut rows));
            for (i, row) in rows.iter_mut().enumerate() {
                let from = (first + i).saturating_sub(reach) - seen.start;
                let to = length.min(first + i + reach + 1) - seen.start;
                row[..from].fill(0.0);
                row[to..].fill(0.0);
                for score in &mut row[from..to] {
                    *score *= factor;
                }
                softmax(&mut row[from..to]);
            }
            let shares: Vec<&[f32]> = shares.chunks_exact(seen.len()).collect();
            simd.vectorise(Rows::whole(&shares, values, out));
        }
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
        let mut out = vec![0f32; inputs[0].len()];
        let forward =
            |unit: Unit| Forward { unit, inputs, width, window: self.window, out: Vec::with_capacity(unit.length) };
        let mut work: Vec<Forward<'_>> = self.units().into_iter().map(forward).collect();
        let mut rest = &mut out[..];
        for heads in work.chunks_exact_mut(self.heads) {
            let rows = heads.first().map_or(0, |head| head.unit.length);
            let (here, others) = rest.split_at_mut(rows * width.hidden);
            for row in here.chunks_exact_mut(width.hidden) {
                for (head, part) in heads.iter_mut().zip(row.chunks_exact_mut(width.head)) {
                    head.out.push(part);
                }
            }
            rest = others;
        }
        work.into_par_iter().for_each(dispatch);
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
        if self.window.is_some() {
            candle_core::bail!("attention within a window has no backward pass");
        }
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
