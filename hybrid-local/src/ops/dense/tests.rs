//! Products beside three plain loops.

use super::*;
use crate::{ops::simd::dispatch_each, random::Random};

/// By three plain loops in double precision.
fn exact(a: &[f32], b: &[f32], [rows, inner, columns]: [usize; 3], bias: Option<&[f32]>) -> Vec<f64> {
    let cell = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let sum: f64 = (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column])).sum();
        sum + bias.map_or(0.0, |bias| f64::from(bias[column]))
    };
    (0..rows * columns).map(cell).collect()
}

fn flipped(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

#[track_caller]
fn assert_near(ours: &[f32], exact: &[f64], inner: usize, what: &str) {
    assert_eq!(ours.len(), exact.len());
    for (i, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        assert!((f64::from(*ours) - exact).abs() < 1e-5 * (1.0 + inner as f64).sqrt(), "{what} [{i}]: {ours} {exact}");
    }
}

const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [3, 7, 16],
    [12, 8, 32],
    [13, 33, 47],
    [97, 16, 33],
    [6, 0, 5],
    [23, 1_100, 70],
    [200, 384, 96],
    [1, 600, 700],
];

#[test]
fn products_of_all_shapes_however_they_lie_are_those_of_plain_loops() {
    let mut random = Random::of(1, "dense", [0, 0]);
    for shape @ [rows, inner, columns] in SHAPES {
        let (a, b) = (random.normal(rows * inner, 1.0), random.normal(inner * columns, 1.0));
        let bias = random.normal(columns, 1.0);
        let (a_down, b_down) = (flipped(&a, inner.max(1)), flipped(&b, columns));
        let left = [
            Matrix::within(&a, [rows, inner], Strides(inner, 1)),
            Matrix::within(&a_down, [rows, inner], Strides(1, rows)),
        ];
        let right = [Matrix::within(&b, [inner, columns], Strides(columns, 1)), Matrix::of(&b_down, inner).turned()];
        for bias in [None, Some(&bias[..])] {
            let exact = exact(&a, &b, shape, bias);
            for (i, a) in left.into_iter().enumerate() {
                for (j, b) in right.into_iter().enumerate() {
                    // Of nothing a matrix cannot tell how many rows it has.
                    let b = Matrix { rows: inner, columns, ..b };
                    let mut out = vec![f32::NAN; rows * columns];
                    product(&mut out, a, &Panels::of(b), Ends { bias, activation: Activation::None });
                    assert_near(&out, &exact, inner, &format!("{shape:?} {i} {j}"));
                }
            }
        }
    }
}

#[derive(Clone)]
struct OfShape<'a>(&'a [f32], &'a [f32], [usize; 3]);

impl Work for OfShape<'_> {
    type Output = Vec<f32>;

    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self(a, b, [rows, inner, columns]) = self;
        let panels = Panels::here(Matrix::within(b, [inner, columns], Strides(columns, 1)));
        let a: Vec<&[f32]> = (0..rows).map(|row| &a[row * inner..][..inner]).collect();
        let mut out = vec![f32::NAN; rows * columns];
        let mut parts: Vec<&mut [f32]> = out.chunks_exact_mut(columns).collect();
        simd.vectorise(Rows::whole(&a, &panels, &mut parts));
        out
    }
}

#[test]
fn products_are_the_same_with_whatever_instructions_there_are() {
    let mut random = Random::of(2, "dense", [0, 0]);
    for shape @ [rows, inner, columns] in SHAPES {
        let (a, b) = (random.normal(rows * inner, 1.0), random.normal(inner * columns, 1.0));
        let exact = exact(&a, &b, shape, None);
        for out in dispatch_each(OfShape(&a, &b, shape)) {
            assert_near(&out, &exact, inner, &format!("{shape:?}"));
        }
    }
}

#[test]
fn the_activation_follows_the_whole_sum() {
    let mut random = Random::of(3, "dense", [0, 0]);
    let (a, b, bias) = (random.normal(5 * 1_200, 0.1), random.normal(1_200 * 40, 0.1), random.normal(40, 0.1));
    let panels = Panels::of(Matrix::of(&b, 40));
    let [mut plain, mut active] = [(); 2].map(|()| vec![f32::NAN; 5 * 40]);
    for (out, activation) in [(&mut plain, Activation::None), (&mut active, Activation::Gelu)] {
        product(out, Matrix::of(&a, 1_200), &panels, Ends { bias: Some(&bias), activation });
    }
    let expected: Vec<f64> = plain.into_iter().map(|value| f64::from(gelu(value))).collect();
    assert_near(&active, &expected, 0, "the unit of the sums");
}
