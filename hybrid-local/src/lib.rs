//! One machine: an embedded store, queue and outbox, text classifiers, chat models and embedders on candle, and the evaluator that judges its versions.
//!
//! Everything here works in folders and files of the machine it runs on; it knows no cloud provider and nothing of the other side.
//!
//! # Features
//! | feature | what it adds |
//! |---|---|
//! | `embedded` | `FolderStore`, `FolderStaging`, `SqliteQueue`, `SqliteOutbox`, `SqliteRecordStore`, `SqliteVectorIndex`: artifacts in a folder; jobs, records and embeddings in SQLite files (Unix) |
//! | `classifier` | `TextClassifierTrainer`, `TextClassifierLoader`, `Device`: text classification on candle, of hashed n-grams or by fine-tuning encoders of the BERT family or, with `decoder`, chat models with a head |
//! | `decoder` | `DecoderLoader`, `DecoderModel`, `Device`: chat with decoders of the Llama, Mistral, Qwen, Gemma and Phi families on candle, of Hugging Face folders and GGUF files |
//! | `embedder` | `EmbedderLoader`, `Device`: embedding with encoders of the BERT family and with decoders, as sentence-transformers' files say |
//! | `evaluation` | `evaluation`: golden sets, paired comparison, verdicts; `plan_set`: several plans trained and compared; neither needs candle or SQLite |
//! | `hub` | `Hub`: models fetched from the Hugging Face hub; without it its cache is read alone |
//! | `metal`, `cuda`, `accelerate` | hardware that candle can use |
//!
//! The first five are on by default.

#[cfg(any(feature = "classifier", feature = "decoder", feature = "evaluation", feature = "hub"))]
mod blocking;
#[cfg(feature = "decoder")]
mod decoder;
#[cfg(any(feature = "classifier", feature = "decoder"))]
mod device;
#[cfg(feature = "embedded")]
mod disk;
#[cfg(feature = "embedder")]
mod embedder;
// Both features share it, and neither uses all of it.
#[cfg(any(feature = "classifier", feature = "embedder"))]
#[cfg_attr(not(all(feature = "classifier", feature = "embedder")), allow(dead_code, unused_imports))]
mod encoder;
#[cfg(feature = "evaluation")]
pub mod evaluation;
#[cfg(any(feature = "classifier", feature = "decoder", feature = "evaluation", feature = "hub"))]
#[cfg_attr(not(any(feature = "classifier", feature = "decoder")), allow(dead_code))]
mod files;
#[cfg(feature = "embedded")]
mod folder_store;
#[cfg(any(feature = "classifier", feature = "decoder"))]
#[cfg_attr(not(all(feature = "classifier", feature = "decoder")), allow(dead_code))]
mod learning;
// Both features share them, and neither uses all of them.
#[cfg(any(feature = "classifier", feature = "decoder"))]
#[cfg_attr(not(all(feature = "classifier", feature = "decoder")), allow(dead_code, unused_imports))]
mod ops;
// The tests from outside share it, and neither uses all of it.
#[cfg(test)]
#[allow(dead_code)]
#[path = "../tests/it/peers.rs"]
mod peers;
#[cfg(feature = "evaluation")]
pub mod plan_set;
#[cfg(feature = "decoder")]
pub mod planner;
#[cfg(feature = "decoder")]
pub mod quantize;
#[cfg(any(feature = "classifier", feature = "decoder"))]
#[cfg_attr(not(all(feature = "classifier", feature = "decoder")), allow(dead_code))]
mod random;
#[cfg(any(feature = "classifier", feature = "decoder", feature = "hub"))]
mod source;
#[cfg(feature = "embedded")]
mod sqlite;
#[cfg(any(feature = "classifier", feature = "decoder"))]
#[cfg_attr(not(all(feature = "classifier", feature = "decoder")), allow(dead_code))]
mod tensors;
#[cfg(feature = "classifier")]
mod text_classifier;

#[cfg(feature = "decoder")]
pub use decoder::{AdapterFormat, DecoderLoader, DecoderModel, DecoderTrainer, LoraAdapter, judgments_from_jsonl};
#[cfg(any(feature = "classifier", feature = "decoder"))]
pub use device::{Device, DeviceChoice};
#[cfg(feature = "embedder")]
pub use embedder::EmbedderLoader;
#[cfg(feature = "embedded")]
pub use folder_store::{FolderStaging, FolderStore};
#[cfg(feature = "hub")]
pub use source::Hub;
#[cfg(any(feature = "classifier", feature = "decoder", feature = "hub"))]
pub use source::{HubCache, HubModel, LocalModel, ModelResolver, ModelSource};
#[cfg(feature = "embedded")]
pub use sqlite::{
    SqliteOutbox, SqliteQueue, SqliteQueueOptions, SqliteRecordOptions, SqliteRecordStore, SqliteVectorIndex,
    SqliteVectorOptions,
};
#[cfg(feature = "classifier")]
pub use text_classifier::{TextClassifierLoader, TextClassifierTrainer};
