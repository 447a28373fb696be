//! What a version of the architecture says of itself.

use hybrid_core::{Document, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    encoder::{EncoderConfig, LoraConfig, Pooling, TARGETS},
    text_classifier::{ClassifierConfig, check_labels},
};

const OPERATION: &str = "check configuration";
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
