//! Attention of each token over itself and those before it in its sequence, for the processor: heads of queries may share those of keys and
//! values, and a window may end what is seen.
//!
//! A head of keys of a sequence is one unit of work. Some rows of queries are gone through at a time, so that their scores stay in a core's
//! cache however long the sequence is; what a row does not see is not worked out. The backward pass computes the shares anew.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    attention::{Spans, Unit, Width},
    fused::{cpu_slice, slice, tensor},
    kernels::{Onto, padded, softmax, softmax_slopes},
    simd::{LANES, Simd, Work, dispatch},
};

/// Rows of queries that are gone through at a time.
const ROWS: usize = 64;

/// `softmax(scale Q Kᵀ) V` for each head: queries are `[rows, heads · size]`, keys and values `[rows, key heads · size]`.
pub(crate) struct Causal {
    pub(crate) spans: Spans,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) scale: f32,
    /// How many tokens, its own included, a token sees.
    pub(crate) window: Option<usize>,
}

/// How wide the rows of queries and of keys are.
#[derive(Clone, Copy)]
struct Widths {
    queries: Width,
    keys: Width,
}

impl Causal {
    /// Fills `out` with the attention of queries of so many columns to keys and values.
    pub(super) fn forward(&self, out: &mut [f32], inputs: [&[f32]; 3], columns: usize) {
        let widths = self.widths(columns);
        let units = self.units();
        let done: Vec<_> =
            units.par_iter().map(|unit| dispatch(Forward { causal: self, unit: *unit, inputs, widths })).collect();
        for (unit, rows) in units.into_iter().zip(done) {
            let part = unit.length * padded(widths.keys.head);
            let heads = self.sharing(unit).zip(rows.chunks_exact(part));
            heads.for_each(|(head, rows)| head.put(out, widths.queries, rows));
        }
    }

    /// Fills `out` with the gradients of queries, keys and values, of these and of the gradient of what came out.
    pub(super) fn back(&self, out: [&mut [f32]; 3], inputs: [&[f32]; 4], columns: usize) {
        let widths = self.widths(columns);
        let units = self.units();
        let done: Vec<_> =
            units.par_iter().map(|unit| dispatch(Backward { causal: self, unit: *unit, inputs, widths })).collect();
        let [of_queries, of_keys, of_values] = out;
        for (unit, rows) in units.into_iter().zip(done) {
            let part = unit.length * padded(widths.keys.head);
            let mut parts = rows.chunks_exact(part);
            for (of, rows) in [&mut *of_keys, &mut *of_values].into_iter().zip(&mut parts) {
                unit.put(of, widths.keys, rows);
            }
            self.sharing(unit).zip(parts).for_each(|(head, rows)| head.put(of_queries, widths.queries, rows));
        }
    }

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

    /// The first token that the one at `row` sees.
    #[inline(always)]
    fn first(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (row + 1).saturating_sub(window))
    }

    /// The attention of the rows from `from` on, `[rows, columns]`, of queries that are scaled, `[rows, padded size]`, and keys as columns.
    #[inline(always)]
    fn shares<S: Simd>(
        &self,
        simd: S,
        shares: &mut [f32],
        from: usize,
        queries: &[f32],
        keys: &[f32],
        [size, columns]: [usize; 2],
    ) {
        let all = |rows: Range<usize>| (0..size, columns.min(padded(from + rows.end)));
        product(simd, (&mut *shares, columns), Left::Rows(queries, padded(size)), keys, Onto::Nothing, all);
        for (row, shares) in shares.chunks_exact_mut(columns).enumerate() {
            let row = from + row;
            let first = self.first(row);
            shares[..first].fill(0.0);
            softmax(&mut shares[first..=row]);
            shares[row + 1..].fill(0.0);
        }
    }
}

/// For each head that shares the keys its rows, `[heads, length, padded size]`.
struct Forward<'a> {
    causal: &'a Causal,
    unit: Unit,
    inputs: [&'a [f32]; 3],
    widths: Widths,
}

impl Work for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { causal, unit, inputs: [queries, keys, values], widths } = self;
        let (size, length) = (widths.keys.head, unit.length);
        let (stride, columns) = (padded(size), padded(length));
        let (keys, values) = (unit.down(keys, widths.keys), unit.across(values, widths.keys, 1.0));
        let mut shares = vec![0f32; ROWS.min(length) * columns];
        let mut all = vec![0f32; causal.heads / causal.key_heads * length * stride];
        for (head, out) in causal.sharing(unit).zip(all.chunks_exact_mut((length * stride).max(1))) {
            let queries = head.across(queries, widths.queries, causal.scale);
            let blocks = out.chunks_mut(ROWS * stride).zip(queries.chunks(ROWS * stride));
            for (from, (out, queries)) in (0..length).step_by(ROWS).zip(blocks) {
                let shares = &mut shares[..out.len() / stride * columns];
                causal.shares(simd, shares, from, queries, &keys, [size, columns]);
                let seen = |rows: Range<usize>| (causal.first(from + rows.start)..from + rows.end, stride);
                product(simd, (out, stride), Left::Rows(shares, columns), &values, Onto::Nothing, seen);
            }
        }
        all
    }
}

/// The gradients of keys, of values, and of the queries of each head that shares them, each `[length, padded size]`.
struct Backward<'a> {
    causal: &'a Causal,
    unit: Unit,
    /// Queries, keys, values, and the gradient of what came out.
    inputs: [&'a [f32]; 4],
    widths: Widths,
}

impl Work for Backward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { causal, unit, inputs: [queries, keys, values, gradient], widths } = self;
        let (size, length) = (widths.keys.head, unit.length);
        let (stride, columns) = (padded(size), padded(length));
        let part = length * stride;
        let (keys_down, values_down) = (unit.down(keys, widths.keys), unit.down(values, widths.keys));
        let keys = unit.across(keys, widths.keys, causal.scale);
        let mut scratch = [(); 2].map(|()| vec![0f32; ROWS.min(length) * columns]);
        let mut all = vec![0f32; (2 + causal.heads / causal.key_heads) * part];
        let (of_keys, rest) = all.split_at_mut(part);
        let (of_values, of_queries) = rest.split_at_mut(part);
        for (head, of_queries) in causal.sharing(unit).zip(of_queries.chunks_exact_mut(part.max(1))) {
            let queries = head.across(queries, widths.queries, causal.scale);
            let gradient = head.across(gradient, widths.queries, 1.0);
            let inputs = queries.chunks(ROWS * stride).zip(gradient.chunks(ROWS * stride));
            let blocks = of_queries.chunks_mut(ROWS * stride).zip(inputs);
            for (from, (of_queries, (queries, gradient))) in (0..length).step_by(ROWS).zip(blocks) {
                let rows = of_queries.len() / stride;
                let [shares, scores] = scratch.each_mut().map(|scratch| &mut scratch[..rows * columns]);
                causal.shares(simd, shares, from, queries, &keys_down, [size, columns]);
                // Of the shares first, then, through the softmax, of the scores.
                let all = |rows: Range<usize>| (0..size, columns.min(padded(from + rows.end)));
                product(simd, (&mut *scores, columns), Left::Rows(gradient, stride), &values_down, Onto::Nothing, all);
                for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
                    scores[from + row + 1..].fill(0.0);
                }
                softmax_slopes(scores, shares, columns);
                let seen = |rows: Range<usize>| (causal.first(from + rows.start)..from + rows.end, stride);
                product(simd, (of_queries, stride), Left::Rows(scores, columns), &keys, Onto::Nothing, seen);
                // A key is seen by the rows from its own on.
                let seeing = |keys: Range<usize>| (keys.start.saturating_sub(from)..rows, stride);
                let end = (from + rows) * stride;
                for (of, slopes, by) in
                    [(&mut of_keys[..end], &*scores, queries), (&mut of_values[..end], &*shares, gradient)]
                {
                    product(simd, (of, stride), Left::Columns(slopes, columns), by, Onto::Before, seeing);
                }
            }
        }
        all
    }
}

/// The left factor of a product: row by row, or column by column, with the distance from one to the next.
#[derive(Clone, Copy)]
enum Left<'a> {
    Rows(&'a [f32], usize),
    Columns(&'a [f32], usize),
}

/// `c = a · b`, or that onto what is there: `c` is `[rows, columns]` and `b` `[inner, columns]`; `columns` is [`padded`]. `part` says for some rows
/// which part of the inner dimension is not zero, and up to which column the result is wanted.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    (c, columns): (&mut [f32], usize),
    a: Left<'_>,
    b: &[f32],
    onto: Onto,
    part: impl Fn(Range<usize>) -> (Range<usize>, usize),
) {
    let rows = c.len() / columns.max(1);
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        row += match left {
            8.. if S::WIDE => strip::<S, 8>(simd, (&mut *c, columns), a, b, onto, row, &part),
            4.. => strip::<S, 4>(simd, (&mut *c, columns), a, b, onto, row, &part),
            _ => strip::<S, 1>(simd, (&mut *c, columns), a, b, onto, row, &part),
        };
    }
}

/// `N` rows of a product; how many these are.
#[inline(always)]
fn strip<S: Simd, const N: usize>(
    simd: S,
    (c, columns): (&mut [f32], usize),
    a: Left<'_>,
    b: &[f32],
    onto: Onto,
    row: usize,
    part: &impl Fn(Range<usize>) -> (Range<usize>, usize),
) -> usize {
    let (inner, end) = part(row..row + N);
    let b = &b[inner.start * columns..inner.end * columns];
    let count = b.len() / columns;
    for column in (0..end).step_by(LANES) {
        match a {
            Left::Rows(a, stride) => {
                let rows: [&[f32]; N] = std::array::from_fn(|i| &a[(row + i) * stride + inner.start..][..count]);
                block(simd, (&mut *c, columns), b, onto, (row, column), |k| rows.map(|row| row[k]));
            }
            Left::Columns(a, stride) => block(simd, (&mut *c, columns), b, onto, (row, column), |k| {
                a[(inner.start + k) * stride + row..].first_chunk::<N>().copied().unwrap_or([0.0; N])
            }),
        }
    }
    N
}

#[inline(always)]
fn block<S: Simd, const N: usize>(
    simd: S,
    (c, columns): (&mut [f32], usize),
    b: &[f32],
    onto: Onto,
    (row, column): (usize, usize),
    a: impl Fn(usize) -> [f32; N],
) {
    let mut sums = [simd.floats(0.0); N];
    if onto == Onto::Before {
        for (i, sum) in sums.iter_mut().enumerate() {
            if let Some(before) = c[(row + i) * columns + column..].first_chunk() {
                *sum = simd.load(before);
            }
        }
    }
    for (k, b) in b.chunks_exact(columns).enumerate() {
        let Some(b) = b[column..].first_chunk() else { return };
        let b = simd.load(b);
        for (sum, a) in sums.iter_mut().zip(a(k)) {
            *sum = simd.mul_add(simd.floats(a), b, *sum);
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        c[(row + i) * columns + column..][..LANES].copy_from_slice(&simd.store(sum));
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
        let mut out = vec![0f32; inputs[0].len()];
        self.forward(&mut out, inputs, layout.shape().dims2()?.1);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let read = [queries, keys, values, &gradient].map(Tensor::storage_and_layout);
        let inputs = [cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?, cpu_slice(&read[3])?];
        let [mut of_queries, mut of_keys, mut of_values] =
            [0, 1, 2].map(|input: usize| vec![0f32; inputs[input].len()]);
        self.back([&mut of_queries, &mut of_keys, &mut of_values], inputs, queries.dim(1)?);
        Ok((
            Some(tensor(of_queries, queries.dims())?),
            Some(tensor(of_keys, keys.dims())?),
            Some(tensor(of_values, values.dims())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The attention of one head of queries, and the gradients of its queries, keys and values, by plain loops in double precision.
    fn exact(inputs: [&[Vec<f64>]; 4], scale: f64, window: Option<usize>) -> [Vec<Vec<f64>>; 4] {
        let [queries, keys, values, gradient] = inputs;
        let (length, size) = (queries.len(), queries[0].len());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let add =
            |to: &mut [f64], from: &[f64], factor: f64| to.iter_mut().zip(from).for_each(|(t, f)| *t += f * factor);
        let mut all = [(); 4].map(|()| vec![vec![0f64; size]; length]);
        let [out, of_queries, of_keys, of_values] = &mut all;
        for row in 0..length {
            let seen: Vec<usize> = (0..=row).filter(|key| window.is_none_or(|window| row - key < window)).collect();
            let shares: Vec<f64> = seen.iter().map(|key| (scale * dot(&queries[row], &keys[*key])).exp()).collect();
            let sum: f64 = shares.iter().sum();
            let slopes: Vec<f64> = seen.iter().map(|key| dot(&gradient[row], &values[*key])).collect();
            let mean: f64 = slopes.iter().zip(&shares).map(|(slope, share)| slope * share / sum).sum();
            for ((key, share), slope) in seen.iter().zip(&shares).zip(&slopes) {
                let share = share / sum;
                add(&mut out[row], &values[*key], share);
                add(&mut of_values[*key], &gradient[row], share);
                add(&mut of_queries[row], &keys[*key], scale * share * (slope - mean));
                add(&mut of_keys[*key], &queries[row], scale * share * (slope - mean));
            }
        }
        all
    }

    #[test]
    fn attention_and_its_gradients_are_those_of_plain_loops() {
        let mut random = Random::of(7, "causal", [0, 0]);
        for (lengths, [heads, key_heads], size, window) in [
            (vec![1, 5, 130], [2, 1], 24, None),
            (vec![64, 65, 3], [2, 2], 16, Some(7)),
            (vec![200], [4, 2], 40, Some(90)),
        ] {
            let rows: usize = lengths.iter().sum();
            let scale = 0.3;
            let [queries, gradient] = [(); 2].map(|()| random.normal(rows * heads * size, 1.0));
            let [keys, values] = [(); 2].map(|()| random.normal(rows * key_heads * size, 1.0));
            let causal = Causal { spans: Spans::of(lengths.iter().copied()), heads, key_heads, scale, window };
            let mut out = vec![f32::NAN; rows * heads * size];
            causal.forward(&mut out, [&queries, &keys, &values], heads * size);
            let mut of_queries = out.clone();
            let [mut of_keys, mut of_values] = [(); 2].map(|()| vec![f32::NAN; rows * key_heads * size]);
            let found = [&mut of_queries[..], &mut of_keys[..], &mut of_values[..]];
            causal.back(found, [&queries, &keys, &values, &gradient], heads * size);
            let head = |all: &[f32], (start, length): (usize, usize), head: usize| -> Vec<Vec<f64>> {
                let columns = all.len() / rows;
                let row = |row: usize| &all[row * columns + head * size..][..size];
                (start..start + length).map(|at| row(at).iter().map(|value| f64::from(*value)).collect()).collect()
            };
            let near = |found: Vec<Vec<f64>>, exact: &[Vec<f64>]| {
                for (found, exact) in found.iter().flatten().zip(exact.iter().flatten()) {
                    assert!((found - exact).abs() < 1e-4 * (1.0 + exact.abs()), "{lengths:?}: {found} {exact}");
                }
            };
            for span in causal.spans.iter() {
                for key_head in 0..key_heads {
                    let mut sums = [(); 2].map(|()| vec![vec![0f64; size]; span.1]);
                    for own in key_head * heads / key_heads..(key_head + 1) * heads / key_heads {
                        let inputs = [
                            &head(&queries, span, own)[..],
                            &head(&keys, span, key_head)[..],
                            &head(&values, span, key_head)[..],
                            &head(&gradient, span, own)[..],
                        ];
                        let [exact_out, exact_queries, rest @ ..] = exact(inputs, f64::from(scale), window);
                        near(head(&out, span, own), &exact_out);
                        near(head(&of_queries, span, own), &exact_queries);
                        for (sums, part) in sums.iter_mut().flatten().flatten().zip(rest.iter().flatten().flatten()) {
                            *sums += part;
                        }
                    }
                    near(head(&of_keys, span, key_head), &sums[0]);
                    near(head(&of_values, span, key_head), &sums[1]);
                }
            }
        }
    }
}
