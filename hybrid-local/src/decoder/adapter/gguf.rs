//! Adapters as llama.cpp has them: a GGUF file of the type `adapter`, whose matrices have the names of the base's tensors.

use std::{collections::BTreeMap, io::Cursor, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Content, Value},
    },
};
use hybrid_core::{Error, Result};

use super::{LoraConfig, Matrices, Module, Pair, Place};
use crate::{
    decoder::config::{DecoderConfig, Family},
    device::tensor_error,
    files,
    tensors::Array,
};

const OPERATION: &str = "write adapter";

/// Writes the adapter to a file for a GGUF file of the model that `config` describes, and checks what was written.
///
/// # Errors
/// `Unsupported` that names the family if its files fuse the layers.
pub(super) fn write(matrices: &Matrices, config: &DecoderConfig, path: &Path) -> Result<()> {
    matrices.check(config)?;
    let fail = tensor_error(OPERATION);
    let text = |text: &str| Value::String(text.to_owned());
    let architecture = architecture(config.family)?;
    // llama.cpp divides by the rank and knows no other scale.
    let alpha = matrices.config.scale() * matrices.config.rank as f64;
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(architecture)),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(alpha as f32)),
    ];
    let mut tensors = Vec::new();
    for (place, Pair { a, b }) in &matrices.pairs {
        let paired = ordered(b, heads(config, *place), pairs);
        for (side, array) in [("lora_a", a), ("lora_b", &paired?)] {
            let blocks = Tensor::from_slice(array.floats()?, array.shape.as_slice(), &Device::Cpu)
                .and_then(|tensor| QTensor::quantize(&tensor, GgmlDType::F32));
            tensors.push((format!("{}.{side}", name(*place)), blocks.map_err(fail)?));
        }
    }
    let metadata: Vec<_> = metadata.iter().map(|(name, value)| (*name, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).map_err(fail)?;
    let bytes = bytes.into_inner();
    files::write(path, &bytes)?;
    let written = std::fs::read(path).map_err(|error| files::io_error(OPERATION, path, error))?;
    matrices.check_same(&read(&written, matrices, config)?)
}

/// Reads back what [`write`] wrote of the adapter's layers.
fn read(bytes: &[u8], matrices: &Matrices, config: &DecoderConfig) -> Result<Matrices> {
    let fail = tensor_error("read adapter");
    let mut reader = Cursor::new(bytes);
    let content = Content::read(&mut reader).map_err(fail)?;
    let alpha = content.metadata.get("adapter.lora.alpha").map(Value::to_f32).transpose().map_err(fail)?;
    let alpha = alpha.ok_or_else(|| Error::corrupt("read adapter", "the alpha is missing"))?;
    let mut pairs = BTreeMap::new();
    for place in matrices.pairs.keys() {
        let mut array = |side: &str| {
            let tensor = content.tensor(&mut reader, &format!("{}.{side}", name(*place)), &Device::Cpu);
            let tensor = tensor.and_then(|blocks| blocks.dequantize(&Device::Cpu));
            tensor.and_then(|tensor| Ok(Array::f32(tensor.dims(), tensor.flatten_all()?.to_vec1()?))).map_err(fail)
        };
        let (a, b) = (array("lora_a")?, array("lora_b")?);
        pairs.insert(*place, Pair { a, b: ordered(&b, heads(config, *place), halves)? });
    }
    let config = LoraConfig { alpha: f64::from(alpha), rank_stabilized: false, ..matrices.config.clone() };
    Ok(Matrices { config, pairs })
}

fn architecture(family: Family) -> Result<&'static str> {
    match family {
        // Mistral's files say that they are Llama's.
        Family::Llama | Family::Mistral => Ok("llama"),
        Family::Qwen2 => Ok("qwen2"),
        Family::Qwen3 => Ok("qwen3"),
        Family::Gemma2 => Ok("gemma2"),
        Family::Gemma3 => Ok("gemma3"),
        Family::Phi3 => Err(Error::unsupported(
            OPERATION,
            "files of this family have several layers in one matrix, on which the adapter does not fit",
        )
        .with("family", "phi3")),
    }
}

fn name(Place { layer, module }: Place) -> String {
    let part = match module {
        Module::Query => "attn_q",
        Module::Key => "attn_k",
        Module::Value => "attn_v",
        Module::Output => "attn_output",
        Module::Gate => "ffn_gate",
        Module::Up => "ffn_up",
        Module::Down => "ffn_down",
    };
    format!("blk.{layer}.{part}.weight")
}

/// The heads whose rows Llama's files have in another order.
fn heads(config: &DecoderConfig, place: Place) -> Option<usize> {
    match (config.family, place.module) {
        (Family::Llama | Family::Mistral, Module::Query) => Some(config.heads),
        (Family::Llama | Family::Mistral, Module::Key) => Some(config.key_value_heads),
        _ => None,
    }
}

/// The rows of each head in another order: row `i` of a head of `size` rows is the one that `order` says.
fn ordered(array: &Array, heads: Option<usize>, order: fn(usize, usize) -> usize) -> Result<Array> {
    let Some(heads) = heads else { return Ok(array.clone()) };
    let (values, columns) = (array.floats()?, array.shape[1]);
    let size = array.shape[0] / heads;
    let rows = (0..array.shape[0]).map(|row| row / size * size + order(row % size, size));
    Ok(Array::f32(
        array.shape.clone(),
        rows.flat_map(|row| values[row * columns..][..columns].iter().copied()).collect(),
    ))
}

/// Of halves to neighbouring pairs.
fn pairs(row: usize, size: usize) -> usize {
    row / 2 + row % 2 * (size / 2)
}

/// Of neighbouring pairs to halves.
fn halves(row: usize, size: usize) -> usize {
    2 * (row % (size / 2)) + row / (size / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_pairs_and_come_back() {
        let array = Array::f32([8, 1], (0..8).map(|row| row as f32).collect());
        let paired = ordered(&array, Some(2), pairs).unwrap();
        assert_eq!(paired.floats().unwrap(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(ordered(&paired, Some(2), halves).unwrap(), array);
    }
}
