//! What a decoder is, whatever its files call it: the one description that both file formats are read into.

use std::ops::RangeInclusive;

use hybrid_core::{Error, Result};

use super::rope::Rope;

const OPERATION: &str = "read decoder configuration";

/// The families of decoders that are known.
///
/// They are one network: norm, attention with rotary positions, norm, gated feed-forward. What differs is data, in [`DecoderConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Gemma2,
    /// Gemma 3, of the models that see pictures too the part that reads text.
    Gemma3,
    /// Llama 2 and 3, and what was built on their architecture, such as SmolLM and TinyLlama.
    Llama,
    Mistral,
    /// Phi 3 and 3.5, and Phi 4 mini. Files have queries, keys and values in one matrix, and gate and up in another.
    Phi3,
    /// Qwen 2 and 2.5.
    Qwen2,
    Qwen3,
}

impl Family {
    /// The family that a `config.json` calls so in `model_type`, a GGUF file in `general.architecture`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "gemma2" => Some(Self::Gemma2),
            "gemma3" | "gemma3_text" => Some(Self::Gemma3),
            "llama" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            "phi3" => Some(Self::Phi3),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// The families' names, for messages.
    pub(crate) const NAMES: &str = "gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3";

    /// Whether the family is one of Gemma's.
    pub(crate) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

/// What the gate of a feed-forward layer passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    /// GELU by its approximation with a hyperbolic tangent.
    Gelu,
}

/// The sizes of a decoder and what its family does in its own way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderConfig {
    pub(crate) family: Family,
    /// Rows of the table of embeddings.
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    /// Heads of the queries.
    pub(crate) heads: usize,
    /// Heads of keys and values, each shared by as many heads of the queries.
    pub(crate) key_value_heads: usize,
    pub(crate) head_size: usize,
    pub(crate) intermediate: usize,
    /// The most tokens that have a position.
    pub(crate) context: usize,
    pub(crate) norm_epsilon: f64,
    /// What is added to the scales of all norms as the files have them: 1 where they keep only how far a scale is from one.
    pub(crate) norm_offset: f32,
    /// Whether what attention and feed-forward give is normed too, before it is added.
    pub(crate) post_norms: bool,
    /// What embeddings are multiplied by.
    pub(crate) embedding_scale: f64,
    /// Columns of a head that turn with the position, from the first on.
    pub(crate) rotary_size: usize,
    pub(crate) rope: Rope,
    /// How positions turn in layers with a window, where they turn in another way there.
    pub(crate) local_rope: Option<Rope>,
    /// What the products of queries and keys are multiplied by.
    pub(crate) query_scale: f64,
    /// Scores of the attention are bent so that none is larger: `cap * tanh(score / cap)`.
    pub(crate) score_cap: Option<f64>,
    /// The same of logits.
    pub(crate) logit_cap: Option<f64>,
    pub(crate) activation: Activation,
    /// For each layer how many tokens, its own included, a token sees; `None` for all before it.
    pub(crate) windows: Vec<Option<usize>>,
    /// Whether queries, keys and values have biases.
    pub(crate) attention_bias: bool,
    /// Whether the attention's output has a bias.
    pub(crate) output_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub(crate) feed_forward_bias: bool,
    /// Whether each head's queries and keys are normed.
    pub(crate) head_norms: bool,
    /// Whether the table of embeddings is the output layer too.
    pub(crate) tied: bool,
}

impl DecoderConfig {
    pub(crate) fn layers(&self) -> usize {
        self.windows.len()
    }

    /// Columns of a token's queries, all heads together.
    pub(crate) fn query_size(&self) -> usize {
        self.heads * self.head_size
    }

    /// Columns of a token's keys, and of its values.
    pub(crate) fn key_value_size(&self) -> usize {
        self.key_value_heads * self.head_size
    }

    /// Numbers of keys and values of one token, all layers together.
    pub(crate) fn cached_numbers_per_token(&self) -> u64 {
        2 * self.layers() as u64 * self.key_value_size() as u64
    }

    /// Checks that the sizes make sense and fit together, so that products of them do not overflow.
    ///
    /// # Errors
    /// `Corrupt` that names the size.
    pub(crate) fn check(self) -> Result<Self> {
        let within = |size: &'static str, value: usize, range: RangeInclusive<usize>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(Error::corrupt(OPERATION, "the size is out of range")
                .with("size", size)
                .with("value", value)
                .with("range", format_args!("{range:?}")))
        };
        within("vocabulary", self.vocabulary, 1..=1 << 22)?;
        within("hidden size", self.hidden, 1..=1 << 16)?;
        within("number of layers", self.layers(), 1..=MAX_LAYERS)?;
        within("number of heads", self.heads, 1..=1 << 10)?;
        within("number of key and value heads", self.key_value_heads, 1..=self.heads)?;
        within("head size", self.head_size, 2..=1 << 10)?;
        within("intermediate size", self.intermediate, 1..=1 << 20)?;
        within("context", self.context, 1..=1 << 24)?;
        if !self.heads.is_multiple_of(self.key_value_heads) {
            return Err(Error::corrupt(OPERATION, "the heads cannot be shared out among the key and value heads")
                .with("heads", self.heads)
                .with("key_value_heads", self.key_value_heads));
        }
        within("rotary columns of a head", self.rotary_size, 2..=self.head_size)?;
        if !self.rotary_size.is_multiple_of(2) {
            return Err(Error::corrupt(OPERATION, "rotary positions need an even number of columns")
                .with("rotary_size", self.rotary_size)
                .with("head_size", self.head_size));
        }
        if self.windows.contains(&Some(0)) {
            return Err(Error::corrupt(OPERATION, "a token has to see itself at least").with("window", 0));
        }
        if !(1e-15..=1e-2).contains(&self.norm_epsilon) {
            return Err(
                Error::corrupt(OPERATION, "the norm's epsilon is out of range").with("norm_epsilon", self.norm_epsilon)
            );
        }
        for (name, value) in [
            ("embedding_scale", Some(self.embedding_scale)),
            ("query_scale", Some(self.query_scale)),
            ("score_cap", self.score_cap),
            ("logit_cap", self.logit_cap),
        ] {
            if value.is_some_and(|value| !(1e-6..=1e6).contains(&value)) {
                return Err(Error::corrupt(OPERATION, "the factor is out of range")
                    .with("name", name)
                    .with("value", value.unwrap_or_default()));
            }
        }
        for rope in [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten() {
            rope.check(self.rotary_size / 2)?;
        }
        Ok(self)
    }
}

/// The most layers that a configuration may have.
pub(crate) const MAX_LAYERS: usize = 512;

/// Sizes of a tiny decoder, for tests.
#[cfg(test)]
pub(super) fn tiny() -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        vocabulary: 32,
        hidden: 16,
        heads: 4,
        key_value_heads: 2,
        head_size: 4,
        intermediate: 24,
        context: 64,
        norm_epsilon: 1e-5,
        norm_offset: 0.0,
        post_norms: false,
        embedding_scale: 1.0,
        rotary_size: 4,
        rope: Rope::plain(1e4),
        local_rope: None,
        query_scale: 0.5,
        score_cap: None,
        logit_cap: None,
        activation: Activation::Silu,
        windows: vec![None; 2],
        attention_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        head_norms: false,
        tied: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_together_are_named() {
        assert!(tiny().check().is_ok());
        let refused = |change: fn(&mut DecoderConfig), named: &str| {
            let mut config = tiny();
            change(&mut config);
            let error = config.check().unwrap_err();
            assert_eq!(error.kind(), hybrid_core::ErrorKind::Corrupt);
            assert!(error.to_string().contains(named), "{named}: {error}");
        };
        refused(|config| config.vocabulary = 0, "vocabulary");
        refused(|config| config.hidden = usize::MAX, "hidden size");
        refused(|config| config.windows = Vec::new(), "number of layers");
        refused(|config| config.heads = 0, "number of heads");
        refused(|config| config.key_value_heads = 3, "key_value_heads: 3");
        refused(|config| config.head_size = 5000, "head size");
        refused(|config| config.rotary_size = 3, "rotary_size: 3");
        refused(|config| config.rotary_size = 6, "rotary columns");
        refused(|config| config.context = 1 << 40, "context");
        refused(|config| config.norm_epsilon = f64::NAN, "norm_epsilon");
        refused(|config| config.windows[1] = Some(0), "window");
        refused(|config| config.rope = Rope::plain(f64::INFINITY), "theta");
        refused(|config| config.local_rope = Some(Rope::plain(0.0)), "theta");
        refused(|config| config.query_scale = f64::NAN, "query_scale");
        refused(|config| config.score_cap = Some(0.0), "score_cap");
    }
}
