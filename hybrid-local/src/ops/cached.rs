//! Attention of a sequence's new rows over keys and values in a cache, for the processor: no copies of them, no tensor of all scores.
//!
//! Dao and others, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022: keys are taken a tile at a time, and
//! sums are scaled as larger scores come. A few rows are read through at once, as all that counts is then to read the cache once.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

use super::{
    fused::slice,
    kernels::{dot, exp, softmax, vectorised},
    simd::{LANES, Simd, Work, dispatch},
};

/// From how many rows on tiles are worked on.
const MANY: usize = 4;
/// Tokens of a tile of keys.
const TOKENS: usize = 64;
/// Rows of queries, of all heads that share keys, that are worked on together.
const QUERIES: usize = 64;
/// Products of numbers below which sharing out costs more than it gains.
const SMALL: usize = 1 << 15;

/// Queries `[rows, heads, size]` over keys and values `[key heads, tokens, size]`, of which the heads may lie apart: `[rows, heads · size]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedAttention {
    /// The number of the first row's own token among those given.
    pub(crate) from: usize,
    /// How many tokens, its own included, a row sees.
    pub(crate) window: Option<usize>,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// What no score is larger than.
    pub(crate) cap: Option<f32>,
}

/// What all units of work share.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    attention: CachedAttention,
    queries: &'a [f32],
    keys: Heads<'a>,
    values: Heads<'a>,
    heads: usize,
    size: usize,
}

/// Keys or values.
#[derive(Clone, Copy)]
struct Heads<'a> {
    numbers: &'a [f32],
    /// From one head to the next.
    stride: usize,
    count: usize,
}

impl CachedAttention {
    /// The tokens that a row sees.
    #[inline(always)]
    fn seen(self, row: usize) -> std::ops::Range<usize> {
        let end = self.from + row + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

impl<'a> Heads<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (count, tokens, size) = layout.shape().dims3()?;
        match layout.stride() {
            [stride, row, 1] if *row == size => {
                let (from, stride) = (layout.start_offset(), *stride);
                let length = (count.max(1) - 1) * stride + tokens * size;
                Ok(Self { numbers: &storage.as_slice::<f32>()?[from..from + length], stride, count })
            }
            _ => candle_core::bail!("the tokens of a head have to lie one after another, not as {layout:?}"),
        }
    }

    #[inline(always)]
    fn head(self, head: usize) -> &'a [f32] {
        &self.numbers[head * self.stride..]
    }
}

impl CustomOp3 for CachedAttention {
    fn name(&self) -> &'static str {
        "attention over a cache"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        of_queries: &Layout,
        keys: &CpuStorage,
        of_keys: &Layout,
        values: &CpuStorage,
        of_values: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, heads, size) = of_queries.shape().dims3()?;
        let (key_heads, tokens, key_size) = of_keys.shape().dims3()?;
        let fits = key_size == size && key_heads > 0 && heads % key_heads == 0 && self.from + rows == tokens;
        if !fits || of_keys.shape() != of_values.shape() {
            candle_core::bail!(
                "queries {:?} from token {} do not fit keys {:?} and values {:?}",
                of_queries.shape(),
                self.from,
                of_keys.shape(),
                of_values.shape()
            );
        }
        let inputs = Inputs {
            attention: *self,
            queries: slice(queries, of_queries)?,
            keys: Heads::of(keys, of_keys)?,
            values: Heads::of(values, of_values)?,
            heads,
            size,
        };
        let mut out = vec![0f32; rows * heads * size];
        if rows >= MANY && size.is_multiple_of(LANES) {
            let together = (QUERIES / (heads / key_heads)).max(1);
            let shares = out.par_chunks_mut(together * heads * size).enumerate().with_max_len(1);
            shares.for_each(|(share, out)| dispatch(Many { inputs, first: share * together, out }));
        } else {
            let group = heads / key_heads * size;
            let work =
                |(unit, out): (usize, &mut [f32])| vectorised(|| inputs.few(unit / key_heads, unit % key_heads, out));
            if out.len() * tokens <= SMALL {
                out.chunks_mut(group).enumerate().for_each(work);
            } else {
                out.par_chunks_mut(group).enumerate().for_each(work);
            }
        }
        Ok((CpuStorage::F32(out), (rows, heads * size).into()))
    }
}

impl Inputs<'_> {
    /// One row's queries that share a head of keys.
    #[inline(always)]
    fn few(&self, row: usize, head: usize, out: &mut [f32]) {
        let Self { attention, size, .. } = *self;
        let seen = attention.seen(row);
        let queries = &self.queries[row * self.heads * size + head * out.len()..][..out.len()];
        let numbers = seen.start * size..seen.end * size;
        let (keys, values) = (&self.keys.head(head)[numbers.clone()], &self.values.head(head)[numbers]);
        let tokens = seen.len();
        let mut scores = vec![0f32; out.len() / size * tokens];
        for (token, key) in keys.chunks_exact(size).enumerate() {
            for (query, scores) in queries.chunks_exact(size).zip(scores.chunks_exact_mut(tokens)) {
                scores[token] = attention.score(dot(query, key) * attention.scale);
            }
        }
        scores.chunks_exact_mut(tokens).for_each(softmax);
        for (token, value) in values.chunks_exact(size).enumerate() {
            for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(tokens)) {
                let share = scores[token];
                for (out, value) in out.iter_mut().zip(value) {
                    *out += share * value;
                }
            }
        }
    }
}

impl CachedAttention {
    #[inline(always)]
    fn score(self, product: f32) -> f32 {
        match self.cap {
            // The hyperbolic tangent.
            Some(cap) => cap * (1.0 - 2.0 / (exp(2.0 * product / cap) + 1.0)),
            None => product,
        }
    }
}

/// Some rows, all heads.
struct Many<'a> {
    inputs: Inputs<'a>,
    first: usize,
    out: &'a mut [f32],
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

impl Work for Many<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, first, out } = self;
        let Inputs { attention, heads, size, .. } = inputs;
        let width = heads * size;
        let rows = out.len() / width;
        let group = heads / inputs.keys.count;
        let count = (group * rows).next_multiple_of(2 * LANES);
        let mut lanes = Lanes {
            count,
            queries: vec![0.0; size * count],
            scores: vec![0.0; TOKENS * count],
            largest: vec![0.0; count],
            shrink: vec![0.0; count],
            totals: vec![0.0; count],
            sums: vec![0.0; count * size],
        };
        for head in 0..inputs.keys.count {
            lanes.begin(&inputs, first, rows, head);
            let (keys, values) = (inputs.keys.head(head), inputs.values.head(head));
            let (start, end) = (attention.seen(first).start, attention.seen(first + rows - 1).end);
            for token in (start..end).step_by(TOKENS) {
                let tokens = TOKENS.min(end - token);
                lanes.score(simd, &keys[token * size..][..tokens * size], size);
                lanes.weigh(attention, (first, rows), (token, tokens));
                lanes.add(simd, &values[token * size..][..tokens * size], size);
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
    fn begin(&mut self, inputs: &Inputs<'_>, first: usize, rows: usize, head: usize) {
        let Inputs { attention, queries, heads, size, .. } = *inputs;
        let group = heads / inputs.keys.count;
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
    fn weigh(&mut self, attention: CachedAttention, (first, rows): (usize, usize), (token, tokens): (usize, usize)) {
        let count = self.count;
        let scores = &mut self.scores[..tokens * count];
        if attention.cap.is_some() {
            for score in &mut *scores {
                *score = attention.score(*score);
            }
        }
        let all_seen = attention.seen(first).end >= token + tokens && attention.seen(first + rows - 1).start <= token;
        if !all_seen {
            for (i, scores) in scores.chunks_exact_mut(count).enumerate() {
                for (lane, score) in scores.iter_mut().enumerate() {
                    if !attention.seen(first + lane % rows).contains(&(token + i)) {
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::random::Random;

    #[test]
    fn every_row_gets_the_mean_of_the_values_it_sees_by_its_scores() {
        let mut random = Random::of(4, "attention", [0, 0]);
        for (rows, heads, key_heads, size, from) in [
            (1, 4, 2, 8, 9),
            (3, 2, 2, 32, 0),
            (4, 4, 1, 16, 0),
            (70, 6, 2, 48, 130),
            (37, 2, 1, 20, 3),
            (130, 1, 1, 64, 1),
        ] {
            for (window, cap) in [(None, None), (Some(11), Some(1.5))] {
                let (tokens, room, before) = (from + rows, from + rows + 7, 2);
                let queries = random.normal(rows * heads * size, 1.0);
                let [keys, values] = [(); 2].map(|()| random.normal(key_heads * room * size, 1.0));
                let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
                // As a part of a cache that has other tokens before and behind.
                let cached =
                    |values: &[f32]| tensor(values, &[key_heads, room, size]).narrow(1, before, tokens).unwrap();
                let attention = CachedAttention { from, window, scale: 0.3, cap };
                let ours = tensor(&queries, &[rows, heads, size])
                    .apply_op3_no_bwd(&cached(&keys), &cached(&values), &attention)
                    .unwrap();
                assert_eq!(ours.dims(), [rows, heads * size]);
                let ours = ours.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for row in 0..rows {
                    for head in 0..heads {
                        let at = |token: usize| ((head / (heads / key_heads)) * room + before + token) * size;
                        let query = &queries[(row * heads + head) * size..][..size];
                        let first = window.map_or(0, |window| (from + row + 1).saturating_sub(window));
                        let scores: Vec<f64> = (first..=from + row)
                            .map(|token| {
                                let product = query.iter().zip(&keys[at(token)..]).map(|(a, b)| f64::from(a * b));
                                let score = product.sum::<f64>() * 0.3;
                                cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                            })
                            .collect();
                        let total: f64 = scores.iter().sum();
                        for column in 0..size {
                            let sum = scores.iter().zip(first..).map(|(s, t)| s * f64::from(values[at(t) + column]));
                            let (exact, ours) = (sum.sum::<f64>() / total, ours[(row * heads + head) * size + column]);
                            let place = (rows, heads, size, row, head, column);
                            assert!((exact - f64::from(ours)).abs() < 2e-5, "{place:?}: {ours} and {exact}");
                        }
                    }
                }
            }
        }
    }
}
