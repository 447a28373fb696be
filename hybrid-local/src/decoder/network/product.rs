//! `x Wᵀ` with a way back, for training.
//!
//! The tensor library's own product works out the gradient of a frozen weight that nobody asked for, which is a third of a step's work, and
//! its product with blocks has no way back at all.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Tensor,
    backend::BackendStorage, quantized::QTensor,
};

/// `[rows, in]` and `[out, in]` give `[rows, out]`.
pub(super) fn dense(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let wanted = [x, weight].map(Tensor::track_op);
    x.contiguous()?.apply_op2(&weight.contiguous()?, Dense { wanted })
}

/// The same with a frozen weight in bfloat16, and so the input and what its gradient is made of; what comes out is in single precision.
pub(super) fn narrow(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(DType::BF16)?;
    let product = if x.track_op() { dense(&x, weight)? } else { x.matmul(&weight.t()?)? };
    product.to_dtype(DType::F32)
}

/// The same with a frozen weight in blocks; the gradient goes through the weight as it is in single precision.
pub(super) fn quantized(x: &Tensor, weight: &Arc<QTensor>) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Quantized(Arc::clone(weight)));
    }
    dense(x, &weight.dequantize(x.device())?)
}

/// `scale (x Aᵀ) Bᵀ`: `[rows, in]`, `[rank, in]` and `[out, rank]` give `[rows, out]`.
pub(in crate::decoder) fn low_rank(x: &Tensor, [a, b]: &[Tensor; 2], scale: f64) -> Result<Tensor> {
    let wanted = [x, a, b].map(Tensor::track_op);
    x.contiguous()?.apply_op3(&a.contiguous()?, &b.contiguous()?, LowRank { scale, wanted })
}

struct Dense {
    /// Whether gradients of input and weight are asked for.
    wanted: [bool; 2],
}

impl Dense {
    fn forward<S: BackendStorage>(x: &S, of_x: &Layout, weight: &S, of_weight: &Layout) -> Result<(S, Shape)> {
        let ((rows, inner), (outputs, _)) = (of_x.shape().dims2()?, of_weight.shape().dims2()?);
        let product = x.matmul(weight, (1, rows, outputs, inner), of_x, &of_weight.transpose(0, 1)?)?;
        Ok((product, Shape::from((rows, outputs))))
    }
}

impl CustomOp2 for Dense {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout, w: &CpuStorage, of_w: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::forward(x, of_x, w, of_w)
    }

    fn cuda_fwd(&self, x: &CudaStorage, of_x: &Layout, w: &CudaStorage, of_w: &Layout) -> Result<(CudaStorage, Shape)> {
        Self::forward(x, of_x, w, of_w)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        of_x: &Layout,
        w: &MetalStorage,
        of_w: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Self::forward(x, of_x, w, of_w)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [of_x, of_weight] = self.wanted;
        Ok((
            of_x.then(|| gradient.matmul(&w.detach())).transpose()?,
            of_weight.then(|| gradient.t()?.matmul(&x.detach())).transpose()?,
        ))
    }
}

struct LowRank {
    scale: f64,
    wanted: [bool; 3],
}

impl LowRank {
    fn forward<S: BackendStorage>(&self, inputs: [&S; 3], layouts: [&Layout; 3]) -> Result<(S, Shape)> {
        let (narrow, shape) = Dense::forward(inputs[0], layouts[0], inputs[1], layouts[1])?;
        let narrow = narrow.affine(&Layout::contiguous(&shape), self.scale, 0.0)?;
        Dense::forward(&narrow, &Layout::contiguous(&shape), inputs[2], layouts[2])
    }
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low-rank product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        a: &CpuStorage,
        of_a: &Layout,
        b: &CpuStorage,
        of_b: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward([x, a, b], [of_x, of_a, of_b])
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        of_x: &Layout,
        a: &CudaStorage,
        of_a: &Layout,
        b: &CudaStorage,
        of_b: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward([x, a, b], [of_x, of_a, of_b])
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        of_x: &Layout,
        a: &MetalStorage,
        of_a: &Layout,
        b: &MetalStorage,
        of_b: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.forward([x, a, b], [of_x, of_a, of_b])
    }

    fn bwd(&self, x: &Tensor, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let [x, a, b] = [x, a, b].map(Tensor::detach);
        let gradient = gradient.contiguous()?;
        let of_narrow = (gradient.matmul(&b)? * self.scale)?;
        let [of_x, of_a, of_b] = self.wanted;
        let narrow = || x.matmul(&a.t()?)? * self.scale;
        Ok((
            of_x.then(|| of_narrow.matmul(&a)).transpose()?,
            of_a.then(|| of_narrow.t()?.matmul(&x)).transpose()?,
            of_b.then(|| gradient.t()?.matmul(&narrow()?)).transpose()?,
        ))
    }
}

/// Of the three inputs.
type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

struct Quantized(Arc<QTensor>);

impl CustomOp1 for Quantized {
    fn name(&self) -> &'static str {
        "product with blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(x, of_x)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        gradient.contiguous()?.matmul(&self.0.dequantize(x.device())?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::random::Random;

    #[test]
    fn a_weight_in_bfloat16_gives_products_and_gradients_near_those_in_single_precision() -> Result<()> {
        let draw = |name: &str, shape: (usize, usize)| {
            Tensor::from_vec(Random::of(1, name, [0, 0]).normal(shape.0 * shape.1, 1.0), shape, &Device::Cpu)
        };
        let (x, weight) = (Var::from_tensor(&draw("x", (5, 64))?)?, draw("weight", (24, 64))?);
        let narrowed = weight.to_dtype(DType::BF16)?;
        let off = |ours: &Tensor, exact: &Tensor| -> Result<f32> {
            let [off, all] = [&(ours - exact)?, exact].map(|tensor| tensor.sqr()?.sum_all()?.to_scalar::<f32>());
            Ok((off? / all?).sqrt())
        };
        let (exact, ours) = (dense(&x, &weight)?, narrow(&x, &narrowed)?);
        assert_eq!(ours.dtype(), DType::F32);
        assert!((1e-5..1e-2).contains(&off(&ours, &exact)?), "{}", off(&ours, &exact)?);
        assert_eq!(narrow(&x.detach(), &narrowed)?.to_vec2::<f32>()?, ours.to_vec2::<f32>()?);
        let gradient = |product: Tensor| {
            product.sqr()?.sum_all()?.backward()?.remove(&x).ok_or(candle_core::Error::Msg("none".into()))
        };
        let (exact, ours) = (gradient(exact)?, gradient(ours)?);
        assert!((1e-5..1e-2).contains(&off(&ours, &exact)?), "{}", off(&ours, &exact)?);
        Ok(())
    }
}
