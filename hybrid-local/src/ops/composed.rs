//! The operators out of the tensor library's own, for devices that it has kernels for; every one of them keeps the gradient.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::{Activation, Gating, attention::Spans};

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let sum = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
    match activation {
        Activation::None => Ok(sum),
        Activation::Gelu => sum.gelu_erf(),
    }
}

pub(super) fn norm(
    x: &Tensor,
    residual: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f64,
    mask: Option<Arc<[f32]>>,
) -> Result<Tensor> {
    let x = match mask {
        Some(mask) => (x * Tensor::from_slice(&mask, x.shape(), x.device())?)?,
        None => x.clone(),
    };
    let sum = (x + residual)?;
    let centred = sum.broadcast_sub(&sum.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(scale)?.broadcast_add(shift)
}

pub(super) fn rms_norm(x: &Tensor, scale: &Tensor, epsilon: f64) -> Result<Tensor> {
    let square = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?;
    x.broadcast_div(&square.sqrt()?)?.broadcast_mul(scale)
}

pub(super) fn gate(gate: &Tensor, up: &Tensor, gating: Gating) -> Result<Tensor> {
    let gate = match gating {
        Gating::Silu => gate.silu()?,
        Gating::Gelu => gate.gelu()?,
    };
    gate * up
}

pub(super) fn turn(x: &Tensor, [cosines, sines]: &[Tensor; 2]) -> Result<Tensor> {
    let (size, pairs) = (x.dim(D::Minus1)?, cosines.dim(D::Minus1)?);
    let (first, second) = (x.narrow(D::Minus1, 0, pairs)?, x.narrow(D::Minus1, pairs, pairs)?);
    let turned = [
        (first.broadcast_mul(cosines)? - second.broadcast_mul(sines)?)?,
        (second.broadcast_mul(cosines)? + first.broadcast_mul(sines)?)?,
    ];
    let [first, second] = turned;
    match size - 2 * pairs {
        0 => Tensor::cat(&[first, second], D::Minus1),
        rest => Tensor::cat(&[first, second, x.narrow(D::Minus1, 2 * pairs, rest)?], D::Minus1),
    }
}

pub(super) fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let (rows, device) = (logits.dim(0)?, logits.device());
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sums = shifted.exp()?.sum(D::Minus1)?.log()?;
    // By an index of all, as `gather` has a faulty way back.
    let flat: Vec<u32> = targets.iter().zip(0..).map(|(target, row)| row * logits.dims()[1] as u32 + target).collect();
    let own = shifted.flatten_all()?.index_select(&Tensor::from_vec(flat, rows, device)?, 0)?;
    (log_sums - own)? * Tensor::from_slice(weights, rows, device)?
}

/// Pads the texts to the longest, masks what is padding, and takes the padding out again.
pub(super) fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    spans: &Spans,
    heads: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (device, hidden) = (queries.device(), queries.dim(1)?);
    let (texts, longest) = (spans.len(), spans.iter().map(|(_, length)| length).max().unwrap_or_default());
    let (mut into, mut back, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    for (text, (start, length)) in spans.iter().enumerate() {
        // Padding repeats the text's first row; the mask hides it.
        into.extend((0..longest).map(|i| (start + if i < length { i } else { 0 }) as u32));
        back.extend((0..length).map(|i| (text * longest + i) as u32));
        mask.extend((0..longest).map(|i| if i < length { 0f32 } else { f32::MIN / 2.0 }));
    }
    let into = Tensor::from_vec(into, texts * longest, device)?;
    let back = Tensor::from_vec(back, spans.rows(), device)?;
    let mask = Tensor::from_vec(mask, (texts, 1, 1, longest), device)?;
    let split = |x: &Tensor| {
        x.index_select(&into, 0)?.reshape((texts, longest, heads, hidden / heads))?.transpose(1, 2)?.contiguous()
    };
    let (queries, keys, values) = (split(queries)?, split(keys)?, split(values)?);
    let scale = 1.0 / ((hidden / heads) as f64).sqrt();
    let mut scores = (queries.matmul(&keys.t()?)? * scale)?.broadcast_add(&mask)?;
    if let Some(reach) = window {
        let sees = |i: usize| (0..longest).map(move |j| if i.abs_diff(j) <= reach { 0f32 } else { f32::MIN / 4.0 });
        let near: Vec<f32> = (0..longest).flat_map(sees).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(near, (longest, longest), device)?)?;
    }
    let weights = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let shares = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    shares.matmul(&values)?.transpose(1, 2)?.reshape((texts * longest, hidden))?.index_select(&back, 0)
}
