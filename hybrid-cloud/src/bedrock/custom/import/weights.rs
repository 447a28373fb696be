//! Weights in Safetensors: what a file's header says, without reading the tensors.
//!
//! The format: eight bytes, little-endian, give the size of a header in JSON, `{"<tensor>": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {…}}`; then the tensors' bytes
//! (<https://github.com/huggingface/safetensors>).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use hybrid_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;

use super::{OPERATION, architecture::Architecture};

/// The longest header that the format's own library reads.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header.
const PREFIX: u64 = 8;

#[derive(Debug, Deserialize)]
pub(super) struct Tensor {
    dtype: String,
    data_offsets: (u64, u64),
}

/// The tensors of one file, by name; checked to be whole.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let corrupt = |message: &'static str| Error::corrupt(OPERATION, message).with("path", path.display());
    let unreadable = |error: io::Error| {
        Error::new(ErrorKind::Internal, OPERATION, "the weights cannot be read")
            .with("path", path.display())
            .with_source(error)
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut prefix = [0; PREFIX as usize];
    let short = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("the weights are cut short; export them again"),
        _ => unreadable(error),
    };
    file.read_exact(&mut prefix).map_err(short)?;
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(corrupt("the file is not in the Safetensors format").with("header_bytes", length));
    }
    if PREFIX + length > size {
        return Err(corrupt("the weights are cut short; export them again").with("size", size));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(short)?;
    let entries: BTreeMap<String, Value> = serde_json::from_slice(&header)
        .map_err(|error| corrupt("the file is not in the Safetensors format").with_source(error))?;
    let tensors = entries.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
        let tensor = serde_json::from_value(entry)
            .map_err(|error| corrupt("a tensor's entry cannot be read").with("tensor", &name).with_source(error))?;
        Ok((name, tensor))
    });
    let tensors: BTreeMap<String, Tensor> = tensors.collect::<Result<_>>()?;
    let end = tensors.values().map(|tensor| tensor.data_offsets.1).max().unwrap_or_default();
    let expected = end.saturating_add(PREFIX + length);
    if expected != size {
        return Err(corrupt("the weights are cut short, or something lies behind them; export them again")
            .with("expected", expected)
            .with("found", size));
    }
    Ok(tensors)
}

/// Checks that Bedrock takes the tensors of one file.
pub(super) fn check(architecture: &Architecture, path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, Tensor { dtype, data_offsets: _ }) in tensors {
        if name.contains(".lora_") || name.starts_with("base_model.model.") {
            let message = "the weights are an adapter's; merge it into its base before the export";
            return Err(Error::unsupported(OPERATION, message).with("path", path.display()).with("tensor", name));
        }
        if !architecture.takes(dtype) {
            let message = "Bedrock imports numbers of F32, F16 and BF16; convert the tensor before the export";
            return Err(Error::unsupported(OPERATION, message)
                .with("path", path.display())
                .with("tensor", name)
                .with("dtype", dtype));
        }
    }
    Ok(())
}
