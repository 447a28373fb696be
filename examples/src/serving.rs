//! Which version is in service, as far as this kitchen has been led, and that version, loaded.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{ArtifactStore, ChannelName, Clock, Digest, ErrorKind, Manifest, ModelName, Result, Signer};
use hybrid_sync::{
    registry::{ChannelReader, FetchOptions, FileFloor, Head, InUse, Namespace, PublicKey, Registry, Renewer, Trust},
    worker::JobContext,
};
use tokio::sync::Mutex;

use crate::{
    models::{Loaded, Models},
    site::{Site, make_folder},
    train_job::VALID_FOR,
};

/// The channels of a site as its kitchen follows them: one reader each, with a floor in the kitchen's folder, shared by all who ask or sign. Clones share them.
///
/// # Behavior
/// A bucket that was set back, forked or frozen puts no other version in service here: jobs that ask for one fail and say why.
#[derive(Clone, Debug)]
pub struct Channels(Arc<Followed>);

/// A channel by its model and its name.
pub type ChannelId = (ModelName, ChannelName);

#[derive(Debug)]
struct Followed {
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    signer: Arc<dyn Signer>,
    trust: Trust,
    floors: PathBuf,
    /// A renewer is a reader that can sign what it has accepted.
    renewers: Mutex<BTreeMap<ChannelId, Arc<Mutex<Renewer>>>>,
}

impl Channels {
    /// The channels in the bucket of a site, none of which is read yet.
    ///
    /// # Errors
    /// A key or a folder that cannot be read or made.
    pub fn open(site: &Site) -> Result<Self> {
        Self::with_floors(site, &site.kitchen().join("floors"))
    }

    /// The same for a second reader at this site, with floors of its own in the folder `floors`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_floors(site: &Site, floors: &Path) -> Result<Self> {
        make_folder(floors)?;
        Ok(Self(Arc::new(Followed {
            store: site.store(),
            clock: site.clock(),
            signer: Arc::new(site.signers()?.1),
            trust: site.trust()?,
            floors: floors.to_owned(),
            renewers: Mutex::default(),
        })))
    }

    /// The version that a channel has in service, after one look at it; `None` where there is none yet.
    ///
    /// # Errors
    /// [`Untrusted`](ErrorKind::Untrusted) for a channel that was set back or forked, or whose newest statement has expired before this kitchen saw it; a
    /// floor that cannot be read or written; those of the store.
    pub async fn in_service(&self, id: &ChannelId) -> Result<Option<Digest>> {
        let renewer = self.renewer(id).await?;
        let mut renewer = renewer.lock().await;
        let reader = renewer.reader_mut();
        match reader.look().await {
            Ok(look) => Ok(Some(look.floor.manifest)),
            Err(error) if error.kind() == ErrorKind::NotFound && reader.floor().is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a channel has had a version in service at any time.
    ///
    /// # Errors
    /// [`Untrusted`](ErrorKind::Untrusted) for a history that is not whole; those of the store.
    pub async fn has_served(&self, (model, name): &ChannelId, manifest: Digest) -> Result<bool> {
        let history = self.registry().channel(model, name).history(self.releases()).await?;
        Ok(history.iter().any(|head| head.statement.manifest == manifest))
    }

    /// Signs a channel's version in service again if its statement's time is half over; answers the new statement.
    ///
    /// # Errors
    /// As [`in_service`](Self::in_service), and those of the signer.
    pub async fn renew(&self, id: &ChannelId) -> Result<Option<Head>> {
        self.renewer(id).await?.lock().await.look().await
    }

    /// All channels that somebody has written to. Whoever can write to the bucket can add names.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self) -> Result<Vec<ChannelId>> {
        let channels = self.registry().channels().await?;
        Ok(channels.into_iter().map(|channel| (channel.model().clone(), channel.name().clone())).collect())
    }

    /// The keys that may sign statements.
    pub fn releases(&self) -> &[PublicKey] {
        &self.0.trust.releases
    }

    async fn renewer(&self, id: &ChannelId) -> Result<Arc<Mutex<Renewer>>> {
        let Followed { clock, signer, trust, floors, renewers, .. } = &*self.0;
        let mut renewers = renewers.lock().await;
        if let Some(known) = renewers.get(id) {
            return Ok(Arc::clone(known));
        }
        let (model, name) = id;
        let folder = floors.join(model.as_str());
        make_folder(&folder)?;
        let floor = Arc::new(FileFloor::new(folder.join(format!("{name}.json"))));
        let channel = self.registry().channel(model, name);
        let reader = ChannelReader::open(channel, trust, floor, Arc::clone(clock)).await?;
        let renewer = Arc::new(Mutex::new(Renewer::new(reader, Arc::clone(signer), VALID_FOR)));
        renewers.insert(id.clone(), Arc::clone(&renewer));
        Ok(renewer)
    }

    fn registry(&self) -> Registry {
        Registry::new(Arc::clone(&self.0.store), Namespace::root())
    }
}

/// The registry as a job may write to it: nothing more once its lease is lost.
pub fn registry_of(cx: &JobContext) -> Registry {
    Registry::new(Arc::clone(&cx.store), Namespace::root())
}

/// A version, verified and loaded.
pub struct Serving {
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// The model.
    pub backend: Loaded,
    _in_use: InUse,
}

impl Serving {
    /// Fetches a version into `cache` and loads it. Whether it may be used is the caller's to know: [`Channels`].
    ///
    /// # Errors
    /// Those of the registry and the loader.
    pub async fn load(cx: &JobContext, digest: Digest, trust: &Trust, cache: &Path, models: &Models) -> Result<Self> {
        let options = FetchOptions { cancel: cx.cancel.clone(), ..FetchOptions::default() };
        let fetched = registry_of(cx).fetch(digest, trust, cache, options).await?;
        let backend = models.version(&fetched.manifest, digest, &fetched.folder).await?;
        Ok(Self { digest, manifest: fetched.manifest, backend, _in_use: fetched.in_use })
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("digest", &self.digest).finish_non_exhaustive()
    }
}
