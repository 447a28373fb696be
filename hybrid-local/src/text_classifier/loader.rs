//! From a version's files to a backend.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    Digest, Document, Error, ErrorKind, InferenceBackend, Manifest, ModelLoader, Result, ServedModel, Task,
    task::Classify,
};

use super::{
    CONFIG, HASHED_ARCHITECTURE, MAX_CONFIG_BYTES, WEIGHTS,
    backend::{Network, Reading, TextClassifier},
    files,
    hashed::{HashedConfig, HashedModel},
    tensors,
};
use crate::Device;

const OPERATION: &str = "load classifier";

/// Loads the versions that [`TextClassifierTrainer`](crate::TextClassifierTrainer) makes.
///
/// # Behavior
/// - Knows the architecture `hashed-text-classifier/1`; another is [`Unsupported`](ErrorKind::Unsupported).
/// - Reads Safetensors and JSON, nothing else. What is missing, malformed or of another shape than the configuration says is
///   [`Corrupt`](ErrorKind::Corrupt) and named.
/// - What does not fit into the memory that is free, or into the limit set, is [`ResourceExhausted`](ErrorKind::ResourceExhausted), before
///   it is read. Free memory is known on Linux alone; elsewhere set a limit.
/// - Texts above 64 KiB are refused by the backend with [`TooLarge`](ErrorKind::TooLarge).
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

    /// Checks that `bytes` can be taken.
    fn check_memory(&self, bytes: u64) -> Result<()> {
        let limit = [self.memory_limit, files::available_memory()].into_iter().flatten().min().unwrap_or(u64::MAX);
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ResourceExhausted,
            OPERATION,
            "the model does not fit into memory; free some or use a smaller model",
        )
        .with("needed", bytes)
        .with("limit", limit))
    }

    fn load_hashed(&self, folder: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let path = folder.join(CONFIG);
        let config = HashedConfig::decode(&files::read(&path, MAX_CONFIG_BYTES)?);
        let config = config
            .and_then(|config| config.check().map(|()| config))
            .map_err(|error| error.with("path", path.display()))?;
        // While loading, the file's bytes and its tensors are in memory side by side.
        self.check_memory(2 * config.tensor_bytes())?;
        let path = folder.join(WEIGHTS);
        let (tensors, _) = tensors::decode(&files::read(&path, config.tensor_bytes() + MAX_CONFIG_BYTES)?, &path)?;
        let network =
            HashedModel::new(config, tensors, &self.device).map_err(|error| error.with("path", path.display()))?;
        let backend = TextClassifier::new(network, model, &self.device);
        Ok(Arc::new(backend))
    }
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
        let work = tokio::task::spawn_blocking(move || match &*architecture {
            HASHED_ARCHITECTURE => this.load_hashed(&folder, model),
            _ => Err(Error::unsupported(OPERATION, "the architecture is unknown; an upgrade may know it")
                .with("architecture", architecture)),
        });
        let loaded =
            work.await.map_err(|error| Error::internal(OPERATION, "loading ended early").with_source(error))?;
        loaded.map_err(|error| error.with("manifest", digest))
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
