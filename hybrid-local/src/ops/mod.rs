//! The operators of networks, all differentiable.
//!
//! Texts lie one after another in the rows of a tensor, without padding. Whatever works on rows alone then works on no row in vain;
//! attention is told where a text begins and ends.

mod attention;
#[cfg(feature = "decoder")]
mod cached;
#[cfg(feature = "decoder")]
mod causal;
mod composed;
mod cross_entropy;
mod dense;
mod fused;
mod kernels;
mod matrix;
#[cfg(feature = "decoder")]
mod multiply;
mod optimiser;
#[cfg(feature = "decoder")]
pub(crate) mod packed;
mod rows;
mod simd;
#[cfg(feature = "decoder")]
pub(crate) mod tape;

use std::sync::Arc;

use candle_core::{Result, Tensor};

use self::cross_entropy::CrossEntropy;

pub(crate) use attention::Spans;
#[cfg(feature = "decoder")]
pub(crate) use cached::{CachedAttention, CachedSequence, put_rows};
#[cfg(feature = "decoder")]
pub(crate) use causal::Causal;
pub(crate) use fused::Laid;
pub(crate) use optimiser::{Rates, Step, squares, update};

/// What a linear layer ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    /// `x · Φ(x)`.
    Gelu,
}

/// What a gate's activation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gating {
    /// `x · σ(x)`.
    Silu,
    /// `x · Φ(x)`, the distribution by the hyperbolic tangent.
    Gelu,
}

/// Whose operators to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operators {
    /// This crate's own, for the processor.
    Fused,
    /// The tensor library's.
    Composed,
}

impl Operators {
    pub(crate) fn of(device: &candle_core::Device) -> Self {
        if device.is_cpu() { Self::Fused } else { Self::Composed }
    }

    /// `activation(x Wᵀ + b)`: `[rows, in]`, `[out, in]` and `[out]` give `[rows, out]`.
    pub(crate) fn linear(self, x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Fused => fused::linear(x, weight, bias, activation),
            Self::Composed => composed::linear(x, weight, bias, activation),
        }
    }

    /// The layer norm of `x · mask + residual`, all `[rows, columns]`; Ba, Kiros and Hinton, "Layer Normalization", 2016.
    pub(crate) fn norm(
        self,
        x: &Tensor,
        residual: &Tensor,
        [scale, shift]: [&Tensor; 2],
        epsilon: f64,
        mask: Option<Arc<[f32]>>,
    ) -> Result<Tensor> {
        match self {
            Self::Fused => fused::norm(x, residual, scale, shift, epsilon, mask),
            Self::Composed => composed::norm(x, residual, scale, shift, epsilon, mask),
        }
    }

    /// `x / √(mean(x²) + epsilon) · scale` of `[…, columns]` and `[columns]`; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    pub(crate) fn rms_norm(self, x: &Tensor, scale: &Tensor, epsilon: f64) -> Result<Tensor> {
        match self {
            Self::Fused => {
                let wanted = [x, scale].map(Tensor::track_op);
                x.contiguous()?.apply_op2(scale, rows::RootMeanSquare { epsilon: epsilon as f32, wanted })
            }
            Self::Composed => composed::rms_norm(x, scale, epsilon),
        }
    }

    /// `activation(gate) · up`, both of one shape.
    pub(crate) fn gate(self, gate: &Tensor, up: &Tensor, gating: Gating) -> Result<Tensor> {
        match self {
            Self::Fused => {
                let wanted = [gate, up].map(Tensor::track_op);
                gate.contiguous()?.apply_op2(&up.contiguous()?, rows::Gate { gating, wanted })
            }
            Self::Composed => composed::gate(gate, up, gating),
        }
    }

    /// Turns the pairs of every head of `[rows, heads, size]` by cosines and sines `[rows, 1, pairs]`, column `i` with column `i + pairs`;
    /// columns behind all pairs stay.
    pub(crate) fn turn(self, x: &Tensor, turns: &[Tensor; 2]) -> Result<Tensor> {
        match self {
            Self::Fused => x.contiguous()?.apply_op3(&turns[0], &turns[1], rows::Turn { way: 1.0 }),
            Self::Composed => composed::turn(x, turns),
        }
    }

    /// For each row of logits `[rows, vocabulary]` minus the logarithm of its target's share, times its weight: `[rows]`.
    pub(crate) fn cross_entropy(self, logits: &Tensor, targets: Arc<[u32]>, weights: Arc<[f32]>) -> Result<Tensor> {
        match self {
            Self::Fused => logits.contiguous()?.apply_op1(CrossEntropy { targets, weights }),
            Self::Composed => composed::cross_entropy(logits, &targets, &weights),
        }
    }

    /// The attention of each row over itself and those before it in its text, of which it sees `window` at most: queries are
    /// `[rows, heads · size]`, keys and values `[rows, key heads · size]`. `None` where there is no such operator.
    #[cfg(feature = "decoder")]
    pub(crate) fn causal_attention(
        self,
        [queries, keys, values]: [&Tensor; 3],
        spans: &Spans,
        [heads, key_heads]: [usize; 2],
        scale: f64,
        window: Option<usize>,
    ) -> Option<Result<Tensor>> {
        let causal = causal::Causal { spans: spans.clone(), heads, key_heads, scale: scale as f32, window };
        (self == Self::Fused)
            .then(|| queries.contiguous()?.apply_op3(&keys.contiguous()?, &values.contiguous()?, causal))
    }

    /// A layer's weights laid out for products without a gradient. `None` where the tensor library's own products are the faster ones.
    pub(crate) fn laid_out(self, weight: &Tensor, bias: &Tensor) -> Option<Result<Laid>> {
        (self == Self::Fused && simd::is_vectorised()).then(|| Laid::out(weight, bias))
    }

    /// The attention of each text over itself: queries, keys and values are `[rows, hidden]`, the result too. With a `window` a token sees
    /// no further than so many before and after its own, and there is no gradient.
    pub(crate) fn attention(
        self,
        [queries, keys, values]: [&Tensor; 3],
        spans: &Spans,
        heads: usize,
        window: Option<usize>,
    ) -> Result<Tensor> {
        match self {
            Self::Fused => fused::attention(queries, keys, values, spans, heads, window),
            Self::Composed => composed::attention(queries, keys, values, spans, heads, window),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::random::Random;

    fn var(random: &mut Random, shape: &[usize]) -> Var {
        Var::from_vec(random.normal(shape.iter().product(), 1.0), shape, &Device::Cpu).unwrap()
    }

    /// Checks that both kinds of operators give the same result and the same gradients of all inputs.
    fn check(inputs: &[Var], apply: impl Fn(Operators, &[Var]) -> Result<Tensor>) {
        let run = |operators| {
            let result = apply(operators, inputs).unwrap();
            let weights = Random::of(9, "weights", [0, 0]).normal(result.elem_count(), 1.0);
            let weights = Tensor::from_vec(weights, result.shape(), &Device::Cpu).unwrap();
            let gradients = (&result * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut values = vec![flat(&result)];
            values.extend(inputs.iter().map(|input| flat(gradients.get(input).unwrap())));
            values
        };
        for (place, (ours, theirs)) in run(Operators::Fused).iter().zip(run(Operators::Composed)).enumerate() {
            assert_eq!(ours.len(), theirs.len());
            for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert!((a - b).abs() < 2e-4 * (1.0 + b.abs()), "{place}[{i}]: {a} and {b}");
            }
        }
    }

    #[test]
    fn fused_operators_and_their_gradients_are_those_of_the_tensor_library() {
        let mut random = Random::of(3, "operators", [0, 0]);
        for activation in [Activation::None, Activation::Gelu] {
            let inputs = [&[700, 40][..], &[24, 40], &[24]].map(|shape| var(&mut random, shape));
            check(&inputs, |operators, inputs| operators.linear(&inputs[0], &inputs[1], &inputs[2], activation));
        }
        for masked in [false, true] {
            let inputs = [&[900, 40][..], &[900, 40], &[40], &[40]].map(|shape| var(&mut random, shape));
            let mask = masked.then(|| (0..900 * 40).map(|i| [0.0, 1.25][i % 5 % 2]).collect::<Arc<[f32]>>());
            check(&inputs, |operators, inputs| {
                operators.norm(&inputs[0], &inputs[1], [&inputs[2], &inputs[3]], 1e-5, mask.clone())
            });
        }
        for (heads, hidden) in [(2, 24), (3, 96)] {
            let spans = Spans::of([3, 1, 17, 40, 5]);
            let inputs = [(); 3].map(|()| var(&mut random, &[66, hidden]));
            check(&inputs, |operators, inputs| {
                operators.attention([&inputs[0], &inputs[1], &inputs[2]], &spans, heads, None)
            });
        }
    }

    #[test]
    fn attention_within_a_window_and_over_long_texts_is_that_of_the_tensor_library() {
        let spans = Spans::of([250, 1, 30]);
        let inputs = [(); 3].map(|()| var(&mut Random::of(8, "operators", [0, 0]), &[281, 64]).detach());
        for window in [None, Some(1), Some(20), Some(100), Some(1_000)] {
            let [ours, theirs] = [Operators::Fused, Operators::Composed].map(|operators| {
                let attended = operators.attention([&inputs[0], &inputs[1], &inputs[2]], &spans, 2, window).unwrap();
                attended.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{window:?}: {worst}");
        }
    }

    #[test]
    fn layers_laid_out_give_what_they_give_otherwise() {
        let mut random = Random::of(7, "operators", [0, 0]);
        for (rows, inner, columns) in [(1, 40, 24), (130, 700, 50)] {
            let [x, weight, bias] =
                [&[rows, inner][..], &[columns, inner], &[columns]].map(|shape| var(&mut random, shape).detach());
            let Some(laid) = Operators::Fused.laid_out(&weight, &bias) else { return };
            for activation in [Activation::None, Activation::Gelu] {
                let (ours, theirs) =
                    (laid.as_ref().unwrap().forward(&x, activation), composed::linear(&x, &weight, &bias, activation));
                let off = (ours.unwrap() - theirs.unwrap()).unwrap().abs().unwrap().max_all().unwrap();
                assert!(off.to_scalar::<f32>().unwrap() < 1e-3, "{rows} {activation:?}");
            }
        }
    }

    #[test]
    fn what_decoders_do_to_rows_and_its_gradients_are_those_of_the_tensor_library() {
        let mut random = Random::of(6, "operators", [0, 0]);
        for columns in [40, 128] {
            let inputs = [&[700, 3, columns][..], &[columns]].map(|shape| var(&mut random, shape));
            check(&inputs, |operators, inputs| operators.rms_norm(&inputs[0], &inputs[1], 1e-5));
        }
        for gating in [Gating::Silu, Gating::Gelu] {
            let inputs = [(); 2].map(|()| var(&mut random, &[300, 40]));
            check(&inputs, |operators, inputs| operators.gate(&inputs[0], &inputs[1], gating));
        }
        for size in [16, 22] {
            let angles = Tensor::from_vec(random.normal(400 * 8, 2.0), (400, 1, 8), &Device::Cpu).unwrap();
            let turns = [angles.cos().unwrap(), angles.sin().unwrap()];
            check(&[var(&mut random, &[400, 3, size])], |operators, inputs| operators.turn(&inputs[0], &turns));
        }
    }

    #[test]
    fn the_loss_of_tokens_and_its_gradient_are_those_of_the_tensor_library() {
        let logits = var(&mut Random::of(5, "operators", [0, 0]), &[37, 600]);
        let targets: Arc<[u32]> = (0..37).map(|row| row * 16 % 600).collect();
        let weights: Arc<[f32]> = (0..37).map(|row| [0.0, 0.5, -2.0][row % 3]).collect();
        check(&[logits], |operators, inputs| {
            operators.cross_entropy(&inputs[0], Arc::clone(&targets), Arc::clone(&weights))
        });
    }

    #[test]
    fn frozen_weights_are_given_no_gradient() {
        let mut random = Random::of(4, "operators", [0, 0]);
        let (x, weight, bias) = (var(&mut random, &[6, 4]), var(&mut random, &[3, 4]), var(&mut random, &[3]));
        let result = fused::linear(&x, &weight.detach(), &bias, Activation::Gelu).unwrap();
        let gradients = result.sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&bias).is_some() && gradients.get(&weight).is_none());
    }
}
