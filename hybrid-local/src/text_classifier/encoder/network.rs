//! The network: embeddings, layers of attention and feed-forward, pooling, head. The same in training and in service.
//!
//! Devlin and others, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.

use std::sync::Arc;

use candle_core::{D, Tensor};
use hybrid_core::Result;

use super::{
    config::{EncoderConfig, LoraConfig, Pooling, TARGETS},
    family::HeadActivation,
    tokens::Batch,
};
use crate::{
    ops::{Activation, Operators},
    random::Random,
};

/// A network whose tensors are constants, variables, or some of each.
#[derive(Debug)]
pub(super) struct Network {
    config: EncoderConfig,
    pooling: Pooling,
    operators: Operators,
    word: Tensor,
    position: Tensor,
    token_type: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
    dense: Linear,
    out: Linear,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// `[out, in]` and `[out]`.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
    lora: Option<Lora>,
}

/// `[rank, in]` and `[out, rank]`.
#[derive(Debug)]
struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

/// Leaves out a share of what passes, at random, and makes up for it with the rest.
#[derive(Debug)]
pub(super) struct Dropout {
    pub(super) share: f64,
    pub(super) random: Random,
}

impl Dropout {
    fn mask(dropout: &mut Option<Self>, count: usize) -> Option<Arc<[f32]>> {
        dropout.as_mut().map(|Self { share, random }| random.mask(count, *share).into())
    }
}

impl Network {
    /// Puts a network together of tensors that `tensor` gives by name.
    ///
    /// # Errors
    /// The closure's own.
    pub(super) fn of(
        config: &EncoderConfig,
        pooling: Pooling,
        lora: Option<&LoraConfig>,
        operators: Operators,
        tensor: impl Fn(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm { weight: tensor(&format!("{name}.weight"))?, bias: tensor(&format!("{name}.bias"))? })
        };
        let linear = |name: &str| -> Result<Linear> {
            let part = name.rsplit('.').next().unwrap_or(name);
            let beside =
                lora.filter(|lora| TARGETS.contains(&part) && lora.targets.iter().any(|target| target == part));
            let lora = beside.map(|lora| -> Result<Lora> {
                let (a, b) = (tensor(&format!("{name}.lora_a"))?, tensor(&format!("{name}.lora_b"))?);
                Ok(Lora { a, b, scale: lora.scale() })
            });
            Ok(Linear {
                weight: tensor(&format!("{name}.weight"))?,
                bias: tensor(&format!("{name}.bias"))?,
                lora: lora.transpose()?,
            })
        };
        let layer = |i: usize| -> Result<Layer> {
            let name = |part: &str| format!("layers.{i}.{part}");
            Ok(Layer {
                query: linear(&name("query"))?,
                key: linear(&name("key"))?,
                value: linear(&name("value"))?,
                output: linear(&name("output"))?,
                attention_norm: norm(&name("attention_norm"))?,
                up: linear(&name("up"))?,
                down: linear(&name("down"))?,
                norm: norm(&name("norm"))?,
            })
        };
        Ok(Self {
            pooling,
            operators,
            word: tensor("embeddings.word")?,
            position: tensor("embeddings.position")?,
            token_type: (config.token_types > 0).then(|| tensor("embeddings.token_type")).transpose()?,
            norm: norm("embeddings.norm")?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            dense: linear("head.dense")?,
            out: linear("head.out")?,
            config: config.clone(),
        })
    }

    /// The logits `[texts, labels]`.
    pub(super) fn logits(&self, batch: &Batch, mut dropout: Option<Dropout>) -> candle_core::Result<Tensor> {
        let hidden = self.hidden(batch, &mut dropout)?;
        let mut pooled = self.pool(&hidden, batch)?;
        for (linear, activation) in [(&self.dense, Some(self.config.head_activation)), (&self.out, None)] {
            if let Some(mask) = Dropout::mask(&mut dropout, pooled.elem_count()) {
                pooled = (&pooled * Tensor::from_slice(&mask, pooled.shape(), pooled.device())?)?;
            }
            pooled = linear.forward(&pooled, Activation::None, self.operators)?;
            pooled = match activation {
                Some(HeadActivation::Tanh) => pooled.tanh()?,
                Some(HeadActivation::Relu) => pooled.relu()?,
                None => pooled,
            };
        }
        Ok(pooled)
    }

    /// What the last layer says, `[tokens, hidden]`.
    pub(super) fn hidden(&self, batch: &Batch, dropout: &mut Option<Dropout>) -> candle_core::Result<Tensor> {
        let (operators, epsilon) = (self.operators, self.config.norm_epsilon);
        let words = self.word.index_select(&batch.ids, 0)?;
        let mut others = self.position.index_select(&batch.positions, 0)?;
        if let Some(types) = &self.token_type {
            others = others.broadcast_add(&types.narrow(0, 0, 1)?)?;
        }
        let mut hidden = operators.norm(&words, &others, self.norm.parameters(), epsilon, None)?;
        if let Some(mask) = Dropout::mask(dropout, hidden.elem_count()) {
            hidden = (&hidden * Tensor::from_slice(&mask, hidden.shape(), hidden.device())?)?;
        }
        for layer in &self.layers {
            let heads = [&layer.query, &layer.key, &layer.value]
                .map(|linear| linear.forward(&hidden, Activation::None, operators));
            let [query, key, value] = heads;
            let attended = operators.attention([&query?, &key?, &value?], &batch.spans, self.config.heads)?;
            let attended = layer.output.forward(&attended, Activation::None, operators)?;
            let mask = Dropout::mask(dropout, hidden.elem_count());
            hidden = operators.norm(&attended, &hidden, layer.attention_norm.parameters(), epsilon, mask)?;
            let wide = layer.up.forward(&hidden, Activation::Gelu, operators)?;
            let narrow = layer.down.forward(&wide, Activation::None, operators)?;
            let mask = Dropout::mask(dropout, hidden.elem_count());
            hidden = operators.norm(&narrow, &hidden, layer.norm.parameters(), epsilon, mask)?;
        }
        Ok(hidden)
    }

    /// `[texts, hidden]` of `[tokens, hidden]`.
    fn pool(&self, hidden: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
        let (texts, rows) = (batch.spans.len(), batch.spans.rows());
        match self.pooling {
            Pooling::Cls => {
                let first: Vec<_> = batch.spans.iter().map(|(start, _)| start as u32).collect();
                hidden.index_select(&Tensor::from_vec(first, texts, hidden.device())?, 0)
            }
            Pooling::Mean => {
                let mut shares = vec![0f32; texts * rows];
                for (text, (start, length)) in batch.spans.iter().enumerate() {
                    shares[text * rows + start..][..length].fill(1.0 / length as f32);
                }
                Tensor::from_vec(shares, (texts, rows), hidden.device())?.matmul(hidden)
            }
        }
    }
}

impl Linear {
    /// `activation(x (W + s B A)ᵀ + b)`.
    fn forward(&self, x: &Tensor, activation: Activation, operators: Operators) -> candle_core::Result<Tensor> {
        let whole = operators.linear(x, &self.weight, &self.bias, activation)?;
        match &self.lora {
            None => Ok(whole),
            // Only layers without an activation are targets.
            Some(Lora { a, b, scale }) => {
                whole + (x.matmul(&a.transpose(0, D::Minus1)?)?.matmul(&b.transpose(0, D::Minus1)?)? * *scale)?
            }
        }
    }
}

impl Norm {
    fn parameters(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }
}
