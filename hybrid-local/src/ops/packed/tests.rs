use candle_core::{
    Device, Tensor, Var,
    quantized::{GgmlDType, QTensor},
};

use super::{kinds::Kind, *};
use crate::{
    ops::simd::{Work, dispatch_each},
    random::Random,
};

const KINDS: [GgmlDType; 5] = [GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K];

/// Blocks of random numbers as a file has them, and the numbers that they stand for.
fn blocks(kind: GgmlDType, rows: usize, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let values = Random::of(5, "weights", [rows as u64, columns as u64]).normal(rows * columns, 0.7);
    let values = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
    let quantized = QTensor::quantize(&values, kind).unwrap();
    let exact = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (quantized.data().unwrap().into_owned(), exact)
}

fn shapes(kind: GgmlDType) -> Vec<[usize; 2]> {
    let span = kind.block_size();
    vec![[1, span], [7, 3 * span], [16, span], [33, 2 * span], [70, 5 * span]]
}

#[test]
fn packed_numbers_are_those_of_the_file() {
    for kind in KINDS {
        for [rows, columns] in shapes(kind) {
            let (file, exact) = blocks(kind, rows, columns);
            let packed = Packed::pack(kind, &file, rows, columns).unwrap();
            let taken = packed.lines.len() * LINE + packed.factors.len();
            assert_eq!(Packed::size(kind, rows, columns), Some(taken as u64));
            if rows == 16 {
                assert!(taken <= file.len() * 103 / 100, "{kind:?}: {taken} bytes of {}", file.len());
            }
            for (i, (ours, theirs)) in packed.dequantize().iter().zip(&exact).enumerate() {
                assert!((ours - theirs).abs() <= 1e-6 * theirs.abs() + 1e-7, "{kind:?} {i}: {ours} and {theirs}");
            }
            let last = rows as u32 - 1;
            let some = packed.rows(&[last, 0, last]);
            let row = |number: u32| &exact[number as usize * columns..][..columns];
            for (ours, theirs) in some.iter().zip([row(last), row(0), row(last)].concat()) {
                assert!((ours - theirs).abs() <= 1e-6 * theirs.abs() + 1e-7);
            }
            assert!(Packed::pack(kind, &file[1..], rows, columns).is_none());
        }
        assert!(Packed::pack(kind, &[], 3, 16).is_none() && Packed::size(kind, 3, 16).is_none());
    }
    assert!(Packed::size(GgmlDType::Q2K, 16, 256).is_none());
}

#[test]
fn the_way_back_is_the_product_with_the_whole_matrix() {
    // More rows than are unpacked at a time, with some left over.
    for (kind, rows, columns) in [(GgmlDType::Q4K, UNPACKED / 512 + 37, 512), (GgmlDType::Q8_0, 50, 96)] {
        let (file, _) = blocks(kind, rows, columns);
        let packed = Packed::pack(kind, &file, rows, columns).unwrap();
        let whole = packed.dequantize();
        let mut random = Random::of(6, "gradient", [0, 0]);
        let (gradient, before) = (random.normal(3 * rows, 1.0), random.normal(3 * columns, 1.0));
        for onto in [Onto::Nothing, Onto::Before] {
            let mut expected = before.clone();
            multiply(&mut expected, Matrix::of(&gradient, rows), Matrix::of(&whole, columns), 1.0, onto);
            let mut found = before.clone();
            packed.back(&mut found, &gradient, onto);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{kind:?}: {found} {expected}");
            }
        }
    }
}

/// The sums of whole numbers of every block of a matrix with a piece of input.
#[derive(Clone)]
struct Sums<'a, K> {
    packed: &'a Packed,
    x: &'a [f32],
    kind: std::marker::PhantomData<K>,
}

impl<K: Kind> Work for Sums<'_, K> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<i32> {
        let offset = if K::SIGNED { K::OFFSET + S::OFFSET } else { K::OFFSET };
        let pieces = rows::pieces::<K>(self.x, offset);
        let mut sums = Vec::new();
        for tile in 0..self.packed.rows.div_ceil(LANES) {
            for (i, piece) in pieces.iter().enumerate() {
                let block = self.packed.block::<K, S>(simd, tile, i);
                let mut products = simd.ints(piece.starts[0] + piece.starts[1]);
                for (bytes, by) in block.bytes.into_iter().zip(piece.quartets) {
                    products = match K::SIGNED {
                        true => simd.dot::<true>(products, bytes, by),
                        false => simd.dot::<false>(products, bytes, by),
                    };
                }
                sums.extend(simd.store(simd.to_floats(products)).map(|sum| sum as i32));
            }
        }
        sums
    }
}

#[test]
fn sums_of_whole_numbers_are_the_same_on_all_processors() {
    for kind in KINDS {
        let columns = 3 * kind.block_size();
        let (file, _) = blocks(kind, 33, columns);
        let packed = Packed::pack(kind, &file, 33, columns).unwrap();
        let mut x = Random::of(6, "input", [0, 0]).normal(columns, 1.0);
        // The largest products that there can be.
        x[..32].fill(9.0);
        x[32..64].fill(-9.0);
        let all = with_kind!(packed.format, K => {
            dispatch_each(Sums::<K> { packed: &packed, x: &x, kind: std::marker::PhantomData })
        });
        // Worked out anew, from the numbers alone.
        let exact = with_kind!(packed.format, K => {
            let pieces = rows::pieces::<K>(&x, 0);
            let sum = |i: usize| {
                let (tile, rest) = (i / (LANES * pieces.len()), i % (LANES * pieces.len()));
                let (number, lane) = (rest / LANES, rest % LANES);
                let block = packed.block::<K, Portable>(Portable, tile, number);
                let by = pieces[number].quartets.map(i32::to_le_bytes);
                (0..COLUMNS).map(|column| {
                    let byte = block.bytes[column / 4][4 * lane + column % 4];
                    let weight = if K::SIGNED { i32::from(byte as i8) } else { i32::from(byte) } - K::OFFSET;
                    weight * i32::from(by[column / 4][column % 4] as i8)
                }).sum::<i32>()
            };
            (0..all[0].len()).map(sum).collect::<Vec<_>>()
        });
        eprintln!("{kind:?}: {} kinds of instructions", all.len());
        for sums in all {
            assert_eq!(sums, exact, "{kind:?}");
        }
    }
}

#[test]
fn products_are_those_of_single_precision_for_any_number_of_rows() {
    for kind in KINDS {
        for [rows, columns] in shapes(kind) {
            let (file, exact) = blocks(kind, rows, columns);
            let packed = Packed::pack(kind, &file, rows, columns).unwrap();
            for n in [0, 1, 2, 3, 5, 11, 12, 19] {
                let x = Random::of(7, "input", [n as u64, 0]).normal(n * columns, 1.0);
                let ours = packed.product(&x);
                assert_eq!(ours.len(), n * rows);
                for (i, ours) in ours.iter().enumerate() {
                    let (x, w) = (&x[i / rows * columns..][..columns], &exact[i % rows * columns..][..columns]);
                    let theirs: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    // An input is off by half of its factor at most, which is about three in 127, and errors add up as their root.
                    let bound = 0.04 * (columns as f64).sqrt() * 0.7;
                    assert!(
                        (f64::from(*ours) - theirs).abs() < bound,
                        "{kind:?} {rows} {columns} {n}: {ours} {theirs}"
                    );
                }
                // A row's products do not depend on those beside it.
                for row in 0..n.min(2) {
                    assert_eq!(packed.product(&x[row * columns..][..columns]), ours[row * rows..][..rows]);
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (file, _) = blocks(GgmlDType::Q4K, 16, 256);
    let packed = Packed::pack(GgmlDType::Q4K, &file, 16, 256).unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.5; 256];
        x[77] = value;
        assert!(packed.product(&x).iter().all(|value| !value.is_finite()));
    }
    assert!(packed.product(&[0.0; 256]).iter().all(|value| *value == 0.0));
}

#[test]
fn the_gradient_of_the_input_is_that_of_the_weights_in_single_precision() {
    for kind in KINDS {
        let columns = kind.block_size();
        let (file, exact) = blocks(kind, 20, columns);
        let packed = std::sync::Arc::new(Packed::pack(kind, &file, 20, columns).unwrap());
        let x = Random::of(8, "input", [0, 0]).normal(3 * columns, 1.0);
        let x = Var::from_vec(x, (3, columns), &Device::Cpu).unwrap();
        let y = operator::product(&x, &packed).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let weights = Tensor::from_vec(exact, (20, columns), &Device::Cpu).unwrap();
        let theirs = (y.detach() * 2.0).unwrap().matmul(&weights).unwrap();
        let off = (gradients.get(&x).unwrap() - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-3);
    }
}
