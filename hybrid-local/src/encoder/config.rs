//! The sizes of an encoder, out of a model's `config.json`.

use std::ops::RangeInclusive;

use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::family::{Family, HeadActivation};

const OPERATION: &str = "read encoder configuration";
const MAX_HIDDEN: usize = 8_192;

/// Which weights have low-rank matrices beside them: `W + alpha / rank · B A`.
///
/// Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoraConfig {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) targets: Vec<String>,
}

/// The linear layers that low-rank matrices can stand beside.
pub(crate) const TARGETS: &[&str] = &["query", "key", "value", "output"];

impl LoraConfig {
    pub(crate) fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// What an encoder is, whatever its family calls it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EncoderConfig {
    /// The base's `model_type`, for people.
    pub(crate) family: String,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// The row of a text's first token.
    pub(crate) first_position: usize,
    /// Rows of the table of token types, of which the first is added to every token; 0 without such a table.
    pub(crate) token_types: usize,
    pub(crate) norm_epsilon: f64,
    /// What follows the head's first layer.
    pub(crate) head_activation: HeadActivation,
}

impl EncoderConfig {
    /// Whether a `config.json` with this `model_type` is an encoder's.
    pub(crate) fn knows(model_type: &str) -> bool {
        Family::named(model_type).is_some()
    }

    /// Reads a base model's `config.json`.
    ///
    /// # Errors
    /// `Corrupt` that names a key that is missing or makes no sense; `Unsupported` that names the family, or what the network has that is
    /// not known here.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, &'static Family)> {
        let values: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(OPERATION, "not a JSON object").with_source(error))?;
        let name = values.get("model_type").and_then(Value::as_str);
        let name = name.ok_or_else(|| Error::corrupt(OPERATION, "the key is missing").with("key", "model_type"))?;
        let family = Family::named(name).ok_or_else(|| {
            Error::unsupported(OPERATION, "the family of models is unknown here; use one that is known")
                .with("model_type", name)
                .with("known", Family::names())
        })?;
        let keys = &family.keys;
        let whole = |key: &'static str| {
            let number = values.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| Error::corrupt(OPERATION, "the key has to be a whole number").with("key", key))
        };
        only(&values, keys.activation, &["gelu"])?;
        only(&values, "position_embedding_type", &["absolute"])?;
        if values.get("is_decoder").and_then(Value::as_bool) == Some(true) {
            return Err(Error::unsupported(OPERATION, "the model is a decoder").with("key", "is_decoder"));
        }
        let config = Self {
            family: name.to_owned(),
            vocabulary: whole("vocab_size")?,
            hidden: whole(keys.hidden)?,
            layers: whole(keys.layers)?,
            heads: whole(keys.heads)?,
            intermediate: whole(keys.intermediate)?,
            positions: whole("max_position_embeddings")?,
            first_position: if family.after_padding { whole("pad_token_id")?.saturating_add(1) } else { 0 },
            token_types: keys.token_types.map_or(Ok(0), whole)?,
            norm_epsilon: match keys.norm_epsilon {
                Some(key) => values.get(key).and_then(Value::as_f64).unwrap_or(1e-12),
                None => 1e-12,
            },
            head_activation: family.activation,
        };
        config.check()?;
        Ok((config, family))
    }

    /// # Errors
    /// `Corrupt` that names the size that makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let within = |key: &'static str, value: usize, range: RangeInclusive<usize>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(Error::corrupt(OPERATION, "the size is out of range")
                .with("size", key)
                .with("value", value)
                .with("range", format_args!("{range:?}")))
        };
        within("vocabulary", self.vocabulary, 1..=1 << 22)?;
        within("hidden", self.hidden, 1..=MAX_HIDDEN)?;
        within("layers", self.layers, 1..=256)?;
        within("heads", self.heads, 1..=self.hidden)?;
        within("intermediate", self.intermediate, 1..=16 * MAX_HIDDEN)?;
        within("positions", self.positions, 1..=1 << 17)?;
        within("first_position", self.first_position, 0..=self.positions.saturating_sub(8))?;
        within("token_types", self.token_types, 0..=1 << 10)?;
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::corrupt(OPERATION, "the hidden size has to be a multiple of the number of heads")
                .with("hidden", self.hidden)
                .with("heads", self.heads));
        }
        if !(1e-15..=1e-2).contains(&self.norm_epsilon) {
            return Err(
                Error::corrupt(OPERATION, "the norm's epsilon is out of range").with("norm_epsilon", self.norm_epsilon)
            );
        }
        Ok(())
    }

    /// The most tokens of a text that have a position.
    pub(crate) fn max_tokens(&self) -> usize {
        self.positions - self.first_position
    }

    /// The encoder's tensors with their shapes.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let mut tensors = vec![
            ("embeddings.word".to_owned(), vec![self.vocabulary, hidden]),
            ("embeddings.position".to_owned(), vec![self.positions, hidden]),
        ];
        if self.token_types > 0 {
            tensors.push(("embeddings.token_type".to_owned(), vec![self.token_types, hidden]));
        }
        let mut pair = |name: String, output: usize, input: Option<usize>| {
            let shape = [Some(output), input].into_iter().flatten().collect();
            tensors.push((format!("{name}.weight"), shape));
            tensors.push((format!("{name}.bias"), vec![output]));
        };
        pair("embeddings.norm".to_owned(), hidden, None);
        for layer in 0..self.layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            for part in TARGETS {
                pair(name(part), hidden, Some(hidden));
            }
            pair(name("attention_norm"), hidden, None);
            pair(name("up"), intermediate, Some(hidden));
            pair(name("down"), hidden, Some(intermediate));
            pair(name("norm"), hidden, None);
        }
        tensors
    }

    /// The head's tensors with their shapes.
    pub(crate) fn head_tensors(&self, labels: usize) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden;
        [
            ("head.dense.weight", vec![hidden, hidden]),
            ("head.dense.bias", vec![hidden]),
            ("head.out.weight", vec![labels, hidden]),
            ("head.out.bias", vec![labels]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into()
    }

    /// The low-rank matrices: `A` `[rank, in]` and `B` `[out, rank]` for each target.
    pub(crate) fn lora_tensors(&self, lora: &LoraConfig) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        for layer in 0..self.layers {
            for target in &lora.targets {
                tensors.push((format!("layers.{layer}.{target}.lora_a"), vec![lora.rank, self.hidden]));
                tensors.push((format!("layers.{layer}.{target}.lora_b"), vec![self.hidden, lora.rank]));
            }
        }
        tensors
    }
}

/// Refuses a setting that has another value than is known here.
fn only(values: &Map<String, Value>, key: &'static str, known: &[&str]) -> Result<()> {
    match values.get(key).filter(|value| !value.is_null()) {
        Some(value) if !value.as_str().is_some_and(|value| known.contains(&value)) => {
            Err(Error::unsupported(OPERATION, "the model has a setting that is unknown here")
                .with("key", key)
                .with("value", value)
                .with("known", known.join(", ")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::json;

    use super::*;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 2, "hidden_act": "gelu",
        })
    }

    fn read(change: impl Fn(&mut Value)) -> Result<EncoderConfig> {
        let mut value = bert();
        change(&mut value);
        EncoderConfig::read(&serde_json::to_vec(&value).unwrap()).map(|(config, _)| config)
    }

    #[test]
    fn families_are_read_by_their_own_names() {
        let config = read(|_| ()).unwrap();
        assert_eq!((config.hidden, config.max_tokens(), config.token_types), (32, 40, 2));
        let config = read(|value| {
            value["model_type"] = json!("xlm-roberta");
            value["pad_token_id"] = json!(1);
        })
        .unwrap();
        assert_eq!((config.first_position, config.max_tokens()), (2, 38));
        let distilbert = json!({
            "model_type": "distilbert", "vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16,
            "max_position_embeddings": 16, "activation": "gelu",
        });
        let (config, family) = EncoderConfig::read(&serde_json::to_vec(&distilbert).unwrap()).unwrap();
        assert_eq!((config.token_types, config.head_activation), (0, HeadActivation::Relu));
        assert_eq!(family.theirs("layers.11.up.weight").as_deref(), Some("transformer.layer.11.ffn.lin1.weight"));
        // Every tensor but the classifier's own has a name in every family.
        for family in super::super::family::FAMILIES {
            for (name, _) in config.tensors().iter().chain(&config.head_tensors(2)[..2]) {
                assert!(family.theirs(name).is_some(), "{name} in {:?}", family.types);
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (key, value) in [
            ("model_type", json!("t5")),
            ("hidden_act", json!("gelu_new")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
        ] {
            let error = read(|config| config[key] = value.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
        for (key, value) in [
            ("model_type", json!(null)),
            ("hidden_size", json!("32")),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(1u64 << 40)),
            ("num_attention_heads", json!(5)),
            ("vocab_size", json!(-1)),
            ("layer_norm_eps", json!(1.0)),
        ] {
            assert_eq!(read(|config| config[key] = value.clone()).unwrap_err().kind(), ErrorKind::Corrupt, "{key}");
        }
        assert_eq!(EncoderConfig::read(b"[]").unwrap_err().kind(), ErrorKind::Corrupt);
        // A padding id beyond the positions.
        let beyond = read(|value| {
            value["model_type"] = json!("roberta");
            value["pad_token_id"] = json!(39);
        });
        assert_eq!(beyond.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
