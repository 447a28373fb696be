//! The sizes of an encoder: out of a base model's `config.json`, and into a version's.

use std::ops::RangeInclusive;

use hybrid_core::{Document, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::family::{Family, HeadActivation};
use crate::text_classifier::{ClassifierConfig, check_labels};

const OPERATION: &str = "read encoder configuration";
const MAX_HIDDEN: usize = 8_192;
const MAX_RANK: usize = 256;

/// `config.json` of the architecture `bert-text-classifier/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::text_classifier) struct BertConfig {
    #[serde(flatten)]
    pub(in crate::text_classifier) classifier: ClassifierConfig,
    pub(super) encoder: EncoderConfig,
    pub(super) pooling: Pooling,
    /// Tokens of a text that are read, those that the tokenizer adds included.
    pub(super) max_tokens: usize,
    /// The low-rank matrices in `adapter.safetensors`, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lora: Option<LoraConfig>,
    /// The SHA-256 of the base model's files, by name.
    pub(super) base: std::collections::BTreeMap<String, hybrid_core::Digest>,
}

impl Document for BertConfig {
    const FORMAT: &'static str = "hybrid.bert-text-classifier";
    const MAJOR: u32 = 1;
}

/// What is made of the rows of a text before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Pooling {
    /// The first row.
    Cls,
    /// The mean of all rows.
    Mean,
}

/// Which weights have low-rank matrices beside them: `W + alpha / rank · B A`.
///
/// Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LoraConfig {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) targets: Vec<String>,
}

/// The linear layers that low-rank matrices can stand beside.
pub(super) const TARGETS: &[&str] = &["query", "key", "value", "output"];

impl LoraConfig {
    pub(super) fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// What an encoder is, whatever its family calls it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct EncoderConfig {
    /// The base's `model_type`, for people.
    pub(super) family: String,
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// The row of a text's first token.
    pub(super) first_position: usize,
    /// Rows of the table of token types, of which the first is added to every token; 0 without such a table.
    pub(super) token_types: usize,
    pub(super) norm_epsilon: f64,
    /// What follows the head's first layer.
    pub(super) head_activation: HeadActivation,
}

impl EncoderConfig {
    /// Reads a base model's `config.json`.
    ///
    /// # Errors
    /// `Corrupt` that names a key that is missing or makes no sense; `Unsupported` that names the family, or what the network has that is
    /// not known here.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &'static Family)> {
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
    pub(super) fn check(&self) -> Result<()> {
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
    pub(super) fn max_tokens(&self) -> usize {
        self.positions - self.first_position
    }

    /// The encoder's tensors with their shapes.
    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
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
    pub(super) fn head_tensors(&self, labels: usize) -> Vec<(String, Vec<usize>)> {
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
    pub(super) fn lora_tensors(&self, lora: &LoraConfig) -> Vec<(String, Vec<usize>)> {
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

impl BertConfig {
    /// # Errors
    /// `Corrupt` that names what makes no sense.
    pub(in crate::text_classifier) fn check(&self) -> Result<()> {
        check_labels(&self.classifier)?;
        self.encoder.check()?;
        if !(2..=self.encoder.max_tokens()).contains(&self.max_tokens) {
            return Err(Error::corrupt(OPERATION, "more tokens are to be read than have positions, or fewer than two")
                .with("max_tokens", self.max_tokens)
                .with("positions", self.encoder.max_tokens()));
        }
        if let Some(LoraConfig { rank, alpha, targets }) = &self.lora {
            let known = targets
                .iter()
                .enumerate()
                .all(|(i, target)| TARGETS.contains(&target.as_str()) && !targets[..i].contains(target));
            if !(1..=MAX_RANK).contains(rank) || !alpha.is_finite() || targets.is_empty() || !known {
                return Err(Error::corrupt(OPERATION, "the settings of the low-rank matrices are out of range")
                    .with("rank", rank)
                    .with("alpha", alpha)
                    .with("targets", targets.join(", ")));
            }
        }
        Ok(())
    }

    /// Bytes of the tensors, on disk as in memory.
    pub(in crate::text_classifier) fn tensor_bytes(&self) -> u64 {
        self.model_tensors().iter().chain(&self.adapter_tensors()).map(|(_, shape)| bytes(shape)).sum()
    }

    /// Whether there is an `adapter.safetensors`.
    pub(in crate::text_classifier) fn has_adapter(&self) -> bool {
        self.lora.is_some()
    }

    /// The tensors of `model.safetensors`: the encoder, and the head where no adapter holds it.
    pub(super) fn model_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = self.encoder.tensors();
        if self.lora.is_none() {
            tensors.extend(self.encoder.head_tensors(self.classifier.labels.len()));
        }
        tensors
    }

    /// The tensors of `adapter.safetensors`: low-rank matrices and head, or none.
    pub(super) fn adapter_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Some(lora) = &self.lora else { return Vec::new() };
        let mut tensors = self.encoder.lora_tensors(lora);
        tensors.extend(self.encoder.head_tensors(self.classifier.labels.len()));
        tensors
    }
}

fn bytes(shape: &[usize]) -> u64 {
    4 * shape.iter().map(|&size| size as u64).product::<u64>()
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
