//! What the kitchen can load and train: classifiers always; chat models, embedders and their fine-tuning in a build with `--features decoder`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[cfg(feature = "decoder")]
use hybrid_core::ServedModel;
use hybrid_core::{
    Digest, Error, InferenceBackend, Manifest, ModelLoader, Result, Task, Timestamp, Trainer,
    task::{Chat, Classify, Embed},
};
#[cfg(feature = "decoder")]
use hybrid_local::{DecoderLoader, DecoderTrainer, EmbedderLoader};
use hybrid_local::{Device, DeviceChoice, TextClassifierLoader, TextClassifierTrainer, plan_set::TrainedPlan};

/// Loads models on one device.
#[derive(Clone, Debug)]
pub struct Models {
    device: Device,
    classifiers: TextClassifierLoader,
}

/// A model that can be asked.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// A classifier.
    Classify(Arc<dyn InferenceBackend<Classify>>),
    /// A chat model.
    Chat(Arc<dyn InferenceBackend<Chat>>),
}

impl Models {
    /// Models on `device`.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn open(device: DeviceChoice) -> Result<Self> {
        let device = Device::open(device)?;
        Ok(Self { classifiers: TextClassifierLoader::new(device.clone()), device })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Who trains: by the methods that each names.
    pub fn trainers(&self) -> Vec<Arc<dyn Trainer>> {
        vec![
            Arc::new(TextClassifierTrainer::new(self.device.clone())),
            #[cfg(feature = "decoder")]
            Arc::new(DecoderTrainer::new(self.device.clone())),
        ]
    }

    /// A verified version of the files in `folder`.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for a task that is not known here; those of the loader.
    pub async fn version(&self, manifest: &Manifest, digest: Digest, folder: &Path) -> Result<Loaded> {
        match &*manifest.task {
            Classify::NAME => self.classifiers.load(manifest, digest, folder).await.map(Loaded::Classify),
            Chat::NAME => self.chat()?.load(manifest, digest, folder).await.map(Loaded::Chat),
            task => Err(unknown(task)),
        }
    }

    /// What a plan has come to, before it is a version.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub async fn candidate(&self, trained: &TrainedPlan, version: u64, created: Timestamp) -> Result<Loaded> {
        match &*trained.candidate.task {
            Classify::NAME => trained.load(&self.classifiers, version, created).await.map(Loaded::Classify),
            Chat::NAME => trained.load(&*self.chat()?, version, created).await.map(Loaded::Chat),
            task => Err(unknown(task)),
        }
    }

    #[cfg(feature = "decoder")]
    fn chat(&self) -> Result<Box<dyn ModelLoader<Chat>>> {
        Ok(Box::new(DecoderLoader::new(self.device.clone())))
    }

    #[cfg(not(feature = "decoder"))]
    fn chat(&self) -> Result<Box<dyn ModelLoader<Chat>>> {
        Err(not_built("load chat model"))
    }

    /// The chat model in a folder or a GGUF file, with conversations of at most `context` tokens.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) in a build without decoders; those of the loader.
    #[cfg(feature = "decoder")]
    pub async fn chat_file(&self, path: &Path, context: usize) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        DecoderLoader::new(self.device.clone()).with_context(context).open(path, named(path)).await
    }

    /// The chat model in a folder or a GGUF file.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported): this is a build without decoders.
    #[cfg(not(feature = "decoder"))]
    pub async fn chat_file(&self, path: &Path, _context: usize) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Err(not_built("load chat model").with("path", path.display()))
    }

    /// The folder of a version's whole model: its own, or for an adapter `to`, with the adapter worked into its base.
    ///
    /// # Errors
    /// Those of the loader, for an adapter.
    #[cfg(feature = "decoder")]
    pub async fn whole(&self, manifest: &Manifest, folder: &Path, to: &Path) -> Result<PathBuf> {
        DecoderLoader::new(self.device.clone()).whole(manifest, folder, to).await
    }

    /// The folder of a version's model, which is an adapter's alone for an adapter: this is a build without decoders.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "decoder"))]
    pub async fn whole(&self, _manifest: &Manifest, folder: &Path, _to: &Path) -> Result<PathBuf> {
        Ok(folder.to_owned())
    }

    /// The embedder in a folder.
    ///
    /// # Errors
    /// As [`chat_file`](Self::chat_file).
    #[cfg(feature = "decoder")]
    pub async fn embed_file(&self, path: &Path) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        EmbedderLoader::new(self.device.clone()).open(path, named(path)).await
    }

    /// The embedder in a folder.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported): this is a build without decoders.
    #[cfg(not(feature = "decoder"))]
    pub async fn embed_file(&self, path: &Path) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        Err(not_built("load embedder").with("path", path.display()))
    }
}

impl Loaded {
    /// The model as a classifier.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) if it is none.
    pub fn classifier(&self) -> Result<&dyn InferenceBackend<Classify>> {
        match self {
            Self::Classify(backend) => Ok(&**backend),
            Self::Chat(_) => Err(Error::unsupported("classify", "the version in service is no classifier")),
        }
    }

    /// The model as a chat model.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) if it is none.
    pub fn chat(&self) -> Result<&dyn InferenceBackend<Chat>> {
        match self {
            Self::Chat(backend) => Ok(&**backend),
            Self::Classify(_) => Err(Error::unsupported("chat", "the version in service is no chat model")),
        }
    }
}

#[cfg(feature = "decoder")]
fn named(path: &Path) -> ServedModel {
    ServedModel::named(path.file_stem().unwrap_or_default().to_string_lossy())
}

#[cfg(not(feature = "decoder"))]
fn not_built(operation: &'static str) -> Error {
    Error::unsupported(operation, "this program is built without models in files; build it with --features decoder")
}

fn unknown(task: &str) -> Error {
    Error::unsupported("load version", "the kitchen does not know this task; an upgrade may").with("task", task)
}
