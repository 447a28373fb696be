//! Embedding on this machine: texts to vectors, by encoders of the BERT family and by decoders.
//!
//! [`EmbedderLoader`] makes a backend of a model's folder. `settings` reads what sentence-transformers says of it: pooling, length,
//! prompts; `body` is the network behind one face; `inputs` turns what was asked for into tokens; `backend` serves.

mod backend;
mod body;
mod inputs;
mod loader;
mod modern;
mod settings;

pub use loader::EmbedderLoader;

/// What manifests call a version whose files are an embedder's.
const ARCHITECTURE: &str = "embedder/1";
