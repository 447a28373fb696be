//! Fetching a version: nothing unverified becomes visible, nothing that is here already moves again.

mod folder;
mod local;
mod prune;
mod writer;

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    Cancellation, ChunkRef, Digest, Document, Error, FileEntry, FileName, MAX_OBJECT_BYTES, Manifest, NoProgress,
    Progress, ProgressEvent, Result,
};
use tokio::sync::mpsc;

pub use self::prune::{InUse, Pruned, held_versions, hold_versions, prune_cache};
use self::{
    folder::{Cache, Partial},
    local::{Place, read_place},
    writer::{Piece, blame, flush_files, hash_files, write_files},
};
use super::{MANIFEST_FILE, Registry, SIGNATURE_FILE, Trust, check_complete, files::blocking, oms};

const FETCH: &str = "fetch version";

/// Chunks that wait for each of the threads behind a download.
const QUEUED_CHUNKS: usize = 4;

/// How to fetch.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Chunks read at once. Memory is bounded by about this many chunks of at most 16 MiB.
    pub parallelism: usize,
    /// Gets the stage `fetch`, in bytes.
    pub progress: Arc<dyn Progress>,
    /// Raised to stop; what is verified stays and is found by the next fetch.
    pub cancel: Cancellation,
}

impl Default for FetchOptions {
    /// Eight chunks at once, no progress, never cancelled.
    fn default() -> Self {
        Self { parallelism: 8, progress: Arc::new(NoProgress), cancel: Cancellation::new() }
    }
}

/// A version on this machine: verified, complete, durable.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The version's folder: its files, [`MANIFEST_FILE`] and [`SIGNATURE_FILE`].
    pub folder: PathBuf,
    /// The version's identity.
    pub digest: Digest,
    /// The version.
    pub manifest: Manifest,
    /// Chunk bytes read from the store.
    pub bytes_moved: u64,
    /// Chunk bytes that were on this machine already.
    pub bytes_reused: u64,
    /// Keeps the folder from [`prune_cache`]: hold it while anything reads there.
    pub in_use: InUse,
}

impl Registry {
    /// Brings a version to `<cache>/<digest>/` and verifies all of it: the manifest by its digest, the signature by a trusted builder key, the
    /// signed files against the manifest's, and each file as a whole before any of them has its place. A file that is not the one signed is gone
    /// through chunk by chunk, so that the error names the object, and the next fetch reads no other again.
    ///
    /// # Behavior
    /// - A version that is there already is verified again, every byte, and needs no store: what was fetched once can be served offline. If it is
    ///   damaged, only the damaged chunks are read again.
    /// - Chunks found in the cache's other versions are copied, verified on the way.
    /// - Work in progress lies in `<cache>/<digest>.partial/`; a fetch that was interrupted goes on there. Activation is one rename.
    /// - Several fetches of one version wait for each other, across processes.
    /// - The version stays in the cache while a clone of [`Fetched::in_use`] is held or a holder has [written it down](hold_versions); whoever
    ///   [prunes](prune_cache) the cache may remove it otherwise.
    /// - Below the cache folder nothing is written through a symlink or into a file that has a second name.
    ///
    /// # Errors
    /// [`Untrusted`](hybrid_core::ErrorKind::Untrusted) for a signature, name or manifest that must not be loaded,
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) that names the object whose bytes differ, [`StorageFull`](hybrid_core::ErrorKind::StorageFull)
    /// that names the path; those of the store.
    ///
    /// # Cancel safety
    /// Fetch again.
    pub async fn fetch(&self, manifest: Digest, trust: &Trust, cache: &Path, options: FetchOptions) -> Result<Fetched> {
        let cancel = options.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled(FETCH, "the caller cancelled").with("manifest", manifest)),
            done = self.fetch_all(manifest, trust, cache, options) => done.map_err(|error| match error.context("manifest") {
                None => error.with("manifest", manifest),
                Some(_) => error,
            }),
        }
    }

    async fn fetch_all(&self, digest: Digest, trust: &Trust, cache: &Path, options: FetchOptions) -> Result<Fetched> {
        let FetchOptions { parallelism, progress, cancel: _ } = options;
        let cache = Cache::new(cache, digest);
        let lock = Arc::new(self.lock(&cache).await?);
        let in_use = locked(&lock, {
            let cache = cache.clone();
            move || cache.use_version()
        })
        .await?;
        let manifest = match active(&lock, &cache, trust).await? {
            Some(manifest) => {
                let bytes_reused = manifest.files.iter().map(|file| file.size).sum();
                let folder = cache.active();
                return Ok(Fetched { folder, digest, manifest, bytes_moved: 0, bytes_reused, in_use });
            }
            None => self.verified_manifest(digest, trust).await?,
        };
        let (manifest, bytes, bundle) = manifest;
        let partial = locked(&lock, {
            let (cache, manifest) = (cache.clone(), manifest.clone());
            move || Partial::open(&cache, &manifest)
        })
        .await?;
        let local = blocking({
            let cache = cache.clone();
            move || Ok(local::index(&cache))
        })
        .await?;
        let download = Download {
            registry: self,
            partial: partial.folder().to_owned(),
            present: partial.present(),
            local,
            total: manifest.files.iter().map(|file| file.size).sum(),
            moved: AtomicU64::new(0),
            progress,
        };
        download.all(&lock, &manifest, parallelism.max(1)).await?;
        let moved = download.moved.into_inner();
        let total = download.total;
        let folder =
            locked(&lock, move || partial.activate(&cache, &[(MANIFEST_FILE, &bytes), (SIGNATURE_FILE, &bundle)]))
                .await?;
        Ok(Fetched { folder, digest, manifest, bytes_moved: moved, bytes_reused: total - moved, in_use })
    }

    /// Waits for other fetches of the same version. The operating system releases the lock of a process that dies.
    async fn lock(&self, cache: &Cache) -> Result<std::fs::File> {
        loop {
            let cache = cache.clone();
            if let Some(lock) = blocking(move || cache.try_lock()).await? {
                return Ok(lock);
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn verified_manifest(&self, digest: Digest, trust: &Trust) -> Result<(Manifest, Bytes, Bytes)> {
        let (key, bundle_key) = (self.manifest_key(digest)?, self.bundle_key(digest)?);
        let bytes = self.read(&key).await?;
        digest.verify(FETCH, &bytes).map_err(|error| error.with("key", &key))?;
        let bundle = self.read(&bundle_key).await?;
        let manifest =
            verify_manifest(digest, &bytes, &bundle, &trust.builders).map_err(|error| error.with("key", bundle_key))?;
        let prefix = self.namespace.prefix("blobs/");
        for chunk in manifest.files.iter().flat_map(|file| &file.chunks) {
            if !chunk.blob.as_str().starts_with(&prefix) {
                return Err(Error::untrusted(FETCH, "a chunk lies outside this registry")
                    .with("key", &chunk.blob)
                    .with("expected below", prefix));
            }
        }
        Ok((manifest, bytes, bundle))
    }
}

/// Runs blocking work that keeps the version's lock until it has ended, also if the fetch that began it is dropped before.
async fn locked<R: Send + 'static>(lock: &Arc<File>, work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    let lock = Arc::clone(lock);
    blocking(move || {
        let result = work();
        drop(lock);
        result
    })
    .await
}

/// The version's manifest if its folder is there and every byte of it holds; a damaged folder becomes work in progress again.
async fn active(lock: &Arc<File>, cache: &Cache, trust: &Trust) -> Result<Option<Manifest>> {
    let (cache, keys) = (cache.clone(), trust.builders.clone());
    locked(lock, move || {
        if !cache.is_active()? {
            return Ok(None);
        }
        let digest = cache.digest();
        match cache.verify(|bytes, bundle| verify_manifest(digest, bytes, bundle, &keys)) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => {
                tracing::warn!(%digest, %error, "a version in the cache does not verify; it is fetched again");
                cache.deactivate()?;
                Ok(None)
            }
        }
    })
    .await
}

/// Digest, signature, format and completeness, in this order.
fn verify_manifest(digest: Digest, bytes: &[u8], bundle: &[u8], keys: &[super::PublicKey]) -> Result<Manifest> {
    digest.verify(FETCH, bytes)?;
    let manifest = Manifest::decode(bytes)
        .map_err(|error| Error::untrusted(FETCH, "the manifest cannot be read").with_source(error))?;
    oms::verify_version(bundle, &manifest, digest, keys)?;
    check_complete(&manifest)?;
    let reserved = [FileName::new(MANIFEST_FILE)?, FileName::new(SIGNATURE_FILE)?];
    FileName::check_together(manifest.files.iter().map(|file| &file.name).chain(&reserved)).map_err(|error| {
        Error::untrusted(FETCH, "the manifest's file names cannot lie in one folder").with_source(error)
    })?;
    for file in &manifest.files {
        let sum = file.chunks.iter().try_fold(0_u64, |sum, chunk| sum.checked_add(chunk.size));
        if sum != Some(file.size) || file.chunks.iter().any(|chunk| chunk.size > MAX_OBJECT_BYTES as u64) {
            return Err(Error::untrusted(FETCH, "the chunks do not add up to the file")
                .with("file", &file.name)
                .with("size", file.size));
        }
    }
    Ok(manifest)
}

struct Download<'a> {
    registry: &'a Registry,
    partial: PathBuf,
    /// Bytes of each file that an earlier fetch may have written.
    present: HashMap<FileName, u64>,
    local: HashMap<Digest, Place>,
    total: u64,
    moved: AtomicU64,
    progress: Arc<dyn Progress>,
}

impl Download<'_> {
    /// Chunks are obtained in parallel and come out in order; behind them one thread writes, one hashes whole files, and one keeps the disk busy.
    async fn all(&self, lock: &Arc<File>, manifest: &Manifest, parallelism: usize) -> Result<()> {
        let (to_write, pieces) = mpsc::channel::<Piece>(QUEUED_CHUNKS);
        let (to_hash, chunks) = mpsc::channel::<Bytes>(QUEUED_CHUNKS);
        let (to_flush, flushes) = std::sync::mpsc::sync_channel(1);
        let files: Arc<[FileEntry]> = manifest.files.clone().into();
        let writer = locked(lock, {
            let (folder, files) = (self.partial.clone(), Arc::clone(&files));
            move || write_files(&folder, &files, pieces, &to_flush)
        });
        let flusher = locked(lock, move || flush_files(&flushes));
        let hasher = blocking({
            let files = Arc::clone(&files);
            move || Ok(hash_files(&files, chunks))
        });
        // Owned, because a stream over borrowed jobs makes a future that cannot be spawned.
        let mut jobs = Vec::new();
        for (file, entry) in manifest.files.iter().enumerate() {
            let mut offset = 0;
            for chunk in &entry.chunks {
                jobs.push((file, offset, chunk.clone()));
                offset += chunk.size;
            }
        }
        let downloads = async move {
            let mut obtained = stream::iter(jobs)
                .map(|(file, offset, chunk)| async move {
                    let (bytes, in_place) = self.obtain(&manifest.files[file].name, offset, &chunk).await?;
                    Ok::<_, Error>(Piece { file, offset, bytes, in_place })
                })
                .buffered(parallelism);
            let mut done = 0;
            while let Some(piece) = obtained.try_next().await? {
                let bytes = piece.bytes.clone();
                done += bytes.len() as u64;
                // Written first: what has been hashed is sure to be written, too. A thread that has ended early says why.
                if to_write.send(piece).await.is_err() || to_hash.send(bytes).await.is_err() {
                    break;
                }
                self.progress.report(ProgressEvent::new("fetch", done, self.total, "bytes"));
            }
            Ok(())
        };
        // All of them end, so that nothing is written behind the back of whoever fetches next.
        let (written, flushed, hashed, obtained) = tokio::join!(writer, flusher, hasher, downloads);
        written.and(flushed).and(obtained)?;
        match hashed? {
            None => Ok(()),
            Some(damaged) => {
                let folder = self.partial.clone();
                Err(blocking(move || Ok(blame(&folder, &files[damaged]))).await?)
            }
        }
    }

    /// A chunk's bytes, and whether they lie where they belong already. What is on this machine is taken only if it verifies; what comes from the
    /// store is verified with its file.
    async fn obtain(&self, name: &FileName, offset: u64, chunk: &ChunkRef) -> Result<(Bytes, bool)> {
        let end = offset + chunk.size;
        let (digest, size) = (chunk.digest, chunk.size);
        if self.present.get(name).is_some_and(|&present| end <= present) {
            let place = Place { path: self.partial.join(name.as_str()), offset };
            if let Some(bytes) = blocking(move || Ok(read_place(&place, size, digest))).await? {
                return Ok((bytes, true));
            }
        }
        if let Some(place) = self.local.get(&digest).cloned()
            && let Some(bytes) = blocking(move || Ok(read_place(&place, size, digest))).await?
        {
            return Ok((bytes, false));
        }
        let bytes = self.registry.read(&chunk.blob).await?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(Error::corrupt(FETCH, "a chunk has another size than the manifest says")
                .with("key", &chunk.blob)
                .with("expected", size)
                .with("found", found));
        }
        self.moved.fetch_add(size, Ordering::Relaxed);
        Ok((bytes, false))
    }
}
