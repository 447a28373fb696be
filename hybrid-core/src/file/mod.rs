//! Customers' files in the bucket: what is uploaded at the storefront, named by a job, and read by the kitchen.

mod links;
mod upload;

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ArtifactStore, ArtifactStoreExt, BoxStream, Clock, Digest, Document, Error, ErrorKind, FileId, IdSource, Key,
    ListOptions, Presign, ReadOptions, RecordOrder, Result, SystemIds, TenantId, Timestamp,
};

pub use links::PartLink;
pub use upload::{FileUpload, NewFile};

/// How many bytes of a file are one object: 4 MiB. An upload and a download each hold about so many in memory.
pub const FILE_PART_BYTES: usize = 4 * 1024 * 1024;
/// How many descriptors a listing reads at once.
const READS: usize = 16;
/// How old the remains of an upload are that never ended; no upload takes so long.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The files of all tenants in one bucket. Clones share it.
///
/// A file is a descriptor at `t/<tenant>/files/index/<id>` over parts at `t/<tenant>/files/parts/<id>/<sha256>.<nonce>`. The descriptor is written last, so
/// half an upload is no file. Each upload has a nonce of its own, so that two attempts at one file share no part and what is left of one takes nothing
/// from the other. Both halves read files with nothing but the bucket.
///
/// # Behavior
/// - A file is durable when [`FileUpload::finish`] returns, and never changed.
/// - [`get`](Self::get), [`list`](Self::list) and [`erase`](Self::erase) know a tenant's own files alone. A file that has expired is in no answer.
/// - [`read`](Self::read) verifies each part against the descriptor.
/// - [`erase`](Self::erase) takes the parts first: when it returns nothing of the file is left, and one that fails or is dropped leaves a file that can
///   be erased again. Who reads beside it gets an error. A bucket that
///   keeps old versions keeps these too, for as long as its lifecycle rules say.
/// - [`sweep`](Self::sweep) takes what has expired, and what uploads left that never ended.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
/// use futures_util::TryStreamExt;
/// use hybrid_core::{FileId, Files, NewFile, SystemClock, SystemIds, TenantId, memory::MemoryStore};
///
/// let files = Files::new(Arc::new(MemoryStore::default()), Arc::new(SystemClock));
/// let tenant = TenantId::single();
/// let mut upload = files.upload(&tenant, FileId::next(&SystemIds::default()));
/// upload.write("two loaves\n".into()).await?;
/// let file = upload.finish(NewFile::new("orders.txt", "batch")).await?;
///
/// let parts: Vec<_> = files.read(&tenant, &file).try_collect().await?;
/// assert_eq!(parts.concat(), b"two loaves\n");
/// assert!(files.erase(&tenant, file.id).await?);
/// assert!(files.get(&tenant, file.id).await?.is_none());
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Files {
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    links: Option<Arc<dyn Presign>>,
}

/// What is known of a file: the document at its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its id.
    pub id: FileId,
    /// The name that its owner gave it: any text, never a path.
    pub name: String,
    /// What it is for, in the words of the API, such as `batch`.
    pub purpose: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was whole, by the wall clock of whoever took it.
    pub created: Timestamp,
    /// From when on it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What the names of its parts end with, after a dot; the nonce of the upload that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Uuid>,
    /// Its parts, in order.
    pub parts: Vec<FilePart>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    /// The digest of its bytes, with which its name begins.
    pub digest: Digest,
    /// Its size, at most [`FILE_PART_BYTES`].
    pub bytes: u64,
}

impl Document for StoredFile {
    const FORMAT: &'static str = "hybrid.file";
    const MAJOR: u32 = 1;
}

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileQuery {
    /// Only files that come after this one in the order asked.
    pub after: Option<FileId>,
    /// In order of ids, which is that of creation; the newest first by default.
    pub order: RecordOrder,
    /// Only files with this purpose.
    pub purpose: Option<String>,
    /// How many at most.
    pub limit: usize,
}

impl Default for FileQuery {
    fn default() -> Self {
        Self { after: None, order: RecordOrder::Descending, purpose: None, limit: 100 }
    }
}

/// Some of a tenant's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePage {
    /// The files, in the order asked.
    pub files: Vec<StoredFile>,
    /// Whether there are more.
    pub more: bool,
}

impl Files {
    /// The files in `store`, which expire by `clock`.
    pub fn new(store: Arc<dyn ArtifactStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, ids: Arc::new(SystemIds::default()), links: None }
    }

    /// The same files with another source of nonces.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }

    /// Begins a file with an id that nobody has: a fresh one, or for an effect of a job one that is made of the job.
    pub fn upload(&self, tenant: &TenantId, id: FileId) -> FileUpload {
        FileUpload::new(self.clone(), tenant.clone(), id)
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// Those of the store; [`Corrupt`](ErrorKind::Corrupt) if the object is no descriptor of this file.
    pub async fn get(&self, tenant: &TenantId, id: FileId) -> Result<Option<StoredFile>> {
        let now = self.clock.now();
        Ok(self.find(tenant, id).await?.filter(|file| !file.is_expired(now)))
    }

    /// A file's content, part by part.
    ///
    /// # Errors
    /// The stream ends with the first error: those of the store, [`Corrupt`](ErrorKind::Corrupt) for bytes that have changed,
    /// [`NotFound`](ErrorKind::NotFound) if the file is erased meanwhile.
    pub fn read(&self, tenant: &TenantId, file: &StoredFile) -> BoxStream<'static, Result<Bytes>> {
        self.read_range(tenant, file, 0..file.bytes)
    }

    /// The bytes of a file that lie in `range`. Parts are read and verified whole, those alone that have some of the bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read). What lies beyond the end is not there.
    pub fn read_range(
        &self,
        tenant: &TenantId,
        file: &StoredFile,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let (store, tenant, id, nonce) = (Arc::clone(&self.store), tenant.clone(), file.id, file.nonce);
        let mut start = 0;
        let parts = file.parts.iter().filter_map(|part| {
            let within = range.start.max(start)..range.end.min(start + part.bytes);
            let wanted = (within.start < within.end).then(|| (*part, within.start - start..within.end - start));
            start += part.bytes;
            wanted
        });
        let read = move |(part, within): (FilePart, Range<u64>)| {
            let (store, tenant) = (Arc::clone(&store), tenant.clone());
            async move {
                let key = part_key(&tenant, id, nonce, &part.digest)?;
                let bytes = store.read(&key, ReadOptions::verified(part.digest)).await?;
                if bytes.len() as u64 != part.bytes {
                    let other = Error::corrupt("read file", "a part has another size than the descriptor says");
                    return Err(other.with("key", key).with("expected", part.bytes).with("found", bytes.len()));
                }
                // Within a part, so within a usize.
                Ok(bytes.slice(within.start as usize..within.end as usize))
            }
        };
        stream::iter(parts.collect::<Vec<_>>()).then(read).boxed()
    }

    /// A page of a tenant's files: one listing of their names, and one small read for each that is looked at.
    ///
    /// # Errors
    /// Those of the store; [`Corrupt`](ErrorKind::Corrupt) for an object that is no descriptor.
    pub async fn list(&self, tenant: &TenantId, query: FileQuery) -> Result<FilePage> {
        let FileQuery { after, order, purpose, limit } = query;
        let mut ids = self.ids(tenant).await?;
        if order == RecordOrder::Descending {
            ids.reverse();
        }
        let follows = |id: &FileId| match (after, order) {
            (None, _) => true,
            (Some(after), RecordOrder::Ascending) => *id > after,
            (Some(after), RecordOrder::Descending) => *id < after,
        };
        ids.retain(follows);
        let now = self.clock.now();
        let found = stream::iter(ids)
            .map(|id| self.find(tenant, id))
            .buffered(READS)
            // One that was erased since the listing is not there.
            .try_filter_map(async |file| {
                let asked = |file: &StoredFile| {
                    !file.is_expired(now) && purpose.as_ref().is_none_or(|purpose| file.purpose == *purpose)
                };
                Ok(file.filter(asked))
            })
            .take(limit.saturating_add(1));
        let mut files: Vec<_> = found.try_collect().await?;
        let more = files.len() > limit;
        files.truncate(limit);
        Ok(FilePage { files, more })
    }

    /// How many files a tenant has, those included that have expired and are not swept yet.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn count(&self, tenant: &TenantId) -> Result<usize> {
        self.ids(tenant).await.map(|ids| ids.len())
    }

    /// Removes a file and everything that it is made of; answers whether there was one.
    ///
    /// # Errors
    /// Those of the store: then the file may be in part, and is to be erased again.
    pub async fn erase(&self, tenant: &TenantId, id: FileId) -> Result<bool> {
        let key = file_key(tenant, id)?;
        if !self.store.exists(&key).await? {
            return Ok(false);
        }
        self.delete_below(&parts_prefix(tenant, id)).await?;
        self.store.delete(&key).await?;
        Ok(true)
    }

    /// Removes all files of a tenant, and what is left of unfinished ones.
    ///
    /// # Errors
    /// Those of the store: erase again.
    pub async fn erase_tenant(&self, tenant: &TenantId) -> Result<()> {
        self.delete_below(&format!("t/{tenant}/files/parts/")).await?;
        self.delete_below(&format!("t/{tenant}/files/index/")).await
    }

    /// Removes a tenant's files that have expired, and parts that are older than a day and no file's: of uploads that never ended, and of attempts at a file
    /// that another attempt has made. Answers with how many files and ids of uploads that were.
    ///
    /// # Errors
    /// Those of the store: sweep again.
    pub async fn sweep(&self, tenant: &TenantId) -> Result<usize> {
        let (now, mut swept) = (self.clock.now(), 0);
        let mut nonces = BTreeMap::new();
        for id in self.ids(tenant).await? {
            match self.find(tenant, id).await? {
                Some(file) if file.is_expired(now) => {
                    self.erase(tenant, id).await?;
                    swept += 1;
                }
                Some(file) => drop(nonces.insert(id, file.nonce)),
                None => {}
            }
        }
        let prefix = format!("t/{tenant}/files/parts/");
        let mut last = None;
        let mut parts = self.store.list(&prefix, ListOptions::default());
        while let Some(part) = parts.try_next().await? {
            let name = part.key.as_str().strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
            let Some((Ok(id), name)) = name.map(|(id, name)| (id.parse::<FileId>(), name)) else { continue };
            // A day is far more than two clocks differ.
            if part.created.plus(ABANDONED) >= now {
                continue;
            }
            let nonce = match nonces.get(&id) {
                Some(nonce) => Some(*nonce),
                // The file may have been finished since.
                None => self.find(tenant, id).await?.map(|file| file.nonce),
            };
            if nonce.is_none_or(|nonce| !is_of(name, nonce)) {
                self.store.delete(&part.key).await?;
                swept += usize::from(last.replace(id) != Some(id));
            }
        }
        Ok(swept)
    }

    /// Makes a file of parts that are there. The same id again is the same file.
    async fn keep(
        &self,
        tenant: &TenantId,
        id: FileId,
        nonce: Uuid,
        parts: Vec<FilePart>,
        new: NewFile,
    ) -> Result<StoredFile> {
        let NewFile { name, purpose, expires } = new;
        let bytes = parts.iter().map(|part| part.bytes).sum();
        let created = self.clock.now();
        let file = StoredFile { id, name, purpose, bytes, created, expires, nonce: Some(nonce), parts };
        match self.store.create(&file_key(tenant, id)?, file.encode()?).await {
            Ok(()) => Ok(file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.find(tenant, id).await?.ok_or(error),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, tenant: &TenantId, id: FileId) -> Result<Option<StoredFile>> {
        let key = file_key(tenant, id)?;
        let bytes = match self.store.get(&key).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let file = StoredFile::decode(&bytes).map_err(|error| error.with("key", &key))?;
        if file.id != id {
            let other = Error::corrupt("read file", "the descriptor is another file's");
            return Err(other.with("key", key).with("found", file.id));
        }
        Ok(Some(file))
    }

    /// The ids of a tenant's files, in order.
    async fn ids(&self, tenant: &TenantId) -> Result<Vec<FileId>> {
        let prefix = format!("t/{tenant}/files/index/");
        let names = self.store.list(&prefix, ListOptions::default());
        let id = |key: &Key| key.as_str().strip_prefix(&prefix).and_then(|id| id.parse::<FileId>().ok());
        names.try_filter_map(|meta| std::future::ready(Ok(id(&meta.key)))).try_collect().await
    }

    async fn delete_below(&self, prefix: &str) -> Result<()> {
        let store = &self.store;
        let all = store.list(prefix, ListOptions::default());
        all.try_for_each_concurrent(READS, async |meta| store.delete(&meta.key).await).await
    }
}

impl StoredFile {
    /// Whether it has ended.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("store", &self.store).finish_non_exhaustive()
    }
}

fn file_key(tenant: &TenantId, id: FileId) -> Result<Key> {
    Key::new(format!("t/{tenant}/files/index/{id}"))
}

fn parts_prefix(tenant: &TenantId, id: FileId) -> String {
    format!("t/{tenant}/files/parts/{id}/")
}

/// A part's key; without a nonce that of a file from before uploads had one.
fn part_key(tenant: &TenantId, id: FileId, nonce: Option<Uuid>, digest: &Digest) -> Result<Key> {
    let prefix = parts_prefix(tenant, id);
    Key::new(match nonce {
        Some(nonce) => format!("{prefix}{digest}.{nonce}"),
        None => format!("{prefix}{digest}"),
    })
}

/// Whether the part called `name` belongs to the upload with this nonce.
fn is_of(name: &str, nonce: Option<Uuid>) -> bool {
    name.split_once('.').map(|(_, nonce)| nonce) == nonce.map(|nonce| nonce.to_string()).as_deref()
}

#[cfg(test)]
mod tests;
