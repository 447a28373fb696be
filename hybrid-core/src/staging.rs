//! Whole files for providers that cannot read chunks.

use std::{fmt, path::Path};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BoxStream, FileName, Key, Result, Timestamp};

/// A place for whole files, such as a model's folder that a provider imports: copies of what the registry holds, never a source.
///
/// # Behavior
/// - [`put_file`](Self::put_file) takes the place of a file that is there. Readers see the old file or the new one, whole; when it returns `Ok` the new one is durable.
/// - A put that fails or is dropped leaves what was there, and as far as it can nothing else; where it cannot, the adapter says what has to be swept.
/// - [`read_file`](Self::read_file) returns a file's bytes, whoever put it there: so a provider's reports beside what it was given are read too. One of more than
///   [`MAX_OBJECT_BYTES`](crate::MAX_OBJECT_BYTES) is refused with [`TooLarge`](crate::ErrorKind::TooLarge), one that is not there with [`NotFound`](crate::ErrorKind::NotFound).
/// - [`list`](Self::list) yields each file of a folder once, in byte order of the names; nothing for a folder that is not there.
/// - [`delete`](Self::delete) of a file that is not there is `Ok`.
///
/// # Errors
/// `put_file` answers [`NotFound`](crate::ErrorKind::NotFound) if the local file is not there, [`InvalidInput`](crate::ErrorKind::InvalidInput) if it changes while it is read;
/// both name the path.
#[async_trait]
pub trait Staging: fmt::Debug + Send + Sync + 'static {
    /// Copies the local file `source` to `name` in `folder`.
    async fn put_file(&self, folder: &Key, name: &FileName, source: &Path) -> Result<()>;
    /// Reads the small file `name` in `folder`.
    async fn read_file(&self, folder: &Key, name: &FileName) -> Result<Bytes>;
    /// The files of `folder`, those in folders below it too.
    fn list(&self, folder: &Key) -> BoxStream<'static, Result<StagedFile>>;
    /// Removes a file.
    async fn delete(&self, folder: &Key, name: &FileName) -> Result<()>;
    /// What a provider is told to find `folder`, such as `s3://bucket/prefix/folder/`.
    fn location(&self, folder: &Key) -> String;
}

/// A file in a [`Staging`] place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedFile {
    /// The name below the folder.
    pub name: FileName,
    /// The size in bytes.
    pub size: u64,
    /// When it was put there, by the place's own clock.
    pub modified: Timestamp,
}
