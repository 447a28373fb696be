//! Linear layers with matrices of low rank beside them: one operator, so that only its input is kept and only one gradient is made of it.

use std::sync::Arc;

use candle_core::{Result, Tensor, quantized::QTensor};

use super::{
    super::{
        fused::cpu_slice,
        kernels::{Onto, add_all, add_to_rows, column_sums, multiply_all},
        matrix::Matrix,
        multiply::multiply,
        packed::Packed,
    },
    Buffer, Flow, Tape, Value,
};

/// A matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// Trained if it is tracked.
    Dense(Tensor),
    Packed(Arc<Packed>),
    Quantized(Arc<QTensor>),
}

/// `scale (x · mask Aᵀ) Bᵀ`, trained where they are tracked: Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Clone, Debug)]
pub(crate) struct LowRank {
    /// `[rank, in]` and `[out, rank]`.
    pub(crate) pair: [Tensor; 2],
    pub(crate) scale: f32,
    /// What each number that goes in is multiplied by.
    pub(crate) mask: Option<Arc<[f32]>>,
}

impl Tape {
    /// `x Wᵀ + b`, and what the matrices of low rank give beside it.
    pub(crate) fn linear(
        &mut self,
        x: &Value,
        weight: &Weight,
        bias: Option<&Tensor>,
        beside: Option<LowRank>,
    ) -> Result<Value> {
        let outputs = weight.outputs()?;
        let rows = x.values.len() / x.columns.max(1);
        let mut out = weight.forward(&x.values, x.columns, self.buffers.take(rows * outputs))?;
        if let Some(bias) = bias {
            with(bias, |bias| add_to_rows(&mut out, bias))?;
        }
        let narrow = match &beside {
            Some(beside) => Some(beside.forward(x, &mut out, self)?),
            None => None,
        };
        let tracked = |tensor: &Tensor| tensor.track_op();
        let (of_weight, of_bias) = (weight.variable(), bias.filter(|bias| tracked(bias)).cloned());
        let of_pair = beside.as_ref().is_some_and(|beside| beside.pair.iter().any(tracked));
        let wanted = self.wants(x) || of_weight.is_some() || of_bias.is_some() || of_pair;
        // The input is kept for gradients of matrices alone.
        let kept = (of_weight.is_some() || of_pair).then(|| Arc::clone(&x.values));
        let (input, columns, len, weight) = (x.id, x.columns, x.values.len(), weight.clone());
        let back = move |flow: &mut Flow<'_>, gradient: Arc<Buffer>| {
            let slopes = Matrix::of(&gradient, outputs);
            if let (Some(variable), Some(kept)) = (&of_weight, &kept) {
                let x = Matrix::of(kept, columns);
                flow.slopes.write(variable, |out, onto| multiply(out, slopes.turned(), x, 1.0, onto))?;
            }
            if let Some(bias) = &of_bias {
                let sums = column_sums(&gradient, outputs);
                flow.slopes.write(bias, |out, onto| put(out, &sums, onto))?;
            }
            if flow.wants(input) {
                weight.back(flow, input, len, &gradient)?;
            }
            if let (Some(beside), Some(narrow)) = (&beside, &narrow) {
                beside.back(flow, &gradient, outputs, kept.as_ref(), narrow, (input, columns, len))?;
            }
            Ok(())
        };
        Ok(self.leave(Arc::new(out), outputs, wanted, back))
    }
}

impl Weight {
    fn outputs(&self) -> Result<usize> {
        match self {
            Self::Dense(weight) => weight.dim(0),
            Self::Packed(blocks) => Ok(blocks.shape()[0]),
            Self::Quantized(blocks) => Ok(blocks.shape().dims2()?.0),
        }
    }

    /// The weight where it is trained.
    fn variable(&self) -> Option<Tensor> {
        match self {
            Self::Dense(weight) if weight.track_op() => Some(weight.clone()),
            _ => None,
        }
    }

    fn forward(&self, x: &Buffer, columns: usize, mut out: Buffer) -> Result<Buffer> {
        match self {
            Self::Dense(weight) => {
                with(weight, |weight| {
                    multiply(
                        &mut out,
                        Matrix::of(x, columns),
                        Matrix::of(weight, columns).turned(),
                        1.0,
                        Onto::Nothing,
                    );
                })?;
            }
            Self::Packed(blocks) => out.copy_from_slice(&blocks.product(x)),
            Self::Quantized(blocks) => {
                let x = Tensor::from_slice(x, (x.len() / columns.max(1), columns), &candle_core::Device::Cpu)?;
                let product = x.apply_op1_no_bwd(blocks.as_ref())?;
                with(&product, |product| out.copy_from_slice(product))?;
            }
        }
        Ok(out)
    }

    /// The input's gradient. It goes through blocks as they are in single precision: a panel of rows at a time, or whole where these are the
    /// tensor library's.
    fn back(&self, flow: &mut Flow<'_>, input: usize, len: usize, gradient: &Buffer) -> Result<()> {
        let outputs = self.outputs()?;
        let through = |weight: &[f32]| {
            let weight = Matrix::of(weight, weight.len() / outputs.max(1));
            flow.write(input, len, |out, onto| multiply(out, Matrix::of(gradient, outputs), weight, 1.0, onto));
        };
        match self {
            Self::Dense(weight) => with(weight, through),
            Self::Packed(blocks) => {
                flow.write(input, len, |out, onto| blocks.back(out, gradient, onto));
                Ok(())
            }
            Self::Quantized(blocks) => with(&blocks.dequantize(&candle_core::Device::Cpu)?, through),
        }
    }
}

impl LowRank {
    /// Adds to `out`; what lies between the matrices is returned, `[rows, rank]`, with the scale in it.
    fn forward(&self, x: &Value, out: &mut Buffer, tape: &Tape) -> Result<Buffer> {
        let rank = self.pair[0].dim(0)?;
        let rows = x.values.len() / x.columns.max(1);
        let mut narrow = tape.buffers.take(rows * rank);
        let masked = self.masked(&x.values, &tape.buffers);
        let from = Matrix::of(masked.as_ref().unwrap_or(&x.values), x.columns);
        with(&self.pair[0], |a| {
            multiply(&mut narrow, from, Matrix::of(a, x.columns).turned(), self.scale, Onto::Nothing);
        })?;
        with(&self.pair[1], |b| {
            multiply(out, Matrix::of(&narrow, rank), Matrix::of(b, rank).turned(), 1.0, Onto::Before)
        })?;
        Ok(narrow)
    }

    fn masked(&self, x: &Buffer, buffers: &super::Buffers) -> Option<Buffer> {
        self.mask.as_ref().map(|mask| {
            let mut masked = buffers.copy(x);
            multiply_all(&mut masked, mask);
            masked
        })
    }

    fn back(
        &self,
        flow: &mut Flow<'_>,
        gradient: &Buffer,
        outputs: usize,
        x: Option<&Arc<Buffer>>,
        narrow: &Buffer,
        (input, columns, len): (usize, usize, usize),
    ) -> Result<()> {
        let [a, b] = &self.pair;
        let rank = a.dim(0)?;
        let slopes = Matrix::of(gradient, outputs);
        if b.track_op() {
            flow.slopes.write(b, |out, onto| multiply(out, slopes.turned(), Matrix::of(narrow, rank), 1.0, onto))?;
        }
        let mut of_narrow = flow.buffers.take(narrow.len());
        with(b, |b| multiply(&mut of_narrow, slopes, Matrix::of(b, rank), self.scale, Onto::Nothing))?;
        let of_narrow = Matrix::of(&of_narrow, rank);
        if let Some(x) = x.filter(|_| a.track_op()) {
            let masked = self.masked(x, flow.buffers);
            let x = Matrix::of(masked.as_ref().unwrap_or(x), columns);
            flow.slopes.write(a, |out, onto| multiply(out, of_narrow.turned(), x, 1.0, onto))?;
        }
        with(a, |a| match &self.mask {
            None => flow.write(input, len, |out, onto| multiply(out, of_narrow, Matrix::of(a, columns), 1.0, onto)),
            Some(mask) if flow.wants(input) => {
                let mut masked = flow.buffers.take(len);
                multiply(&mut masked, of_narrow, Matrix::of(a, columns), 1.0, Onto::Nothing);
                multiply_all(&mut masked, mask);
                flow.give(input, Arc::new(masked));
            }
            Some(_) => {}
        })
    }
}

/// Puts values where they belong, onto what is there.
pub(super) fn put(out: &mut [f32], values: &[f32], onto: Onto) {
    match onto {
        Onto::Nothing => out.copy_from_slice(values),
        Onto::Before => add_all(out, values),
    }
}

/// A tensor's floats.
pub(super) fn with<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    Ok(work(cpu_slice(&tensor.storage_and_layout())?))
}
