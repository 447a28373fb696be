//! Products of packed weights with rows of floats.
//!
//! A strip of the weights' rows is one thread's work. For a few rows of input each block of weights is unpacked in registers and used at
//! once, so that the time is that of reading the weights; for many, a tile of weights is unpacked once for all.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Packed,
    kinds::{Block, COLUMNS, Kind, QUARTETS},
    rows::{Piece, pieces},
};
use crate::ops::simd::{LANES, Simd, Work, dispatch};

/// From how many rows of input on tiles are unpacked beforehand.
const MANY: usize = 12;
/// Products of numbers below which sharing out costs more than it gains.
const SMALL: usize = 1 << 16;
/// Shares of work for each thread, so that one which is held up does not hold up the rest.
const SHARES: usize = 8;

/// `x Wᵀ` of `[n, columns]` floats: `[n, rows]` into `out`, which has that length.
pub(super) fn product<K: Kind>(weights: &Packed, x: &[f32], out: &mut [f32]) {
    let (rows, columns) = (weights.rows, weights.columns);
    if out.is_empty() || columns == 0 {
        return;
    }
    let input = dispatch(Prepare::<K> { x, kind: std::marker::PhantomData });
    let tiles = rows.div_ceil(LANES);
    let small = out.len() * columns <= SMALL;
    let shares = if small { 1 } else { SHARES * rayon::current_num_threads() };
    let per_share = tiles.div_ceil(shares).next_multiple_of(2);
    let mut strips: Vec<Strip<'_, K>> = (0..tiles)
        .step_by(per_share)
        .map(|first| Strip {
            weights,
            kind: std::marker::PhantomData,
            tiles: first..tiles.min(first + per_share),
            input: &input,
            out: Vec::with_capacity(out.len() / rows),
        })
        .collect();
    for row in out.chunks_exact_mut(rows) {
        for (strip, part) in strips.iter_mut().zip(row.chunks_mut(per_share * LANES)) {
            strip.out.push(part);
        }
    }
    if small {
        strips.into_iter().for_each(dispatch);
    } else {
        strips.into_par_iter().with_max_len(1).for_each(dispatch);
    }
}

/// Takes rows of floats to whole numbers as the processor's products need them.
struct Prepare<'a, K> {
    x: &'a [f32],
    kind: std::marker::PhantomData<K>,
}

impl<K: Kind> Work for Prepare<'_, K> {
    type Output = Vec<Piece>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<Piece> {
        pieces::<K>(self.x, offset::<K, S>())
    }
}

fn offset<K: Kind, S: Simd>() -> i32 {
    if K::SIGNED { K::OFFSET + S::OFFSET } else { K::OFFSET }
}

/// Some of the weights' rows, times all of the input's.
struct Strip<'a, K> {
    weights: &'a Packed,
    kind: std::marker::PhantomData<K>,
    /// Sixteen rows each.
    tiles: Range<usize>,
    input: &'a [Piece],
    /// Where each row of the input's products with the strip go.
    out: Vec<&'a mut [f32]>,
}

impl<K: Kind> Work for Strip<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let blocks = self.weights.columns / COLUMNS;
        if self.out.len() < MANY {
            for tile in self.tiles.clone() {
                self.few(simd, tile, blocks);
            }
            return;
        }
        let width = if S::WIDE { 2 } else { 1 };
        let mut panel: Vec<Block<S>> = Vec::with_capacity(width * blocks);
        for first in self.tiles.clone().step_by(width) {
            panel.clear();
            for tile in first..self.tiles.end.min(first + width) {
                for i in 0..blocks {
                    panel.push(self.weights.block::<K, S>(simd, tile, i));
                }
            }
            match panel.split_at_checked(blocks) {
                Some((a, b)) if b.len() == blocks => self.many(simd, first, [a, b]),
                _ => self.many(simd, first, [&panel]),
            }
        }
    }
}

impl<K: Kind> Strip<'_, K> {
    /// One tile times all rows of input, unpacked for every eight of them, or four where there are few registers.
    #[inline(always)]
    fn few<S: Simd>(&mut self, simd: S, tile: usize, blocks: usize) {
        let rows = self.out.len();
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            row += match left {
                8.. if S::WIDE => self.unpacking::<S, 8>(simd, tile, row, blocks),
                6.. if S::WIDE => self.unpacking::<S, 6>(simd, tile, row, blocks),
                4.. => self.unpacking::<S, 4>(simd, tile, row, blocks),
                3 => self.unpacking::<S, 3>(simd, tile, row, blocks),
                2 => self.unpacking::<S, 2>(simd, tile, row, blocks),
                _ => self.unpacking::<S, 1>(simd, tile, row, blocks),
            };
        }
    }

    #[inline(always)]
    fn unpacking<S: Simd, const ROWS: usize>(&mut self, simd: S, tile: usize, row: usize, blocks: usize) -> usize {
        let input: [&[Piece]; ROWS] = std::array::from_fn(|i| &self.input[(row + i) * blocks..][..blocks]);
        let mut sums = [[simd.floats(0.0)]; ROWS];
        for i in 0..blocks {
            let block = self.weights.block::<K, S>(simd, tile, i);
            step::<K, S, ROWS, 1>(simd, [&block], input.map(|pieces| &pieces[i]), &mut sums);
        }
        self.write(simd, tile, row, sums);
        ROWS
    }

    /// Tiles that are unpacked, times all rows of input.
    #[inline(always)]
    fn many<S: Simd, const TILES: usize>(&mut self, simd: S, tile: usize, panel: [&[Block<S>]; TILES]) {
        let rows = self.out.len();
        let mut row = 0;
        while row + 4 <= rows {
            self.unpacked::<S, 4, TILES>(simd, tile, row, panel);
            row += 4;
        }
        for row in row..rows {
            self.unpacked::<S, 1, TILES>(simd, tile, row, panel);
        }
    }

    #[inline(always)]
    fn unpacked<S: Simd, const ROWS: usize, const TILES: usize>(
        &mut self,
        simd: S,
        tile: usize,
        row: usize,
        panel: [&[Block<S>]; TILES],
    ) {
        let blocks = self.weights.columns / COLUMNS;
        let (input, panel): ([&[Piece]; ROWS], _) =
            (std::array::from_fn(|i| &self.input[(row + i) * blocks..][..blocks]), panel.map(|tile| &tile[..blocks]));
        let mut sums = [[simd.floats(0.0); TILES]; ROWS];
        for i in 0..blocks {
            step::<K, S, ROWS, TILES>(simd, panel.map(|tile| &tile[i]), input.map(|pieces| &pieces[i]), &mut sums);
        }
        self.write(simd, tile, row, sums);
    }

    #[inline(always)]
    fn write<S: Simd, const ROWS: usize, const TILES: usize>(
        &mut self,
        simd: S,
        tile: usize,
        row: usize,
        sums: [[S::Floats; TILES]; ROWS],
    ) {
        let from = (tile - self.tiles.start) * LANES;
        for (out, sums) in self.out[row..].iter_mut().zip(sums) {
            for (out, sums) in out[from..].chunks_mut(LANES).zip(sums) {
                // The last tile may have lanes that are no rows.
                out.copy_from_slice(&simd.store(sums)[..out.len()]);
            }
        }
    }
}

/// Adds the products of a block of each tile with a piece of each row.
#[inline(always)]
fn step<K: Kind, S: Simd, const ROWS: usize, const TILES: usize>(
    simd: S,
    blocks: [&Block<S>; TILES],
    pieces: [&Piece; ROWS],
    sums: &mut [[S::Floats; TILES]; ROWS],
) {
    let halves = if K::HALVES { 2 } else { 1 };
    for half in 0..halves {
        let mut products: [[S::Ints; TILES]; ROWS] =
            std::array::from_fn(|row| [simd.ints(pieces[row].starts[half]); TILES]);
        for quartet in half * QUARTETS / halves..(half + 1) * QUARTETS / halves {
            for tile in 0..TILES {
                for row in 0..ROWS {
                    let (bytes, by) = (blocks[tile].bytes[quartet], pieces[row].quartets[quartet]);
                    products[row][tile] = if K::SIGNED {
                        simd.dot::<true>(products[row][tile], bytes, by)
                    } else {
                        simd.dot::<false>(products[row][tile], bytes, by)
                    };
                }
            }
        }
        for tile in 0..TILES {
            for row in 0..ROWS {
                let factor = simd.mul(blocks[tile].factors.halves[half], simd.floats(pieces[row].factor));
                sums[row][tile] = simd.mul_add(simd.to_floats(products[row][tile]), factor, sums[row][tile]);
            }
        }
    }
    if K::MINIMA {
        for tile in 0..TILES {
            for row in 0..ROWS {
                let deficit = simd.floats(pieces[row].deficit);
                sums[row][tile] = simd.mul_add(blocks[tile].factors.minima, deficit, sums[row][tile]);
            }
        }
    }
}
