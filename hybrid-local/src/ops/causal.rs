//! Attention of each token over itself and those before it in its sequence, for the processor: heads of queries may share those of keys and
//! values, and a window may end what is seen.
//!
//! A head of queries of a sequence is one unit of work. Some of its rows are gone through at a time, so that their scores stay in a core's
//! cache however long the sequence is; what none of a few rows sees is not worked out. The backward pass computes the shares anew.

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
        units.into_iter().zip(done).for_each(|(unit, rows)| unit.put(out, widths.queries, &rows, Onto::Nothing));
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
            unit.put(of_queries, widths.queries, &rows[..part], Onto::Nothing);
            // Heads that share keys come one after another.
            let shared = self.keys_of(unit);
            let onto = if unit.head % self.sharing() == 0 { Onto::Nothing } else { Onto::Before };
            shared.put(of_keys, widths.keys, &rows[part..2 * part], onto);
            shared.put(of_values, widths.keys, &rows[2 * part..], onto);
        }
    }

    /// A head of queries of each sequence.
    fn units(&self) -> Vec<Unit> {
        self.spans.units(self.heads)
    }

    fn widths(&self, columns: usize) -> Widths {
        let head = columns / self.heads;
        Widths { queries: Width { hidden: columns, head }, keys: Width { hidden: head * self.key_heads, head } }
    }

    /// How many heads of queries share a head of keys.
    fn sharing(&self) -> usize {
        self.heads / self.key_heads
    }

    /// The head of keys that a unit's head of queries looks at.
    fn keys_of(&self, unit: Unit) -> Unit {
        Unit { head: unit.head / self.sharing(), ..unit }
    }

    /// The first token that the one at `row` sees.
    #[inline(always)]
    fn first(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (row + 1).saturating_sub(window))
    }

    /// What the row at `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        self.first(row)..row + 1
    }

    /// The whole blocks of columns that hold what these rows see.
    #[inline(always)]
    fn columns(&self, rows: Range<usize>) -> Range<usize> {
        self.first(rows.start) / LANES * LANES..padded(rows.end)
    }

    /// The attention of the rows from `from` on, `[rows, columns]`, of queries that are scaled, `[rows, padded size]`, and keys as columns. Only the
    /// [`columns`](Self::columns) of these rows are filled.
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
        let part = |rows: Range<usize>| (0..size, self.columns(from + rows.start..from + rows.end));
        product(simd, (&mut *shares, columns), Left::Rows(queries, padded(size)), keys, Onto::Nothing, part);
        let all = self.columns(from..from + shares.len() / columns);
        for (row, shares) in shares.chunks_exact_mut(columns).enumerate() {
            let seen = self.seen(from + row);
            hide(shares, &all, &seen);
            softmax(&mut shares[seen]);
        }
    }
}

/// Makes zero what a row does not see of some columns.
#[inline(always)]
fn hide(row: &mut [f32], columns: &Range<usize>, seen: &Range<usize>) {
    row[columns.start..seen.start].fill(0.0);
    row[seen.end..columns.end].fill(0.0);
}

/// The unit's rows, `[length, padded size]`.
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
        let shared = causal.keys_of(unit);
        let (keys, values) = (shared.down(keys, widths.keys), shared.across(values, widths.keys, 1.0));
        let queries = unit.across(queries, widths.queries, causal.scale);
        let mut shares = vec![0f32; ROWS.min(length) * columns];
        let mut all = vec![0f32; length * stride];
        let blocks = all.chunks_mut(ROWS * stride).zip(queries.chunks(ROWS * stride));
        for (from, (out, queries)) in (0..length).step_by(ROWS).zip(blocks) {
            let shares = &mut shares[..out.len() / stride * columns];
            causal.shares(simd, shares, from, queries, &keys, [size, columns]);
            let seen = |rows: Range<usize>| (causal.first(from + rows.start)..from + rows.end, 0..stride);
            product(simd, (out, stride), Left::Rows(shares, columns), &values, Onto::Nothing, seen);
        }
        all
    }
}

/// The gradients of the unit's queries, and its share of those of keys and of values, each `[length, padded size]`.
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
        let shared = causal.keys_of(unit);
        let (keys_down, values_down) = (shared.down(keys, widths.keys), shared.down(values, widths.keys));
        let keys = shared.across(keys, widths.keys, causal.scale);
        let queries = unit.across(queries, widths.queries, causal.scale);
        let gradient = unit.across(gradient, widths.queries, 1.0);
        let mut scratch = [(); 2].map(|()| vec![0f32; ROWS.min(length) * columns]);
        let mut all = vec![0f32; 3 * part];
        let (of_queries, rest) = all.split_at_mut(part);
        let (of_keys, of_values) = rest.split_at_mut(part);
        let inputs = queries.chunks(ROWS * stride).zip(gradient.chunks(ROWS * stride));
        let blocks = of_queries.chunks_mut(ROWS * stride).zip(inputs);
        for (from, (of_queries, (queries, gradient))) in (0..length).step_by(ROWS).zip(blocks) {
            let rows = of_queries.len() / stride;
            let [shares, scores] = scratch.each_mut().map(|scratch| &mut scratch[..rows * columns]);
            causal.shares(simd, shares, from, queries, &keys_down, [size, columns]);
            // Of the shares first, then, through the softmax, of the scores.
            let wanted = |rows: Range<usize>| (0..size, causal.columns(from + rows.start..from + rows.end));
            product(simd, (&mut *scores, columns), Left::Rows(gradient, stride), &values_down, Onto::Nothing, wanted);
            let all = causal.columns(from..from + rows);
            for (row, (scores, shares)) in
                scores.chunks_exact_mut(columns).zip(shares.chunks_exact(columns)).enumerate()
            {
                let seen = causal.seen(from + row);
                hide(scores, &all, &seen);
                softmax_slopes(&mut scores[seen.clone()], &shares[seen.clone()], seen.len());
            }
            let seen = |rows: Range<usize>| (causal.first(from + rows.start)..from + rows.end, 0..stride);
            product(simd, (of_queries, stride), Left::Rows(scores, columns), &keys, Onto::Nothing, seen);
            // A key is seen by the rows from its own on.
            let first = all.start;
            let seeing = |keys: Range<usize>| ((first + keys.start).saturating_sub(from)..rows, 0..stride);
            let own = first * stride..(from + rows) * stride;
            for (of, slopes, by) in [
                (&mut of_keys[own.clone()], &scores[first..], queries),
                (&mut of_values[own], &shares[first..], gradient),
            ] {
                product(simd, (of, stride), Left::Columns(slopes, columns), by, Onto::Before, seeing);
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
/// which part of the inner dimension is not zero, and in which columns, in whole blocks, the result is wanted.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    (c, columns): (&mut [f32], usize),
    a: Left<'_>,
    b: &[f32],
    onto: Onto,
    part: impl Fn(Range<usize>) -> (Range<usize>, Range<usize>),
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
    part: &impl Fn(Range<usize>) -> (Range<usize>, Range<usize>),
) -> usize {
    let (inner, wanted) = part(row..row + N);
    let b = &b[inner.start * columns..inner.end * columns];
    let count = b.len() / columns;
    for column in wanted.step_by(LANES) {
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
            // Windows that end within a block of columns and long before the rows that are gone through.
            (vec![300, 17], [3, 1], 16, Some(21)),
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
