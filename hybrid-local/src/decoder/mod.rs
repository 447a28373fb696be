//! Chat models that run on this machine: decoders of several families behind one network.
//!
//! [`DecoderLoader`] makes a backend of a model's files. The parts, from the disk up: `files` reads folders and GGUF files into one description,
//! `config`; `network` is the decoder, its linear layers the seam for faster kernels; `tokens`, `template` and `prompt` write a conversation
//! as the model reads it; `sampling` draws tokens; `answer` tells words, thoughts and calls of tools apart; `generation` is the loop, and
//! `backend` serves it.

// Serving is still to hand adapters to chosen rows.
#[allow(dead_code)]
mod adapter;
mod answer;
mod backend;
mod config;
mod defaults;
mod files;
mod generation;
mod loader;
mod network;
mod prompt;
mod rope;
mod sampling;
mod template;
#[cfg(test)]
mod tests;
mod tokens;

pub use loader::DecoderLoader;

/// What manifests call a version whose files are a decoder's.
const ARCHITECTURE: &str = "decoder/1";
