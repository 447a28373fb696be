//! Spans of 256 numbers: factors in half precision for the span, and small whole ones for its blocks.

use super::{COLUMNS, Factors, Kind, Line, QUARTETS, halves, lanes, nibbles, put_nibbles};
use crate::ops::simd::{LANES, Simd};

const HALF: usize = 2;
/// Half-precision numbers of sixteen rows, in bytes.
const HALVES: usize = HALF * LANES;
const BLOCKS: usize = 8;
/// Bytes of the factors and minima of a row's eight blocks in a file, six bits each.
const SIXES: usize = 12;

/// `factor · q - minimum` of four bits.
#[derive(Clone, Copy)]
pub(in crate::ops::packed) struct Q4K;

/// `factor · q - minimum` of five bits.
#[derive(Clone, Copy)]
pub(in crate::ops::packed) struct Q5K;

/// `factor · (q - 32)` of six bits.
#[derive(Clone, Copy)]
pub(in crate::ops::packed) struct Q6K;

impl Kind for Q4K {
    const FILE_BYTES: usize = 2 * HALF + SIXES + 128;
    const BLOCKS: usize = BLOCKS;
    const LINES: usize = 4;
    const FACTORS: usize = 2 * HALVES + 2 * BLOCKS * LANES;
    const HALVES: bool = false;
    const MINIMA: bool = true;
    const SIGNED: bool = false;
    const OFFSET: i32 = 0;

    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]) {
        let (head, pairs) = file.split_at(2 * HALF + SIXES);
        place_minima(head, lane, factors);
        for (block, lines) in lines.chunks_exact_mut(Self::LINES).enumerate() {
            put_nibbles(&block_of_pairs(pairs, block), lane, lines);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
        nibbles(simd, lines)
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, factors: &[u8], block: usize) -> Factors<S> {
        with_minima(simd, factors, block)
    }
}

impl Kind for Q5K {
    const FILE_BYTES: usize = 2 * HALF + SIXES + 32 + 128;
    const BLOCKS: usize = BLOCKS;
    const LINES: usize = 5;
    const FACTORS: usize = Q4K::FACTORS;
    const HALVES: bool = false;
    const MINIMA: bool = true;
    const SIGNED: bool = false;
    const OFFSET: i32 = 0;

    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]) {
        let (head, rest) = file.split_at(2 * HALF + SIXES);
        let (fifth, pairs) = rest.split_at(32);
        place_minima(head, lane, factors);
        for (block, lines) in lines.chunks_exact_mut(Self::LINES).enumerate() {
            put_nibbles(&block_of_pairs(pairs, block), lane, lines);
            // In the last line a bit for each quartet.
            for (column, fifth) in fifth.iter().enumerate() {
                lines[4].0[4 * lane + column % 4] |= (fifth >> block & 1) << (column / 4);
            }
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
        let low = nibbles(simd, lines);
        let fifth = simd.bytes(&lines[4].0);
        [
            simd.join::<4>(low[0], simd.bits::<0>(fifth, 1)),
            simd.join::<4>(low[1], simd.bits::<1>(fifth, 1)),
            simd.join::<4>(low[2], simd.bits::<2>(fifth, 1)),
            simd.join::<4>(low[3], simd.bits::<3>(fifth, 1)),
            simd.join::<4>(low[4], simd.bits::<4>(fifth, 1)),
            simd.join::<4>(low[5], simd.bits::<5>(fifth, 1)),
            simd.join::<4>(low[6], simd.bits::<6>(fifth, 1)),
            simd.join::<4>(low[7], simd.bits::<7>(fifth, 1)),
        ]
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, factors: &[u8], block: usize) -> Factors<S> {
        with_minima(simd, factors, block)
    }
}

impl Kind for Q6K {
    const FILE_BYTES: usize = 128 + 64 + 2 * BLOCKS + HALF;
    const BLOCKS: usize = BLOCKS;
    const LINES: usize = 6;
    const FACTORS: usize = HALVES + 2 * BLOCKS * LANES;
    const HALVES: bool = true;
    const MINIMA: bool = false;
    const SIGNED: bool = false;
    const OFFSET: i32 = 32;

    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]) {
        let (low, rest) = file.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (small, factor) = rest.split_at(2 * BLOCKS);
        factors[HALF * lane..][..HALF].copy_from_slice(factor);
        for (half, small) in small.iter().enumerate() {
            factors[HALVES + LANES * half + lane] = *small;
        }
        for (block, lines) in lines.chunks_exact_mut(Self::LINES).enumerate() {
            // Four blocks share 64 bytes of low bits and 32 of high ones.
            let (group, place) = (block / 4, block % 4);
            let numbers: [u8; COLUMNS] = std::array::from_fn(|i| {
                let low = low[64 * group + 32 * (place % 2) + i] >> (4 * (place / 2)) & 15;
                low | (high[32 * group + i] >> (2 * place) & 3) << 4
            });
            put_nibbles(&numbers, lane, lines);
            for (column, number) in numbers.iter().enumerate() {
                let quartet = column / 4;
                lines[4 + quartet / 4].0[4 * lane + column % 4] |= (number >> 4) << (2 * (quartet % 4));
            }
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
        let low = nibbles(simd, lines);
        let (first, second) = (simd.bytes(&lines[4].0), simd.bytes(&lines[5].0));
        [
            simd.join::<4>(low[0], simd.bits::<0>(first, 3)),
            simd.join::<4>(low[1], simd.bits::<2>(first, 3)),
            simd.join::<4>(low[2], simd.bits::<4>(first, 3)),
            simd.join::<4>(low[3], simd.bits::<6>(first, 3)),
            simd.join::<4>(low[4], simd.bits::<0>(second, 3)),
            simd.join::<4>(low[5], simd.bits::<2>(second, 3)),
            simd.join::<4>(low[6], simd.bits::<4>(second, 3)),
            simd.join::<4>(low[7], simd.bits::<6>(second, 3)),
        ]
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, factors: &[u8], block: usize) -> Factors<S> {
        let whole = halves(simd, factors, 0);
        let half = |half| simd.mul(whole, simd.with_sign(lanes(factors, HALVES + LANES * (2 * block + half))));
        Factors { halves: [half(0), half(1)], minima: simd.floats(0.0) }
    }
}

/// The numbers of a block out of pairs: two blocks share 32 bytes.
fn block_of_pairs(pairs: &[u8], block: usize) -> [u8; COLUMNS] {
    std::array::from_fn(|i| pairs[32 * (block / 2) + i] >> (4 * (block % 2)) & 15)
}

/// The span's factor, its factor of minima, and for each block both small factors.
fn place_minima(head: &[u8], lane: usize, factors: &mut [u8]) {
    let (whole, sixes) = head.split_at(2 * HALF);
    for (i, whole) in whole.chunks_exact(HALF).enumerate() {
        factors[HALVES * i + HALF * lane..][..HALF].copy_from_slice(whole);
    }
    for block in 0..BLOCKS {
        let (factor, minimum) = if block < 4 {
            (sixes[block] & 63, sixes[block + 4] & 63)
        } else {
            let (low, upper) = (sixes[block + 4], [sixes[block - 4] >> 6, sixes[block] >> 6]);
            (low & 15 | upper[0] << 4, low >> 4 | upper[1] << 4)
        };
        factors[2 * HALVES + 2 * LANES * block + lane] = factor;
        factors[2 * HALVES + 2 * LANES * block + LANES + lane] = minimum;
    }
}

#[inline(always)]
fn with_minima<S: Simd>(simd: S, factors: &[u8], block: usize) -> Factors<S> {
    let small = 2 * HALVES + 2 * LANES * block;
    let factor = simd.mul(halves(simd, factors, 0), simd.unsigned(lanes(factors, small)));
    let minima = simd.mul(halves(simd, factors, HALVES), simd.unsigned(lanes(factors, small + LANES)));
    Factors { halves: [factor; 2], minima }
}
