//! Rows of floats as whole numbers of eight bits with a factor for every 32.

use rayon::prelude::*;

use super::kinds::{COLUMNS, Kind, QUARTETS};
use crate::ops::simd::{Simd, Work, dispatch};

/// 32 columns of one row: `factor · q`, with -127 to 127 for `q`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    /// Four numbers in each, the lowest first.
    pub(super) quartets: [i32; QUARTETS],
    pub(super) factor: f32,
    /// Less than nothing by the sum of all 32 floats: what minima are multiplied by.
    pub(super) deficit: f32,
    /// Where sums of products begin, so that the weights' offset is taken off: of the halves, or of the whole in the first.
    pub(super) starts: [i32; 2],
}

/// `[rows, columns]` floats in pieces, row after row. What is not finite makes its piece's factor not finite.
pub(super) fn pieces<K: Kind>(x: &[f32], offset: i32) -> Vec<Piece> {
    const SHARE: usize = 128;
    let (blocks, _) = x.as_chunks::<COLUMNS>();
    let mut pieces = vec![Piece::default(); blocks.len()];
    let fill = |(pieces, blocks)| dispatch(Fill::<K> { pieces, blocks, offset, kind: std::marker::PhantomData });
    if blocks.len() <= 2 * SHARE {
        fill((&mut pieces[..], blocks));
    } else {
        pieces.par_chunks_mut(SHARE).zip(blocks.par_chunks(SHARE)).for_each(fill);
    }
    pieces
}

/// Some of the blocks.
struct Fill<'a, K> {
    pieces: &'a mut [Piece],
    blocks: &'a [[f32; COLUMNS]],
    offset: i32,
    kind: std::marker::PhantomData<K>,
}

impl<K: Kind> Work for Fill<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (piece, block) in self.pieces.iter_mut().zip(self.blocks) {
            *piece = Piece::of::<K>(block, self.offset);
        }
    }
}

impl Piece {
    #[inline(always)]
    fn of<K: Kind>(block: &[f32; COLUMNS], offset: i32) -> Self {
        // Adding 1.5 · 2^23 rounds to a whole number, ties to the even one, which then stands in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // As whole numbers magnitudes are in the same order, and what is not finite is above all others.
        let mut largest = 0u32;
        for value in block {
            largest = largest.max(value.to_bits() & 0x7FFF_FFFF);
        }
        let largest = f32::from_bits(largest);
        let factor = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut numbers = [0u32; COLUMNS];
        for (number, value) in numbers.iter_mut().zip(block) {
            *number = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
        }
        let mut halves = [0i32; 2];
        for (half, numbers) in halves.iter_mut().zip(numbers.as_chunks::<{ COLUMNS / 2 }>().0) {
            for number in numbers {
                *half = half.wrapping_add(number.cast_signed());
            }
        }
        let whole = halves[0].wrapping_add(halves[1]);
        let start = |sum: i32| sum.wrapping_mul(-offset);
        let starts = if K::HALVES { halves.map(start) } else { [start(whole), 0] };
        let mut quartets = [0i32; QUARTETS];
        for (quartet, numbers) in quartets.iter_mut().zip(numbers.as_chunks::<4>().0) {
            *quartet = i32::from_le_bytes(numbers.map(|number| number as u8));
        }
        Self { quartets, factor, deficit: -factor * whole as f32, starts }
    }
}
