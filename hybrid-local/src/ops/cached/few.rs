//! A few rows, whose keys and values are read through once.

use super::{CachedAttention, Inputs, Number};
use crate::ops::{
    kernels::softmax,
    simd::{LANES, Simd, Work},
};

/// One row's queries that share a head of keys.
pub(super) struct Few<'a, N> {
    pub(super) inputs: Inputs<'a, N>,
    pub(super) row: usize,
    pub(super) head: usize,
    pub(super) out: &'a mut [f32],
}

impl<N: Number> Work for Few<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, row, head, out } = self;
        let size = inputs.size;
        let seen = inputs.seen(row);
        let queries = &inputs.queries[row * inputs.heads * size + head * out.len()..][..out.len()];
        let numbers = seen.start * size..seen.end * size;
        let (keys, values) = (&inputs.keys.head(head)[numbers.clone()], &inputs.values.head(head)[numbers]);
        let tokens = seen.len();
        let mut scores = vec![0f32; out.len() / size * tokens];
        let mut query = 0;
        while query * size < out.len() {
            let (queries, scores, out) =
                (&queries[query * size..], &mut scores[query * tokens..], &mut out[query * size..]);
            query += match queries.len() / size {
                4.. => few::<N, S, 4>(simd, inputs.attention, [keys, values], (queries, size), scores, out),
                2.. => few::<N, S, 2>(simd, inputs.attention, [keys, values], (queries, size), scores, out),
                _ => few::<N, S, 1>(simd, inputs.attention, [keys, values], (queries, size), scores, out),
            };
        }
    }
}

/// So many queries over all keys and values; gives how many.
#[inline(always)]
fn few<N: Number, S: Simd, const GROUP: usize>(
    simd: S,
    attention: CachedAttention,
    [keys, values]: [&[N]; 2],
    (queries, size): (&[f32], usize),
    scores: &mut [f32],
    out: &mut [f32],
) -> usize {
    let tokens = keys.len() / size;
    let whole = size / LANES * LANES;
    for (token, key) in keys.chunks_exact(size).enumerate() {
        let mut sums = [simd.floats(0.0); GROUP];
        for (i, key) in key.as_chunks().0.iter().enumerate() {
            let key = N::load(simd, key);
            for (group, sum) in sums.iter_mut().enumerate() {
                if let Some(query) = queries[group * size + i * LANES..].first_chunk() {
                    *sum = simd.mul_add(simd.load(query), key, *sum);
                }
            }
        }
        for (group, sum) in sums.into_iter().enumerate() {
            let mut product = sum_of(simd.store(sum));
            for (query, key) in queries[group * size..][whole..size].iter().zip(&key[whole..]) {
                product += query * key.widen();
            }
            scores[group * tokens + token] = attention.score(product * attention.scale);
        }
    }
    for scores in scores[..GROUP * tokens].chunks_exact_mut(tokens) {
        softmax(scores);
    }
    let mut column = 0;
    while column + 2 * LANES <= size {
        add_values::<N, S, GROUP, 2>(simd, (values, size), scores, out, column);
        column += 2 * LANES;
    }
    if column + LANES <= size {
        add_values::<N, S, GROUP, 1>(simd, (values, size), scores, out, column);
    }
    for (token, value) in values.chunks_exact(size).enumerate().filter(|_| whole < size) {
        for group in 0..GROUP {
            let share = scores[group * tokens + token];
            for (out, value) in out[group * size..][whole..size].iter_mut().zip(&value[whole..]) {
                *out += share * value.widen();
            }
        }
    }
    GROUP
}

/// The values' columns from `column` on, `WIDE` vectors of them, each times its share.
#[inline(always)]
fn add_values<N: Number, S: Simd, const GROUP: usize, const WIDE: usize>(
    simd: S,
    (values, size): (&[N], usize),
    shares: &[f32],
    out: &mut [f32],
    column: usize,
) {
    let tokens = values.len() / size;
    let mut sums = [[simd.floats(0.0); WIDE]; GROUP];
    for (token, value) in values.chunks_exact(size).enumerate() {
        for wide in 0..WIDE {
            let Some(value) = value[column + wide * LANES..].first_chunk() else { return };
            let value = N::load(simd, value);
            for (group, sums) in sums.iter_mut().enumerate() {
                sums[wide] = simd.mul_add(simd.floats(shares[group * tokens + token]), value, sums[wide]);
            }
        }
    }
    for (group, sums) in sums.into_iter().enumerate() {
        for (wide, sum) in sums.into_iter().enumerate() {
            out[group * size + column + wide * LANES..][..LANES].copy_from_slice(&simd.store(sum));
        }
    }
}

/// The sum of all lanes, halves added to halves.
#[inline(always)]
fn sum_of(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
