//! Where documents of credentials come from: lists of API keys, sets of public keys.

use std::{fmt, io::ErrorKind as IoErrorKind, path::PathBuf};

use async_trait::async_trait;
use hybrid_core::{Error, Result};

/// What such a document may have at most, in bytes.
pub(super) const DOCUMENT_BYTES: usize = 8 * 1024 * 1024;

/// A place that a document of credentials is read from, again and again: a file, a URL, a secrets manager.
///
/// # Behavior
/// [`fetch`](Self::fetch) answers with the whole document as it is now. Whoever reads it keeps the last good one when a fetch fails.
///
/// # Cancel safety
/// The future may be dropped at any point.
#[async_trait]
pub trait CredentialSource: fmt::Debug + Send + Sync + 'static {
    /// The document as it is now.
    async fn fetch(&self) -> Result<Vec<u8>>;
}

/// A document in a file, to be replaced by a rename, so that no half of it is ever read.
#[derive(Clone, Debug)]
pub struct CredentialFile {
    path: PathBuf,
}

impl CredentialFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

#[async_trait]
impl CredentialSource for CredentialFile {
    async fn fetch(&self) -> Result<Vec<u8>> {
        let bytes = tokio::fs::read(&self.path).await.map_err(|error| {
            let failed = match error.kind() {
                IoErrorKind::NotFound => Error::not_found("read credentials", "there is no such file"),
                _ => Error::unavailable("read credentials", "the file cannot be read"),
            };
            failed.with("path", self.path.display()).with_source(error)
        })?;
        check_size(bytes.len()).map_err(|error| error.with("path", self.path.display()))?;
        Ok(bytes)
    }
}

pub(super) fn check_size(bytes: usize) -> Result<()> {
    if bytes <= DOCUMENT_BYTES {
        return Ok(());
    }
    Err(Error::too_large("read credentials", "the document is over the limit")
        .with("bytes", bytes)
        .with("limit", DOCUMENT_BYTES))
}
