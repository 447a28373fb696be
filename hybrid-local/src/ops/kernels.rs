//! Arithmetic on slices for the processor: loops that the compiler turns into vector instructions, shared out over threads.
//!
//! Every sum is taken in an order that depends on the shapes alone, never on the number of threads, so results repeat bit for bit.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use rayon::prelude::*;

/// Elements of a share of work: large enough to be worth handing to another thread, small enough to stay in its cache.
const SHARE: usize = 16 << 10;
/// Columns of the block that [`product`] keeps in registers; rows of its operands are padded to a multiple.
const LANES: usize = 16;

/// What becomes of what a result is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onto {
    /// It is lost, and need not be anything.
    Nothing,
    /// The result is added to it.
    #[cfg_attr(not(feature = "decoder"), allow(dead_code))]
    Before,
}

#[cfg(feature = "decoder")]
impl Onto {
    /// Makes `out` something that can be added to.
    pub(crate) fn begin(self, out: &mut [f32]) {
        if self == Self::Nothing {
            out.fill(0.0);
        }
    }
}

/// Runs `work` with the widest vector instructions that the processor has; it must be inlined whole.
#[inline]
pub(super) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Gives each share of rows of `out` to `work` with the number of its first row.
pub(super) fn by_rows(out: &mut [f32], columns: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_share(columns);
    let share = |(i, share): (usize, &mut [f32])| vectorised(|| work(i * rows, share));
    out.par_chunks_mut(rows * columns.max(1)).enumerate().for_each(share);
}

pub(super) fn rows_per_share(columns: usize) -> usize {
    (SHARE / columns.max(1)).max(1)
}

/// The sums of the columns of `[rows, columns]` values.
pub(super) fn column_sums(values: &[f32], columns: usize) -> Vec<f32> {
    let sum_share = |share: &[f32]| {
        vectorised(|| {
            let mut sums = vec![0f32; columns];
            for row in share.chunks_exact(columns) {
                add(&mut sums, row);
            }
            sums
        })
    };
    let shares: Vec<_> = values.par_chunks(rows_per_share(columns) * columns).map(sum_share).collect();
    sum_vectors(shares, columns)
}

/// The sum of vectors, in their order.
pub(super) fn sum_vectors(vectors: Vec<Vec<f32>>, columns: usize) -> Vec<f32> {
    let mut sums = vec![0f32; columns];
    for vector in vectors {
        add(&mut sums, &vector);
    }
    sums
}

/// The sum of the squares.
pub(super) fn squares(values: &[f32]) -> f64 {
    let shares: Vec<_> = values.par_chunks(SHARE).map(|share| vectorised(|| f64::from(dot(share, share)))).collect();
    shares.into_iter().sum()
}

/// Adds `values` to `sums`, one to each.
#[cfg(feature = "decoder")]
pub(super) fn add_all(sums: &mut [f32], values: &[f32]) {
    sums.par_chunks_mut(SHARE)
        .zip(values.par_chunks(SHARE))
        .for_each(|(sums, values)| vectorised(|| add(sums, values)));
}

/// Multiplies each of `values` by its factor.
#[cfg(feature = "decoder")]
pub(super) fn multiply_all(values: &mut [f32], factors: &[f32]) {
    values.par_chunks_mut(SHARE).zip(factors.par_chunks(SHARE)).for_each(|(values, factors)| {
        vectorised(|| {
            for (value, factor) in values.iter_mut().zip(factors) {
                *value *= factor;
            }
        });
    });
}

/// Adds `row` to each row of as many columns.
#[cfg(feature = "decoder")]
pub(super) fn add_to_rows(rows: &mut [f32], row: &[f32]) {
    by_rows(rows, row.len(), |_, rows| rows.chunks_exact_mut(row.len()).for_each(|sums| add(sums, row)));
}

#[inline(always)]
pub(super) fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `e^x` to a few units in the last place for x up to 88; what lies below -87 counts as -87.
///
/// `2^n · e^r` with `|r|` at most half the logarithm of two, `e^r` by its Taylor series to the seventh power.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // The logarithm of two in two parts, the first with so few digits that its products are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN_2[0] - whole * LN_2[1];
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The standard normal distribution and its density at `x`.
///
/// Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26: the error is below 1e-6.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let t = 1.0 / (1.0 + 0.327_591_1 * FRAC_1_SQRT_2 * x.abs());
    let mut series = 1.061_405_4f32;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = series * t + coefficient;
    }
    let bell = exp(-0.5 * x * x);
    let tail = 0.5 * series * t * bell;
    // One over the root of two pi.
    (if x < 0.0 { tail } else { 1.0 - tail }, bell * 0.398_942_3)
}

/// The Gaussian error linear unit, `x · Φ(x)`.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// The derivative of [`gelu`], `Φ(x) + x · φ(x)`.
#[inline(always)]
pub(super) fn gelu_slope(x: f32) -> f32 {
    let (distribution, density) = normal(x);
    distribution + x * density
}

/// Replaces a row by its softmax.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let mut max = f32::NEG_INFINITY;
    for &value in &*row {
        max = if value > max { value } else { max };
    }
    for value in &mut *row {
        *value = exp(*value - max);
    }
    let factor = 1.0 / sum(row);
    for value in row {
        *value *= factor;
    }
}

/// Takes gradients of rows' softmax, in `slopes`, to those of what it was taken of; `shares` is what it gave.
#[inline(always)]
pub(super) fn softmax_slopes(slopes: &mut [f32], shares: &[f32], columns: usize) {
    for (row, shares) in slopes.chunks_exact_mut(columns).zip(shares.chunks_exact(columns)) {
        let mean = dot(row, shares);
        for (value, share) in row.iter_mut().zip(shares) {
            *value = share * (*value - mean);
        }
    }
}

/// The least multiple of the register block that holds `columns`.
#[inline(always)]
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// How a matrix lies in its slice: the distance from row to row and from column to column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strides(pub(super) usize, pub(super) usize);

/// `c = a · b`: `c` is `[rows, columns]`, `a` `[rows, inner]` as its strides say, `b` `[inner, columns]`; `columns` is [`padded`].
#[inline(always)]
pub(super) fn product(c: &mut [f32], a: &[f32], strides: Strides, b: &[f32], inner: usize, columns: usize) {
    const ROWS: usize = 4;
    let rows = c.len() / columns;
    let mut row = 0;
    while row < rows {
        for column in (0..columns).step_by(LANES) {
            if row + ROWS <= rows {
                block::<ROWS>(c, a, strides, b, inner, columns, (row, column));
            } else {
                for row in row..rows {
                    block::<1>(c, a, strides, b, inner, columns, (row, column));
                }
            }
        }
        row += ROWS;
    }
}

#[inline(always)]
fn block<const ROWS: usize>(
    c: &mut [f32],
    a: &[f32],
    Strides(down, across): Strides,
    b: &[f32],
    inner: usize,
    columns: usize,
    (row, column): (usize, usize),
) {
    let mut sums = [[0f32; LANES]; ROWS];
    for k in 0..inner {
        let Some(b) = b[k * columns + column..].first_chunk::<LANES>() else { return };
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = a[(row + i) * down + k * across];
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        c[(row + i) * columns + column..][..LANES].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_exponential_and_the_unit_agree_with_double_precision() {
        for i in -8_000..=8_000 {
            let x = i as f32 * 0.005;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "exp({x})");
            // The distribution by Simpson's rule over the density.
            if i % 50 == 0 && x.abs() <= 8.0 {
                let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
                let steps = 2_000;
                let width = f64::from(x) / f64::from(steps);
                let simpson: f64 = (0..=steps)
                    .map(|k| {
                        let factor = if k == 0 || k == steps {
                            1.0
                        } else if k % 2 == 1 {
                            4.0
                        } else {
                            2.0
                        };
                        factor * density(f64::from(k) * width)
                    })
                    .sum();
                let distribution = 0.5 + simpson * width / 3.0;
                assert!((f64::from(gelu(x)) - f64::from(x) * distribution).abs() < 1e-6 * (1.0 + f64::from(x.abs())));
                let slope = distribution + f64::from(x) * density(f64::from(x));
                assert!((f64::from(gelu_slope(x)) - slope).abs() < 2e-6, "slope at {x}");
            }
        }
        assert!(exp(-1_000.0) < 1e-37);
    }

    #[test]
    fn products_of_all_shapes_are_those_of_three_plain_loops() {
        let mut random = Random::of(1, "product", [0, 0]);
        for (rows, inner, columns) in [(1, 1, 16), (4, 3, 32), (7, 16, 16), (9, 33, 48)] {
            let (a, b) = (random.normal(rows * inner, 1.0), random.normal(inner * columns, 1.0));
            for transposed in [false, true] {
                let strides = if transposed { Strides(1, rows) } else { Strides(inner, 1) };
                let mut c = vec![f32::NAN; rows * columns];
                vectorised(|| product(&mut c, &a, strides, &b, inner, columns));
                for (i, c) in c.iter().enumerate() {
                    let (row, column) = (i / columns, i % columns);
                    let exact: f32 =
                        (0..inner).map(|k| a[row * strides.0 + k * strides.1] * b[k * columns + column]).sum();
                    assert!((c - exact).abs() < 1e-4, "{rows} {inner} {columns} {transposed}: {c} {exact}");
                }
            }
        }
    }

    #[test]
    fn sums_over_shares_are_whole() {
        let columns = 48;
        let values: Vec<f32> = (0..columns * 1_500).map(|i| (i % 7) as f32).collect();
        let sums = column_sums(&values, columns);
        for (column, sum) in sums.iter().enumerate() {
            let exact: f32 = values.iter().skip(column).step_by(columns).sum();
            assert_eq!(*sum, exact);
        }
        let exact: f64 = values.iter().map(|&value| f64::from(value * value)).sum();
        assert!((squares(&values) / exact - 1.0).abs() < 1e-6);
        assert_eq!((sum(&values[..35]), dot(&values[..35], &values[..35])), (105.0, 455.0));
    }
}
