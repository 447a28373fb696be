//! Where models come from: a folder or a file on this machine, the Hugging Face hub or its cache, or a registry's versions.

mod cache;
#[cfg(feature = "hub")]
mod hub;
mod name;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{Error, LocalVersion, Result, VersionSource};

use crate::blocking::blocking;

pub use self::{
    cache::HubCache,
    name::{HubModel, ModelSource},
};
#[cfg(feature = "hub")]
pub use hub::Hub;

const OPERATION: &str = "find model";

/// Brings models to this machine, wherever they come from.
///
/// # Behavior
/// - A path is taken as it is.
/// - A model of the hub is looked for in the hub's [cache](HubCache). What the cache lacks is fetched only where a `Hub` is set, which is there with
///   the feature `hub`; else it is an error that names the command which fetches it.
/// - A registry's version comes through the [`VersionSource`] set, which verifies it.
///
/// ```no_run
/// # async fn load() -> hybrid_core::Result<()> {
/// use hybrid_core::ServedModel;
/// use hybrid_local::{DecoderLoader, Device, ModelResolver, ModelSource};
///
/// let source: ModelSource = "hf:Qwen/Qwen3-0.6B".parse()?;
/// let model = ModelResolver::local().resolve(&source).await?;
/// let backend = DecoderLoader::new(Device::cpu()).open(model.path(), ServedModel::named("qwen3")).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct ModelResolver {
    /// By default where the environment says, when it is looked into.
    cache: Option<HubCache>,
    #[cfg(feature = "hub")]
    hub: Option<Hub>,
    versions: Option<Arc<dyn VersionSource>>,
}

/// A model on this machine: hold it until its files have been read.
#[derive(Clone, Debug)]
pub struct LocalModel {
    path: PathBuf,
    version: Option<LocalVersion>,
}

impl ModelResolver {
    /// Models that are on this machine already: paths, and what the hub's cache has where the environment says. Nothing is fetched.
    pub fn local() -> Self {
        Self::default()
    }

    /// The same, with the hub's cache in another place.
    #[must_use]
    pub fn with_cache(mut self, cache: HubCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// The same, with models fetched from the hub into the hub's own cache.
    #[cfg(feature = "hub")]
    #[must_use]
    pub fn with_hub(mut self, hub: Hub) -> Self {
        self.hub = Some(hub);
        self
    }

    /// The same, with versions of a registry.
    #[must_use]
    pub fn with_versions(mut self, versions: Arc<dyn VersionSource>) -> Self {
        self.versions = Some(versions);
        self
    }

    /// Says where a model lies on this machine, after it was brought there if need be: a folder, or one file.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) that names what is missing and how to get it;
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for a registry's version where no registry is set; those of the hub and of the
    /// [`VersionSource`].
    pub async fn resolve(&self, source: &ModelSource) -> Result<LocalModel> {
        match source {
            ModelSource::Path(path) if path.exists() => Ok(path.clone().into()),
            ModelSource::Path(path) => {
                Err(Error::not_found(OPERATION, "there is no such folder or file").with("path", path.display()))
            }
            ModelSource::Hub(model) => {
                #[cfg(feature = "hub")]
                if let Some(hub) = &self.hub {
                    return hub.fetch(model).await.map(LocalModel::from);
                }
                self.cached(model).await.map(LocalModel::from)
            }
            ModelSource::Version(version) => {
                let versions = self.versions.as_ref().ok_or_else(|| {
                    Error::unsupported(OPERATION, "the model is a registry's, and none is set; name a folder instead")
                        .with("version", version)
                })?;
                let version = versions.bring(version).await?;
                Ok(LocalModel { path: version.folder.clone(), version: Some(version) })
            }
        }
    }

    async fn cached(&self, model: &HubModel) -> Result<PathBuf> {
        let cache = self.cache.clone().map_or_else(HubCache::from_env, Ok)?;
        let model = model.clone();
        blocking(OPERATION, move || cache.find(&model)).await
    }
}

impl LocalModel {
    /// The folder of the model's files, or its one file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version, if it is a registry's.
    pub fn version(&self) -> Option<&LocalVersion> {
        self.version.as_ref()
    }
}

impl AsRef<Path> for LocalModel {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl From<PathBuf> for LocalModel {
    fn from(path: PathBuf) -> Self {
        Self { path, version: None }
    }
}
