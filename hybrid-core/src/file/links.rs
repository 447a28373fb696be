//! Files that go to and from the bucket without passing through the storefront.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{ABANDONED, FILE_PART_BYTES, FilePart, Files, NewFile, READS, StoredFile, part_key};
use crate::{DownloadOptions, Error, ErrorKind, FileId, Key, Presign, Result, SignedRequest, TenantId, UploadOptions};

/// A link to one part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartLink {
    /// The part.
    pub part: FilePart,
    /// The request that uploads or downloads it.
    pub request: SignedRequest,
}

impl Files {
    /// The same files with links to their parts, which `presign` signs; it must be of the same store.
    ///
    /// What is uploaded by a link has the size and the digest that were told before: S3 checks both.
    #[must_use]
    pub fn with_links(mut self, presign: Arc<dyn Presign>) -> Self {
        self.links = Some(presign);
        self
    }

    /// Whether there are links.
    pub fn gives_links(&self) -> bool {
        self.links.is_some()
    }

    /// Links that upload the parts of a file which is to be, each of them once. All parts but the last have [`FILE_PART_BYTES`]. The file is there once
    /// [`adopt`](Self::adopt) was told the same; parts that no file names are [swept](Self::sweep) after a day.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for parts that are cut otherwise, [`Unsupported`](ErrorKind::Unsupported) where there are no links; those of
    /// [`Presign`].
    pub async fn upload_links(
        &self,
        tenant: &TenantId,
        id: FileId,
        parts: &[FilePart],
        expires_in: Duration,
    ) -> Result<Vec<PartLink>> {
        check(parts)?;
        let links = self.links()?;
        let mut signed = BTreeSet::new();
        let mut answers = Vec::with_capacity(parts.len());
        for &part in parts {
            if signed.insert(part.digest.to_string()) {
                let (size, digest) = (part.bytes, Some(part.digest));
                let options = UploadOptions { expires_in, size, content_type: None, digest };
                let request = links.presign_upload(&linked(tenant, id, &part)?, options).await?;
                answers.push(PartLink { part, request });
            }
        }
        Ok(answers)
    }

    /// Makes a file of parts that were uploaded by links. The same id again is the same file.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names a part which is not there, has another size, or is so old that a sweep may be about to take it; those of
    /// the store.
    pub async fn adopt(&self, tenant: &TenantId, id: FileId, parts: Vec<FilePart>, new: NewFile) -> Result<StoredFile> {
        check(&parts)?;
        let now = self.clock.now();
        let found =
            stream::iter(parts.clone()).map(async |part| match self.store.head(&linked(tenant, id, &part)?).await {
                Ok(found) if found.size == part.bytes && found.created.plus(ABANDONED / 2) >= now => Ok(()),
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => {
                    Err(Error::invalid("make file", "a part is not there, has another size, or is too old; begin anew")
                        .with("part", part.digest))
                }
            });
        found.buffered(READS).try_collect::<()>().await?;
        self.keep(tenant, id, id.as_uuid(), parts, new).await
    }

    /// Links that download a file's parts, in order.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where there are no links; those of [`Presign`].
    pub async fn download_links(
        &self,
        tenant: &TenantId,
        file: &StoredFile,
        expires_in: Duration,
    ) -> Result<Vec<PartLink>> {
        let links = self.links()?;
        let mut answers = Vec::with_capacity(file.parts.len());
        for &part in &file.parts {
            let options = DownloadOptions { expires_in, content_type: None, file_name: None };
            let request =
                links.presign_download(&part_key(tenant, file.id, file.nonce, &part.digest)?, options).await?;
            answers.push(PartLink { part, request });
        }
        Ok(answers)
    }

    fn links(&self) -> Result<&Arc<dyn Presign>> {
        let none = || Error::unsupported("link file", "the store gives no links; send the file through the storefront");
        self.links.as_ref().ok_or_else(none)
    }
}

/// The key of a part that is uploaded by a link. Each upload by links has an id of its own, which serves as its nonce too: its end need know nothing more.
fn linked(tenant: &TenantId, id: FileId, part: &FilePart) -> Result<Key> {
    part_key(tenant, id, Some(id.as_uuid()), &part.digest)
}

/// Checks that parts are cut as those of any other file.
fn check(parts: &[FilePart]) -> Result<()> {
    let whole = FILE_PART_BYTES as u64;
    for (i, part) in parts.iter().enumerate() {
        let is_last = i + 1 == parts.len();
        if part.bytes != whole && !(is_last && (1..whole).contains(&part.bytes)) {
            let message = "each part must have 4194304 bytes, and the last at most so many and at least one";
            return Err(Error::invalid("link file", message).with("part", i).with("bytes", part.bytes));
        }
    }
    Ok(())
}
