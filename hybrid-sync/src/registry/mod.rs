//! The registry of model versions: publish, fetch, channels and signatures over any [`ArtifactStore`].
//!
//! A **version** is a [`Manifest`] stored under its digest: files as lists of chunks, lineage, verdict. A **channel** is an append-only,
//! numbered sequence of signed statements that say which version is in service. Nothing in the store is ever changed.
//!
//! | object | made by | signed by |
//! |---|---|---|
//! | `blobs/<sha256>.<nonce>` | [`Registry::publish`] | through the manifest |
//! | `manifests/<sha256>.sigstore.json` | [`Registry::publish`] | the builder key: an OpenSSF Model Signing bundle |
//! | `manifests/<sha256>` | [`Registry::publish`], last | through the bundle |
//! | `channels/<model>/<channel>/<seq, 20 digits>` | [`Channel::append`] | the release key |
//!
//! [`Registry::fetch`] verifies all of it before a byte reaches a loader; [`ChannelReader`] refuses rollback, forks and stale statements.
//! Trust is a list of keys ([`Trust`]); who distributes them is the deployment's affair.

mod channel;
mod chunk;
mod dsse;
mod fetch;
mod files;
mod key;
mod oms;
mod publish;
mod settle;
mod versions;

use std::{collections::BTreeSet, sync::Arc};

use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, ChannelName, Clock, Digest, Document, Error, ErrorKind, IdSource, Key, ListOptions, Manifest,
    ModelName, Result, SystemClock, SystemIds, TenantId,
};

pub use channel::{
    Channel, ChannelReader, FileFloor, Floor, FloorStore, Head, Look, MemoryFloor, Release, Renewer, Statement,
};
pub use fetch::{FetchOptions, Fetched, InUse, Pruned, held_versions, hold_versions, prune_cache};
pub use key::{FileSigner, PublicKey};
pub use oms::{VerifiedFolder, sign_folder, verify_folder};
pub use publish::{Draft, PublishOptions, Published};
pub use versions::RegistryVersions;

/// The name under which a version's manifest lies beside its files.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The name under which a version's OpenSSF Model Signing bundle lies beside its files.
pub const SIGNATURE_FILE: &str = "model.sig";

/// Publishes and fetches model versions. Clones are cheap and share the store.
///
/// ```
/// use std::sync::Arc;
/// use hybrid_core::memory::MemoryStore;
/// use hybrid_sync::registry::{Namespace, Registry};
///
/// let registry = Registry::new(Arc::new(MemoryStore::default()), Namespace::root());
/// # let _ = registry;
/// ```
#[derive(Clone, Debug)]
pub struct Registry {
    store: Arc<dyn ArtifactStore>,
    namespace: Namespace,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl Registry {
    /// A registry in `namespace` of `store`, with the machine's clock and ids.
    pub fn new(store: Arc<dyn ArtifactStore>, namespace: Namespace) -> Self {
        Self { store, namespace, clock: Arc::new(SystemClock), ids: Arc::new(SystemIds::default()) }
    }

    /// The same registry with another clock, which times the waits between tries.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The same registry with another source of nonces.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }

    /// The channel `name` of `model`.
    pub fn channel(&self, model: &ModelName, name: &ChannelName) -> Channel {
        Channel::new(self.clone(), model.clone(), name.clone())
    }

    /// All channels that have a statement, in order. Nothing is verified by this: whoever can write to the store can add names.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn channels(&self) -> Result<Vec<Channel>> {
        let prefix = self.namespace.prefix("channels/");
        let objects: Vec<_> = self.store.list(&prefix, ListOptions::default()).try_collect().await?;
        let names: BTreeSet<_> = objects
            .iter()
            .filter_map(|meta| {
                let mut parts = meta.key.as_str().strip_prefix(&prefix)?.split('/');
                Some((ModelName::new(parts.next()?).ok()?, ChannelName::new(parts.next()?).ok()?))
            })
            .collect();
        Ok(names.iter().map(|(model, name)| self.channel(model, name)).collect())
    }

    /// Reads a manifest and checks it against its digest. Its signature is not looked at: for display and for publishers, not for loading.
    ///
    /// # Errors
    /// Those of the store, [`Corrupt`](ErrorKind::Corrupt) if the bytes differ from the digest or are no manifest.
    pub async fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let key = self.manifest_key(digest)?;
        let bytes = self.read(&key).await?;
        digest.verify("read manifest", &bytes).map_err(|error| error.with("key", &key))?;
        Manifest::decode(&bytes).map_err(|error| error.with("key", &key))
    }

    fn manifest_key(&self, digest: Digest) -> Result<Key> {
        self.namespace.key(&format!("manifests/{digest}"))
    }

    fn bundle_key(&self, digest: Digest) -> Result<Key> {
        self.namespace.key(&format!("manifests/{digest}.sigstore.json"))
    }

    fn blob_key(&self, digest: Digest, nonce: &str) -> Result<Key> {
        self.namespace.key(&format!("blobs/{digest}.{nonce}"))
    }
}

/// Where in a store a registry lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// At the root of the store.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Under `t/<tenant>/`, for models that belong to one tenant.
    pub fn tenant(tenant: &TenantId) -> Self {
        Self(format!("t/{tenant}/"))
    }

    fn key(&self, rest: &str) -> Result<Key> {
        Key::new(format!("{}{rest}", self.0))
    }

    fn prefix(&self, rest: &str) -> String {
        format!("{}{rest}", self.0)
    }
}

/// The keys whose signatures count. A key that is not named here verifies nothing.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys that may sign versions.
    pub builders: Vec<PublicKey>,
    /// Keys that may sign channel statements.
    pub releases: Vec<PublicKey>,
}

/// Makes the cache folder.
pub(crate) async fn prepare_cache(folder: std::path::PathBuf) -> Result<()> {
    files::blocking(move || {
        std::fs::create_dir_all(&folder).map_err(|error| files::io_error("create cache folder", &folder, error))
    })
    .await
}

/// Checks that a version carries what it needs to be loaded: files, a dataset, a plan, and a verdict.
fn check_complete(manifest: &Manifest) -> Result<()> {
    let incomplete = |what: &'static str| {
        Err(Error::new(ErrorKind::Untrusted, "check manifest", "a version without it does not load")
            .with("missing", what)
            .with("model", &manifest.model)
            .with("version", manifest.version))
    };
    if manifest.files.is_empty() {
        return incomplete("files");
    }
    if manifest.lineage.plan.dataset.digest() != manifest.lineage.dataset {
        return incomplete("the dataset that the plan names");
    }
    if manifest.lineage.plan.model != manifest.model {
        return incomplete("a plan for this model");
    }
    if manifest.verdict.is_none() {
        return incomplete("verdict");
    }
    Ok(())
}
