//! The network: embeddings, and layers of attention and feed-forward. The same in training and in service.
//!
//! Devlin and others, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.

use std::sync::Arc;

use candle_core::{D, Tensor};
use hybrid_core::Result;

use super::{
    config::{EncoderConfig, LoraConfig, TARGETS},
    tokens::Batch,
};
use crate::{
    device::tensor_error,
    ops::{Activation, Laid, Operators},
    random::Random,
};

/// A network whose tensors are constants, variables, or some of each.
#[derive(Debug)]
pub(crate) struct Encoder {
    config: EncoderConfig,
    operators: Operators,
    word: Tensor,
    position: Tensor,
    token_type: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
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

/// A linear layer, with low-rank matrices beside it or without.
#[derive(Debug)]
pub(crate) struct Linear {
    weights: Weights,
    lora: Option<Lora>,
}

#[derive(Debug)]
enum Weights {
    /// `[out, in]` and `[out]`.
    Tensors(Tensor, Tensor),
    Laid(Laid),
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
pub(crate) struct Dropout {
    pub(crate) share: f64,
    pub(crate) random: Random,
}

impl Dropout {
    pub(crate) fn mask(dropout: &mut Option<Self>, count: usize) -> Option<Arc<[f32]>> {
        dropout.as_mut().map(|Self { share, random }| random.mask(count, *share).into())
    }
}

impl Encoder {
    /// Puts a network together of tensors that `tensor` gives by name.
    ///
    /// # Errors
    /// The closure's own.
    pub(crate) fn of(
        config: &EncoderConfig,
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
            Ok(Linear { lora: lora.transpose()?, ..Linear::of(name, &tensor)? })
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
            operators,
            word: tensor("embeddings.word")?,
            position: tensor("embeddings.position")?,
            token_type: (config.token_types > 0).then(|| tensor("embeddings.token_type")).transpose()?,
            norm: norm("embeddings.norm")?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// The same for reading alone, without a gradient: its weights lie as products want them.
    ///
    /// # Errors
    /// Not with tensors that fit the configuration.
    pub(crate) fn for_reading(mut self) -> Result<Self> {
        for layer in &mut self.layers {
            let Layer { query, key, value, output, attention_norm: _, up, down, norm: _ } = layer;
            for linear in [query, key, value, output, up, down] {
                linear.lay_out(self.operators)?;
            }
        }
        Ok(self)
    }

    pub(crate) fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What the last layer says, `[tokens, hidden]`.
    pub(crate) fn hidden(&self, batch: &Batch, dropout: &mut Option<Dropout>) -> candle_core::Result<Tensor> {
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
            let attended = operators.attention([&query?, &key?, &value?], &batch.spans, self.config.heads, None)?;
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
}

impl Linear {
    /// A layer without low-rank matrices, of `[out, in]` and `[out]`.
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weights: Weights::Tensors(weight, bias), lora: None }
    }

    /// The same of the tensors `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// The closure's own.
    pub(crate) fn of(name: &str, tensor: impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        Ok(Self::new(tensor(&format!("{name}.weight"))?, tensor(&format!("{name}.bias"))?))
    }

    /// Lays the weights out for reading alone, where that is faster.
    pub(crate) fn lay_out(&mut self, operators: Operators) -> Result<()> {
        if let Weights::Tensors(weight, bias) = &self.weights
            && let Some(laid) = operators.laid_out(weight, bias)
        {
            self.weights = Weights::Laid(laid.map_err(tensor_error("load encoder"))?);
        }
        Ok(())
    }

    /// `activation(x (W + s B A)ᵀ + b)`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        activation: Activation,
        operators: Operators,
    ) -> candle_core::Result<Tensor> {
        let whole = match &self.weights {
            Weights::Tensors(weight, bias) => operators.linear(x, weight, bias, activation)?,
            Weights::Laid(laid) => laid.forward(x, activation)?,
        };
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
