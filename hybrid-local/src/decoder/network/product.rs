//! `x Wᵀ` with a way back, for training.
//!
//! The tensor library's own product works out the gradient of a frozen weight that nobody asked for, which is a third of a step's work, and
//! its product with blocks has no way back at all.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor,
    backend::BackendStorage, quantized::QTensor,
};

/// `[rows, in]` and `[out, in]` give `[rows, out]`.
pub(in crate::decoder) fn dense(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let wanted = [x, weight].map(Tensor::track_op);
    x.contiguous()?.apply_op2(&weight.contiguous()?, Dense { wanted })
}

/// The same with a frozen weight in blocks; the gradient goes through the weight as it is in single precision.
pub(super) fn quantized(x: &Tensor, weight: &Arc<QTensor>) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Quantized(Arc::clone(weight)));
    }
    dense(x, &weight.dequantize(x.device())?)
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
