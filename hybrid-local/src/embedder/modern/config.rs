//! The sizes of a ModernBERT, out of its `config.json`, as transformers 4 and 5 write it.

use std::ops::RangeInclusive;

use hybrid_core::{Error, Result};
use serde::Deserialize;

const OPERATION: &str = "read encoder configuration";
/// What `config.json` calls the family.
pub(in crate::embedder) const FAMILY: &str = "modernbert";

/// A network with layers that see whole texts and layers that see a window of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModernConfig {
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) positions: usize,
    pub(super) epsilon: f64,
    /// For each layer whether it sees a window alone.
    pub(super) local: Vec<bool>,
    /// How far before and after its own a token sees in such a layer.
    pub(super) reach: usize,
    /// The bases of the rotary positions' frequencies, of whole texts and of windows.
    pub(super) theta: [f64; 2],
}

#[derive(Deserialize)]
struct File {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    norm_eps: f64,
    #[serde(default = "window")]
    local_attention: usize,
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: Option<usize>,
    rope_parameters: Option<Ropes>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    hidden_activation: Option<String>,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

#[derive(Default, Deserialize)]
struct Ropes {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

fn epsilon() -> f64 {
    1e-5
}

fn window() -> usize {
    128
}

impl ModernConfig {
    /// # Errors
    /// `Corrupt` that names what is missing or makes no sense; `Unsupported` that names what the network has that is not known here.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| {
            Error::corrupt(OPERATION, "the file does not hold what such a file holds").with_source(error)
        })?;
        for (key, set) in
            [("norm_bias", file.norm_bias), ("attention_bias", file.attention_bias), ("mlp_bias", file.mlp_bias)]
        {
            if set {
                return Err(unknown(key, true));
            }
        }
        if let Some(activation) = file.hidden_activation.filter(|activation| activation != "gelu") {
            return Err(unknown("hidden_activation", activation));
        }
        // Before a list of so many layers is made.
        within("num_hidden_layers", file.num_hidden_layers, 1..=256)?;
        let local = match file.layer_types {
            Some(types) => types
                .iter()
                .map(|kind| match kind.as_str() {
                    "sliding_attention" => Ok(true),
                    "full_attention" => Ok(false),
                    _ => Err(unknown("layer_types", kind)),
                })
                .collect::<Result<_>>()?,
            None => {
                let every = file.global_attn_every_n_layers.unwrap_or(3).max(1);
                (0..file.num_hidden_layers).map(|layer| !layer.is_multiple_of(every)).collect::<Vec<_>>()
            }
        };
        let Ropes { full_attention, sliding_attention } = file.rope_parameters.unwrap_or_default();
        let theta = |rope: Option<Rope>, old: Option<f64>, default: f64| match rope {
            Some(Rope { rope_type: Some(kind), .. }) if kind != "default" => Err(unknown("rope_type", kind)),
            Some(Rope { rope_theta: Some(theta), .. }) => Ok(theta),
            _ => Ok(old.unwrap_or(default)),
        };
        let config = Self {
            vocabulary: file.vocab_size,
            hidden: file.hidden_size,
            intermediate: file.intermediate_size,
            heads: file.num_attention_heads,
            positions: file.max_position_embeddings,
            epsilon: file.norm_eps,
            reach: file.local_attention / 2,
            theta: [
                theta(full_attention, file.global_rope_theta, 160_000.0)?,
                theta(sliding_attention, file.local_rope_theta, 10_000.0)?,
            ],
            local,
        };
        config.check(file.num_hidden_layers)?;
        Ok(config)
    }

    fn check(&self, layers: usize) -> Result<()> {
        within("vocab_size", self.vocabulary, 1..=1 << 22)?;
        within("hidden_size", self.hidden, 1..=1 << 13)?;
        within("intermediate_size", self.intermediate, 1..=1 << 17)?;
        within("layer_types", self.local.len(), layers..=layers)?;
        within("num_attention_heads", self.heads, 1..=self.hidden)?;
        within("max_position_embeddings", self.positions, 8..=1 << 17)?;
        within("local_attention", self.reach, 1..=1 << 17)?;
        if !self.hidden.is_multiple_of(2 * self.heads) {
            return Err(Error::corrupt(OPERATION, "the hidden size has to be a multiple of twice the number of heads")
                .with("hidden_size", self.hidden)
                .with("num_attention_heads", self.heads));
        }
        let theta = self.theta.map(|theta| ("rope_theta", theta, 1e-3..=1e18));
        for (key, value, range) in theta.into_iter().chain([("norm_eps", self.epsilon, 1e-15..=1e-2)]) {
            if !range.contains(&value) {
                return Err(Error::corrupt(OPERATION, "the number is out of range").with(key, value));
            }
        }
        Ok(())
    }

    /// The tensors with their shapes, by the names of transformers' `ModernBertModel`.
    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden;
        let mut tensors = vec![
            ("embeddings.tok_embeddings.weight".to_owned(), vec![self.vocabulary, hidden]),
            ("embeddings.norm.weight".to_owned(), vec![hidden]),
            ("final_norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.local.len() {
            let mut add = |part: &str, shape: &[usize]| {
                tensors.push((format!("layers.{layer}.{part}.weight"), shape.to_vec()));
            };
            // The first layer's norm is that of the embeddings.
            if layer > 0 {
                add("attn_norm", &[hidden]);
            }
            add("attn.Wqkv", &[3 * hidden, hidden]);
            add("attn.Wo", &[hidden, hidden]);
            add("mlp_norm", &[hidden]);
            add("mlp.Wi", &[2 * self.intermediate, hidden]);
            add("mlp.Wo", &[hidden, self.intermediate]);
        }
        tensors
    }
}

fn within(key: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let error = Error::corrupt(OPERATION, "the size is out of range");
    Err(error.with("size", key).with("value", value).with("range", format_args!("{range:?}")))
}

fn unknown(key: &'static str, value: impl std::fmt::Display) -> Error {
    let error = Error::unsupported(OPERATION, "the model has a setting that is unknown here");
    error.with("key", key).with("value", value)
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    fn read(change: impl Fn(&mut Value)) -> Result<ModernConfig> {
        let mut value = json!({
            "model_type": "modernbert", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 40,
            "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64, "local_attention": 8,
        });
        change(&mut value);
        ModernConfig::read(value.to_string().as_bytes())
    }

    #[test]
    fn windows_and_bases_are_read_as_older_and_newer_files_have_them() {
        let plain = read(|_| ()).unwrap();
        assert_eq!((&plain.local[..], plain.reach, plain.theta), (&[false, true, true, false][..], 4, [16e4, 1e4]));
        let old = read(|value| {
            value["global_attn_every_n_layers"] = json!(2);
            value["global_rope_theta"] = json!(5e4);
            value["local_rope_theta"] = json!(3e3);
        });
        let new = read(|value| {
            let [full, sliding] = ["full_attention", "sliding_attention"];
            value["layer_types"] = json!([full, sliding, full, sliding]);
            value["rope_parameters"] = json!({
                full: {"rope_type": "default", "rope_theta": 5e4}, sliding: {"rope_type": "default", "rope_theta": 3e3},
            });
        });
        assert_eq!(old.as_ref().unwrap().theta, [5e4, 3e3]);
        assert_eq!(old.unwrap(), new.unwrap());
    }

    #[test]
    fn what_is_not_known_or_makes_no_sense_is_refused_by_name() {
        for (key, value, kind) in [
            ("attention_bias", json!(true), ErrorKind::Unsupported),
            ("hidden_activation", json!("silu"), ErrorKind::Unsupported),
            ("layer_types", json!(["linear_attention"]), ErrorKind::Unsupported),
            ("layer_types", json!(["full_attention"]), ErrorKind::Corrupt),
            ("num_attention_heads", json!(5), ErrorKind::Corrupt),
            ("hidden_size", json!(1u64 << 40), ErrorKind::Corrupt),
            ("num_hidden_layers", json!(1u64 << 40), ErrorKind::Corrupt),
            ("num_hidden_layers", json!(0), ErrorKind::Corrupt),
            ("local_attention", json!(0), ErrorKind::Corrupt),
            ("norm_eps", json!(1.0), ErrorKind::Corrupt),
            ("global_rope_theta", json!(-1.0), ErrorKind::Corrupt),
        ] {
            let error = read(|config| config[key] = value.clone()).unwrap_err();
            assert_eq!(error.kind(), kind, "{key}: {error}");
        }
        let scaled = json!({"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}});
        let error = read(|config| config["rope_parameters"] = scaled.clone()).unwrap_err();
        assert_eq!((error.kind(), error.context("value")), (ErrorKind::Unsupported, Some("yarn")), "{error}");
    }
}
