use std::{future::ready, mem};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use uuid::Uuid;

use super::{ABANDONED, FILE_PART_BYTES, FilePart, Files, READS, StoredFile, is_of, part_key, parts_prefix};
use crate::{ArtifactStoreExt, Digest, Error, FileId, Key, ListOptions, Result, TenantId, Timestamp};

/// A file on its way into the bucket: about one part of it is in memory.
///
/// # Cancel safety
/// One that is dropped is no file. Its parts lie in the bucket until [`abandon`](Self::abandon) or [`Files::sweep`] takes them. A call of
/// [`write`](Self::write) that is dropped makes the upload useless: abandon it.
#[derive(Debug)]
pub struct FileUpload {
    files: Files,
    tenant: TenantId,
    id: FileId,
    /// Its own, whoever else tries to make the same file.
    nonce: Uuid,
    buffer: BytesMut,
    parts: Vec<FilePart>,
    /// When the first part was stored.
    first: Option<Timestamp>,
    bytes: u64,
    /// The descriptor is on its way, and may arrive whatever becomes of the call.
    naming: bool,
}

/// What a file is called and for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// The name that its owner gives it.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// From when on it is gone; never where absent.
    pub expires: Option<Timestamp>,
}

impl NewFile {
    /// A file that stays until it is erased.
    pub fn new(name: impl Into<String>, purpose: impl Into<String>) -> Self {
        Self { name: name.into(), purpose: purpose.into(), expires: None }
    }
}

impl FileUpload {
    pub(super) fn new(files: Files, tenant: TenantId, id: FileId) -> Self {
        let nonce = files.ids.next_uuid();
        Self {
            files,
            tenant,
            id,
            nonce,
            buffer: BytesMut::new(),
            parts: Vec::new(),
            first: None,
            bytes: 0,
            naming: false,
        }
    }

    /// The id that the file will have.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// How many bytes it has so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds `bytes`.
    ///
    /// # Errors
    /// Those of the store: the upload is to be abandoned.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = FILE_PART_BYTES - self.buffer.len();
            self.buffer.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if self.buffer.len() == FILE_PART_BYTES {
                self.store_part().await?;
            }
        }
        Ok(())
    }

    /// Makes the file of what was written. The same id again is the same file: what an earlier attempt at a job's effect made stays.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the upload has taken half a day, since a [sweep](Files::sweep) takes parts of no file after a whole one: upload again.
    /// Those of the store. After any of them the upload is to be abandoned.
    pub async fn finish(&mut self, new: NewFile) -> Result<StoredFile> {
        if !self.buffer.is_empty() {
            self.store_part().await?;
        }
        if let Some(first) = self.first.filter(|first| first.plus(ABANDONED / 2) < self.files.clock.now()) {
            return Err(Error::unavailable(
                "finish file",
                "the upload has taken so long that parts of it may be swept; upload again",
            )
            .with("file", self.id)
            .with("begun", first));
        }
        self.naming = true;
        self.files.keep(&self.tenant, self.id, self.nonce, mem::take(&mut self.parts), new).await
    }

    /// Removes what this upload has stored, unless [`finish`](Self::finish) came as far as naming it: then it is a file, or may become one when a write
    /// that is still under way arrives, and what never does is left to [`Files::sweep`].
    ///
    /// # Errors
    /// Those of the store; [`Files::sweep`] takes what is left.
    pub async fn abandon(self) -> Result<()> {
        if self.naming {
            return Ok(());
        }
        let prefix = parts_prefix(&self.tenant, self.id);
        let store = &self.files.store;
        // Another attempt's parts may lie beside its own.
        let is_own = |key: &Key| key.as_str().strip_prefix(&prefix).is_some_and(|name| is_of(name, Some(self.nonce)));
        let own = store.list(&prefix, ListOptions::default()).try_filter(|meta| ready(is_own(&meta.key)));
        own.try_for_each_concurrent(READS, async |meta| store.delete(&meta.key).await).await
    }

    async fn store_part(&mut self) -> Result<()> {
        let bytes = mem::take(&mut self.buffer).freeze();
        let part = FilePart { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        let key = part_key(&self.tenant, self.id, Some(self.nonce), &part.digest)?;
        self.first.get_or_insert(self.files.clock.now());
        // A part may be there: the same bytes twice in one file.
        self.files.store.create_same(&key, bytes).await?;
        self.parts.push(part);
        Ok(())
    }
}
