//! Chat models that run on this machine: decoders of several families behind one network.
//!
//! [`DecoderLoader`] makes a backend of a model's files, [`DecoderModel`] several that share the weights. The parts, from the disk up: `files` reads folders and GGUF files into one description,
//! `config`; `network` is the decoder, its linear layers the seam for faster kernels; `tokens`, `spelling`, `template` and `prompt` write a conversation
//! as the model reads it; `sampling` draws tokens; `constraint` holds them to a form; `answer` tells words, thoughts and calls of tools apart; `codec` is
//! all of that but the network, `writer` writes one answer with it, `engine` writes many side by side, and `backend` serves them.

mod adapter;
mod answer;
mod backend;
mod codec;
pub(crate) mod config;
mod constraint;
mod defaults;
mod engine;
pub(crate) mod files;
#[cfg(feature = "classifier")]
pub(crate) mod headed;
pub(crate) mod importance;
mod loader;
mod model;
mod network;
mod prompt;
pub(crate) mod reading;
pub(crate) mod rope;
mod sampling;
mod spelling;
#[cfg(feature = "embedder")]
mod states;
mod template;
pub(crate) mod tensors;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;
mod training;
mod writer;

pub use adapter::{AdapterFormat, LoraAdapter};
pub use loader::DecoderLoader;
pub use model::DecoderModel;
#[cfg(feature = "embedder")]
pub(crate) use states::States;
pub use training::{DecoderTrainer, judgments_from_jsonl};

/// What manifests call a version whose files are a decoder's.
const ARCHITECTURE: &str = "decoder/1";
/// And one whose files are an adapter of a decoder.
const ADAPTER_ARCHITECTURE: &str = "decoder-adapter/1";
