//! A decoder's sizes out of a Hugging Face `config.json`.
//!
//! Keys as `transformers` reads them: what may be left out has the family's default there. Since version 5 the rotary positions are in
//! `rope_parameters`, before in `rope_theta` and `rope_scaling`.

use hybrid_core::{Error, Result};
use serde_json::{Map, Value};

use crate::decoder::{
    config::{DecoderConfig, Family, MAX_LAYERS},
    rope::{Rope, Scaling, yarn_attention_factor},
};

const OPERATION: &str = "read decoder configuration";

/// Reads the bytes of a `config.json`.
///
/// # Errors
/// `Corrupt` that names a key that is missing or makes no sense; `Unsupported` that names the family, or what the network has that is not
/// known here.
pub(super) fn read(bytes: &[u8]) -> Result<DecoderConfig> {
    let values: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt(OPERATION, "not a JSON object").with_source(error))?;
    let keys = Keys(&values);
    let name = keys.text("model_type")?.ok_or_else(|| missing("model_type"))?;
    let family = Family::named(name).ok_or_else(|| {
        Error::unsupported(OPERATION, "the family of models is not known")
            .with("model_type", name)
            .with("known", Family::NAMES)
    })?;
    if let Some(method) = values.get("quantization_config").filter(|value| !value.is_null()) {
        let method = method.get("quant_method").cloned().unwrap_or_default();
        return Err(Error::unsupported(OPERATION, "quantized weights are read from GGUF files alone")
            .with("quantization_config.quant_method", method));
    }
    if let Some(activation) = keys.text("hidden_act")?.filter(|&name| name != "silu") {
        return Err(Error::unsupported(OPERATION, "the activation is not known").with("hidden_act", activation));
    }
    let (hidden, heads, layers) =
        (keys.needed("hidden_size")?, keys.needed("num_attention_heads")?, keys.needed("num_hidden_layers")?);
    if layers > MAX_LAYERS {
        return Err(senseless("num_hidden_layers").with("value", layers).with("limit", MAX_LAYERS));
    }
    let head_size = match keys.whole("head_dim")? {
        Some(size) => size,
        None if family == Family::Qwen3 => 128,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(senseless("num_attention_heads").with("value", heads).with("hidden_size", hidden)),
    };
    let context = keys.needed("max_position_embeddings")?;
    let bias = keys.flag("attention_bias")?.unwrap_or(false);
    let (attention_bias, output_bias) = match family {
        Family::Llama | Family::Qwen3 => (bias, bias),
        Family::Mistral => (false, false),
        Family::Qwen2 => (true, false),
    };
    DecoderConfig {
        family,
        vocabulary: keys.needed("vocab_size")?,
        hidden,
        heads,
        key_value_heads: keys.whole("num_key_value_heads")?.unwrap_or(heads),
        head_size,
        intermediate: keys.needed("intermediate_size")?,
        context,
        norm_epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(&keys, context)?,
        windows: windows(&keys, family, layers)?,
        attention_bias,
        output_bias,
        feed_forward_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
        head_norms: family == Family::Qwen3,
        tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
    }
    .check()
}

fn rope(keys: &Keys<'_>, context: usize) -> Result<Rope> {
    let (new, old) = (keys.object("rope_parameters")?, keys.object("rope_scaling")?);
    let nothing = Map::new();
    let scaling = Keys(new.or(old).unwrap_or(&nothing));
    let theta = match scaling.number("rope_theta")? {
        Some(theta) => theta,
        None => keys.number("rope_theta")?.unwrap_or(10_000.0),
    };
    for keys in [keys, &scaling] {
        if let Some(share) = keys.number("partial_rotary_factor")?.filter(|&share| share != 1.0) {
            return Err(Error::unsupported(OPERATION, "heads of which only a part turns are not known")
                .with("partial_rotary_factor", share));
        }
    }
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    let number = |key: &'static str| scaling.number(key)?.ok_or_else(|| missing(key));
    let original_context = || Ok::<_, Error>(scaling.whole("original_max_position_embeddings")?.unwrap_or(context));
    let scaling = match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: number("factor")? },
        Some("llama3") => Scaling::Llama3 {
            factor: number("factor")?,
            low_frequency_factor: number("low_freq_factor")?,
            high_frequency_factor: number("high_freq_factor")?,
            original_context: original_context()?,
        },
        Some("yarn") => {
            let factor = number("factor")?;
            let set = |key: &'static str| scaling.number(key).map(|value| value.filter(|&value| value != 0.0));
            let attention_factor = match (scaling.number("attention_factor")?, set("mscale")?, set("mscale_all_dim")?) {
                (Some(factor), _, _) => factor,
                (None, Some(scale), Some(of_all)) => {
                    yarn_attention_factor(factor, scale) / yarn_attention_factor(factor, of_all)
                }
                (None, _, _) => yarn_attention_factor(factor, 1.0),
            };
            Scaling::Yarn {
                factor,
                original_context: original_context()?,
                beta_fast: set("beta_fast")?.unwrap_or(32.0),
                beta_slow: set("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: scaling.flag("truncate")?.unwrap_or(true),
            }
        }
        Some(kind) => {
            return Err(Error::unsupported(OPERATION, "the scaling of the rotary positions is not known")
                .with("rope_type", kind)
                .with("known", "default, linear, llama3, yarn"));
        }
    };
    Ok(Rope { theta, scaling })
}

fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.whole("sliding_window")?;
    if let Some(kinds) = keys.0.get("layer_types").filter(|value| !value.is_null()) {
        let kinds: Vec<String> =
            serde_json::from_value(kinds.clone()).map_err(|error| senseless("layer_types").with_source(error))?;
        if kinds.len() != layers {
            return Err(senseless("layer_types").with("found", kinds.len()).with("num_hidden_layers", layers));
        }
        let of_kind = |kind: &String| match &**kind {
            "full_attention" => Ok(None),
            "sliding_attention" => window.map(Some).ok_or_else(|| missing("sliding_window")),
            _ => Err(Error::unsupported(OPERATION, "the kind of layer is not known").with("layer_types", kind)),
        };
        return kinds.iter().map(of_kind).collect();
    }
    let first = match family {
        Family::Mistral => 0,
        Family::Qwen2 | Family::Qwen3 if keys.flag("use_sliding_window")? == Some(true) => {
            keys.whole("max_window_layers")?.unwrap_or(28)
        }
        Family::Llama | Family::Qwen2 | Family::Qwen3 => layers,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn missing(key: &str) -> Error {
    Error::corrupt(OPERATION, "the key is missing").with("key", key)
}

fn senseless(key: &str) -> Error {
    Error::corrupt(OPERATION, "the value makes no sense").with("key", key)
}

/// The keys of an object; a null is as good as no key.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(key).filter(|value| !value.is_null()) {
            Some(value) => read(value).map(Some).ok_or_else(|| senseless(key).with("value", value)),
            None => Ok(None),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key, Value::as_str)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, Value::as_bool)
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key, Value::as_object)
    }

    fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, |value| value.as_u64().and_then(|value| usize::try_from(value).ok()))
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.whole(key)?.ok_or_else(|| missing(key))
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 24, "max_position_embeddings": 64, "hidden_act": "silu",
        })
    }

    fn with(changes: Value) -> Result<DecoderConfig> {
        let mut config = base();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        read(&serde_json::to_vec(&config).unwrap())
    }

    #[test]
    fn families_differ_in_their_defaults() {
        let llama = with(json!({"rope_theta": 5e5})).unwrap();
        assert_eq!((llama.head_size, llama.rope, llama.attention_bias), (4, Rope::plain(5e5), false));
        let qwen2 = with(json!({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": false})).unwrap();
        assert_eq!((qwen2.attention_bias, qwen2.output_bias, qwen2.windows), (true, false, vec![None; 2]));
        let qwen3 = with(json!({"model_type": "qwen3", "head_dim": 8, "use_sliding_window": true, "sliding_window": 8,
            "max_window_layers": 1}))
        .unwrap();
        assert_eq!((qwen3.head_size, qwen3.head_norms, qwen3.windows), (8, true, vec![None, Some(8)]));
        let mistral = with(json!({"model_type": "mistral", "sliding_window": 8})).unwrap();
        assert_eq!(mistral.windows, [Some(8), Some(8)]);
        assert_eq!(with(json!({"model_type": "mistral", "sliding_window": null})).unwrap().windows, [None, None]);
    }

    #[test]
    fn rotary_positions_are_read_in_the_old_form_and_the_new() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32});
        let old = with(json!({"rope_theta": 5e5, "rope_scaling": llama3})).unwrap().rope;
        let mut new = llama3;
        new["rope_theta"] = json!(5e5);
        assert_eq!(old, with(json!({"rope_parameters": new})).unwrap().rope);
        assert!(matches!(old.scaling, Scaling::Llama3 { original_context: 32, .. }));
        let yarn = with(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).unwrap().rope;
        let factor = 0.1 * 4f64.ln() + 1.0;
        assert!(
            matches!(yarn.scaling, Scaling::Yarn { original_context: 64, attention_factor, .. } if attention_factor == factor)
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        let refused = |changes: Value, kind: ErrorKind, named: &str| {
            let error = with(changes).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(named), "{named}: {error}");
        };
        use ErrorKind::{Corrupt, Unsupported};
        refused(json!({"model_type": "gpt2"}), Unsupported, "gpt2");
        refused(json!({"hidden_act": "gelu"}), Unsupported, "gelu");
        refused(json!({"quantization_config": {"quant_method": "gptq"}}), Unsupported, "gptq");
        refused(json!({"rope_scaling": {"rope_type": "longrope"}}), Unsupported, "longrope");
        refused(json!({"partial_rotary_factor": 0.5}), Unsupported, "partial_rotary_factor");
        refused(json!({"layer_types": ["full_attention", "linear_attention"]}), Unsupported, "linear_attention");
        refused(json!({"layer_types": ["full_attention"]}), Corrupt, "layer_types");
        refused(json!({"num_hidden_layers": 1u64 << 60}), Corrupt, "num_hidden_layers");
        refused(json!({"num_attention_heads": 0}), Corrupt, "num_attention_heads");
        refused(json!({"hidden_size": "16"}), Corrupt, "hidden_size");
        refused(json!({"vocab_size": null}), Corrupt, "vocab_size");
        assert_eq!(read(b"[]").unwrap_err().kind(), Corrupt);
    }
}
