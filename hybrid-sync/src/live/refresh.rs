//! One look at the channel, and the swap that may follow.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hybrid_core::{
    CallContext, Clock, Digest, Error, ErrorKind, IdSource, ModelLoader, Monotonic, RequestId, Result, Task, TenantId,
};

use super::{
    LiveEvent, LiveVersion, Shared,
    serving::{Lease, Serving},
};
use crate::registry::{
    ChannelReader, FetchOptions, Fetched, Floor, Pruned, Registry, Trust, hold_versions, prune_cache,
};

/// A version that has failed is left alone for at most this long.
const LONGEST_HOLD: Duration = Duration::from_secs(60 * 60);
/// A warm-up that takes longer has failed.
const WARM_UP_LIMIT: Duration = Duration::from_secs(120);

/// What kept a version out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It could not be brought here.
    Fetch,
    /// It could not be loaded and warmed up.
    Version,
}

/// What a refresh did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refresh {
    /// Nothing was ever released on the channel.
    Unreleased,
    /// The channel names the version in service.
    Unchanged,
    /// The channel names a version that has failed before; it is not tried again yet.
    Held {
        /// The version.
        manifest: Digest,
        /// Why it failed.
        why: String,
        /// When it is tried again, from now.
        retry_in: Duration,
    },
    /// Another version is in service.
    Swapped {
        /// Its number.
        version: u64,
        /// Its identity.
        manifest: Digest,
        /// Chunk bytes read from the store.
        bytes_moved: u64,
        /// Time to fetch and verify.
        fetch: Duration,
        /// Time to load and warm up.
        load: Duration,
        /// Time in which requests changed over.
        swap: Duration,
    },
}

/// What follows the channel; one refresh at a time has it.
pub(super) struct Follower<T: Task> {
    pub(super) registry: Registry,
    pub(super) reader: ChannelReader,
    pub(super) trust: Trust,
    pub(super) loader: Arc<dyn ModelLoader<T>>,
    pub(super) cache: PathBuf,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) warm_up: Option<T::Request>,
    pub(super) poll_interval: Duration,
    pub(super) failed: HashMap<Digest, Failure>,
    /// Under which name the versions to keep are written down in the cache.
    pub(super) holder: String,
    /// Those versions as last written: the one in service, the one before, the one that is wanted.
    pub(super) held: Vec<Digest>,
    /// Something may have come into the cache since it was pruned.
    pub(super) unpruned: bool,
}

pub(super) struct Failure {
    why: String,
    times: u32,
    retry_at: Monotonic,
}

impl<T: Task> Follower<T> {
    pub(super) fn floor(&self) -> Option<&Floor> {
        self.reader.floor()
    }

    /// Puts the version that was in service before a restart in service again. The store is asked only if the cache has been damaged.
    pub(super) async fn restore(&mut self, shared: &Shared<T>) -> Result<()> {
        self.publish_times(shared);
        let Some(serving) = self.reader.floor().and_then(|floor| floor.serving) else { return Ok(()) };
        let done = self.put_in_service(serving, shared).await.map(|_| ()).map_err(|(error, _)| error);
        done.inspect_err(|error| fail(shared, Some(serving), error))
    }

    pub(super) async fn refresh(&mut self, shared: &Shared<T>) -> Result<Refresh> {
        let looked = self.reader.look().await;
        self.publish_times(shared);
        let wanted = match looked {
            Ok(look) => look.floor.manifest,
            // A storefront may well start before its first version is made.
            Err(error) if error.kind() == ErrorKind::NotFound && self.reader.floor().is_none() => {
                return Ok(Refresh::Unreleased);
            }
            Err(error) => {
                fail(shared, None, &error);
                return Err(error);
            }
        };
        let serving = shared.current.load().as_ref().map(|serving| serving.version.manifest);
        if serving == Some(wanted) {
            self.failed.clear();
            self.reader.set_serving(wanted).await?;
            return Ok(Refresh::Unchanged);
        }
        let now = self.clock.monotonic();
        self.failed.retain(|manifest, _| *manifest == wanted);
        if let Some(failure) = self.failed.get(&wanted)
            && failure.retry_at > now
        {
            return Ok(Refresh::Held {
                manifest: wanted,
                why: failure.why.clone(),
                retry_in: failure.retry_at.since(now),
            });
        }
        match self.put_in_service(wanted, shared).await {
            Ok(swapped) => {
                self.failed.clear();
                self.reader.set_serving(wanted).await?;
                Ok(swapped)
            }
            Err((error, cause)) => {
                fail(shared, Some(wanted), &error);
                // A store that is away says nothing about the version; a version that takes too long to answer does.
                if cause == Cause::Version || !error.is_temporary() {
                    self.remember(wanted, &error);
                }
                Err(error)
            }
        }
    }

    async fn put_in_service(&mut self, manifest: Digest, shared: &Shared<T>) -> Result<Refresh, (Error, Cause)> {
        let started = self.clock.monotonic();
        self.unpruned = true;
        self.hold(shared, Some(manifest)).await;
        let fetched = self.registry.fetch(manifest, &self.trust, &self.cache, FetchOptions::default()).await;
        let fetched = fetched.map_err(|error| (error, Cause::Fetch))?;
        let fetched_at = self.clock.monotonic();
        let serving = self.load(&fetched, shared).await.map_err(|error| (error, Cause::Version))?;
        let loaded_at = self.clock.monotonic();
        let to = serving.version;
        let old = shared.current.swap(Some(Arc::new(serving)));
        let swapped_at = self.clock.monotonic();
        let from = old.as_ref().map(|old| old.version);
        // Given back like a request's lease: whoever is last drops the version off the serving path.
        drop(old.map(Lease::new));
        tracing::info!(name: "swapped", model = %shared.model, channel = %shared.channel, version = to.version, manifest = %to.manifest, bytes_moved = fetched.bytes_moved, "swapped");
        let (bytes_moved, fetch) = (fetched.bytes_moved, fetched_at.since(started));
        let (load, swap) = (loaded_at.since(fetched_at), swapped_at.since(loaded_at));
        shared.emit(LiveEvent::Swapped { to, from, bytes_moved, fetch, load, swap });
        Ok(Refresh::Swapped { version: to.version, manifest, bytes_moved, fetch, load, swap })
    }

    async fn load(&self, fetched: &Fetched, shared: &Shared<T>) -> Result<Serving<T>> {
        let Fetched { folder, digest, manifest, in_use, .. } = fetched;
        let operation = "load version";
        if manifest.model != shared.model {
            return Err(Error::untrusted(operation, "the channel names a version of another model")
                .with("expected", &shared.model)
                .with("found", &manifest.model));
        }
        if manifest.task != T::NAME {
            return Err(Error::unsupported(operation, "the version is for another task")
                .with("expected", T::NAME)
                .with("found", &manifest.task));
        }
        let backend = self.loader.load(manifest, *digest, folder).await?;
        let loaded = backend.profile().model.manifest;
        if loaded != Some(*digest) {
            return Err(Error::internal(operation, "the loader's backend does not name the version that it was given")
                .with("manifest", digest));
        }
        if let Some(request) = &self.warm_up {
            let mut cx = CallContext::new(TenantId::single(), RequestId::next(&*self.ids));
            cx.clock = Arc::clone(&self.clock);
            let cx = cx.with_timeout(WARM_UP_LIMIT);
            cx.run("warm up version", backend.infer(&cx, request.clone())).await?;
        }
        let version = LiveVersion { version: manifest.version, manifest: *digest };
        Ok(Serving { version, backend, _in_use: in_use.clone() })
    }

    /// Prunes the cache if something may have come into it. The version in service is not worse for it if that fails.
    pub(super) async fn prune(&mut self, shared: &Shared<T>) {
        if !std::mem::take(&mut self.unpruned) {
            return;
        }
        self.hold(shared, self.reader.floor().map(|floor| floor.manifest)).await;
        match prune_cache(&self.cache).await {
            Ok(pruned) if pruned == Pruned::default() => {}
            Ok(Pruned { versions, bytes }) => {
                tracing::info!(cache = %self.cache.display(), versions = versions.len(), bytes, "removed versions that nobody needs");
            }
            Err(error) => tracing::warn!(%error, "the cache could not be pruned"),
        }
    }

    /// Writes down which versions this model needs: the one in service, the one before it, and the one that is wanted.
    async fn hold(&mut self, shared: &Shared<T>, wanted: Option<Digest>) {
        let serving = shared.current.load().as_ref().map(|serving| serving.version.manifest);
        // Not in service yet, after a restart, is not the same as never.
        let serving = serving.or_else(|| self.reader.floor().and_then(|floor| floor.serving));
        let before = self.held.iter().copied().find(|held| Some(*held) != serving);
        let mut needed = Vec::with_capacity(3);
        for version in [serving, before, wanted].into_iter().flatten() {
            if !needed.contains(&version) {
                needed.push(version);
            }
        }
        if needed == self.held {
            return;
        }
        match hold_versions(&self.cache, &self.holder, &needed).await {
            Ok(()) => self.held = needed,
            Err(error) => tracing::warn!(%error, "the versions to keep could not be written down"),
        }
    }

    fn remember(&mut self, manifest: Digest, error: &Error) {
        let now = self.clock.monotonic();
        let failure = self.failed.entry(manifest).or_insert(Failure { why: String::new(), times: 0, retry_at: now });
        let hold = self.poll_interval.saturating_mul(4 << failure.times.min(16)).min(LONGEST_HOLD);
        failure.times += 1;
        failure.why = error.to_string();
        failure.retry_at = now.plus(hold);
    }

    /// Lets requests see when the newest statement expires and how late it is.
    fn publish_times(&self, shared: &Shared<T>) {
        let expires = self.reader.floor().and_then(|floor| floor.expires);
        shared.expires.store(expires.map_or(i64::MAX, |time| time.unix_micros()), Ordering::Relaxed);
        shared.latest.fetch_max(self.reader.now().unix_micros(), Ordering::Relaxed);
    }
}

fn fail<T: Task>(shared: &Shared<T>, manifest: Option<Digest>, error: &Error) {
    tracing::warn!(name: "refresh failed", model = %shared.model, channel = %shared.channel, %error, "a refresh failed; what is in service stays");
    shared.emit(LiveEvent::Failed { manifest, why: error.to_string() });
}
