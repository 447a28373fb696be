//! A decoder's files behind one description: a folder as Hugging Face's tools leave it, or one GGUF file.
//!
//! Nothing that a file says is believed before it is checked against the file's size: no length, no offset, no shape.

mod config_json;
mod folder;
mod fused;
mod gguf;
mod narrow;
mod safetensors;

use std::{
    fmt::Debug,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor, quantized::QTensor};
use half::{bf16, f16};
use hybrid_core::{Error, Result};
use tokenizers::Tokenizer;

pub(crate) use self::{
    config_json::read as read_config,
    fused::{Fused, Place},
    gguf::{LLAMA_3, MAX_HEADER_BYTES, QWEN_2, describe, heads_of, open as open_gguf, resident, theirs},
    safetensors::{Raw, Safetensors},
};
use super::{config::DecoderConfig, defaults::Defaults, template::Sources};
use crate::{
    device::tensor_error,
    files::{CONFIG, io_error},
    ops::packed::Packed,
};

const OPERATION: &str = "open decoder";

/// What a decoder's files hold, the weights still on the disk.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    pub(crate) config: DecoderConfig,
    pub(crate) weights: Box<dyn Weights>,
    pub(crate) tokenizer: Tokenizer,
    /// The chat templates with the tokens that they name.
    pub(crate) templates: Sources,
    pub(crate) defaults: Defaults,
}

impl ModelFiles {
    /// Reads what lies at `path`: a folder with `config.json` or with one GGUF file, or a GGUF file.
    ///
    /// # Errors
    /// `NotFound` that names what is missing, `Corrupt` and `Unsupported` that name file and fault.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return gguf::open(path);
        }
        if path.join(CONFIG).is_file() {
            return folder::open(path);
        }
        let mut files = gguf_files(path)?;
        match (files.pop(), files.len()) {
            (Some(file), 0) => gguf::open(&file),
            (None, _) => Err(Error::not_found(OPERATION, "the folder has neither a config.json nor a GGUF file")
                .with("folder", path.display())),
            (Some(_), more) => Err(Error::unsupported(
                OPERATION,
                "the folder has several GGUF files; join the parts of a split model, or name one file",
            )
            .with("folder", path.display())
            .with("files", more + 1)),
        }
    }
}

/// Refuses a model that is no folder in Hugging Face layout, of which alone others are made.
///
/// # Errors
/// `Unsupported` that names the model.
pub(crate) fn check_folder(operation: &'static str, model: &Path) -> Result<()> {
    if model.join(CONFIG).is_file() {
        return Ok(());
    }
    let message = "other weights are written of a folder of Safetensors alone, and the model is a GGUF file";
    Err(Error::unsupported(operation, message)
        .with("base", model.display())
        .with("way out", "the folder in Hugging Face layout that the file was made of"))
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| io_error(OPERATION, folder, error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(OPERATION, folder, error))?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Tensors on the disk, by the names that Hugging Face's files give them.
pub(crate) trait Weights: Debug + Send {
    /// What the tensor takes in memory; nothing if there is none.
    fn bytes(&self, name: &str) -> u64;

    /// Whether the layers' matrices are kept in blocks of a few bits.
    fn in_blocks(&self) -> bool {
        false
    }

    /// Whether the tensor is a matrix that the file has in bfloat16.
    fn is_bf16_matrix(&self, _name: &str) -> bool {
        false
    }

    /// What the way back through the matrix `name` on `device` takes for its numbers in single precision, in bytes; nothing where it is kept
    /// so, or unpacked a little at a time.
    fn unpacked(&self, _name: &str, _device: &Device) -> u64 {
        0
    }

    /// Reads the tensor `name` of exactly `shape`.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor with the shape found and expected.
    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored>;
}

/// A tensor as it is kept in memory.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// Single precision, or bfloat16 of a matrix that is frozen.
    Dense(Tensor),
    /// Blocks of a GGUF file in the order of this crate's products, on the processor.
    Packed(Arc<Packed>),
    /// Blocks of a GGUF file as they are.
    Quantized(Arc<QTensor>),
}

impl Stored {
    /// The tensor in single precision.
    pub(crate) fn dense(self, device: &Device) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => tensor.to_dtype(DType::F32).map_err(tensor_error("read tensors")),
            Self::Packed(blocks) => {
                Tensor::from_vec(blocks.dequantize(), &blocks.shape()[..], device).map_err(tensor_error("read tensors"))
            }
            Self::Quantized(blocks) => blocks.dequantize(device).map_err(tensor_error("read tensors")),
        }
    }
}

/// Numbers that are widened to single precision when they are read.
#[derive(Clone, Copy, Debug)]
enum Plain {
    F32,
    F16,
    Bf16,
}

impl Plain {
    fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        }
    }
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt("read tensors", "the tensor has another shape than the configuration says")
        .with("tensor", name)
        .with("found", format_args!("{found:?}"))
        .with("expected", format_args!("{expected:?}")))
}

/// Reads `length` bytes from `offset` of a file that has `size` bytes.
fn read_range(path: &Path, offset: u64, length: usize, size: u64) -> Result<Vec<u8>> {
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(Error::corrupt("read tensors", "the tensor lies beyond the end of the file")
            .with("offset", offset)
            .with("length", length)
            .with("size", size));
    }
    let mut bytes = vec![0u8; length];
    let mut file = File::open(path).map_err(|error| io_error("read tensors", path, error))?;
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|error| io_error("read tensors", path, error))?;
    Ok(bytes)
}
