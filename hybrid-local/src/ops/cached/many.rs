//! Many rows, over tiles of keys and values.

use super::{Inputs, Number};
use crate::ops::{
    kernels::exp,
    simd::{LANES, Simd, Work},
};

/// Tokens of a tile of keys.
const TOKENS: usize = 64;

/// Some rows, all heads.
pub(super) struct Many<'a, N> {
    pub(super) inputs: Inputs<'a, N>,
    pub(super) first: usize,
    pub(super) out: &'a mut [f32],
}

/// What is worked on for one head of keys: lanes are queries, those of a head of queries side by side.
struct Lanes {
    /// Their number, in whole pairs of vectors.
    count: usize,
    /// `[size, lanes]`.
    queries: Vec<f32>,
    /// `[tokens of a tile, lanes]`.
    scores: Vec<f32>,
    largest: Vec<f32>,
    shrink: Vec<f32>,
    totals: Vec<f32>,
    /// `[lanes, size]`.
    sums: Vec<f32>,
}

impl<N: Number> Work for Many<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, first, out } = self;
        let Inputs { heads, size, .. } = inputs;
        let width = heads * size;
        let rows = out.len() / width;
        let group = heads / inputs.keys.count();
        let count = (group * rows).next_multiple_of(2 * LANES);
        let mut room = Vec::new();
        let mut lanes = Lanes {
            count,
            queries: vec![0.0; size * count],
            scores: vec![0.0; TOKENS * count],
            largest: vec![0.0; count],
            shrink: vec![0.0; count],
            totals: vec![0.0; count],
            sums: vec![0.0; count * size],
        };
        for head in 0..inputs.keys.count() {
            lanes.begin(&inputs, first, rows, head);
            let (keys, values) = (inputs.keys.head(head), inputs.values.head(head));
            let (start, end) = (inputs.seen(first).start, inputs.seen(first + rows - 1).end);
            for token in (start..end).step_by(TOKENS) {
                let tokens = TOKENS.min(end - token);
                lanes.score(simd, N::floats(simd, &keys[token * size..][..tokens * size], &mut room), size);
                lanes.weigh(&inputs, (first, rows), (token, tokens));
                lanes.add(simd, N::floats(simd, &values[token * size..][..tokens * size], &mut room), size);
            }
            for lane in 0..group * rows {
                let (part, row) = (lane / rows, lane % rows);
                let inverse = 1.0 / lanes.totals[lane];
                let out = &mut out[row * width + (head * group + part) * size..][..size];
                for (out, sum) in out.iter_mut().zip(&lanes.sums[lane * size..][..size]) {
                    *out = sum * inverse;
                }
            }
        }
    }
}

impl Lanes {
    #[inline(always)]
    fn begin<N>(&mut self, inputs: &Inputs<'_, N>, first: usize, rows: usize, head: usize) {
        let Inputs { attention, queries, heads, size, .. } = inputs;
        let (heads, size) = (*heads, *size);
        let group = heads / inputs.keys.count();
        for lane in 0..group * rows {
            let (part, row) = (lane / rows, lane % rows);
            let query = &queries[((first + row) * heads + head * group + part) * size..][..size];
            for (i, value) in query.iter().enumerate() {
                self.queries[i * self.count + lane] = value * attention.scale;
            }
        }
        self.largest.fill(f32::NEG_INFINITY);
        self.totals.fill(0.0);
        self.sums.fill(0.0);
    }

    /// The products of a tile's keys with all queries.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, keys: &[f32], size: usize) {
        let (tokens, count) = (keys.len() / size, self.count);
        let mut token = 0;
        while token < tokens {
            let left = tokens - token;
            for lane in (0..count).step_by(2 * LANES) {
                let (keys, queries) = (&keys[token * size..], &self.queries[lane..]);
                let scores = &mut self.scores[token * count + lane..];
                if left >= 4 {
                    block::<S, 4, 2, false>(simd, (scores, count), (keys, [size, 1]), (queries, count), size);
                } else {
                    for i in 0..left {
                        let (scores, keys) = (&mut scores[i * count..], &keys[i * size..]);
                        block::<S, 1, 2, false>(simd, (scores, count), (keys, [size, 1]), (queries, count), size);
                    }
                }
            }
            token += 4;
        }
    }

    /// Scores become shares of the largest so far; what was summed before shrinks accordingly.
    #[inline(always)]
    fn weigh<N>(&mut self, inputs: &Inputs<'_, N>, (first, rows): (usize, usize), (token, tokens): (usize, usize)) {
        let (count, attention) = (self.count, inputs.attention);
        let scores = &mut self.scores[..tokens * count];
        if attention.cap.is_some() {
            for score in &mut *scores {
                *score = attention.score(*score);
            }
        }
        let all_seen = inputs.seen(first).end >= token + tokens && inputs.seen(first + rows - 1).start <= token;
        if !all_seen {
            for (i, scores) in scores.chunks_exact_mut(count).enumerate() {
                for (lane, score) in scores.iter_mut().enumerate() {
                    if !inputs.seen(first + lane % rows).contains(&(token + i)) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
        self.shrink.copy_from_slice(&self.largest);
        for scores in scores.chunks_exact(count) {
            for (largest, score) in self.largest.iter_mut().zip(scores) {
                *largest = if *score > *largest { *score } else { *largest };
            }
        }
        for ((shrink, largest), total) in self.shrink.iter_mut().zip(&self.largest).zip(&mut self.totals) {
            // Nothing was summed before, or nothing has been seen yet.
            *shrink = if *shrink == f32::NEG_INFINITY { 0.0 } else { exp(*shrink - largest) };
            *total *= *shrink;
        }
        for scores in scores.chunks_exact_mut(count) {
            for ((score, largest), total) in scores.iter_mut().zip(&self.largest).zip(&mut self.totals) {
                *score = if *score == f32::NEG_INFINITY { 0.0 } else { exp(*score - largest) };
                *total += *score;
            }
        }
    }

    /// Adds a tile's values, each times its share.
    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, values: &[f32], size: usize) {
        let (tokens, count) = (values.len() / size, self.count);
        for (sums, shrink) in self.sums.chunks_exact_mut(size).zip(&self.shrink) {
            for sum in sums {
                *sum *= shrink;
            }
        }
        for lane in (0..count).step_by(4) {
            let scores = &self.scores[lane..];
            let mut column = 0;
            while column < size {
                let (sums, values) = (&mut self.sums[lane * size + column..], &values[column..]);
                if column + 2 * LANES <= size {
                    block::<S, 4, 2, true>(simd, (sums, size), (scores, [1, count]), (values, size), tokens);
                } else {
                    block::<S, 4, 1, true>(simd, (sums, size), (scores, [1, count]), (values, size), tokens);
                }
                column += 2 * LANES;
            }
        }
    }
}

/// `c = a · b`, or `c += a · b`, of `ROWS` rows and `WIDE` vectors of columns. `c` and `b` are given with the distance from row to row, `a`
/// with those from row to row and from column to column.
#[inline(always)]
fn block<S: Simd, const ROWS: usize, const WIDE: usize, const ADD: bool>(
    simd: S,
    (c, c_stride): (&mut [f32], usize),
    (a, [down, across]): (&[f32], [usize; 2]),
    (b, b_stride): (&[f32], usize),
    inner: usize,
) {
    let mut sums = [[simd.floats(0.0); WIDE]; ROWS];
    if ADD {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (wide, sum) in sums.iter_mut().enumerate() {
                if let Some(c) = c[row * c_stride + wide * LANES..].first_chunk() {
                    *sum = simd.load(c);
                }
            }
        }
    }
    for k in 0..inner {
        for wide in 0..WIDE {
            let Some(b) = b[k * b_stride + wide * LANES..].first_chunk() else { return };
            let b = simd.load(b);
            for (row, sums) in sums.iter_mut().enumerate() {
                sums[wide] = simd.mul_add(simd.floats(a[row * down + k * across]), b, sums[wide]);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (wide, sum) in sums.into_iter().enumerate() {
            c[row * c_stride + wide * LANES..][..LANES].copy_from_slice(&simd.store(sum));
        }
    }
}
