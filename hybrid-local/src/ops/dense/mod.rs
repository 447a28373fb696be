//! Products of matrices of floats for the processor.
//!
//! The right factor is laid out beforehand in panels of 32 columns, once for weights that stay as they are. A tile of a few rows and of a panel's
//! columns is summed in registers; Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008. Every sum is taken in
//! an order that depends on the shapes alone, never on the number of threads.

#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Activation,
    kernels::{Strides, gelu},
    matrix::Matrix,
    simd::{LANES, Simd, Work, dispatch},
};

/// Columns of a panel.
const PANEL: usize = 2 * LANES;
/// How much of the inner dimension is gone through at a time: so much of a panel stays in a core's cache for all rows of a share.
const DEPTH: usize = 512;
/// Steps along the inner dimension between two looks at its end.
const STEP: usize = 4;
/// Rows of a share of work: so many make use of what of a panel has come from afar.
const SHARE: usize = 96;
/// Products of numbers below which sharing out costs more than it gains.
const SMALL: usize = 1 << 18;

/// A panel's part of a row, which begins with a line of a cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([[f32; LANES]; 2]);

const ZEROS: Line = Line([[0.0; LANES]; 2]);

/// A right factor `[inner, columns]`, laid out for products.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    /// For each panel all of the inner dimension; what there are no columns for is zero.
    lines: Vec<Line>,
    inner: usize,
    columns: usize,
}

impl Panels {
    pub(super) fn of(matrix: Matrix<'_>) -> Self {
        let mut panels = Self::empty(matrix);
        let inner = panels.inner.max(1);
        let fill = |(panel, lines): (usize, &mut [Line])| lay_out(lines, matrix, panel * PANEL);
        panels.lines.par_chunks_mut(inner).enumerate().for_each(fill);
        panels
    }

    /// The same on this thread.
    #[inline(always)]
    pub(super) fn here(matrix: Matrix<'_>) -> Self {
        let mut panels = Self::empty(matrix);
        for (panel, lines) in panels.lines.chunks_mut(matrix.rows.max(1)).enumerate() {
            lay_out(lines, matrix, panel * PANEL);
        }
        panels
    }

    fn empty(matrix: Matrix<'_>) -> Self {
        let (inner, columns) = (matrix.rows, matrix.columns);
        Self { lines: vec![ZEROS; columns.div_ceil(PANEL) * inner], inner, columns }
    }

    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }
}

/// Fills a panel with the columns from `first` on.
#[inline(always)]
fn lay_out(lines: &mut [Line], matrix: Matrix<'_>, first: usize) {
    let (width, Strides(down, across)) = (PANEL.min(matrix.columns - first), matrix.strides);
    if across == 1 {
        for (k, line) in lines.iter_mut().enumerate() {
            line.0.as_flattened_mut()[..width].copy_from_slice(matrix.row(k, first..first + width));
        }
        return;
    }
    // A few rows at a time: what is written stays in the nearest cache.
    for (block, lines) in lines.chunks_mut(LANES).enumerate() {
        for column in 0..width {
            let from = &matrix.values[(first + column) * across + block * LANES * down..];
            for (lines, value) in lines.iter_mut().zip(from.iter().step_by(down.max(1))) {
                lines.0.as_flattened_mut()[column] = *value;
            }
        }
    }
}

/// What sums begin with and end in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    /// One for each column.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Activation,
}

impl Ends<'_> {
    pub(super) const NONE: Self = Self { bias: None, activation: Activation::None };
}

/// `activation(a · b + bias)` into `out`, `[rows, columns]`, on all threads.
pub(super) fn product(out: &mut [f32], a: Matrix<'_>, b: &Panels, ends: Ends<'_>) {
    if out.is_empty() {
        return;
    }
    let shares = if out.len() * b.inner <= SMALL { 1 } else { 2 * rayon::current_num_threads() };
    let blocks = a.rows.div_ceil(SHARE);
    // Few rows leave threads without work: then columns are shared out too.
    let groups = shares.div_ceil(blocks).min(b.count());
    let per_group = b.count().div_ceil(groups);
    let mut work = Vec::with_capacity(blocks * groups);
    for (block, out) in out.chunks_mut(SHARE * b.columns).enumerate() {
        let rows = block * SHARE..a.rows.min((block + 1) * SHARE);
        let from = work.len();
        work.extend((0..b.count()).step_by(per_group).map(|first| Share {
            a,
            rows: rows.clone(),
            b,
            panels: first..b.count().min(first + per_group),
            out: Vec::with_capacity(rows.len()),
            ends,
        }));
        for row in out.chunks_exact_mut(b.columns) {
            for (share, part) in work[from..].iter_mut().zip(row.chunks_mut(per_group * PANEL)) {
                share.out.push(part);
            }
        }
    }
    match shares {
        1 => work.into_iter().for_each(dispatch),
        _ => work.into_par_iter().with_max_len(1).for_each(dispatch),
    }
}

/// Some rows of a product, and some of its panels.
struct Share<'a> {
    a: Matrix<'a>,
    rows: Range<usize>,
    b: &'a Panels,
    panels: Range<usize>,
    out: Vec<&'a mut [f32]>,
    ends: Ends<'a>,
}

impl Work for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { a, rows, b, panels, mut out, ends } = self;
        if a.strides.1 == 1 {
            let a: Vec<&[f32]> = rows.map(|row| a.row(row, 0..a.columns)).collect();
            return simd.vectorise(Rows { a: &a, b, panels, out: &mut out, ends });
        }
        // Columns are made rows first.
        let Strides(down, across) = a.strides;
        let mut turned = vec![0f32; rows.len() * a.columns];
        for k in 0..a.columns {
            let column = a.values[rows.start * down + k * across..].iter().step_by(down);
            for (turned, value) in turned[k..].iter_mut().step_by(a.columns).zip(column.take(rows.len())) {
                *turned = *value;
            }
        }
        let a: Vec<&[f32]> = (0..rows.len()).map(|row| &turned[row * a.columns..][..a.columns]).collect();
        simd.vectorise(Rows { a: &a, b, panels, out: &mut out, ends });
    }
}

/// A product on one thread: rows of the left factor and where those of the result go, which are as wide as the panels.
pub(super) struct Rows<'a, 'b> {
    pub(super) a: &'a [&'a [f32]],
    pub(super) b: &'a Panels,
    pub(super) panels: Range<usize>,
    pub(super) out: &'a mut [&'b mut [f32]],
    pub(super) ends: Ends<'a>,
}

impl<'a, 'b> Rows<'a, 'b> {
    /// All columns, with nothing added.
    pub(super) fn whole(a: &'a [&'a [f32]], b: &'a Panels, out: &'a mut [&'b mut [f32]]) -> Self {
        Self { a, b, panels: 0..b.count(), out, ends: Ends::NONE }
    }
}

impl Work for Rows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { a, b, panels, out, ends } = self;
        let inner = b.inner;
        let depth = inner.div_ceil(inner.div_ceil(DEPTH).max(1)).next_multiple_of(STEP).max(STEP);
        // Without an inner dimension the sums are what they begin with.
        for from in (0..inner.max(1)).step_by(depth) {
            let depth = from..inner.min(from + depth);
            for panel in panels.clone() {
                let lines = &b.lines[panel * inner..][depth.clone()];
                let column = (panel - panels.start) * PANEL;
                let (first, last) = (from == 0, depth.end == inner);
                let start = first.then(|| {
                    let mut start = ZEROS;
                    if let Some(bias) = ends.bias {
                        for (start, bias) in start.0.as_flattened_mut().iter_mut().zip(&bias[panel * PANEL..]) {
                            *start = *bias;
                        }
                    }
                    start
                });
                let end = if last { ends.activation } else { Activation::None };
                let tiles = Tiles { a, depth: depth.clone(), lines, column, start: start.as_ref(), end };
                tiles.run(simd, out);
            }
        }
    }
}

/// All rows of a panel, for a part of the inner dimension.
struct Tiles<'a> {
    a: &'a [&'a [f32]],
    depth: Range<usize>,
    lines: &'a [Line],
    /// Where the panel's columns begin in rows of the result.
    column: usize,
    /// What the sums begin with, if not with what there is.
    start: Option<&'a Line>,
    end: Activation,
}

impl Tiles<'_> {
    /// As many rows at a time as there are registers for.
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, out: &mut [&mut [f32]]) {
        let mut row = 0;
        while row < out.len() {
            let left = out.len() - row;
            row += if S::WIDE {
                match left {
                    12.. => self.tile::<S, 12, 2>(simd, out, row, 0),
                    8.. => self.tile::<S, 8, 2>(simd, out, row, 0),
                    4.. => self.tile::<S, 4, 2>(simd, out, row, 0),
                    2.. => self.tile::<S, 2, 2>(simd, out, row, 0),
                    _ => self.tile::<S, 1, 2>(simd, out, row, 0),
                }
            } else {
                let mut rows = 1;
                for half in 0..2 {
                    rows = match left {
                        6.. => self.tile::<S, 6, 1>(simd, out, row, half),
                        3.. => self.tile::<S, 3, 1>(simd, out, row, half),
                        _ => self.tile::<S, 1, 1>(simd, out, row, half),
                    };
                }
                rows
            };
        }
    }

    /// `ROWS` rows of `WIDTH` vectors of the panel's columns, from the vector `first` on; how many rows.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        out: &mut [&mut [f32]],
        row: usize,
        first: usize,
    ) -> usize {
        let (blocks, rest) = self.lines.as_chunks::<STEP>();
        let mut a: [(&[[f32; STEP]], &[f32]); ROWS] = [(&[], &[]); ROWS];
        for (a, row) in a.iter_mut().zip(&self.a[row..row + ROWS]) {
            let (whole, last) = row[self.depth.clone()].as_chunks();
            // All are as long, which spares looking at the end of each.
            *a = (&whole[..blocks.len()], &last[..rest.len()]);
        }
        let mut sums = [[simd.floats(0.0); WIDTH]; ROWS];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = match self.start {
                    Some(start) => simd.load(&start.0[first + j]),
                    None => {
                        let mut here = [0f32; LANES];
                        let from = self.column + (first + j) * LANES;
                        for (here, out) in here.iter_mut().zip(out[row + i].iter().skip(from)) {
                            *here = *out;
                        }
                        simd.load(&here)
                    }
                };
            }
        }
        // Loops of a known number of short turns alone keep the sums in registers.
        let mut kept = [[simd.floats(0.0); WIDTH]; ROWS];
        for (kept, sums) in kept.iter_mut().zip(&sums) {
            for (kept, sum) in kept.iter_mut().zip(sums) {
                *kept = *sum;
            }
        }
        for (block, [line0, line1, line2, line3]) in blocks.iter().enumerate() {
            let mut steps = [&[0f32; STEP]; ROWS];
            for (steps, (whole, _)) in steps.iter_mut().zip(&a) {
                *steps = &whole[block];
            }
            step(simd, &mut kept, &steps, line0, first, 0);
            step(simd, &mut kept, &steps, line1, first, 1);
            step(simd, &mut kept, &steps, line2, first, 2);
            step(simd, &mut kept, &steps, line3, first, 3);
        }
        for (k, line) in rest.iter().enumerate() {
            let mut steps = [&[0f32; 1]; ROWS];
            for (steps, (_, last)) in steps.iter_mut().zip(&a) {
                *steps = &last.as_chunks().0[k];
            }
            step(simd, &mut kept, &steps, line, first, 0);
        }
        for (kept, sums) in kept.iter().zip(&mut sums) {
            for (kept, sum) in kept.iter().zip(sums) {
                *sum = *kept;
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[row + i];
            let from = out.len().min(self.column + first * LANES);
            let to = out.len().min(from + WIDTH * LANES);
            let out = &mut out[from..to];
            for (j, sum) in sums.iter().enumerate() {
                let values = simd.store(*sum);
                match out.get_mut(j * LANES..(j + 1) * LANES) {
                    Some(out) => out.copy_from_slice(&values),
                    None => {
                        let out = out.get_mut(j * LANES..).unwrap_or_default();
                        out.copy_from_slice(&values[..out.len()]);
                    }
                }
            }
            if self.end == Activation::Gelu {
                for value in out {
                    *value = gelu(*value);
                }
            }
        }
        ROWS
    }
}

/// Adds the products of a number of each row with a line of the panel.
#[inline(always)]
fn step<S: Simd, const ROWS: usize, const WIDTH: usize, const STEPS: usize>(
    simd: S,
    sums: &mut [[S::Floats; WIDTH]; ROWS],
    steps: &[&[f32; STEPS]; ROWS],
    line: &Line,
    first: usize,
    k: usize,
) {
    let mut b = [simd.floats(0.0); WIDTH];
    for (j, b) in b.iter_mut().enumerate() {
        *b = simd.load(&line.0[first + j]);
    }
    for (sums, steps) in sums.iter_mut().zip(steps) {
        let a = simd.floats(steps[k]);
        for (sum, b) in sums.iter_mut().zip(&b) {
            *sum = simd.mul_add(a, *b, *sum);
        }
    }
}
