//! Packed products as operators of the tensor library.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::Packed;
use crate::ops::{
    fused::{cpu_slice, slice, tensor},
    kernels::Onto,
};

/// `x Wᵀ` of `[n, columns]`: `[n, rows]`. The input has a gradient, the weights have none.
pub(crate) fn product(x: &Tensor, weights: &Arc<Packed>) -> Result<Tensor> {
    x.apply_op1(Product(Arc::clone(weights)))
}

struct Product(Arc<Packed>);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "packed product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, columns) = layout.shape().dims2()?;
        let [rows, own] = self.0.shape();
        if columns != own {
            candle_core::bail!("rows of {columns} columns do not fit packed weights of {own}");
        }
        Ok((CpuStorage::F32(self.0.product(slice(x, layout)?)), (n, rows).into()))
    }

    fn bwd(&self, _x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (n, [_, columns]) = (gradient.dim(0)?, self.0.shape());
        let mut out = vec![0f32; n * columns];
        self.0.back(&mut out, cpu_slice(&gradient.storage_and_layout())?, Onto::Nothing);
        tensor(out, &[n, columns]).map(Some)
    }
}
