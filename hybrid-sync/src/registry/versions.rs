//! A registry as a source of models for whoever asks for one by name.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use hybrid_core::{
    ChannelName, Clock, Digest, Error, LocalVersion, ModelName, Result, SystemClock, VersionRef, VersionSource,
};

use super::{
    ChannelReader, FetchOptions, Fetched, FileFloor, Registry, Trust,
    files::{blocking, io_error},
    prepare_cache,
};

const OPERATION: &str = "bring version";

/// Brings versions of a [`Registry`] into a cache on this machine: a base to train from, a model for a command.
///
/// # Behavior
/// - A version is fetched and verified as [`Registry::fetch`] does it. It stays in the cache while
///   [`LocalVersion::in_use`](hybrid_core::LocalVersion::in_use) is held.
/// - A channel is followed as [`ChannelReader`] does it: the newest statement accepted is remembered in the cache, in
///   `<model>.<channel>.named.floor.json`, and nothing older is taken later. Processes take turns at it.
/// - With the store away, a channel means the version that it was last seen to name, if the cache has that.
///
/// What is in service and has to be swapped while requests go on is a [`LiveModel`](crate::live::LiveModel) instead.
#[derive(Clone, Debug)]
pub struct RegistryVersions {
    registry: Registry,
    trust: Trust,
    cache: PathBuf,
    clock: Arc<dyn Clock>,
}

impl RegistryVersions {
    /// Versions of `registry` that `trust` vouches for, in the folder `cache`, which is made.
    pub fn new(registry: Registry, trust: Trust, cache: impl Into<PathBuf>) -> Self {
        Self { registry, trust, cache: cache.into(), clock: Arc::new(SystemClock) }
    }

    /// The same with another clock, by which statements expire.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    async fn fetch(&self, digest: Digest) -> Result<Fetched> {
        self.registry.fetch(digest, &self.trust, &self.cache, FetchOptions::default()).await
    }

    /// The version that a channel names.
    async fn named(&self, model: &ModelName, channel: &ChannelName) -> Result<Digest> {
        let name = format!("{model}.{channel}.named");
        let _turn = self.take_turn(&name).await?;
        let floor = Arc::new(FileFloor::new(self.cache.join(format!("{name}.floor.json"))));
        let channel = self.registry.channel(model, channel);
        let mut reader = ChannelReader::open(channel, &self.trust, floor, Arc::clone(&self.clock)).await?;
        let looked = reader.look().await;
        match (looked, reader.floor()) {
            (Ok(look), _) => {
                if look.stale {
                    tracing::warn!(%model, seq = look.floor.seq, "the channel's newest statement has expired; the version that it names is used");
                }
                Ok(look.floor.manifest)
            }
            (Err(error), Some(floor)) if error.is_temporary() => {
                tracing::warn!(%model, seq = floor.seq, %error, "the channel cannot be read; the version that it was last seen to name is used");
                Ok(floor.manifest)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Waits until no one else reads the channel by this floor.
    async fn take_turn(&self, name: &str) -> Result<File> {
        let path = self.cache.join(format!("{name}.floor.lock"));
        let locked = move || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = file.and_then(|file| file.lock().map(|()| file));
            file.map_err(|error| io_error(OPERATION, &path, error))
        };
        blocking(locked).await
    }
}

#[async_trait]
impl VersionSource for RegistryVersions {
    async fn bring(&self, which: &VersionRef) -> Result<LocalVersion> {
        prepare_cache(self.cache.clone()).await?;
        let named = |error: Error| error.with("version", which);
        let (digest, model) = match which {
            VersionRef::Manifest(digest) => (*digest, None),
            VersionRef::Channel(model, channel) => (self.named(model, channel).await.map_err(named)?, Some(model)),
            _ => return Err(named(Error::unsupported(OPERATION, "a version cannot be named so here"))),
        };
        let Fetched { folder, digest, manifest, in_use, .. } = self.fetch(digest).await.map_err(named)?;
        if let Some(model) = model.filter(|model| **model != manifest.model) {
            return Err(Error::untrusted(OPERATION, "the channel names a version of another model")
                .with("expected", model)
                .with("found", &manifest.model));
        }
        Ok(LocalVersion { folder, digest, manifest, in_use: Arc::new(in_use) })
    }
}
