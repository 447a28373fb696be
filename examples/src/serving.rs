//! The version in service, as the kitchen uses it itself.

use std::{fmt, path::Path, sync::Arc};

use hybrid_core::{ChannelName, Digest, InferenceBackend, Manifest, ModelLoader, ModelName, Result, task::Classify};
use hybrid_local::TextClassifierLoader;
use hybrid_sync::{
    registry::{FetchOptions, InUse, Registry, Trust},
    worker::JobContext,
};

/// A version that is in service, loaded.
pub struct Serving {
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// The model.
    pub backend: Arc<dyn InferenceBackend<Classify>>,
    _in_use: InUse,
}

impl Serving {
    /// The version that `channel` of `model` names, verified and loaded; `None` where there is none yet.
    ///
    /// # Errors
    /// Those of the registry and the loader.
    pub async fn load(
        cx: &JobContext,
        registry: &Registry,
        (model, channel): (&ModelName, &ChannelName),
        trust: &Trust,
        cache: &Path,
        loader: &TextClassifierLoader,
    ) -> Result<Option<Self>> {
        let Some(head) = registry.channel(model, channel).head(&trust.releases).await? else { return Ok(None) };
        let digest = head.statement.manifest;
        let options = FetchOptions { cancel: cx.cancel.clone(), ..FetchOptions::default() };
        let fetched = registry.fetch(digest, trust, cache, options).await?;
        let backend = loader.load(&fetched.manifest, digest, &fetched.folder).await?;
        Ok(Some(Self { digest, manifest: fetched.manifest, backend, _in_use: fetched.in_use }))
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("digest", &self.digest).finish_non_exhaustive()
    }
}
