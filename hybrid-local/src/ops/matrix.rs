//! Matrices that lie in slices of floats.

use std::ops::Range;

use super::kernels::Strides;

/// A matrix in a slice, which begins with its first element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) strides: Strides,
}

impl<'a> Matrix<'a> {
    /// Rows of so many columns, one after another.
    pub(crate) fn of(values: &'a [f32], columns: usize) -> Self {
        Self { values, rows: values.len() / columns.max(1), columns, strides: Strides(columns, 1) }
    }

    /// `[rows, columns]` values with these distances from one to the next.
    pub(super) fn within(values: &'a [f32], [rows, columns]: [usize; 2], strides: Strides) -> Self {
        Self { values, rows, columns, strides }
    }

    /// The same with rows as columns, without a copy.
    pub(crate) fn turned(self) -> Self {
        let Strides(down, across) = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: Strides(across, down), ..self }
    }

    /// Some of its columns.
    pub(super) fn part(self, columns: Range<usize>) -> Self {
        let values = self.values.get(columns.start * self.strides.1..).unwrap_or_default();
        Self { values, columns: columns.len(), ..self }
    }

    /// A row's elements `range`, where they lie side by side.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, range: Range<usize>) -> &'a [f32] {
        &self.values[row * self.strides.0..][range]
    }
}
