//! Blocks of 32 numbers with one factor.

use super::{COLUMNS, Factors, Kind, Line, QUARTETS, halves, nibbles, put_nibbles};
use crate::ops::simd::{LANES, Simd};

const HALF: usize = 2;

/// `factor · (q - 8)` of four bits.
#[derive(Clone, Copy)]
pub(in crate::ops::packed) struct Q4_0;

impl Kind for Q4_0 {
    const FILE_BYTES: usize = HALF + 16;
    const BLOCKS: usize = 1;
    const LINES: usize = 4;
    const FACTORS: usize = HALF * LANES;
    const HALVES: bool = false;
    const MINIMA: bool = false;
    const SIGNED: bool = false;
    const OFFSET: i32 = 8;

    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]) {
        let (factor, pairs) = file.split_at(HALF);
        factors[HALF * lane..][..HALF].copy_from_slice(factor);
        // The first sixteen numbers are the low bits, the others the high ones.
        let numbers = std::array::from_fn(|i| if i < 16 { pairs[i] & 15 } else { pairs[i - 16] >> 4 });
        put_nibbles(&numbers, lane, lines);
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
        nibbles(simd, lines)
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, factors: &[u8], _block: usize) -> Factors<S> {
        Factors { halves: [halves(simd, factors, 0); 2], minima: simd.floats(0.0) }
    }
}

/// `factor · q` of eight bits with sign.
#[derive(Clone, Copy)]
pub(in crate::ops::packed) struct Q8_0;

impl Kind for Q8_0 {
    const FILE_BYTES: usize = HALF + COLUMNS;
    const BLOCKS: usize = 1;
    const LINES: usize = QUARTETS;
    const FACTORS: usize = HALF * LANES;
    const HALVES: bool = false;
    const MINIMA: bool = false;
    const SIGNED: bool = true;
    const OFFSET: i32 = 0;

    fn place(file: &[u8], lane: usize, lines: &mut [Line], factors: &mut [u8]) {
        let (factor, numbers) = file.split_at(HALF);
        factors[HALF * lane..][..HALF].copy_from_slice(factor);
        for (line, quartet) in lines.iter_mut().zip(numbers.chunks_exact(4)) {
            line.0[4 * lane..][..4].copy_from_slice(quartet);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, lines: &[Line]) -> [S::Bytes; QUARTETS] {
        std::array::from_fn(|i| simd.signed(simd.bytes(&lines[i].0)))
    }

    #[inline(always)]
    fn factors<S: Simd>(simd: S, factors: &[u8], _block: usize) -> Factors<S> {
        Factors { halves: [halves(simd, factors, 0); 2], minima: simd.floats(0.0) }
    }
}
