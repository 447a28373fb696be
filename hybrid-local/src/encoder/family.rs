//! The families of encoders, as data: how each names its settings and its tensors, and where it differs.

use serde::{Deserialize, Serialize};

/// One family of encoders in Hugging Face layout.
#[derive(Debug)]
pub(crate) struct Family {
    /// The values of `model_type` in `config.json`.
    pub(crate) types: &'static [&'static str],
    /// What tensors' names begin with where a head stands beside the encoder.
    pub(crate) prefix: &'static str,
    pub(crate) keys: Keys,
    /// Whether positions are counted from the one after the padding token's id, as fairseq did.
    pub(crate) after_padding: bool,
    /// Our names of tensors and theirs, where `#` is the layer's number.
    pub(crate) tensors: &'static [(&'static str, &'static str)],
    /// The same of the head's first layer; it may be absent.
    pub(crate) head: &'static [(&'static str, &'static str)],
    /// What follows the head's first layer.
    pub(crate) activation: HeadActivation,
}

/// The names of settings in `config.json`.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) hidden: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) heads: &'static str,
    pub(crate) intermediate: &'static str,
    pub(crate) activation: &'static str,
    /// Absent where the layers have none.
    pub(crate) token_types: Option<&'static str>,
    /// Absent where it is 1e-12 always.
    pub(crate) norm_epsilon: Option<&'static str>,
}

/// What follows the first layer of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadActivation {
    Tanh,
    Relu,
}

const BERT_KEYS: Keys = Keys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate: "intermediate_size",
    activation: "hidden_act",
    token_types: Some("type_vocab_size"),
    norm_epsilon: Some("layer_norm_eps"),
};

const BERT_TENSORS: &[(&str, &str)] = &[
    ("embeddings.word", "embeddings.word_embeddings.weight"),
    ("embeddings.position", "embeddings.position_embeddings.weight"),
    ("embeddings.token_type", "embeddings.token_type_embeddings.weight"),
    ("embeddings.norm.weight", "embeddings.LayerNorm.weight"),
    ("embeddings.norm.bias", "embeddings.LayerNorm.bias"),
    ("layers.#.query.weight", "encoder.layer.#.attention.self.query.weight"),
    ("layers.#.query.bias", "encoder.layer.#.attention.self.query.bias"),
    ("layers.#.key.weight", "encoder.layer.#.attention.self.key.weight"),
    ("layers.#.key.bias", "encoder.layer.#.attention.self.key.bias"),
    ("layers.#.value.weight", "encoder.layer.#.attention.self.value.weight"),
    ("layers.#.value.bias", "encoder.layer.#.attention.self.value.bias"),
    ("layers.#.output.weight", "encoder.layer.#.attention.output.dense.weight"),
    ("layers.#.output.bias", "encoder.layer.#.attention.output.dense.bias"),
    ("layers.#.attention_norm.weight", "encoder.layer.#.attention.output.LayerNorm.weight"),
    ("layers.#.attention_norm.bias", "encoder.layer.#.attention.output.LayerNorm.bias"),
    ("layers.#.up.weight", "encoder.layer.#.intermediate.dense.weight"),
    ("layers.#.up.bias", "encoder.layer.#.intermediate.dense.bias"),
    ("layers.#.down.weight", "encoder.layer.#.output.dense.weight"),
    ("layers.#.down.bias", "encoder.layer.#.output.dense.bias"),
    ("layers.#.norm.weight", "encoder.layer.#.output.LayerNorm.weight"),
    ("layers.#.norm.bias", "encoder.layer.#.output.LayerNorm.bias"),
];

const DISTILBERT_TENSORS: &[(&str, &str)] = &[
    ("embeddings.word", "embeddings.word_embeddings.weight"),
    ("embeddings.position", "embeddings.position_embeddings.weight"),
    ("embeddings.norm.weight", "embeddings.LayerNorm.weight"),
    ("embeddings.norm.bias", "embeddings.LayerNorm.bias"),
    ("layers.#.query.weight", "transformer.layer.#.attention.q_lin.weight"),
    ("layers.#.query.bias", "transformer.layer.#.attention.q_lin.bias"),
    ("layers.#.key.weight", "transformer.layer.#.attention.k_lin.weight"),
    ("layers.#.key.bias", "transformer.layer.#.attention.k_lin.bias"),
    ("layers.#.value.weight", "transformer.layer.#.attention.v_lin.weight"),
    ("layers.#.value.bias", "transformer.layer.#.attention.v_lin.bias"),
    ("layers.#.output.weight", "transformer.layer.#.attention.out_lin.weight"),
    ("layers.#.output.bias", "transformer.layer.#.attention.out_lin.bias"),
    ("layers.#.attention_norm.weight", "transformer.layer.#.sa_layer_norm.weight"),
    ("layers.#.attention_norm.bias", "transformer.layer.#.sa_layer_norm.bias"),
    ("layers.#.up.weight", "transformer.layer.#.ffn.lin1.weight"),
    ("layers.#.up.bias", "transformer.layer.#.ffn.lin1.bias"),
    ("layers.#.down.weight", "transformer.layer.#.ffn.lin2.weight"),
    ("layers.#.down.bias", "transformer.layer.#.ffn.lin2.bias"),
    ("layers.#.norm.weight", "transformer.layer.#.output_layer_norm.weight"),
    ("layers.#.norm.bias", "transformer.layer.#.output_layer_norm.bias"),
];

pub(super) const FAMILIES: &[Family] = &[
    Family {
        types: &["bert"],
        prefix: "bert.",
        keys: BERT_KEYS,
        after_padding: false,
        tensors: BERT_TENSORS,
        // What the family calls its pooler is the head's first layer.
        head: &[("head.dense.weight", "pooler.dense.weight"), ("head.dense.bias", "pooler.dense.bias")],
        activation: HeadActivation::Tanh,
    },
    Family {
        types: &["roberta", "xlm-roberta", "camembert"],
        prefix: "roberta.",
        keys: BERT_KEYS,
        after_padding: true,
        tensors: BERT_TENSORS,
        head: &[("head.dense.weight", "classifier.dense.weight"), ("head.dense.bias", "classifier.dense.bias")],
        activation: HeadActivation::Tanh,
    },
    Family {
        types: &["distilbert"],
        prefix: "distilbert.",
        keys: Keys {
            hidden: "dim",
            layers: "n_layers",
            heads: "n_heads",
            intermediate: "hidden_dim",
            activation: "activation",
            token_types: None,
            norm_epsilon: None,
        },
        after_padding: false,
        tensors: DISTILBERT_TENSORS,
        head: &[("head.dense.weight", "pre_classifier.weight"), ("head.dense.bias", "pre_classifier.bias")],
        activation: HeadActivation::Relu,
    },
];

impl Family {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.types.contains(&name))
    }

    /// The names of all families, for people.
    pub(crate) fn names() -> String {
        FAMILIES.iter().flat_map(|family| family.types).copied().collect::<Vec<_>>().join(", ")
    }

    /// Their name of our tensor.
    pub(crate) fn theirs(&self, ours: &str) -> Option<String> {
        let (pattern, layer) = match ours.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => (format!("layers.#.{rest}"), layer),
            None => (ours.to_owned(), ""),
        };
        let found = self.tensors.iter().chain(self.head).find(|(name, _)| *name == pattern);
        found.map(|(_, theirs)| theirs.replace('#', layer))
    }
}
