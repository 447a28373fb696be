//! A text classifier that is trained and served on this machine.
//!
//! [`TextClassifierTrainer`] makes a version's files of judgments, [`TextClassifierLoader`] a backend of a version's files. The parts, from the
//! text up: `features` hashes n-grams, `hashed` is the network over them, `encoder` is the network over the tokens of a base model,
//! `decoder` puts a head on a chat model,
//! `optimiser` moves what both learn, `training` is the loop with folds, early stopping and checkpoints, `calibration` turns logits into probabilities that can be believed,
//! `backend` serves.

mod backend;
mod calibration;
#[cfg(feature = "decoder")]
mod decoder;
mod encoder;
mod examples;
mod features;
mod hashed;
mod loader;
mod loss;
mod optimiser;
mod trainer;
mod training;

use std::collections::BTreeSet;

use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    device::tensor_error,
    files::{self, CONFIG, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER, WEIGHTS},
    learning::{checkpoint, gradients, settings},
    tensors,
};

pub use loader::TextClassifierLoader;
pub use trainer::TextClassifierTrainer;

const HASHED_ARCHITECTURE: &str = "hashed-text-classifier/1";
const BERT_ARCHITECTURE: &str = "bert-text-classifier/1";
const ADAPTER: &str = "adapter.safetensors";
/// The longest text that is read, in bytes of UTF-8.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// The most texts in one request.
const MAX_BATCH: usize = 1_024;
const MAX_LABELS: usize = 1_000;
const MAX_LABEL_BYTES: usize = 200;

/// What every architecture's configuration says of the classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ClassifierConfig {
    /// The labels, sorted; a logit's place is its label's.
    labels: Vec<String>,
    /// What logits are divided by before the softmax.
    temperature: f64,
}

/// # Errors
/// `Corrupt` that says what is wrong with labels or temperature.
fn check_labels(config: &ClassifierConfig) -> Result<()> {
    let corrupt = |message: &'static str| Err(Error::corrupt("check configuration", message));
    let distinct: BTreeSet<_> = config.labels.iter().collect();
    if !(2..=MAX_LABELS).contains(&config.labels.len()) || distinct.len() != config.labels.len() {
        return corrupt("the labels are too few, too many or not distinct");
    }
    if config.labels.iter().any(|label| label.trim().is_empty() || label.len() > MAX_LABEL_BYTES) {
        return corrupt("a label is blank or over the limit of bytes");
    }
    if !calibration::TEMPERATURES.contains(&config.temperature) {
        return corrupt("the temperature is out of range");
    }
    Ok(())
}

/// Checks that a text may be read; none is cut in silence.
///
/// # Errors
/// `TooLarge` that names size and limit, `InvalidInput` if it is blank.
fn check_text(operation: &'static str, text: &str) -> Result<()> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Error::too_large(operation, "the text is over the limit; shorten it")
            .with("size", text.len())
            .with("limit", MAX_TEXT_BYTES));
    }
    if text.trim().is_empty() {
        return Err(Error::invalid(operation, "the text is blank"));
    }
    Ok(())
}
