//! From a version's files to a backend.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    Digest, Document, Error, InferenceBackend, Manifest, ModelLoader, Result, ServedModel, Task, task::Classify,
};

#[cfg(feature = "decoder")]
use super::decoder::{self, HeadConfig, HeadModel};
use super::{
    ADAPTER, BERT_ARCHITECTURE, CONFIG, HASHED_ARCHITECTURE, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER, WEIGHTS,
    backend::{Network, Reading, TextClassifier},
    encoder::{BertConfig, BertModel},
    files,
    hashed::{HashedConfig, HashedModel},
    tensors,
};
use crate::{Device, blocking::blocking};

const OPERATION: &str = "load classifier";

/// Loads the versions that [`TextClassifierTrainer`](crate::TextClassifierTrainer) makes.
///
/// # Behavior
/// - Knows the architectures `hashed-text-classifier/1`, `bert-text-classifier/1` and, with the feature `decoder`, `decoder-text-classifier/1`;
///   another is [`Unsupported`](hybrid_core::ErrorKind::Unsupported). A version needs its own files alone, not the base model that it was made of.
/// - Reads Safetensors and JSON, nothing else. What is missing, malformed or of another shape than the configuration says is
///   [`Corrupt`](hybrid_core::ErrorKind::Corrupt) and named.
/// - What does not fit into the memory that is free, or into the limit set, is [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted), before
///   it is read. Free memory is known on Linux alone; elsewhere set a limit.
/// - Texts above 64 KiB are refused by the backend with [`TooLarge`](hybrid_core::ErrorKind::TooLarge). Of a text with more tokens than the version reads,
///   which [`Limits::input_tokens`](hybrid_core::Limits::input_tokens) says, the first are read, and the reply has the note `truncated` with
///   both numbers.
/// - Needs a tokio runtime: reading and computing run on its blocking threads.
#[derive(Clone, Debug)]
pub struct TextClassifierLoader {
    device: Device,
    memory_limit: Option<u64>,
}

impl TextClassifierLoader {
    /// A loader of models that compute on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, memory_limit: None }
    }

    /// The same, for models that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    fn load_hashed(&self, folder: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let config: HashedConfig = read_config(folder, CONFIG, HashedConfig::check)?;
        // While loading, the file's bytes and its tensors are in memory side by side.
        files::check_memory(OPERATION, 2 * config.tensor_bytes(), self.memory_limit)?;
        let path = folder.join(WEIGHTS);
        let (tensors, _) = tensors::decode(&files::read(&path, config.tensor_bytes() + MAX_CONFIG_BYTES)?, &path)?;
        let network =
            HashedModel::new(config, tensors, &self.device).map_err(|error| error.with("path", path.display()))?;
        let backend = TextClassifier::new(network, model, &self.device);
        Ok(Arc::new(backend))
    }

    fn load_bert(&self, folder: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let config: BertConfig = read_config(folder, CONFIG, BertConfig::check)?;
        let bytes = config.tensor_bytes();
        files::check_memory(OPERATION, 2 * bytes, self.memory_limit)?;
        let read = |name: &str| {
            let path = folder.join(name);
            tensors::decode(&files::read(&path, bytes + MAX_CONFIG_BYTES)?, &path).map(|(tensors, _)| tensors)
        };
        let adapter = if config.has_adapter() { read(ADAPTER)? } else { Default::default() };
        let (tokenizer, weights) = (files::read(&folder.join(TOKENIZER), MAX_TOKENIZER_BYTES)?, read(WEIGHTS)?);
        let network = BertModel::new(config, &tokenizer, weights, adapter, &self.device)
            .map_err(|error| error.with("path", folder.display()))?;
        Ok(Arc::new(TextClassifier::new(network, model, &self.device)))
    }

    #[cfg(feature = "decoder")]
    fn load_decoder(&self, folder: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let config: HeadConfig = read_config(folder, decoder::CONFIG, HeadConfig::check)?;
        let network = HeadModel::open(folder, config, &self.device, self.memory_limit)
            .map_err(|error| error.with("path", folder.display()))?;
        Ok(Arc::new(TextClassifier::new(network, model, &self.device)))
    }
}

/// Reads a version's configuration and checks it.
fn read_config<C: Document>(folder: &Path, name: &str, check: impl Fn(&C) -> Result<()>) -> Result<C> {
    let path = folder.join(name);
    let config = C::decode(&files::read(&path, MAX_CONFIG_BYTES)?);
    config.and_then(|config| check(&config).map(|()| config)).map_err(|error| error.with("path", path.display()))
}

#[async_trait]
impl ModelLoader<Classify> for TextClassifierLoader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let unsupported = |message: &'static str| Error::unsupported(OPERATION, message).with("manifest", digest);
        if manifest.task != Classify::NAME {
            return Err(unsupported("the version is of another task").with("task", &manifest.task));
        }
        let model =
            ServedModel { name: manifest.model.to_string(), version: Some(manifest.version), manifest: Some(digest) };
        let (this, folder, architecture) = (self.clone(), folder.to_owned(), manifest.architecture.clone());
        let work = move || match &*architecture {
            HASHED_ARCHITECTURE => this.load_hashed(&folder, model),
            BERT_ARCHITECTURE => this.load_bert(&folder, model),
            #[cfg(feature = "decoder")]
            decoder::ARCHITECTURE => this.load_decoder(&folder, model),
            _ => Err(Error::unsupported(OPERATION, "the architecture is unknown; an upgrade may know it")
                .with("architecture", architecture)),
        };
        blocking(OPERATION, work).await.map_err(|error| error.with("manifest", digest))
    }
}

impl Network for HashedModel {
    fn classifier(&self) -> &super::ClassifierConfig {
        &self.config().classifier
    }

    fn max_tokens(&self) -> Option<usize> {
        None
    }

    fn read(&self, texts: &[&str]) -> Result<Reading> {
        Ok(Reading { logits: self.logits(texts)?, ..Reading::default() })
    }
}
