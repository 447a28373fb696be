//! Encoders of the BERT family, fine-tuned whole or by low-rank matrices.
//!
//! A base model in Hugging Face layout (`config.json`, `tokenizer.json`, `model.safetensors`) becomes a classifier: the encoder, the first
//! row or the mean of all rows of a text, a layer with an activation, and a layer that gives the logits. The encoder is
//! [`crate::encoder`]'s; `config` is what a version says, `network` the network, `learner` how it learns.
//!
//! # Files
//! The architecture `bert-text-classifier/1` has in its folder all that it needs:
//! - `config.json`: [`BertConfig`].
//! - `tokenizer.json`: the base's, byte for byte.
//! - `model.safetensors`: the encoder's tensors under this crate's names, single precision; after `bert-full` with the head.
//! - `adapter.safetensors`, after `bert-lora`: the low-rank matrices and the head. Merging happens at loading, so answers take no longer; on
//!   disk the two stay apart, because `model.safetensors` is then the same bytes for every version of one base and moves once.

mod config;
mod learner;
mod model;
mod network;
mod settings;

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

pub(super) use config::BertConfig;
pub(super) use learner::{BertMethod, version_tensors};
pub(super) use model::BertModel;
pub(super) use settings::{BertSettings, Mode};
