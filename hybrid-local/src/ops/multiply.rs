//! Products of matrices of floats for training on the processor: any strides, onto what is there or in its place.

use gemm::{Parallelism, gemm};

use super::{
    kernels::{Onto, Strides},
    matrix::Matrix,
};

/// `out = factor · a · b`, or that onto what is there; `out` lies in rows one after another.
///
/// # Panics
/// If the sizes do not fit each other.
#[allow(unsafe_code, reason = "the library takes pointers; the sizes are checked before")]
pub(crate) fn multiply(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, factor: f32, onto: Onto) {
    let sizes = [a, b].map(|matrix| [matrix.rows, matrix.columns]);
    let [[rows, inner], [also_inner, columns]] = sizes;
    assert!(inner == also_inner && out.len() == rows * columns, "{sizes:?} into {}", out.len());
    for Matrix { values, rows, columns, strides: Strides(down, across) } in [a, b] {
        let last = rows.saturating_sub(1) * down + columns.saturating_sub(1) * across;
        assert!(rows == 0 || columns == 0 || last < values.len(), "[{rows}, {columns}] in {}", values.len());
    }
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    let stride = |stride: usize| stride as isize;
    // SAFETY: `out` has `rows · columns` floats; the last float of `a` and of `b` by their sizes and strides lies in its slice, which
    // was checked above; `out` is borrowed alone.
    unsafe {
        gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride(columns),
            onto == Onto::Before,
            a.values.as_ptr(),
            stride(a.strides.1),
            stride(a.strides.0),
            b.values.as_ptr(),
            stride(b.strides.1),
            stride(b.strides.0),
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn products_of_all_strides_are_those_of_three_plain_loops() {
        let mut random = Random::of(2, "product", [0, 0]);
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 7), (130, 64, 16), (16, 300, 40), (33, 70, 129)] {
            let (a, b) = (random.normal(rows * inner, 1.0), random.normal(inner * columns, 1.0));
            let before = random.normal(rows * columns, 1.0);
            let turn = |values: &[f32], columns: usize| -> Vec<f32> {
                (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
            };
            let (a_turned, b_turned) = (turn(&a, inner), turn(&b, columns));
            let forms = [
                (Matrix::of(&a, inner), Matrix::of(&b, columns)),
                (Matrix::of(&a_turned, rows).turned(), Matrix::of(&b, columns)),
                (Matrix::of(&a, inner), Matrix::of(&b_turned, inner).turned()),
            ];
            for (a_form, b_form) in forms {
                for onto in [Onto::Nothing, Onto::Before] {
                    let mut out = if onto == Onto::Before { before.clone() } else { vec![f32::NAN; rows * columns] };
                    multiply(&mut out, a_form, b_form, 0.5, onto);
                    for (i, found) in out.iter().enumerate() {
                        let (row, column) = (i / columns, i % columns);
                        let sum: f32 = (0..inner).map(|k| a[row * inner + k] * b[k * columns + column]).sum();
                        let exact = 0.5 * sum + if onto == Onto::Before { before[i] } else { 0.0 };
                        assert!((found - exact).abs() < 1e-4 * (1.0 + exact.abs()), "{found} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "into")]
    fn sizes_that_do_not_fit_are_refused() {
        multiply(&mut [0.0; 5], Matrix::of(&[0.0; 6], 3), Matrix::of(&[0.0; 6], 2), 1.0, Onto::Nothing);
    }
}
