//! Matrices of numbers of a few bits, in the order that the processor's products read them.
//!
//! A matrix is packed once, when it is loaded, and takes the place of what was read: as many bytes as in the file, to three in a hundred.
//! Inputs of products are taken to whole numbers of eight bits, with a factor for every 32; products are summed in whole numbers within a
//! block and in single precision over blocks, in an order that depends on the shapes alone.

mod kinds;
mod operator;
mod product;
mod rows;

use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

use self::kinds::{Block, COLUMNS, Kind, Line, Q4_0, Q4K, Q5K, Q6K, Q8_0};
use super::{
    kernels::{Onto, vectorised},
    matrix::Matrix,
    multiply::multiply,
    simd::{LANES, LINE, Portable, Simd},
};

pub(crate) use operator::product;

/// Numbers that are unpacked at a time on the way back: so many are still near when the product reads them.
const UNPACKED: usize = 1 << 20;

/// A matrix `[rows, columns]`.
#[derive(Debug)]
pub(crate) struct Packed {
    format: Format,
    rows: usize,
    columns: usize,
    /// For each tile of sixteen rows its blocks, each of so many lines.
    lines: Vec<Line>,
    /// For each tile the factors of its spans.
    factors: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Q4_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Evaluates an expression for the type that a format stands for.
macro_rules! with_kind {
    ($format:expr, $kind:ident => $value:expr) => {
        match $format {
            Format::Q4_0 => {
                type $kind = Q4_0;
                $value
            }
            Format::Q8_0 => {
                type $kind = Q8_0;
                $value
            }
            Format::Q4K => {
                type $kind = Q4K;
                $value
            }
            Format::Q5K => {
                type $kind = Q5K;
                $value
            }
            Format::Q6K => {
                type $kind = Q6K;
                $value
            }
        }
    };
}

impl Format {
    fn of(kind: GgmlDType) -> Option<Self> {
        match kind {
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q4K => Some(Self::Q4K),
            GgmlDType::Q5K => Some(Self::Q5K),
            GgmlDType::Q6K => Some(Self::Q6K),
            _ => None,
        }
    }
}

/// How much memory a matrix takes.
struct Room {
    tiles: usize,
    lines_per_tile: usize,
    factors_per_tile: usize,
}

impl Room {
    fn of<K: Kind>(rows: usize, columns: usize) -> Option<Self> {
        let span = COLUMNS * K::BLOCKS;
        if rows == 0 || columns == 0 || !columns.is_multiple_of(span) {
            return None;
        }
        let (tiles, spans) = (rows.div_ceil(LANES), columns / span);
        Some(Self { tiles, lines_per_tile: spans * K::BLOCKS * K::LINES, factors_per_tile: spans * K::FACTORS })
    }
}

impl Packed {
    /// The bytes that a matrix of such blocks takes when it is packed; `None` if it cannot be.
    pub(crate) fn size(kind: GgmlDType, rows: usize, columns: usize) -> Option<u64> {
        let room = with_kind!(Format::of(kind)?, K => Room::of::<K>(rows, columns))?;
        Some(room.tiles as u64 * (room.lines_per_tile * LINE + room.factors_per_tile) as u64)
    }

    /// Packs a matrix out of a file's blocks, row after row; `None` if there is no packed form of the kind or the shape, or the bytes are
    /// not of the shape.
    pub(crate) fn pack(kind: GgmlDType, bytes: &[u8], rows: usize, columns: usize) -> Option<Self> {
        let format = Format::of(kind)?;
        with_kind!(format, K => Self::pack_as::<K>(format, bytes, rows, columns))
    }

    fn pack_as<K: Kind>(format: Format, bytes: &[u8], rows: usize, columns: usize) -> Option<Self> {
        let room = Room::of::<K>(rows, columns)?;
        let row_bytes = columns / (COLUMNS * K::BLOCKS) * K::FILE_BYTES;
        if bytes.len() != rows.checked_mul(row_bytes)? {
            return None;
        }
        let mut lines = vec![Line([0; LINE]); room.tiles * room.lines_per_tile];
        let mut factors = vec![0u8; room.tiles * room.factors_per_tile];
        let tiles = lines.par_chunks_mut(room.lines_per_tile).zip(factors.par_chunks_mut(room.factors_per_tile));
        tiles.zip(bytes.par_chunks(LANES * row_bytes)).for_each(|((lines, factors), bytes)| {
            for (lane, row) in bytes.chunks_exact(row_bytes).enumerate() {
                let spans = lines.chunks_exact_mut(K::BLOCKS * K::LINES).zip(factors.chunks_exact_mut(K::FACTORS));
                for ((lines, factors), file) in spans.zip(row.chunks_exact(K::FILE_BYTES)) {
                    K::place(file, lane, lines, factors);
                }
            }
        });
        Some(Self { format, rows, columns, lines, factors })
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Rows as floats, one after another; a number beyond the last row gives a row of zeros.
    pub(crate) fn rows(&self, numbers: &[u32]) -> Vec<f32> {
        let mut out = vec![0f32; numbers.len() * self.columns];
        let rows = out.par_chunks_exact_mut(self.columns).zip(numbers);
        let rows = rows.filter(|(_, number)| (**number as usize) < self.rows);
        rows.for_each(|(out, number)| {
            let (tile, lane) = (*number as usize / LANES, *number as usize % LANES);
            with_kind!(self.format, K => self.unpack::<K>(tile, lane, out));
        });
        out
    }

    /// The whole matrix as floats.
    pub(crate) fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * self.columns];
        self.unpack_from(0, &mut out);
        out
    }

    /// `x Wᵀ` of `[n, columns]` floats, whole rows: `[n, rows]`.
    pub(in crate::ops) fn product(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; x.len() / self.columns * self.rows];
        with_kind!(self.format, K => product::product::<K>(self, x, &mut out));
        out
    }

    /// The gradient of the input of [`product`](Self::product) of that of what came out, `[n, rows]`: `[n, columns]`, in `out` or onto what is there. It
    /// goes through the numbers as floats, a panel of rows at a time.
    pub(in crate::ops) fn back(&self, out: &mut [f32], gradient: &[f32], mut onto: Onto) {
        let panel = (UNPACKED / self.columns).next_multiple_of(LANES).clamp(LANES, self.rows.next_multiple_of(LANES));
        let mut values = vec![0f32; panel.min(self.rows) * self.columns];
        for first in (0..self.rows).step_by(panel) {
            let rows = first..self.rows.min(first + panel);
            let values = &mut values[..rows.len() * self.columns];
            self.unpack_from(first / LANES, values);
            let slopes = Matrix::of(gradient, self.rows).part(rows);
            multiply(out, slopes, Matrix::of(values, self.columns), 1.0, onto);
            onto = Onto::Before;
        }
    }

    /// Unpacks all rows from a tile's first on, as many as `out` has.
    fn unpack_from(&self, tile: usize, out: &mut [f32]) {
        let tiles = out.par_chunks_mut(LANES * self.columns).enumerate();
        tiles.for_each(|(i, out)| with_kind!(self.format, K => self.unpack::<K>(tile + i, 0, out)));
    }

    /// Unpacks the rows of a tile from a lane on, as many as `out` has.
    fn unpack<K: Kind>(&self, tile: usize, lane: usize, out: &mut [f32]) {
        vectorised(|| {
            for i in 0..self.columns / COLUMNS {
                let block = self.block::<K, Portable>(Portable, tile, i);
                for (lane, out) in (lane..).zip(out.chunks_exact_mut(self.columns)) {
                    for (column, out) in out[i * COLUMNS..][..COLUMNS].iter_mut().enumerate() {
                        let byte = block.bytes[column / 4][4 * lane + column % 4];
                        let number = if K::SIGNED { i32::from(byte as i8) } else { i32::from(byte) } - K::OFFSET;
                        let half = if K::HALVES { column / (COLUMNS / 2) } else { 0 };
                        *out = block.factors.halves[half][lane] * number as f32 - block.factors.minima[lane];
                    }
                }
            }
        });
    }

    /// The block of this number of a tile.
    #[inline(always)]
    fn block<K: Kind, S: Simd>(&self, simd: S, tile: usize, number: usize) -> Block<S> {
        let blocks = self.columns / COLUMNS;
        let lines = &self.lines[(tile * blocks + number) * K::LINES..][..K::LINES];
        let span = tile * (blocks / K::BLOCKS) + number / K::BLOCKS;
        let factors = &self.factors[span * K::FACTORS..][..K::FACTORS];
        Block { bytes: K::unpack(simd, lines), factors: K::factors(simd, factors, number % K::BLOCKS) }
    }
}

#[cfg(test)]
mod tests;
