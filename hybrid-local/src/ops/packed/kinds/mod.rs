//! How numbers of a few bits lie in memory: sixteen rows side by side, so that a vector holds four columns of each.
//!
//! The blocks of the files are those of ggml (<https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>): a number is `factor · q`
//! less a minimum. A block here is 32 columns of sixteen rows; blocks that share factors are a span.

mod plain;
mod spans;

use crate::ops::simd::{LANES, LINE, Simd};

pub(super) use plain::{Q4_0, Q8_0};
pub(super) use spans::{Q4K, Q5K, Q6K};

/// Columns of a block.
pub(super) const COLUMNS: usize = 32;
/// Lines of a block that is unpacked: four columns each.
pub(super) const QUARTETS: usize = COLUMNS / 4;

/// 64 bytes of one line of the cache: four bytes for each of sixteen rows.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u8; LINE]);

/// A way to store numbers.
pub(super) trait Kind: Copy + Send + Sync {
    /// Bytes of one row of a span in a file.
    const FILE_BYTES: usize;
    /// Blocks of a span.
    const BLOCKS: usize;
    /// Lines of a block.
    const LINES: usize;
    /// Bytes of a span's factors, all sixteen rows.
    const FACTORS: usize;
    /// Whether the two halves of a block have factors of their own.
    const HALVES: bool;
    /// Whether there are minima.
    const MINIMA: bool;
    /// Whether the unpacked bytes have a sign.
    const SIGNED: bool;
    /// What is to be taken from each unpacked byte.
    const OFFSET: i32;

    /// Puts one row of a span into its lane of lines and factors that are zero.
    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]);

    /// The bytes of a block.
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS];

    /// The factors of the span's block of this number.
    fn factors<S: Simd>(simd: S, factors: &[u8], block: usize) -> Factors<S>;
}

/// The factors of a block for sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Factors<S: Simd> {
    /// Of the block's halves; the second is of use only where halves differ.
    pub(super) halves: [S::Floats; 2],
    pub(super) minima: S::Floats,
}

/// A block that is ready for products.
#[derive(Clone, Copy)]
pub(super) struct Block<S: Simd> {
    pub(super) bytes: [S::Bytes; QUARTETS],
    pub(super) factors: Factors<S>,
}

/// Puts the low four bits of a row's numbers into the first four lines: columns 0 to 15 low, 16 to 31 high.
fn put_nibbles(numbers: &[u8; COLUMNS], lane: usize, lines: &mut [Line]) {
    for (column, number) in numbers.iter().enumerate() {
        let (quartet, byte) = (column / 4, 4 * lane + column % 4);
        lines[quartet % 4].0[byte] |= (number & 15) << (4 * (quartet / 4));
    }
}

#[inline(always)]
fn nibbles<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
    let line = |i: usize| simd.bytes(&lines[i].0);
    let (a, b, c, d) = (line(0), line(1), line(2), line(3));
    let (low, high) = (|x| simd.bits::<0>(x, 15), |x| simd.bits::<4>(x, 15));
    [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
}

/// Half-precision numbers of sixteen rows from byte `at`.
#[inline(always)]
fn halves<S: Simd>(simd: S, factors: &[u8], at: usize) -> S::Floats {
    match factors[at..].first_chunk() {
        Some(bytes) => simd.halves(bytes),
        None => simd.floats(0.0),
    }
}

/// The sixteen bytes from `at`.
#[inline(always)]
fn lanes(factors: &[u8], at: usize) -> &[u8; LANES] {
    factors[at..].first_chunk().unwrap_or(&[0; LANES])
}
