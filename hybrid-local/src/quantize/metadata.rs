//! What a GGUF file says of a decoder beside its tensors, by the keys that llama.cpp reads.

use candle_core::quantized::gguf_file::Value;
use hybrid_core::{Error, Result};

use super::{Mix, OPERATION, tokenizer};
use crate::decoder::{
    config::{DecoderConfig, Family},
    files::ModelFiles,
    rope::{Rope, Scaling, yarn_attention_factor},
};

/// The metadata of a file, and what goes with it.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) entries: Vec<(String, Value)>,
    /// What the file says of positions in tensors of its own.
    pub(super) vectors: Vec<(&'static str, Vec<f32>)>,
    /// What queries are to be multiplied by, since the file has no word for what their products with keys are multiplied by.
    pub(super) query_factor: f32,
    /// What the file says otherwise than the folder does.
    pub(super) notes: Vec<String>,
}

/// What the file calls the network.
pub(super) fn architecture(family: Family) -> &'static str {
    match family {
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3",
        // Mistral's models are written as Llama's.
        Family::Llama | Family::Mistral => "llama",
        Family::Phi3 => "phi3",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    }
}

/// Puts the metadata together.
///
/// # Errors
/// `Unsupported` that names what the format, or llama.cpp, has no words for.
pub(super) fn metadata(files: &ModelFiles, name: &str, mix: Mix) -> Result<Metadata> {
    let config = &files.config;
    let architecture = architecture(config.family);
    let text = |text: &str| Value::String(text.to_owned());
    let mut notes = Vec::new();
    let mut entries = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Value::U32(mix.file_type())),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let mut add = |key: &str, value: Value| entries.push((format!("{architecture}.{key}"), value));
    for (key, value) in [
        ("vocab_size", config.vocabulary),
        ("context_length", context(config, &mut notes)),
        ("embedding_length", config.hidden),
        ("block_count", config.layers()),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.key_value_heads),
        ("attention.key_length", config.head_size),
        ("attention.value_length", config.head_size),
        ("rope.dimension_count", config.rotary_size),
    ] {
        add(key, whole(key, value)?);
    }
    add("attention.layer_norm_rms_epsilon", Value::F32(config.norm_epsilon as f32));
    for (key, cap) in [("attn_logit_softcapping", config.score_cap), ("final_logit_softcapping", config.logit_cap)] {
        if let Some(cap) = cap {
            add(key, Value::F32(cap as f32));
        }
    }
    windows(config, &mut add)?;
    let vectors = rope(config, &mut add)?;

    let defaults = &files.defaults;
    if defaults.temperature > 0.0 {
        entries.push(("general.sampling.temp".to_owned(), Value::F32(defaults.temperature)));
        let top_k = defaults.top_k.and_then(|k| i32::try_from(k).ok()).map(Value::I32);
        let numbers =
            [("top_k", top_k), ("top_p", defaults.top_p.map(Value::F32)), ("min_p", defaults.min_p.map(Value::F32))];
        for (key, value) in numbers {
            entries.extend(value.map(|value| (format!("general.sampling.{key}"), value)));
        }
    }
    entries.extend(tokenizer::entries(files, &mut notes)?);
    let templates = &files.templates;
    entries.extend(templates.default.as_deref().map(|all| ("tokenizer.chat_template".to_owned(), text(all))));
    entries.extend(templates.tool_use.as_deref().map(|all| ("tokenizer.chat_template.tool_use".to_owned(), text(all))));
    Ok(Metadata { entries, vectors, query_factor: query_factor(config), notes })
}

/// Whether files of the family say which layers have windows.
fn has_windows(family: Family) -> bool {
    matches!(family, Family::Gemma2 | Family::Gemma3 | Family::Phi3)
}

/// The most tokens that the file's model reads as the folder's does. In files of families without windows a token sees all before it; within
/// the narrowest window it does so anyway.
fn context(config: &DecoderConfig, notes: &mut Vec<String>) -> usize {
    if has_windows(config.family) {
        return config.context;
    }
    match config.windows.iter().flatten().min().filter(|window| **window < config.context) {
        Some(window) => {
            notes.push(format!(
                "the context is {window} tokens instead of {}: the layers see a window of so many, and the file can say it in no other way",
                config.context
            ));
            *window
        }
        None => config.context,
    }
}

fn windows(config: &DecoderConfig, add: &mut impl FnMut(&str, Value)) -> Result<()> {
    let Some(window) = config.windows.iter().flatten().next().filter(|_| has_windows(config.family)) else {
        return Ok(());
    };
    let refuse = || {
        Error::unsupported(OPERATION, "GGUF files of this family have no word for layers with these windows")
            .with("windows", format_args!("{:?}", config.windows))
    };
    if config.windows.iter().flatten().any(|other| other != window) {
        return Err(refuse());
    }
    add("attention.sliding_window", whole("sliding_window", *window)?);
    // Of so many layers the last sees all.
    let period = (1..=config.layers()).find(|period| {
        let sees_all = |layer: usize| (layer + 1).is_multiple_of(*period);
        config.windows.iter().enumerate().all(|(layer, window)| window.is_none() == sees_all(layer))
    });
    match (config.family, period) {
        (Family::Phi3, None) if config.windows.iter().all(Option::is_some) => Ok(()),
        (Family::Gemma2, Some(2)) => Ok(()),
        (Family::Gemma3, Some(period)) => {
            add("attention.sliding_window_pattern", whole("layer_types", period)?);
            Ok(())
        }
        (Family::Gemma3, None) => {
            let flags = config.windows.iter().map(|window| Value::Bool(window.is_some()));
            add("attention.sliding_window_pattern", Value::Array(flags.collect()));
            Ok(())
        }
        _ => Err(refuse()),
    }
}

/// What a file's model multiplies products of queries and keys by follows from its sizes; the rest goes into the queries.
fn query_factor(config: &DecoderConfig) -> f32 {
    // The largest models of these families divide by another number, and readers know them by their layers.
    let largest = matches!((config.family, config.layers()), (Family::Gemma2, 46) | (Family::Gemma3, 62));
    let divisor = if largest { config.hidden as f64 / config.heads as f64 } else { config.head_size as f64 };
    let factor = config.query_scale * divisor.sqrt();
    if (factor - 1.0).abs() < 1e-9 { 1.0 } else { factor as f32 }
}

fn rope(config: &DecoderConfig, add: &mut impl FnMut(&str, Value)) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let (rope, pairs) = (&config.rope, config.rotary_size / 2);
    add("rope.freq_base", Value::F32(rope.theta as f32));
    if let Some(local) = &config.local_rope {
        if local.scaling != Scaling::None {
            return Err(Error::unsupported(
                OPERATION,
                "GGUF files have no word for scaled positions in layers with a window",
            ));
        }
        add("rope.freq_base_swa", Value::F32(local.theta as f32));
    }
    let mut scaled = |kind: &str, factor: f64| {
        add("rope.scaling.type", Value::String(kind.to_owned()));
        add("rope.scaling.factor", Value::F32(factor as f32));
    };
    match &rope.scaling {
        Scaling::None => Ok(Vec::new()),
        Scaling::Linear { factor } => {
            scaled("linear", *factor);
            Ok(Vec::new())
        }
        Scaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate } => {
            if !truncate {
                return Err(Error::unsupported(OPERATION, "GGUF files have no word for this kind of scaling")
                    .with("rope_scaling.truncate", truncate));
            }
            scaled("yarn", *factor);
            add("rope.scaling.original_context_length", whole("original_max_position_embeddings", *original_context)?);
            // The file's factor is beside what the scaling itself brings.
            let own = attention_factor / yarn_attention_factor(*factor, 1.0);
            if (own - 1.0).abs() > 1e-6 {
                add("rope.scaling.attn_factor", Value::F32(own as f32));
            }
            for (key, value, usual) in [("yarn_beta_fast", beta_fast, 32.0), ("yarn_beta_slow", beta_slow, 1.0)] {
                if *value != usual {
                    add(&format!("rope.scaling.{key}"), Value::F32(*value as f32));
                }
            }
            Ok(Vec::new())
        }
        Scaling::Llama3 { .. } => {
            let plain = Rope { theta: rope.theta, scaling: Scaling::None }.frequencies(pairs, config.context);
            let both = plain.into_iter().zip(rope.frequencies(pairs, config.context));
            Ok(vec![("rope_freqs.weight", both.map(|(plain, scaled)| plain / scaled).collect())])
        }
        Scaling::Long { short, long, original_context, attention_factor } => {
            add("rope.scaling.original_context_length", whole("original_max_position_embeddings", *original_context)?);
            add("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
            Ok(vec![("rope_factors_long.weight", long.clone()), ("rope_factors_short.weight", short.clone())])
        }
        Scaling::Divisors(divisors) => Ok(vec![("rope_freqs.weight", divisors.clone())]),
    }
}

fn whole(key: &str, value: usize) -> Result<Value> {
    u32::try_from(value).map(Value::U32).map_err(|error| {
        Error::unsupported(OPERATION, "the size is larger than GGUF files can say")
            .with("key", key)
            .with("value", value)
            .with_source(error)
    })
}
