//! Linear layers and the table of embeddings: the seam under which a faster kernel can be put without a change of the network.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, quantized::QTensor};

use super::product;
use crate::{
    decoder::files::Stored,
    ops::{
        packed::{Packed, product as packed_product},
        tape::{LowRank, Tape, Value, Weight as Taped},
    },
};

/// `x Wᵀ + b`, whatever W is made of.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone, Debug)]
enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    /// `[out, in]` in blocks, for the processor.
    Packed(Arc<Packed>),
    /// `[out, in]` in blocks; products take the input's rows to blocks of whole numbers.
    Quantized(Arc<QTensor>),
}

impl Linear {
    pub(super) fn new(weight: Stored, bias: Option<Tensor>) -> Self {
        let weight = match weight {
            Stored::Dense(weight) => Weight::Dense(weight),
            Stored::Packed(blocks) => Weight::Packed(blocks),
            Stored::Quantized(blocks) => Weight::Quantized(blocks),
        };
        Self { weight, bias }
    }

    /// `[rows, in]` gives `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = match &self.weight {
            Weight::Packed(blocks) => packed_product(&x.contiguous()?, blocks)?,
            Weight::Dense(weight) if weight.dtype() == DType::BF16 => product::narrow(x, weight)?,
            // In training.
            Weight::Dense(weight) if x.track_op() || weight.track_op() => product::dense(x, weight)?,
            Weight::Quantized(blocks) if x.track_op() => product::quantized(x, blocks)?,
            Weight::Dense(weight) => x.matmul(&weight.t()?)?,
            Weight::Quantized(blocks) => x.contiguous()?.apply_op1_no_bwd(blocks.as_ref())?,
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Linear {
    /// The same on a tape, with what is worn beside it.
    pub(super) fn on(&self, tape: &mut Tape, x: &Value, beside: Option<LowRank>) -> Result<Value> {
        let weight = match &self.weight {
            Weight::Dense(weight) => Taped::Dense(weight.clone()),
            Weight::Packed(blocks) => Taped::Packed(Arc::clone(blocks)),
            Weight::Quantized(blocks) => Taped::Quantized(Arc::clone(blocks)),
        };
        tape.linear(x, &weight, self.bias.as_ref(), beside)
    }
}

/// The table of embeddings.
#[derive(Clone, Debug)]
pub(super) struct Table(Stored);

impl Table {
    pub(super) fn new(table: Stored) -> Self {
        Self(table)
    }

    /// The table where it is trained.
    pub(super) fn variable(&self) -> Option<&Tensor> {
        match &self.0 {
            Stored::Dense(table) if table.track_op() => Some(table),
            _ => None,
        }
    }

    /// The rows of `[tokens]` whole numbers: `[tokens, hidden]`.
    pub(super) fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Stored::Dense(table) => table.index_select(tokens, 0)?.to_dtype(DType::F32),
            Stored::Packed(blocks) => Tensor::from_vec(
                blocks.rows(&tokens.to_vec1()?),
                (tokens.elem_count(), blocks.shape()[1]),
                tokens.device(),
            ),
            Stored::Quantized(blocks) => blocks.embedding(tokens),
        }
    }
}
