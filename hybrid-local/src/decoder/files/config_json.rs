//! A decoder's sizes out of a Hugging Face `config.json`.
//!
//! Keys as `transformers` reads them: what may be left out has the family's default there. Since version 5 the rotary positions are in
//! `rope_parameters`, before in `rope_theta` and `rope_scaling`.

use hybrid_core::{Error, Result};
use serde_json::{Map, Value};

use crate::decoder::{
    config::{Activation, DecoderConfig, Family, MAX_LAYERS},
    rope::{Rope, Scaling, long_attention_factor, yarn_attention_factor},
};

const OPERATION: &str = "read decoder configuration";

/// Reads the bytes of a `config.json`.
///
/// # Errors
/// `Corrupt` that names a key that is missing or makes no sense; `Unsupported` that names the family, or what the network has that is not
/// known here.
pub(crate) fn read(bytes: &[u8]) -> Result<DecoderConfig> {
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
    // Of a model that sees pictures too, the part that reads text.
    let keys = keys.object("text_config")?.map_or(keys, Keys);
    let gemma = family.is_gemma();
    let or_gemmas =
        |value: Option<usize>, gemmas: usize, key: &str| value.or(gemma.then_some(gemmas)).ok_or_else(|| missing(key));
    let sizes = |key: &str, gemmas: usize| or_gemmas(keys.whole(key)?, gemmas, key);
    let (hidden, heads) = (sizes("hidden_size", 2304)?, sizes("num_attention_heads", 8)?);
    let layers = sizes("num_hidden_layers", 26)?;
    if layers > MAX_LAYERS {
        return Err(senseless("num_hidden_layers").with("value", layers).with("limit", MAX_LAYERS));
    }
    let head_size = match keys.whole("head_dim")? {
        Some(size) => size,
        None if gemma => 256,
        None if family == Family::Qwen3 => 128,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(senseless("num_attention_heads").with("value", heads).with("hidden_size", hidden)),
    };
    let context = sizes("max_position_embeddings", if family == Family::Gemma2 { 8_192 } else { 131_072 })?;
    let bias = keys.flag("attention_bias")?.unwrap_or(false);
    let (attention_bias, output_bias) = match family {
        Family::Gemma2 | Family::Gemma3 | Family::Llama | Family::Qwen3 => (bias, bias),
        Family::Mistral | Family::Phi3 => (false, false),
        Family::Qwen2 => (true, false),
    };
    if keys.flag("use_bidirectional_attention")? == Some(true) {
        return Err(Error::unsupported(OPERATION, "a network that looks ahead is no decoder")
            .with("use_bidirectional_attention", true));
    }
    let Positions { rope, local_rope, rotary_size } = positions(&keys, family, context, head_size)?;
    // The number whose root products of queries and keys are divided by.
    let query_size = keys.number("query_pre_attn_scalar")?.filter(|_| gemma);
    DecoderConfig {
        family,
        vocabulary: sizes("vocab_size", if family == Family::Gemma2 { 256_000 } else { 262_208 })?,
        hidden,
        heads,
        key_value_heads: keys.whole("num_key_value_heads")?.unwrap_or(if gemma { 4 } else { heads }),
        head_size,
        intermediate: sizes("intermediate_size", 9_216)?,
        context,
        norm_epsilon: keys.number("rms_norm_eps")?.unwrap_or(if family == Family::Phi3 { 1e-5 } else { 1e-6 }),
        norm_offset: if gemma { 1.0 } else { 0.0 },
        post_norms: gemma,
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        rotary_size,
        rope,
        local_rope,
        windows: windows(&keys, family, layers)?,
        query_scale: query_size.unwrap_or(if gemma { 256.0 } else { head_size as f64 }).powf(-0.5),
        score_cap: cap(&keys, "attn_logit_softcapping", (family == Family::Gemma2).then_some(50.0), family)?,
        logit_cap: cap(&keys, "final_logit_softcapping", (family == Family::Gemma2).then_some(30.0), family)?,
        activation: activation(&keys, family)?,
        attention_bias,
        output_bias,
        feed_forward_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
        head_norms: matches!(family, Family::Gemma3 | Family::Qwen3),
        tied: keys.flag("tie_word_embeddings")?.unwrap_or(gemma),
    }
    .check()
}

/// What feed-forward layers pass through, which no file may have otherwise than its family.
fn activation(keys: &Keys<'_>, family: Family) -> Result<Activation> {
    let (key, name, activation) = match family.is_gemma() {
        true => ("hidden_activation", "gelu_pytorch_tanh", Activation::Gelu),
        false => ("hidden_act", "silu", Activation::Silu),
    };
    match keys.text(key)?.filter(|&found| found != name) {
        Some(found) => Err(Error::unsupported(OPERATION, "the activation is not known").with(key, found)),
        None => Ok(activation),
    }
}

/// What bends numbers so that none is larger; a null is none, a key that is missing the family's own.
fn cap(keys: &Keys<'_>, key: &'static str, own: Option<f64>, family: Family) -> Result<Option<f64>> {
    if !family.is_gemma() || !keys.0.contains_key(key) {
        return Ok(own);
    }
    let cap = keys.number(key)?;
    if let Some(cap) = cap.filter(|_| family == Family::Gemma3 && key.starts_with("attn")) {
        let message = "the reference implementation leaves such scores as they are in this family";
        return Err(Error::unsupported(OPERATION, message).with(key, cap));
    }
    Ok(cap)
}

struct Positions {
    rope: Rope,
    local_rope: Option<Rope>,
    rotary_size: usize,
}

fn positions(keys: &Keys<'_>, family: Family, context: usize, head_size: usize) -> Result<Positions> {
    let (new, old) = (keys.object("rope_parameters")?, keys.object("rope_scaling")?);
    let nothing = Map::new();
    if family == Family::Gemma3 {
        // The new form has an object for each kind of layers; the old scaling is of the layers that see all.
        let of_kind = |kind: &str| new.map(Keys).map(|new| new.object(kind)).transpose().map(Option::flatten);
        let whole = Keys(of_kind("full_attention")?.or(old).unwrap_or(&nothing));
        let local = Keys(of_kind("sliding_attention")?.unwrap_or(&nothing));
        let theta = |of: &Keys<'_>, key: &str, own: f64| -> Result<f64> {
            Ok(of.number("rope_theta")?.or(keys.number(key)?).unwrap_or(own))
        };
        let whole_theta = theta(&whole, "rope_theta", 1e6)?;
        let local_theta = theta(&local, "rope_local_base_freq", 1e4)?;
        return Ok(Positions {
            rope: rope(keys, family, &whole, whole_theta, context)?,
            local_rope: Some(rope(keys, family, &local, local_theta, context)?),
            rotary_size: head_size,
        });
    }
    let scaling = Keys(new.or(old).unwrap_or(&nothing));
    let theta = scaling.number("rope_theta")?.or(keys.number("rope_theta")?).unwrap_or(10_000.0);
    let share = match scaling.number("partial_rotary_factor")? {
        Some(share) => share,
        None => keys.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if share != 1.0 && family != Family::Phi3 {
        return Err(Error::unsupported(OPERATION, "heads of which only a part turns are not known in this family")
            .with("partial_rotary_factor", share));
    }
    if !(share > 0.0 && share <= 1.0) {
        return Err(senseless("partial_rotary_factor").with("value", share));
    }
    let rope = rope(keys, family, &scaling, theta, context)?;
    Ok(Positions { rope, local_rope: None, rotary_size: (head_size as f64 * share) as usize })
}

fn rope(keys: &Keys<'_>, family: Family, scaling: &Keys<'_>, theta: f64, context: usize) -> Result<Rope> {
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    let number = |key: &'static str| scaling.number(key)?.ok_or_else(|| missing(key));
    let scaling = match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: number("factor")? },
        Some("llama3") => Scaling::Llama3 {
            factor: number("factor")?,
            low_frequency_factor: number("low_freq_factor")?,
            high_frequency_factor: number("high_freq_factor")?,
            original_context: original_context(keys, scaling, context)?,
        },
        // The first releases of Phi 3 called it by the other names.
        Some("longrope" | "su") => long(keys, scaling, context)?,
        Some("yarn") if family == Family::Phi3 => long(keys, scaling, context)?,
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
                original_context: original_context(keys, scaling, context)?,
                beta_fast: set("beta_fast")?.unwrap_or(32.0),
                beta_slow: set("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: scaling.flag("truncate")?.unwrap_or(true),
            }
        }
        Some(kind) => {
            return Err(Error::unsupported(OPERATION, "the scaling of the rotary positions is not known")
                .with("rope_type", kind)
                .with("known", "default, linear, llama3, longrope, su, yarn"));
        }
    };
    Ok(Rope { theta, scaling })
}

fn long(keys: &Keys<'_>, scaling: &Keys<'_>, context: usize) -> Result<Scaling> {
    let divisors = |key: &'static str| {
        let numbers = |value: &Value| {
            value.as_array()?.iter().map(|number| number.as_f64().map(|number| number as f32)).collect()
        };
        scaling.get::<Vec<f32>>(key, numbers)?.ok_or_else(|| missing(key))
    };
    let original_context = original_context(keys, scaling, context)?;
    let factor = scaling.number("factor")?.unwrap_or(context as f64 / original_context as f64);
    let own = long_attention_factor(factor, original_context);
    Ok(Scaling::Long {
        short: divisors("short_factor")?,
        long: divisors("long_factor")?,
        original_context,
        attention_factor: scaling.number("attention_factor")?.unwrap_or(own),
    })
}

/// The positions that the model was first trained on.
fn original_context(keys: &Keys<'_>, scaling: &Keys<'_>, context: usize) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    Ok(scaling.whole(KEY)?.or(keys.whole(KEY)?).unwrap_or(context))
}

fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match keys.whole("sliding_window")? {
        None if family.is_gemma() && !keys.0.contains_key("sliding_window") => Some(4_096),
        window => window,
    };
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
    let pattern = match family {
        Family::Gemma2 => Some(2),
        Family::Gemma3 => Some(keys.whole("sliding_window_pattern")?.unwrap_or(6)),
        _ => None,
    };
    if let Some(pattern) = pattern {
        // Of so many layers the last sees all.
        let sees_all = |layer: usize| pattern > 0 && (layer + 1).is_multiple_of(pattern);
        return Ok((0..layers).map(|layer| window.filter(|_| !sees_all(layer))).collect());
    }
    let first = match family {
        Family::Mistral | Family::Phi3 => 0,
        Family::Qwen2 | Family::Qwen3 if keys.flag("use_sliding_window")? == Some(true) => {
            keys.whole("max_window_layers")?.unwrap_or(28)
        }
        _ => layers,
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
#[derive(Clone, Copy)]
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
    fn what_gemmas_files_leave_out_is_the_familys_own() {
        let gemma2 = with(json!({"model_type": "gemma2", "num_hidden_layers": 3, "head_dim": 4, "sliding_window": 8,
            "query_pre_attn_scalar": 16}))
        .unwrap();
        assert_eq!(gemma2.windows, [Some(8), None, Some(8)]);
        assert_eq!((gemma2.score_cap, gemma2.logit_cap, gemma2.query_scale), (Some(50.0), Some(30.0), 0.25));
        assert_eq!((gemma2.norm_offset, gemma2.embedding_scale, gemma2.activation), (1.0, 4.0, Activation::Gelu));
        assert!(gemma2.post_norms && gemma2.tied && !gemma2.head_norms && gemma2.local_rope.is_none());
        let uncapped = with(json!({"model_type": "gemma2", "final_logit_softcapping": null})).unwrap();
        assert_eq!((uncapped.score_cap, uncapped.logit_cap), (Some(50.0), None));

        // As the models that see pictures have it: almost everything is left out.
        let text = json!({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 7, "sliding_window": 1024,
            "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
        let gemma3 = read(&serde_json::to_vec(&json!({"model_type": "gemma3", "text_config": text})).unwrap()).unwrap();
        assert_eq!((gemma3.vocabulary, gemma3.heads, gemma3.key_value_heads, gemma3.head_size), (262_208, 8, 4, 256));
        assert_eq!((gemma3.windows[4], gemma3.windows[5], gemma3.windows[6]), (Some(1024), None, Some(1024)));
        assert_eq!(gemma3.rope, Rope { theta: 1e6, scaling: Scaling::Linear { factor: 8.0 } });
        assert_eq!(gemma3.local_rope, Some(Rope::plain(1e4)));
        assert!(gemma3.head_norms && gemma3.score_cap.is_none() && gemma3.context == 131_072);
    }

    #[test]
    fn phi_turns_a_part_of_its_heads_and_knows_two_lengths() {
        let scaling = json!({"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]});
        let phi3 = with(json!({"model_type": "phi3", "num_attention_heads": 2, "partial_rotary_factor": 0.5, "rope_scaling": scaling,
            "original_max_position_embeddings": 16, "sliding_window": 9}))
        .unwrap();
        assert_eq!((phi3.head_size, phi3.rotary_size, phi3.windows), (8, 4, vec![Some(9); 2]));
        let Scaling::Long { short, long, original_context, attention_factor } = phi3.rope.scaling else {
            panic!("{:?}", phi3.rope);
        };
        assert_eq!((short, long, original_context), (vec![1.0, 2.0], vec![3.0, 4.0], 16));
        assert_eq!(attention_factor, (1.0 + 4f64.ln() / 16f64.ln()).sqrt());
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
        refused(json!({"rope_scaling": {"rope_type": "dynamic"}}), Unsupported, "dynamic");
        refused(json!({"rope_scaling": {"rope_type": "longrope"}}), Corrupt, "short_factor");
        let short = json!({"rope_type": "su", "short_factor": [1.0], "long_factor": [1.0, "a"]});
        refused(json!({"rope_scaling": short}), Corrupt, "long_factor");
        refused(json!({"model_type": "phi3", "partial_rotary_factor": 2.0}), Corrupt, "partial_rotary_factor");
        refused(json!({"model_type": "gemma3", "text_config": 3}), Corrupt, "text_config");
        refused(
            json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}),
            Unsupported,
            "attn_logit_softcapping",
        );
        refused(json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}), Unsupported, "looks ahead");
        refused(json!({"model_type": "gemma2", "hidden_activation": "relu"}), Unsupported, "relu");
        refused(json!({"model_type": "gemma2", "query_pre_attn_scalar": 0}), Corrupt, "query_scale");
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
