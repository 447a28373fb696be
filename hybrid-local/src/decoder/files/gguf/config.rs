//! A decoder's sizes out of a GGUF file's metadata, and out of which tensors the file has.

use candle_core::quantized::gguf_file::Value;
use hybrid_core::{Error, Result};

use super::{Metadata, OPERATION};
use crate::decoder::{
    config::{Activation, DecoderConfig, Family, MAX_LAYERS},
    rope::{Rope, Scaling, long_attention_factor, yarn_attention_factor},
};

/// `vector` reads a tensor of one dimension.
pub(super) fn read(metadata: &Metadata<'_>, vector: impl Fn(&str, usize) -> Result<Vec<f32>>) -> Result<DecoderConfig> {
    let architecture = metadata.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    // Mistral's models are written as Llama's; the name `mistral` is not used.
    let family = Family::named(architecture).filter(|family| *family != Family::Mistral).ok_or_else(|| {
        Error::unsupported(OPERATION, "the family of models is not known")
            .with("general.architecture", architecture)
            .with("known", "gemma2, gemma3, llama, phi3, qwen2, qwen3")
    })?;
    if let Some(parts) = metadata.whole("split.count")?.filter(|&parts| parts > 1) {
        let message = "the file is one part of a model; join the parts with llama.cpp's gguf-split";
        return Err(Error::unsupported(OPERATION, message).with("split.count", parts));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let whole = |name: &str| metadata.whole(&key(name));
    let needed = |name: &str| whole(name)?.ok_or_else(|| missing(&key(name)));
    let windowed = matches!(family, Family::Gemma2 | Family::Gemma3 | Family::Phi3);
    let unknown = ["expert_count", "attention.sliding_window"];
    for name in unknown.into_iter().take(if windowed { 1 } else { 2 }) {
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
    let rotary_size = whole("rope.dimension_count")?.unwrap_or(head_size);
    let part = ("rope.dimension_count", Some(rotary_size).filter(|_| family != Family::Phi3));
    for (name, value) in [("attention.value_length", whole("attention.value_length")?), part] {
        if let Some(value) = value.filter(|&value| value != head_size) {
            return Err(Error::unsupported(
                OPERATION,
                "heads of which only a part turns, or with values of another size, are not known in this family",
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
    let pairs = rotary_size / 2;
    let scaling = if metadata.has_tensor("rope_freqs.weight") {
        Scaling::Divisors(vector("rope_freqs.weight", pairs)?)
    } else if metadata.has_tensor("rope_factors_long.weight") {
        let original_context = whole("rope.scaling.original_context_length")?.unwrap_or(context);
        let own = long_attention_factor(context as f64 / original_context as f64, original_context);
        Scaling::Long {
            short: vector("rope_factors_short.weight", pairs)?,
            long: vector("rope_factors_long.weight", pairs)?,
            original_context,
            attention_factor: metadata.number(&key("rope.scaling.attn_factor"))?.unwrap_or(own),
        }
    } else {
        scaling(metadata, &key, context)?
    };
    // The files of this family say nothing of the positions of layers with a window.
    let local_theta = metadata.number(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
    let local_rope = (family == Family::Gemma3).then_some(Rope { theta: local_theta, scaling: Scaling::None });
    let gemma = family.is_gemma();
    // Nor do they say what the largest model of each divides by; llama.cpp knows it by its layers too.
    let largest = matches!((family, layers), (Family::Gemma2, 46) | (Family::Gemma3, 62));
    let cap = |name: &str| metadata.number(&key(name)).map(|cap| cap.filter(|&cap| gemma && cap != 0.0));
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
        // Converters have added it.
        norm_offset: 0.0,
        post_norms: gemma,
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        rotary_size,
        rope: Rope { theta, scaling },
        local_rope,
        windows: windows(metadata, &key, family, layers)?,
        query_scale: (if largest { hidden as f64 / heads as f64 } else { head_size as f64 }).powf(-0.5),
        score_cap: cap("attn_logit_softcapping")?,
        logit_cap: cap("final_logit_softcapping")?,
        activation: if gemma { Activation::Gelu } else { Activation::Silu },
        attention_bias: metadata.has_tensor("blk.0.attn_q.bias"),
        output_bias: metadata.has_tensor("blk.0.attn_output.bias"),
        feed_forward_bias: metadata.has_tensor("blk.0.ffn_gate.bias"),
        head_norms: metadata.has_tensor("blk.0.attn_q_norm.weight"),
        tied: !metadata.has_tensor("output.weight"),
    }
    .check()
}

fn windows(
    metadata: &Metadata<'_>,
    key: &impl Fn(&str) -> String,
    family: Family,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let window = metadata.whole(&key("attention.sliding_window"))?.filter(|&window| window > 0);
    let pattern = key("attention.sliding_window_pattern");
    if let Some(Value::Array(has_window)) = metadata.0.metadata.get(&pattern) {
        let flags: Option<Vec<bool>> = has_window.iter().map(|flag| flag.to_bool().ok()).collect();
        let flags = flags.filter(|flags| flags.len() == layers);
        let flags = flags.ok_or_else(|| {
            Error::corrupt(OPERATION, "there has to be a yes or no for each layer").with("key", &pattern)
        })?;
        return Ok(flags.into_iter().map(|flag| window.filter(|_| flag)).collect());
    }
    // Of so many layers the last sees all.
    let pattern = match family {
        Family::Gemma2 => metadata.whole(&pattern)?.unwrap_or(2),
        Family::Gemma3 => metadata.whole(&pattern)?.unwrap_or(6),
        _ => 0,
    };
    let sees_all = |layer: usize| pattern > 0 && (layer + 1).is_multiple_of(pattern);
    Ok((0..layers).map(|layer| window.filter(|_| !sees_all(layer))).collect())
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
