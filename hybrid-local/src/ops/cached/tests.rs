use candle_core::{Device, Tensor};

use super::*;
use crate::random::Random;

fn off(one: &Tensor, other: &Tensor) -> f32 {
    (one - other).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn rows_are_put_where_their_tokens_stand_rounded_to_half_precision() {
    let mut random = Random::of(5, "attention", [0, 0]);
    for (heads, room, size, at, count) in [(2, 9, 20, 3, 4), (3, 40, 64, 0, 40), (1, 8, 8, 7, 1), (4, 300, 64, 5, 200)]
    {
        let rows = Tensor::from_vec(random.normal(count * heads * size, 1e3), (count, heads, size), &Device::Cpu);
        let rows = rows.unwrap();
        for kind in [DType::F32, DType::F16] {
            let all = Tensor::ones((heads, room, size), kind, &Device::Cpu).unwrap();
            put_rows(&all, &rows, at).unwrap();
            let all = all.to_dtype(DType::F32).unwrap();
            let theirs = rows.to_dtype(kind).unwrap().to_dtype(DType::F32).unwrap().transpose(0, 1).unwrap();
            assert_eq!(off(&all.narrow(1, at, count).unwrap(), &theirs), 0.0);
            let sum = |all: Tensor| all.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().sum::<f32>();
            assert_eq!(sum(all.narrow(1, 0, at).unwrap()), (heads * at * size) as f32);
            let behind = room - at - count;
            assert_eq!(sum(all.narrow(1, at + count, behind).unwrap()), (heads * behind * size) as f32);
        }
        let all = Tensor::zeros((heads, room, size), DType::F32, &Device::Cpu).unwrap();
        assert!(put_rows(&all, &rows, room - count + 1).is_err());
    }
}

#[test]
fn every_row_gets_the_mean_of_the_values_it_sees_by_its_scores() {
    let mut random = Random::of(4, "attention", [0, 0]);
    for (rows, heads, key_heads, size, from) in [
        (1, 4, 2, 8, 9),
        (3, 2, 2, 32, 0),
        (4, 4, 1, 16, 0),
        (70, 6, 2, 48, 130),
        (37, 2, 1, 20, 3),
        (130, 1, 1, 64, 1),
    ] {
        for (window, cap) in [(None, None), (Some(11), Some(1.5))] {
            let (tokens, room, before) = (from + rows, from + rows + 7, 2);
            let queries = random.normal(rows * heads * size, 1.0);
            let [keys, values] = [(); 2].map(|()| random.normal(key_heads * room * size, 1.0));
            let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
            // As a part of a cache that has other tokens before and behind.
            let cached = |values: &[f32]| tensor(values, &[key_heads, room, size]).narrow(1, before, tokens).unwrap();
            let attention = CachedAttention { window, scale: 0.3, cap };
            let sequence = CachedSequence { rows, tokens: [cached(&keys), cached(&values)] };
            let all = tensor(&queries, &[rows, heads, size]);
            let ours = attention.attend(&all, std::slice::from_ref(&sequence)).unwrap();
            assert_eq!(ours.dims(), [rows, heads * size]);
            // Beside another sequence, and with keys and values in half precision.
            let beside = [sequence, CachedSequence { rows, tokens: [cached(&values), cached(&keys)] }];
            let both = attention.attend(&Tensor::cat(&[&all, &all], 0).unwrap(), &beside).unwrap();
            assert_eq!(off(&both.narrow(0, 0, rows).unwrap(), &ours), 0.0);
            let [[keys16, values16], [keys32, values32]] = [DType::F16, DType::F32].map(|kind| {
                beside[0].tokens.each_ref().map(|all| all.to_dtype(DType::F16).unwrap().to_dtype(kind).unwrap())
            });
            let [narrow, wide] = [[keys16, values16], [keys32, values32]]
                .map(|tokens| attention.attend(&all, &[CachedSequence { rows, tokens }]).unwrap());
            assert_eq!(off(&narrow, &wide), 0.0, "numbers that half precision holds are the same in both");
            let ours = ours.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for row in 0..rows {
                for head in 0..heads {
                    let at = |token: usize| ((head / (heads / key_heads)) * room + before + token) * size;
                    let query = &queries[(row * heads + head) * size..][..size];
                    let first = window.map_or(0, |window| (from + row + 1).saturating_sub(window));
                    let scores: Vec<f64> = (first..=from + row)
                        .map(|token| {
                            let product = query.iter().zip(&keys[at(token)..]).map(|(a, b)| f64::from(a * b));
                            let score = product.sum::<f64>() * 0.3;
                            cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                        })
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for column in 0..size {
                        let sum = scores.iter().zip(first..).map(|(s, t)| s * f64::from(values[at(t) + column]));
                        let (exact, ours) = (sum.sum::<f64>() / total, ours[(row * heads + head) * size + column]);
                        let place = (rows, heads, size, row, head, column);
                        assert!((exact - f64::from(ours)).abs() < 2e-5, "{place:?}: {ours} and {exact}");
                    }
                }
            }
        }
    }
}
