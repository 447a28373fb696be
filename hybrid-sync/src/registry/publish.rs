//! Publishing a version: blobs first, then the signature, the manifest last.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    Cancellation, CandidateFile, ChunkRef, Digest, Document, Error, FileEntry, FileName, Hasher, Key, Lineage,
    Manifest, ModelName, NoProgress, Progress, ProgressEvent, Requirements, Result, Signer, Timestamp, VerdictRecord,
};
use tokio::sync::mpsc;

use super::{
    MANIFEST_FILE, PublicKey, Registry, SIGNATURE_FILE, check_complete,
    chunk::{cut, regions},
    files::{blocking, io_error},
    oms,
    settle::Settled,
};

/// Chunks that wait between two stages.
const QUEUED_CHUNKS: usize = 4;

/// What is to become a version.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The model.
    pub model: ModelName,
    /// The version's number, for people.
    pub version: u64,
    /// The task, as [`Task::NAME`](hybrid_core::Task::NAME).
    pub task: String,
    /// What kind of loader reads the files, as `<name>/<major>`.
    pub architecture: String,
    /// The files, in any order.
    pub files: Vec<CandidateFile>,
    /// What a machine needs to load it.
    pub requirements: Requirements,
    /// Where it comes from.
    pub lineage: Lineage,
    /// The evaluation that lets it be published.
    pub verdict: VerdictRecord,
    /// Anything else, for people.
    pub metadata: BTreeMap<String, String>,
    /// The version whose chunks need not be uploaded again: the one in service, usually.
    pub base: Option<Digest>,
}

/// How to publish.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// Names this publication. A retry with the same name, such as the job's id, finds the blobs that it has uploaded already; another
    /// publication never shares its blobs' keys.
    pub publish_id: String,
    /// The version's time of making. A retry that passes the same time ends with the same manifest.
    pub created: Timestamp,
    /// Chunks hashed and uploaded at once. Memory is bounded by about this many chunks and 32 MiB.
    pub parallelism: usize,
    /// Gets the stage `publish`, in bytes.
    pub progress: Arc<dyn Progress>,
    /// Raised to stop; what is uploaded stays and is found by a retry.
    pub cancel: Cancellation,
}

impl PublishOptions {
    /// Sixteen chunks at once, no progress, never cancelled.
    pub fn new(publish_id: impl Into<String>, created: Timestamp) -> Self {
        Self {
            publish_id: publish_id.into(),
            created,
            parallelism: 16,
            progress: Arc::new(NoProgress),
            cancel: Cancellation::new(),
        }
    }
}

/// What publishing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The version.
    pub manifest: Digest,
    /// Chunk bytes uploaded.
    pub bytes_moved: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Chunks uploaded.
    pub blobs_uploaded: u64,
    /// Chunks that were there already, in the base version, earlier in this version, or from an interrupted try.
    pub blobs_reused: u64,
}

impl Registry {
    /// Publishes a version and signs it with the builder key.
    ///
    /// Files are cut, hashed and uploaded in parallel with bounded memory. Chunks of the base version are not uploaded and the store is not asked
    /// about them. The order is blobs, signature, manifest: a crash leaves nothing that anyone could mistake for a version.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for no files, names that clash or are reserved, or incomplete lineage;
    /// [`TooLarge`](hybrid_core::ErrorKind::TooLarge) for a manifest over 16 MiB; those of store, signer and file system.
    ///
    /// # Cancel safety
    /// Publish again with the same [`PublishOptions::publish_id`].
    pub async fn publish(&self, draft: Draft, builder: &dyn Signer, options: PublishOptions) -> Result<Published> {
        let cancel = options.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled("publish version", "the caller cancelled")),
            done = self.publish_all(draft, builder, options) => done,
        }
    }

    async fn publish_all(&self, draft: Draft, builder: &dyn Signer, options: PublishOptions) -> Result<Published> {
        let Draft { model, version, task, architecture, mut files, requirements, lineage, verdict, metadata, base } =
            draft;
        let PublishOptions { publish_id, created, parallelism, progress, cancel: _ } = options;
        check_names(&files)?;
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut manifest = Manifest {
            model,
            version,
            task,
            architecture,
            created,
            files: files
                .iter()
                .map(|file| FileEntry { name: file.name.clone(), size: 0, digest: Digest::of(b""), chunks: Vec::new() })
                .collect(),
            requirements,
            lineage,
            verdict: Some(verdict),
            metadata,
        };
        check_complete(&manifest)
            .map_err(|error| Error::invalid("publish version", "the draft is incomplete").with_source(error))?;

        let (sources, total) = blocking(move || sources(files)).await?;
        let upload = Upload {
            registry: self.clone(),
            nonce: Digest::of(publish_id.as_bytes()).to_string()[..16].to_owned(),
            known: Mutex::new(self.base_chunks(base).await?),
            total,
            moved: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            progress,
        };
        upload.all(&mut manifest, sources, parallelism.max(1)).await?;

        let bytes = manifest.encode()?;
        let digest = Digest::of(&bytes);
        let key = self.manifest_key(digest)?;
        hybrid_core::check_object_size(&key, bytes.len())?;
        self.create_bundle(&manifest, digest, builder).await?;
        if let Settled::Other(_) = self.create_settled(&key, &bytes).await? {
            return Err(
                Error::corrupt("publish version", "other bytes lie under the manifest's digest").with("key", key)
            );
        }
        Ok(Published {
            manifest: digest,
            bytes_moved: upload.moved.into_inner(),
            bytes_total: upload.total,
            blobs_uploaded: upload.uploaded.into_inner(),
            blobs_reused: upload.reused.into_inner(),
        })
    }

    async fn base_chunks(&self, base: Option<Digest>) -> Result<HashMap<Digest, Known>> {
        let Some(base) = base else { return Ok(HashMap::new()) };
        let chunks = self.manifest(base).await?.files.into_iter().flat_map(|file| file.chunks);
        Ok(chunks.map(|chunk| (chunk.digest, Known { blob: chunk.blob, size: chunk.size })).collect())
    }

    async fn create_bundle(&self, manifest: &Manifest, digest: Digest, builder: &dyn Signer) -> Result<()> {
        let key = self.bundle_key(digest)?;
        let bundle = oms::sign_version(manifest, digest, builder).await?;
        match self.create_settled(&key, &bundle).await? {
            Settled::Created | Settled::Same => Ok(()),
            // Signatures may differ each time; an earlier try's is as good if it holds.
            Settled::Other(found) => {
                let own = PublicKey::from_pem(builder.public_key_pem())?;
                oms::verify_version(&found, manifest, digest, &[own]).map_err(|error| error.with("key", key))
            }
        }
    }
}

fn check_names(files: &[CandidateFile]) -> Result<()> {
    let reserved = [FileName::new(MANIFEST_FILE)?, FileName::new(SIGNATURE_FILE)?];
    FileName::check_together(files.iter().map(|file| &file.name).chain(&reserved))?;
    let first = |name: &FileName| name.as_str().split('/').next().unwrap_or_default().to_lowercase();
    match files.iter().find(|file| oms::GIT_PATHS.contains(&first(&file.name).as_str())) {
        Some(file) => Err(Error::invalid(
            "publish version",
            "signature tools leave git's files out of a model; leave them out of the version",
        )
        .with("file", &file.name)),
        None => Ok(()),
    }
}

/// A file to be published with its size in bytes when publishing began.
struct Source {
    name: FileName,
    path: PathBuf,
    size: u64,
}

fn sources(files: Vec<CandidateFile>) -> Result<(Vec<Source>, u64)> {
    let mut total = 0;
    let mut sources = Vec::with_capacity(files.len());
    for CandidateFile { name, path } in files {
        let size = std::fs::metadata(&path).map_err(|error| io_error("read file", &path, error))?.len();
        total += size;
        sources.push(Source { name, path, size });
    }
    Ok((sources, total))
}

struct Known {
    blob: Key,
    size: u64,
}

struct Upload {
    registry: Registry,
    nonce: String,
    known: Mutex<HashMap<Digest, Known>>,
    total: u64,
    moved: AtomicU64,
    uploaded: AtomicU64,
    reused: AtomicU64,
    progress: Arc<dyn Progress>,
}

/// A chunk on its way, with the index of its file.
type Piece = (usize, Bytes);

impl Upload {
    /// One thread reads and cuts, one hashes whole files, any number hash and upload chunks; chunks come out in order.
    async fn all(&self, manifest: &mut Manifest, sources: Vec<Source>, parallelism: usize) -> Result<()> {
        let (to_upload, mut uploads) = mpsc::channel::<Piece>(QUEUED_CHUNKS);
        let (to_hash, hashes) = std::sync::mpsc::sync_channel::<Piece>(QUEUED_CHUNKS);
        let count = sources.len();
        let hasher = blocking(move || Ok(hash_files(count, &hashes)));
        let reader = blocking(move || {
            for (i, Source { name, path, size }) in sources.into_iter().enumerate() {
                let failed = |error| io_error("read file", &path, error);
                let mut file = std::fs::File::open(&path).map_err(failed)?;
                let regions = regions(&mut file, name.as_str(), size).map_err(failed)?;
                // A closed channel means that the publication has ended.
                let mut pass_on = |chunk: Bytes| {
                    to_hash.send((i, chunk.clone())).is_ok() && to_upload.blocking_send((i, chunk)).is_ok()
                };
                cut(&mut file, &regions, &mut pass_on).map_err(failed)?;
            }
            Ok(())
        });
        let files = &mut manifest.files;
        let uploader = async move {
            let mut placed = stream::poll_fn(|cx| uploads.poll_recv(cx))
                .map(|(file, chunk)| async move { Ok::<_, Error>((file, self.place(chunk).await?)) })
                .buffered(parallelism);
            let mut done = 0;
            while let Some((file, chunk)) = placed.try_next().await? {
                done += chunk.size;
                self.progress.report(ProgressEvent::new("publish", done, self.total, "bytes"));
                files[file].size += chunk.size;
                files[file].chunks.push(chunk);
            }
            Ok(())
        };
        let ((), (), digests) = tokio::try_join!(reader, uploader, hasher)?;
        for (file, digest) in manifest.files.iter_mut().zip(digests) {
            file.digest = match (digest, file.chunks.as_slice()) {
                (Some(digest), _) => digest,
                (None, [only]) => only.digest,
                (None, _) => Digest::of(b""),
            };
        }
        Ok(())
    }

    async fn place(&self, bytes: Bytes) -> Result<ChunkRef> {
        let size = bytes.len() as u64;
        let (digest, bytes) = blocking(move || Ok((Digest::of(&bytes), bytes))).await?;
        let key = self.registry.blob_key(digest, &self.nonce)?;
        let known = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let found = known.get(&digest).filter(|known| known.size == size).map(|known| known.blob.clone());
            if found.is_none() {
                // A chunk that occurs twice is uploaded by the first; nothing refers to it before all are there.
                known.insert(digest, Known { blob: key.clone(), size });
            }
            found
        };
        let blob = match known {
            Some(blob) => {
                self.reused.fetch_add(1, Ordering::Relaxed);
                blob
            }
            None => {
                if self.registry.create_blob(&key, &bytes).await? {
                    self.uploaded.fetch_add(1, Ordering::Relaxed);
                    self.moved.fetch_add(size, Ordering::Relaxed);
                } else {
                    self.reused.fetch_add(1, Ordering::Relaxed);
                }
                key
            }
        };
        Ok(ChunkRef { blob, digest, size })
    }
}

/// The digest of each file; `None` for a file of at most one chunk, whose digest is the chunk's.
fn hash_files(count: usize, pieces: &std::sync::mpsc::Receiver<Piece>) -> Vec<Option<Digest>> {
    let mut hashers: Vec<Option<Hasher>> = vec![None; count];
    let mut last: Option<Piece> = None;
    for (file, bytes) in pieces {
        if let Some((before, first)) = last.take().filter(|(before, _)| *before == file) {
            hashers[before].get_or_insert_default().update(&first);
        }
        match &mut hashers[file] {
            Some(hasher) => hasher.update(&bytes),
            None => last = Some((file, bytes)),
        }
    }
    hashers.into_iter().map(|hasher| hasher.map(Hasher::finish)).collect()
}
