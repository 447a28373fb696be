//! Decoders with a head over the last token's state, fine-tuned whole or by low-rank matrices.
//!
//! The network is [`crate::decoder::headed`]'s; `config` is what a version says, `settings` a plan, `learner` how it learns, `model` how it
//! answers.
//!
//! # Files
//! The architecture `decoder-text-classifier/1` has in its folder all that it needs:
//! - the base's files as chat models have them, a folder in Hugging Face layout or one GGUF file; after `decoder-head-full` with the trained weights.
//! - `adapter_config.json` and `adapter_model.safetensors`, after `decoder-head-lora`: the low-rank matrices as PEFT has them. The base's files are
//!   then the same bytes for every version of one base and move once.
//! - `head.safetensors`: `score.weight`, `[labels, hidden]`, as transformers' `…ForSequenceClassification` has it.
//! - `classifier.json`: [`HeadConfig`].

mod config;
mod learner;
mod model;
mod settings;

pub(super) use config::HeadConfig;
pub(super) use learner::HeadMethod;
pub(super) use model::HeadModel;
pub(super) use settings::HeadSettings;

pub(super) const ARCHITECTURE: &str = "decoder-text-classifier/1";
pub(super) const FULL: &str = "decoder-head-full";
pub(super) const LORA: &str = "decoder-head-lora";
pub(super) const CONFIG: &str = "classifier.json";
pub(super) const HEAD: &str = "head.safetensors";
