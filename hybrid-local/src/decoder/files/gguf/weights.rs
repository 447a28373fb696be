//! The tensors of a GGUF file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QStorage, QTensor,
        gguf_file::{Content, TensorInfo},
    },
};
use hybrid_core::{Error, Result};

use super::OPERATION;
use crate::{
    decoder::{
        config::{DecoderConfig, Family},
        files::{
            Plain, Stored, Weights, check_shape,
            fused::{Fused, Place},
            read_range,
        },
    },
    device::tensor_error,
    ops::packed::Packed,
};

/// The tensors by the names of Hugging Face's files, read one by one when they are asked for.
#[derive(Debug)]
pub(super) struct Blocks {
    path: PathBuf,
    size: u64,
    content: Content,
    /// Heads of queries, and of keys, where the file has the rows of their weights in another order.
    interleaved: Option<[usize; 2]>,
    fused: Option<Fused>,
    /// Whether the layers have norms behind attention and feed-forward.
    post_norms: bool,
}

impl Blocks {
    pub(super) fn new(path: &Path, size: u64, content: Content, config: &DecoderConfig) -> Self {
        // Llama's converter pairs neighbouring rows; Qwen's leave them as they are.
        let interleaved = (config.family == Family::Llama).then_some([config.heads, config.key_value_heads]);
        let content = Content { metadata: HashMap::new(), ..content };
        let (fused, post_norms) = (Fused::of(config), config.post_norms);
        Self { path: path.to_owned(), size, content, interleaved, fused, post_norms }
    }

    fn theirs(&self, name: &str) -> Option<String> {
        theirs(name, self.post_norms)
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.content.tensor_infos.get(&self.theirs(name)?)
    }

    /// Where the rows of `name` are in a larger matrix.
    fn place(&self, name: &str) -> Option<Place> {
        self.fused?.place(name)
    }
}

impl Weights for Blocks {
    fn bytes(&self, name: &str) -> u64 {
        let bytes = |info: &TensorInfo| resident(info.ggml_dtype, info.shape.dims());
        match self.place(name) {
            Some(Place { name, rows, all, .. }) => {
                self.info(&name).and_then(bytes).unwrap_or_default() / all as u64 * rows as u64
            }
            None => self.info(name).and_then(bytes).unwrap_or_default(),
        }
    }

    fn in_blocks(&self) -> bool {
        self.content.tensor_infos.get("blk.0.ffn_down.weight").is_some_and(|info| plain(info.ggml_dtype).is_none())
    }

    fn unpacked(&self, name: &str, device: &Device) -> u64 {
        let place = self.place(name).map(|place| place.name);
        let whole = |info: &TensorInfo| {
            let (kind, shape) = (info.ggml_dtype, info.shape.dims());
            let packed = device.is_cpu()
                && matrix(shape).is_some_and(|[rows, columns]| Packed::size(kind, rows, columns).is_some());
            if packed || plain(kind).is_some() { None } else { Some(4 * elements(shape)? as u64) }
        };
        self.info(place.as_deref().unwrap_or(name)).and_then(whole).unwrap_or_default()
    }

    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored> {
        let place = self.place(name);
        let (stored_as, all) = place.as_ref().map_or((name, shape[0]), |place| (&place.name, place.all));
        let missing = || {
            let tensor = self.theirs(stored_as).unwrap_or_else(|| stored_as.to_owned());
            Error::corrupt(OPERATION, "the tensor is missing").with("tensor", tensor)
        };
        let read = || {
            let info = self.info(stored_as).ok_or_else(missing)?;
            let whole = [&[all], &shape[1..]].concat();
            let mut bytes = read(&self.content, info, &self.path, self.size, stored_as, &whole)?;
            if let Some(Place { first, rows, .. }) = place {
                // Rows are whole blocks.
                let row = bytes.len() / all.max(1);
                bytes = bytes[first * row..(first + rows) * row].to_vec();
            }
            if let Some(heads) = self.interleaved.and_then(|[queries, keys]| heads_of(name, queries, keys)) {
                bytes = halves(&bytes, heads, shape[0] / heads.max(1));
            }
            stored(info.ggml_dtype, bytes, shape, device)
        };
        read().map_err(|error: Error| error.with("path", self.path.display()))
    }
}

/// What a tensor takes in memory, in bytes; `None` if its rows are no whole blocks.
pub(crate) fn resident(kind: GgmlDType, shape: &[usize]) -> Option<u64> {
    if plain(kind).is_some() {
        return Some(4 * elements(shape)? as u64);
    }
    let packed = matrix(shape).and_then(|[rows, columns]| Packed::size(kind, rows, columns));
    // On processors the tensor library keeps a copy of other blocks in the order of its kernels.
    Some(packed.unwrap_or(2 * bytes_of(kind, shape)? as u64))
}

/// Reads the values of a tensor of one dimension that is no part of the network.
pub(super) fn vector(content: &Content, path: &Path, size: u64, name: &str, length: usize) -> Result<Vec<f32>> {
    let info = content
        .tensor_infos
        .get(name)
        .ok_or_else(|| Error::corrupt(OPERATION, "the tensor is missing").with("tensor", name))?;
    let bytes = read(content, info, path, size, name, &[length])?;
    let kind = plain(info.ggml_dtype);
    kind.map(|kind| kind.widen(&bytes))
        .ok_or_else(|| Error::corrupt(OPERATION, "the tensor must not be quantized").with("tensor", name))
}

fn read(content: &Content, info: &TensorInfo, path: &Path, size: u64, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
    check_shape(name, info.shape.dims(), shape)?;
    let bytes = bytes_of(info.ggml_dtype, info.shape.dims()).ok_or_else(|| {
        Error::corrupt(OPERATION, "the rows of the tensor are no whole blocks")
            .with("tensor", name)
            .with("shape", format_args!("{shape:?}"))
    })?;
    let offset = content.tensor_data_offset.saturating_add(info.offset);
    read_range(path, offset, bytes, size).map_err(|error| error.with("tensor", name))
}

fn stored(kind: GgmlDType, bytes: Vec<u8>, shape: &[usize], device: &Device) -> Result<Stored> {
    let fail = tensor_error(OPERATION);
    if let Some(kind) = plain(kind) {
        let values = kind.widen(&bytes);
        return Tensor::from_vec(values, shape, device).map(Stored::Dense).map_err(fail);
    }
    if let Some([rows, columns]) = matrix(shape).filter(|_| device.is_cpu())
        && let Some(packed) = Packed::pack(kind, &bytes, rows, columns)
    {
        return Ok(Stored::Packed(Arc::new(packed)));
    }
    let storage = QStorage::from_data(bytes.into(), device, kind).map_err(fail)?;
    QTensor::new(storage, shape).map(|tensor| Stored::Quantized(Arc::new(tensor))).map_err(fail)
}

fn plain(kind: GgmlDType) -> Option<Plain> {
    match kind {
        GgmlDType::F32 => Some(Plain::F32),
        GgmlDType::F16 => Some(Plain::F16),
        GgmlDType::BF16 => Some(Plain::Bf16),
        _ => None,
    }
}

fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    shape.try_into().ok()
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))
}

/// A tensor's bytes in a file; `None` if its rows are no whole blocks.
fn bytes_of(kind: GgmlDType, shape: &[usize]) -> Option<usize> {
    let (block, columns) = (kind.block_size(), *shape.last()?);
    if !columns.is_multiple_of(block) {
        return None;
    }
    (elements(shape)? / block).checked_mul(kind.type_size())
}

/// The file's name of a tensor, in a network with norms behind attention and feed-forward or without.
pub(crate) fn theirs(name: &str, post_norms: bool) -> Option<String> {
    let whole = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => {
            let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (part, kind) = part.rsplit_once('.')?;
            let part = match part {
                "input_layernorm" => "attn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "self_attn.qkv_proj" => "attn_qkv",
                "post_attention_layernorm" if post_norms => "post_attention_norm",
                "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
                "post_feedforward_layernorm" => "post_ffw_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            return Some(format!("blk.{layer}.{part}.{kind}"));
        }
    };
    Some(whole.to_owned())
}

/// The heads whose rows Llama's converter pairs, if the tensor has such rows.
pub(crate) fn heads_of(name: &str, queries: usize, keys: usize) -> Option<usize> {
    match name.rsplit('.').nth(1) {
        Some("q_proj") => Some(queries),
        Some("k_proj") => Some(keys),
        _ => None,
    }
}

/// Puts rows of which neighbours are a pair into the order where the first half of a head's rows is paired with the second. Rows are
/// whole blocks, so nothing of their numbers changes.
fn halves(bytes: &[u8], heads: usize, head_size: usize) -> Vec<u8> {
    let (rows, half) = (heads * head_size, head_size / 2);
    let row_bytes = bytes.len() / rows.max(1);
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for row in 0..head_size {
            let from = head * head_size + 2 * (row % half) + row / half;
            ordered.extend_from_slice(&bytes[from * row_bytes..][..row_bytes]);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_come_back_as_halves() {
        // Two heads of four rows of two bytes: the rows of a head in pairs are 0 2 1 3 of its halves.
        let halved: Vec<u8> = (0..16).collect();
        let paired: Vec<u8> = [0, 2, 1, 3, 4, 6, 5, 7].iter().flat_map(|row| [2 * row, 2 * row + 1]).collect();
        assert_eq!(halves(&paired, 2, 4), halved);
    }

    #[test]
    fn names_of_parts_that_are_not_known_are_none() {
        assert_eq!(theirs("model.layers.3.self_attn.q_proj.bias", false).as_deref(), Some("blk.3.attn_q.bias"));
        assert_eq!(theirs("model.layers.3.self_attn.rotary.weight", false), None);
        assert_eq!(theirs("score.weight", false), None);
    }
}
