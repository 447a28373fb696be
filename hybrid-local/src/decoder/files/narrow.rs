//! Matrices that stay as narrow as their file has them.

use candle_core::{DType, Device};
use hybrid_core::Result;

use super::{ModelFiles, Stored, Weights};
use crate::device::tensor_error;

/// Weights whose matrices are bfloat16 in memory where they are so in the file; nothing is lost by it.
#[derive(Debug)]
struct Narrow(Box<dyn Weights>);

impl ModelFiles {
    /// Leaves matrices in bfloat16 if the device multiplies them so: half of the memory, and of what is read for each token.
    pub(crate) fn narrow_on(self, device: &crate::Device) -> Self {
        if device.has_bf16() { self.narrow() } else { self }
    }

    /// Leaves matrices in bfloat16 on any device.
    pub(in crate::decoder) fn narrow(self) -> Self {
        Self { weights: Box::new(Narrow(self.weights)), ..self }
    }
}

impl Weights for Narrow {
    fn bytes(&self, name: &str) -> u64 {
        if self.is_bf16_matrix(name) { self.0.bytes(name) / 2 } else { self.0.bytes(name) }
    }

    fn in_blocks(&self) -> bool {
        self.0.in_blocks()
    }

    fn unpacked(&self, name: &str, device: &Device) -> u64 {
        self.0.unpacked(name, device)
    }

    fn is_bf16_matrix(&self, name: &str) -> bool {
        self.0.is_bf16_matrix(name)
    }

    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored> {
        match self.0.take(name, shape, device)? {
            Stored::Dense(tensor) if self.is_bf16_matrix(name) => {
                tensor.to_dtype(DType::BF16).map(Stored::Dense).map_err(tensor_error("read tensors"))
            }
            stored => Ok(stored),
        }
    }
}
