//! The network: an encoder, pooling, head. The same in training and in service.

use candle_core::Tensor;
use hybrid_core::Result;

use crate::{
    encoder::{Batch, Dropout, Encoder, EncoderConfig, HeadActivation, Linear, LoraConfig, Pooling},
    ops::{Activation, Operators},
};

/// A network whose tensors are constants, variables, or some of each.
#[derive(Debug)]
pub(super) struct Network {
    encoder: Encoder,
    pooling: Pooling,
    operators: Operators,
    dense: Linear,
    activation: HeadActivation,
    out: Linear,
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
        Ok(Self {
            encoder: Encoder::of(config, lora, operators, &tensor)?,
            pooling,
            operators,
            dense: Linear::of("head.dense", &tensor)?,
            activation: config.head_activation,
            out: Linear::of("head.out", &tensor)?,
        })
    }

    /// The same for reading alone, without a gradient: the encoder's weights lie as products want them.
    ///
    /// # Errors
    /// Not with tensors that fit the configuration.
    pub(super) fn for_reading(self) -> Result<Self> {
        Ok(Self { encoder: self.encoder.for_reading()?, ..self })
    }

    /// The logits `[texts, labels]`.
    pub(super) fn logits(&self, batch: &Batch, mut dropout: Option<Dropout>) -> candle_core::Result<Tensor> {
        let hidden = self.encoder.hidden(batch, &mut dropout)?;
        let mut pooled = self.pooling.of(&hidden, &batch.spans)?;
        for (linear, activation) in [(&self.dense, Some(self.activation)), (&self.out, None)] {
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
}
