//! A decoder's sizes out of a GGUF file's metadata, and out of which tensors the file has.

use hybrid_core::{Error, Result};

use super::{Metadata, OPERATION};
use crate::decoder::{
    config::{DecoderConfig, Family, MAX_LAYERS},
    rope::{Rope, Scaling, yarn_attention_factor},
};

/// `vector` reads a tensor of one dimension.
pub(super) fn read(metadata: &Metadata<'_>, vector: impl Fn(&str, usize) -> Result<Vec<f32>>) -> Result<DecoderConfig> {
    let architecture = metadata.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    // Mistral's models are written as Llama's; the name `mistral` is not used.
    let family = Family::named(architecture).filter(|family| *family != Family::Mistral).ok_or_else(|| {
        Error::unsupported(OPERATION, "the family of models is not known")
            .with("general.architecture", architecture)
            .with("known", "llama, qwen2, qwen3")
    })?;
    if let Some(parts) = metadata.whole("split.count")?.filter(|&parts| parts > 1) {
        let message = "the file is one part of a model; join the parts with llama.cpp's gguf-split";
        return Err(Error::unsupported(OPERATION, message).with("split.count", parts));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let whole = |name: &str| metadata.whole(&key(name));
    let needed = |name: &str| whole(name)?.ok_or_else(|| missing(&key(name)));
    for name in ["expert_count", "attention.sliding_window"] {
        if let Some(value) = whole(name)?.filter(|&value| value > 0) {
            return Err(Error::unsupported(OPERATION, "the network has what is not known here")
                .with("key", key(name))
                .with("value", value));
        }
    }
    let (hidden, heads, layers) =
        (needed("embedding_length")?, needed("attention.head_count")?, needed("block_count")?);
    if heads == 0 || layers > MAX_LAYERS {
        return Err(Error::corrupt(OPERATION, "the numbers of heads and layers make no sense")
            .with("heads", heads)
            .with("layers", layers));
    }
    let head_size = whole("attention.key_length")?.unwrap_or(hidden / heads);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(value) = whole(name)?.filter(|&value| value != head_size) {
            return Err(Error::unsupported(
                OPERATION,
                "heads of which only a part turns, or with values of another size, are not known",
            )
            .with("key", key(name))
            .with("value", value)
            .with("head_size", head_size));
        }
    }
    let embeddings = metadata
        .0
        .tensor_infos
        .get("token_embd.weight")
        .ok_or_else(|| Error::corrupt(OPERATION, "the tensor is missing").with("tensor", "token_embd.weight"))?;
    let context = needed("context_length")?;
    let theta = metadata.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let scaling = if metadata.has_tensor("rope_freqs.weight") {
        Scaling::Divisors(vector("rope_freqs.weight", head_size / 2)?)
    } else {
        scaling(metadata, &key, context)?
    };
    DecoderConfig {
        family,
        vocabulary: embeddings.shape.dims().first().copied().unwrap_or_default(),
        hidden,
        heads,
        key_value_heads: whole("attention.head_count_kv")?.unwrap_or(heads),
        head_size,
        intermediate: needed("feed_forward_length")?,
        context,
        norm_epsilon: metadata
            .number(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))?,
        rope: Rope { theta, scaling },
        windows: vec![None; layers],
        attention_bias: metadata.has_tensor("blk.0.attn_q.bias"),
        output_bias: metadata.has_tensor("blk.0.attn_output.bias"),
        feed_forward_bias: metadata.has_tensor("blk.0.ffn_gate.bias"),
        head_norms: metadata.has_tensor("blk.0.attn_q_norm.weight"),
        tied: !metadata.has_tensor("output.weight"),
    }
    .check()
}

fn scaling(metadata: &Metadata<'_>, key: &impl Fn(&str) -> String, context: usize) -> Result<Scaling> {
    let number = |name: &str| metadata.number(&key(&format!("rope.scaling.{name}")));
    let needed = |name: &str| number(name)?.ok_or_else(|| missing(&key(&format!("rope.scaling.{name}"))));
    let kind = metadata.text(&key("rope.scaling.type"))?;
    match kind {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: needed("factor")? }),
        Some("yarn") => {
            let factor = needed("factor")?;
            let original = metadata.whole(&key("rope.scaling.original_context_length"))?;
            // The file's factor is beside what the scaling itself brings.
            let attention_factor = number("attn_factor")?.unwrap_or(1.0) * yarn_attention_factor(factor, 1.0);
            Ok(Scaling::Yarn {
                factor,
                original_context: original.unwrap_or(context),
                beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: true,
            })
        }
        Some(kind) => Err(Error::unsupported(OPERATION, "the scaling of the rotary positions is not known")
            .with("rope.scaling.type", kind)
            .with("known", "none, linear, yarn")),
    }
}

fn missing(key: &str) -> Error {
    Error::corrupt(OPERATION, "the key is missing").with("key", key)
}
