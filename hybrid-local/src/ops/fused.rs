//! The operators for the processor: each is one pass over its tensors forward and one or two backward.
//!
//! Composed of the tensor library's own operators the same network is a row of a dozen passes on one thread for each of these, and its
//! backward pass works out gradients of frozen weights that nobody asked for.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};
use rayon::prelude::*;

use super::{
    Activation,
    attention::{Attention, Spans},
    dense::{self, Ends, Panels},
    kernels::{
        Strides, add, by_rows, column_sums, dot, gelu, gelu_slope, rows_per_share, sum, sum_vectors, vectorised,
    },
    matrix::Matrix,
    simd::is_vectorised,
};

/// `activation(x Wᵀ + b)` of `[rows, in]`, `[out, in]` and `[out]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let wanted = [x, weight, bias].map(Tensor::track_op);
    // Without a gradient, bias and activation follow at once on the product.
    if is_vectorised() && wanted == [false; 3] {
        return Laid::out(weight, bias)?.forward(x, activation);
    }
    let product = matmul(x, &weight.t()?)?;
    x.apply_op3(weight, bias, Linear { product: Mutex::new(Some(product)), activation, wanted })
}

/// `a · b` of two matrices on the processor, without a gradient.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_vectorised() {
        return a.detach().matmul(&b.detach());
    }
    let read = [a, b].map(Tensor::storage_and_layout);
    let [left, right] = [matrix(&read[0])?, matrix(&read[1])?];
    let ((rows, inner), (also_inner, columns)) = (a.dims2()?, b.dims2()?);
    if inner != also_inner {
        candle_core::bail!("a matrix of {inner} columns cannot be multiplied by one of {also_inner} rows");
    }
    let mut out = vec![0f32; rows * columns];
    dense::product(&mut out, left, &Panels::of(right), Ends::NONE);
    tensor(out, &[rows, columns])
}

/// The matrix that a tensor is, however it lies.
fn matrix<'a>((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<Matrix<'a>> {
    let (rows, columns) = layout.shape().dims2()?;
    let (&[down, across], Storage::Cpu(storage)) = (layout.stride(), &**storage) else {
        candle_core::bail!("the operator works on matrices on the processor alone")
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
    Ok(Matrix::within(values, [rows, columns], Strides(down, across)))
}

/// A linear layer whose weights are laid out for the processor's products: for reading, without a gradient.
#[derive(Debug)]
pub(crate) struct Laid {
    weight: Panels,
    bias: Vec<f32>,
}

impl Laid {
    /// Lays out `[out, in]` and `[out]`.
    pub(super) fn out(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let weight = weight.t()?;
        let read = weight.storage_and_layout();
        Ok(Self { weight: Panels::of(matrix(&read)?), bias: bias.to_vec1()? })
    }

    /// `activation(x Wᵀ + b)`.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(&Applied(self, activation))
    }
}

struct Applied<'a>(&'a Laid, Activation);

impl CustomOp1 for Applied<'_> {
    fn name(&self) -> &'static str {
        "linear, laid out"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout) -> Result<(CpuStorage, Shape)> {
        let Self(Laid { weight, bias }, activation) = self;
        let (rows, inner) = of_x.shape().dims2()?;
        if inner != weight.inner() {
            candle_core::bail!("the layer is for {} columns, not {inner}", weight.inner());
        }
        let mut out = vec![0f32; rows * bias.len()];
        let ends = Ends { bias: Some(bias), activation: *activation };
        dense::product(&mut out, Matrix::of(slice(x, of_x)?, inner), weight, ends);
        Ok((CpuStorage::F32(out), Shape::from((rows, bias.len()))))
    }
}

/// `norm(x · mask + residual)` over the columns of `[rows, columns]`, scaled and shifted by `[2, columns]`.
pub(super) fn norm(
    x: &Tensor,
    residual: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f64,
    mask: Option<Arc<[f32]>>,
) -> Result<Tensor> {
    let wanted = [x, residual, scale].map(Tensor::track_op);
    x.apply_op3(residual, &Tensor::stack(&[scale, shift], 0)?, Norm { epsilon: epsilon as f32, mask, wanted })
}

pub(super) fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    spans: &Spans,
    heads: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let heads = Attention { spans: spans.clone(), heads, window };
    queries.contiguous()?.apply_op3(&keys.contiguous()?, &values.contiguous()?, heads)
}

struct Linear {
    /// `x Wᵀ`, which was worked out before: an operator cannot call another of the tensor library's. Given up after the forward pass where
    /// the backward pass has no need of it.
    product: Mutex<Option<Tensor>>,
    activation: Activation,
    /// Whether gradients of input, weight and bias are asked for.
    wanted: [bool; 3],
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        bias: &CpuStorage,
        of_bias: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let kept = self.product()?;
        let product = kept.storage_and_layout();
        let (product, bias) = (cpu_slice(&product)?, slice(bias, of_bias)?);
        let columns = bias.len();
        let mut out = vec![0f32; product.len()];
        by_rows(&mut out, columns, |row, out| {
            let product = product[row * columns..].chunks_exact(columns);
            for (out, product) in out.chunks_exact_mut(columns).zip(product) {
                let values = out.iter_mut().zip(product).zip(bias);
                match self.activation {
                    Activation::None => values.for_each(|((out, product), bias)| *out = product + bias),
                    Activation::Gelu => values.for_each(|((out, product), bias)| *out = gelu(product + bias)),
                }
            }
        });
        if self.activation == Activation::None {
            self.product.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        Ok((CpuStorage::F32(out), kept.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let gradient = match self.activation {
            Activation::None => gradient,
            Activation::Gelu => self.through_gelu(bias, &gradient)?,
        };
        let [of_x, of_weight, of_bias] = self.wanted;
        let sums = || {
            let read = gradient.storage_and_layout();
            tensor(column_sums(cpu_slice(&read)?, bias.elem_count()), bias.dims())
        };
        Ok((
            of_x.then(|| matmul(&gradient, weight)).transpose()?,
            of_weight.then(|| matmul(&gradient.t()?, x)).transpose()?,
            of_bias.then(sums).transpose()?,
        ))
    }
}

impl Linear {
    fn product(&self) -> Result<Tensor> {
        let product = self.product.lock().unwrap_or_else(PoisonError::into_inner).clone();
        product.ok_or_else(|| candle_core::Error::Msg("the product was given up before its use".to_owned()))
    }

    fn through_gelu(&self, bias: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let kept = self.product()?;
        let read = [&kept, bias, gradient].map(Tensor::storage_and_layout);
        let (product, bias, gradient) = (cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?);
        let columns = bias.len();
        let mut out = vec![0f32; gradient.len()];
        by_rows(&mut out, columns, |row, out| {
            let rows = row * columns..row * columns + out.len();
            let inputs = product[rows.clone()].chunks_exact(columns).zip(gradient[rows].chunks_exact(columns));
            for (out, (product, gradient)) in out.chunks_exact_mut(columns).zip(inputs) {
                for (((out, product), gradient), bias) in out.iter_mut().zip(product).zip(gradient).zip(bias) {
                    *out = gradient * gelu_slope(product + bias);
                }
            }
        });
        tensor(out, kept.dims())
    }
}

struct Norm {
    epsilon: f32,
    /// What each element of the first input is multiplied by.
    mask: Option<Arc<[f32]>>,
    wanted: [bool; 3],
}

impl Norm {
    /// Fills `out` with the sum of a row's inputs, centred; one over its deviation is returned.
    #[inline(always)]
    fn centre(&self, out: &mut [f32], row: usize, x: &[f32], residual: &[f32]) -> f32 {
        let columns = out.len();
        let here = row * columns..(row + 1) * columns;
        let (x, residual) = (&x[here.clone()], &residual[here.clone()]);
        match &self.mask {
            Some(mask) => {
                for (((out, x), residual), mask) in out.iter_mut().zip(x).zip(residual).zip(&mask[here]) {
                    *out = x * mask + residual;
                }
            }
            None => {
                for ((out, x), residual) in out.iter_mut().zip(x).zip(residual) {
                    *out = x + residual;
                }
            }
        }
        let mean = sum(out) / columns as f32;
        for out in &mut *out {
            *out -= mean;
        }
        1.0 / (dot(out, out) / columns as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        residual: &CpuStorage,
        of_residual: &Layout,
        parameters: &CpuStorage,
        of_parameters: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, residual) = (slice(x, of_x)?, slice(residual, of_residual)?);
        let columns = of_x.shape().dims2()?.1;
        let (scale, shift) = slice(parameters, of_parameters)?.split_at(columns);
        let mut out = vec![0f32; x.len()];
        by_rows(&mut out, columns, |first, out| {
            for (i, out) in out.chunks_exact_mut(columns).enumerate() {
                let inverse = self.centre(out, first + i, x, residual);
                for ((out, scale), shift) in out.iter_mut().zip(scale).zip(shift) {
                    *out = *out * inverse * scale + shift;
                }
            }
        });
        Ok((CpuStorage::F32(out), of_x.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        residual: &Tensor,
        parameters: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let read = [x, residual, parameters, &gradient].map(Tensor::storage_and_layout);
        let (values, others, parameters, gradient) =
            (cpu_slice(&read[0])?, cpu_slice(&read[1])?, cpu_slice(&read[2])?, cpu_slice(&read[3])?);
        let columns = x.dim(1)?;
        let scale = &parameters[..columns];
        let mut out = vec![0f32; gradient.len()];
        let rows = rows_per_share(columns);
        let share = |(share, out): (usize, &mut [f32])| {
            vectorised(|| {
                let mut sums = vec![0f32; 2 * columns];
                let (of_scale, of_shift) = sums.split_at_mut(columns);
                let mut normal = vec![0f32; columns];
                for (i, out) in out.chunks_exact_mut(columns).enumerate() {
                    let row = share * rows + i;
                    let inverse = self.centre(&mut normal, row, values, others);
                    let gradient = &gradient[row * columns..(row + 1) * columns];
                    for (normal, (of_scale, gradient)) in normal.iter_mut().zip(of_scale.iter_mut().zip(gradient)) {
                        *normal *= inverse;
                        *of_scale += gradient * *normal;
                    }
                    add(of_shift, gradient);
                    for ((out, gradient), scale) in out.iter_mut().zip(gradient).zip(scale) {
                        *out = gradient * scale;
                    }
                    let (mean, along) = (sum(out) / columns as f32, dot(out, &normal) / columns as f32);
                    for (out, normal) in out.iter_mut().zip(&normal) {
                        *out = inverse * (*out - mean - normal * along);
                    }
                }
                sums
            })
        };
        let sums: Vec<_> = out.par_chunks_mut(rows * columns).enumerate().map(share).collect();
        let of_parameters = sum_vectors(sums, 2 * columns);
        let masked = self.mask.as_ref().filter(|_| self.wanted[0]).map(|mask| {
            let mut masked = vec![0f32; out.len()];
            by_rows(&mut masked, columns, |row, masked| {
                let here = row * columns..row * columns + masked.len();
                for ((masked, out), mask) in masked.iter_mut().zip(&out[here.clone()]).zip(&mask[here]) {
                    *masked = out * mask;
                }
            });
            masked
        });
        let of_residual = tensor(out, x.dims())?;
        let of_x = match masked {
            Some(masked) => tensor(masked, x.dims())?,
            None => of_residual.clone(),
        };
        let [wants_x, wants_residual, wants_parameters] = self.wanted;
        Ok((
            wants_x.then_some(of_x),
            wants_residual.then_some(of_residual),
            wants_parameters.then(|| tensor(of_parameters, &[2, columns])).transpose()?,
        ))
    }
}

/// The floats of a tensor that lies in one piece.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("the operator needs tensors that lie in one piece, not {layout:?}"),
    }
}

pub(super) fn cpu_slice<'a>((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<&'a [f32]> {
    match &**storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => candle_core::bail!("the operator works on the processor alone"),
    }
}

pub(super) fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}
