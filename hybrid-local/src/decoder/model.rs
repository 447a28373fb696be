//! One model in memory, served as itself and with adapters.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use hybrid_core::{Digest, Error, InferenceBackend, Manifest, ModelLoader, Result, ServedModel, Task, task::Chat};

use super::{
    ADAPTER_ARCHITECTURE,
    adapter::Adapter,
    backend::DecoderBackend,
    codec::Codec,
    config::DecoderConfig,
    engine::{Engine, Numbered},
    loader::OPERATION,
};
use crate::{Device, blocking::blocking, files};

/// A chat model in memory, whose weights and caches all backends made of it share.
///
/// # Behavior
/// - One thread answers the requests of all its backends, side by side, whatever adapters they are made with: a tenant's adapter costs its
///   own matrices and no copy of the model.
/// - As a [`ModelLoader`] it knows the architecture `decoder-adapter/1`: a version whose files are an adapter as PEFT or mlx-lm leaves it
///   (`adapter_config.json` with `adapter_model.safetensors` or `adapters.safetensors`). A version of another base is
///   [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) where its shapes tell; who publishes adapters names their base.
/// - The words of adapters are the base's: tokenizer and template in an adapter's folder are not read.
/// - An adapter's memory is free again once its backend is dropped and what was asked of it is answered.
///
/// ```no_run
/// # async fn serve(cx: &hybrid_core::CallContext) -> hybrid_core::Result<()> {
/// use hybrid_core::{ServedModel, task::ChatRequest};
/// use hybrid_local::{DecoderLoader, Device};
///
/// let model = DecoderLoader::new(Device::cpu()).with_streams(4).open_model("models/qwen3-0.6b".as_ref()).await?;
/// let plain = model.backend(ServedModel::named("qwen3"));
/// let bakery = model.adapter("adapters/bakery".as_ref(), ServedModel::named("bakery")).await?;
/// println!("{}", bakery.infer(cx, ChatRequest::user("Ten rolls, please.")).await?.response.text());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DecoderModel {
    config: Arc<DecoderConfig>,
    codec: Arc<Codec>,
    engine: Arc<Engine>,
    device: Device,
    adapters: Arc<AtomicU64>,
}

impl DecoderModel {
    pub(super) fn new(config: DecoderConfig, codec: Arc<Codec>, engine: Engine, device: Device) -> Self {
        Self { config: Arc::new(config), codec, engine: Arc::new(engine), device, adapters: Arc::default() }
    }

    /// The model as itself, served as `model`.
    pub fn backend(&self, model: ServedModel) -> Arc<dyn InferenceBackend<Chat>> {
        self.serve(None, model)
    }

    /// The model with the adapter in `folder`, served as `model`.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) that names what is missing, `Corrupt` and `Unsupported` that name file and fault,
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names a layer that the model has in another shape, and
    /// [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted) if its matrices do not fit into the memory that is free.
    pub async fn adapter(&self, folder: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        let (this, folder) = (self.clone(), folder.to_owned());
        let work = move || {
            let adapter = Adapter::open(&folder, &this.config, this.device.tensors())?;
            files::check_memory(OPERATION, adapter.bytes(), None)?;
            // Zero is none.
            let number = this.adapters.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(this.serve(Some(Arc::new(Numbered { number, adapter })), model))
        };
        blocking(OPERATION, work).await
    }

    fn serve(&self, adapter: Option<Arc<Numbered>>, model: ServedModel) -> Arc<dyn InferenceBackend<Chat>> {
        let (codec, engine) = (Arc::clone(&self.codec), Arc::clone(&self.engine));
        Arc::new(DecoderBackend::new(codec, engine, adapter, model, &self.device))
    }
}

#[async_trait]
impl ModelLoader<Chat> for DecoderModel {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        let model = check_manifest(manifest, digest, ADAPTER_ARCHITECTURE)?;
        self.adapter(folder, model).await.map_err(|error| error.with("manifest", digest))
    }
}

/// Checks that a version is a chat model of `architecture`; gives as what it is served.
///
/// # Errors
/// `Unsupported` that names what it is instead.
pub(super) fn check_manifest(manifest: &Manifest, digest: Digest, architecture: &str) -> Result<ServedModel> {
    let unsupported = |message: &'static str| Error::unsupported(OPERATION, message).with("manifest", digest);
    if manifest.task != Chat::NAME {
        return Err(unsupported("the version is of another task").with("task", &manifest.task));
    }
    if manifest.architecture != architecture {
        let error = unsupported("the architecture is unknown; an upgrade may know it");
        return Err(error.with("architecture", &manifest.architecture).with("known", architecture));
    }
    Ok(ServedModel { name: manifest.model.to_string(), version: Some(manifest.version), manifest: Some(digest) })
}
