//! What a model takes, told from its description alone: before a download, before a load, before a training.
//!
//! A [`ModelPlan`] is read from a `config.json`, or from the first bytes of a GGUF file; its weights need not be anywhere near. It says what the model
//! takes on the disk, and in memory when it [serves](ModelPlan::serving) so many conversations of such a length: the same figures by which
//! [`DecoderLoader`](crate::DecoderLoader) refuses a model that does not fit.
//!
//! ```
//! use hybrid_local::{planner::ModelPlan, quantize::Mix};
//!
//! let config = br#"{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_attention_heads": 16,
//!     "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 28, "intermediate_size": 3072,
//!     "max_position_embeddings": 40960, "tie_word_embeddings": true}"#;
//! let plan = ModelPlan::from_config(config)?;
//! assert_eq!(plan.parameters(), 596_049_920);
//! let small = plan.quantized(Mix::Q4KM);
//! assert!(small.disk_bytes() < 500_000_000);
//! println!("{}", small.serving(8_192, 4).to_markdown());
//! # Ok::<(), hybrid_core::Error>(())
//! ```

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use candle_core::quantized::GgmlDType;
use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    decoder::{
        config::DecoderConfig,
        files::{MAX_HEADER_BYTES, describe, read_config, resident, theirs},
        reading::PORTION,
        tensors::{Role, TensorSpec, tensors},
    },
    files::{self, io_error},
    quantize::{Mix, bytes_of},
};

const OPERATION: &str = "plan model";
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model by its description.
#[derive(Clone, Debug)]
pub struct ModelPlan {
    config: DecoderConfig,
    weights: Weights,
}

/// In what form the numbers are stored.
#[derive(Clone, Debug)]
enum Weights {
    /// Half precision in a folder; single in memory.
    Halves,
    Mixed(Mix),
    /// As a file's header says, by the file's names.
    Listed(BTreeMap<String, GgmlDType>),
}

/// What a model takes in memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The weights by what they are for: `embeddings`, `attention`, `feed forward`, `output`, `norms`.
    pub weights: BTreeMap<String, u64>,
    /// Keys and values of all conversations, each of the whole context, in single precision; beside weights in blocks a processor needs half
    /// of it.
    pub cache: u64,
    /// What a pass over some tokens takes beside these.
    pub work: u64,
}

impl ModelPlan {
    /// The model that a `config.json` describes, its weights in half precision.
    ///
    /// # Errors
    /// As [`DecoderLoader::open`](crate::DecoderLoader::open) of such a folder.
    pub fn from_config(json: &[u8]) -> Result<Self> {
        Ok(Self { config: read_config(json)?, weights: Weights::Halves })
    }

    /// The model of a GGUF file by the file's first bytes, of which the header has to be whole: some megabytes, the tokenizer among them.
    ///
    /// # Errors
    /// As [`DecoderLoader::open`](crate::DecoderLoader::open) of such a file.
    pub fn from_gguf(head: &[u8]) -> Result<Self> {
        let (config, formats) = describe(head)?;
        Ok(Self { config, weights: Weights::Listed(formats) })
    }

    /// The model that a `config.json`, a folder with one, or a GGUF file describes.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config) and [`from_gguf`](Self::from_gguf).
    pub fn open(path: &Path) -> Result<Self> {
        let named = |error: Error| error.with("path", path.display());
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
            let (mut head, fail) = (Vec::new(), |error| io_error(OPERATION, path, error));
            let file = File::open(path).map_err(fail)?;
            file.take(MAX_HEADER_BYTES).read_to_end(&mut head).map_err(fail)?;
            return Self::from_gguf(&head).map_err(named);
        }
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        Self::from_config(&files::read(&path, MAX_CONFIG_BYTES)?).map_err(named)
    }

    /// The same model as [`Quantizer`](crate::quantize::Quantizer) would make a file of it.
    #[must_use]
    pub fn quantized(mut self, mix: Mix) -> Self {
        self.weights = Weights::Mixed(mix);
        self
    }

    /// How many numbers the model has.
    pub fn parameters(&self) -> u64 {
        tensors(&self.config).iter().map(TensorSpec::elements).sum()
    }

    /// The most tokens that have a position.
    pub fn context(&self) -> usize {
        self.config.context
    }

    /// What the weights take on the disk, in bytes, without the tokenizer.
    pub fn disk_bytes(&self) -> u64 {
        let bytes = |spec: &TensorSpec| match self.format(spec) {
            Some(format) => bytes_of(format, spec.elements()),
            None => 2 * spec.elements(),
        };
        tensors(&self.config).iter().map(bytes).sum()
    }

    /// What the model takes when it serves `streams` conversations side by side, each of `context` tokens or as many as have a position.
    pub fn serving(&self, context: usize, streams: usize) -> Footprint {
        let mut weights = BTreeMap::new();
        for spec in tensors(&self.config) {
            let single = 4 * spec.elements();
            let bytes = self.format(&spec).map_or(single, |format| resident(format, &spec.shape).unwrap_or(single));
            *weights.entry(part(spec.role).to_owned()).or_default() += bytes;
        }
        let tokens = context.min(self.config.context).saturating_mul(streams) as u64;
        Footprint {
            weights,
            cache: (4 * self.config.cached_numbers_per_token()).saturating_mul(tokens),
            work: self.work(context.min(self.config.context)),
        }
    }

    /// The longest context of `streams` conversations with which the model serves within `memory` bytes; `None` if there is none.
    pub fn longest_context(&self, memory: u64, streams: usize) -> Option<usize> {
        let fits = |context: usize| self.serving(context, streams).total() <= memory;
        let (mut fitting, mut too_long) = (0, self.config.context + 1);
        while fitting + 1 < too_long {
            let middle = fitting + (too_long - fitting) / 2;
            if fits(middle) { fitting = middle } else { too_long = middle }
        }
        (fitting > 0).then_some(fitting)
    }

    /// The format of a tensor in blocks; `None` in a folder.
    fn format(&self, spec: &TensorSpec) -> Option<GgmlDType> {
        match &self.weights {
            Weights::Halves => None,
            Weights::Mixed(mix) => Some(mix.format(spec, self.config.layers())),
            // Parts of a larger matrix are listed as the whole.
            Weights::Listed(formats) => {
                let whole =
                    spec.name.replace("q_proj", "qkv_proj").replace("k_proj", "qkv_proj").replace("v_proj", "qkv_proj");
                let names = [spec.name.clone(), whole, spec.name.replace("gate_proj", "gate_up_proj")];
                let mut names = names.iter().filter_map(|name| theirs(name, self.config.post_norms));
                names.find_map(|name| formats.get(&name).copied())
            }
        }
    }

    /// Rows of activations of one pass, and the scores of its attention.
    fn work(&self, context: usize) -> u64 {
        let config = &self.config;
        let row = 6 * config.hidden + 3 * config.intermediate + 4 * config.query_size() + 2 * config.vocabulary;
        let scores = 3 * config.heads * context;
        4 * (PORTION.min(context.max(1)) * (row + scores)) as u64
    }
}

impl Footprint {
    /// All of it, in bytes.
    pub fn total(&self) -> u64 {
        self.weights.values().fold(self.cache.saturating_add(self.work), |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Whether it can be had of the memory that is free on this machine now; `None` where the system does not say.
    pub fn fits_here(&self) -> Option<bool> {
        files::available_memory().map(|free| self.total() <= free)
    }

    /// The parts as a table for people.
    pub fn to_markdown(&self) -> String {
        let row = |name: &str, bytes: u64| format!("| {name} | {:.1} MiB |\n", bytes as f64 / f64::from(1 << 20));
        let mut table = "| | memory |\n|---|---|\n".to_owned();
        self.weights.iter().for_each(|(name, bytes)| table += &row(name, *bytes));
        table += &row("cache", self.cache);
        table += &row("work", self.work);
        table + &row("in all", self.total())
    }
}

fn part(role: Role) -> &'static str {
    match role {
        Role::Embeddings => "embeddings",
        Role::Output => "output",
        Role::Query | Role::Key | Role::Value | Role::Heads | Role::AttentionOutput => "attention",
        Role::Gate | Role::Up | Role::Down => "feed forward",
        Role::Norm | Role::Bias => "norms",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN3: &str = r#"{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 28, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "tie_word_embeddings": true}"#;

    #[test]
    fn figures_are_those_that_the_model_is_known_by() {
        let plan = ModelPlan::from_config(QWEN3.as_bytes()).unwrap();
        assert_eq!((plan.parameters(), plan.disk_bytes()), (596_049_920, 2 * 596_049_920));
        // Keys and values of 28 layers with 8 heads of 128 columns, four bytes each.
        assert_eq!(plan.serving(1, 3).cache, 3 * 28 * 2 * 8 * 128 * 4);
        assert_eq!(plan.serving(1 << 20, 1).cache, plan.serving(40_960, 1).cache);
        let folder: u64 = plan.serving(1, 1).weights.values().sum();
        assert_eq!(folder, 4 * plan.parameters());
        let [eight, four] = [Mix::Q8_0, Mix::Q4KM].map(|mix| plan.clone().quantized(mix));
        assert!(four.disk_bytes() < eight.disk_bytes() && eight.disk_bytes() < plan.disk_bytes());
        // 8.5 bits a number, and single precision for norms.
        assert!((eight.disk_bytes() as f64 / 596_049_920.0 * 8.0 - 8.5).abs() < 0.01);
        assert!(four.serving(4_096, 1).to_markdown().contains("| in all |"));
    }

    #[test]
    fn the_longest_context_fits_and_the_next_does_not() {
        let plan = ModelPlan::from_config(QWEN3.as_bytes()).unwrap().quantized(Mix::Q4KM);
        let memory = plan.serving(5_000, 2).total() + 1_000;
        let longest = plan.longest_context(memory, 2).unwrap();
        assert!((5_000..5_010).contains(&longest), "{longest}");
        assert!(plan.serving(longest, 2).total() <= memory && plan.serving(longest + 1, 2).total() > memory);
        assert_eq!(plan.longest_context(1 << 20, 1), None);
        assert_eq!(plan.longest_context(u64::MAX, 1), Some(40_960));
    }
}
