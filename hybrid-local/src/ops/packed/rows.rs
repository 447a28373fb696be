//! Rows of floats as whole numbers of eight bits with a factor for every 32.

use rayon::prelude::*;

use super::kinds::{COLUMNS, Kind, QUARTETS};
use crate::ops::kernels::vectorised;

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
    let fill = |(pieces, blocks): (&mut [Piece], &[[f32; COLUMNS]])| {
        vectorised(|| {
            for (piece, block) in pieces.iter_mut().zip(blocks) {
                *piece = Piece::of::<K>(block, offset);
            }
        });
    };
    if blocks.len() <= 2 * SHARE {
        fill((&mut pieces, blocks));
    } else {
        pieces.par_chunks_mut(SHARE).zip(blocks.par_chunks(SHARE)).for_each(fill);
    }
    pieces
}

impl Piece {
    #[inline(always)]
    fn of<K: Kind>(block: &[f32; COLUMNS], offset: i32) -> Self {
        // As whole numbers magnitudes are in the same order, and what is not finite is above all others.
        let magnitude = |value: &f32| value.to_bits() & 0x7FFF_FFFF;
        let largest = f32::from_bits(block.iter().map(magnitude).fold(0, u32::max));
        let factor = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut numbers = [0i8; COLUMNS];
        for (number, value) in numbers.iter_mut().zip(block) {
            *number = (value * inverse).round_ties_even() as i8;
        }
        let sum = |numbers: &[i8]| numbers.iter().map(|number| i32::from(*number)).sum::<i32>();
        let halves = [sum(&numbers[..COLUMNS / 2]), sum(&numbers[COLUMNS / 2..])];
        let whole = halves[0] + halves[1];
        let starts = if K::HALVES { halves.map(|half| -offset * half) } else { [-offset * whole, 0] };
        let mut quartets = [0i32; QUARTETS];
        for (quartet, numbers) in quartets.iter_mut().zip(numbers.as_chunks::<4>().0) {
            *quartet = i32::from_le_bytes(numbers.map(|number| number as u8));
        }
        Self { quartets, factor, deficit: -factor * whole as f32, starts }
    }
}
