//! Links by which somebody without credentials uploads or downloads one object.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{Digest, Key, Result, Timestamp};

/// An optional power of an artifact store: signed links, with which a customer moves bytes to or from the store without passing through
/// the storefront and without credentials.
///
/// # Behavior
/// - A link holds for one object, one method, the headers that [`SignedRequest::headers`] lists and the time asked. Whoever has it can use it until then: it is
///   a secret, and nobody can call it back.
/// - Making a link asks the store nothing. Whether the object exists shows when the link is used.
/// - An upload creates the object and never overwrites one. It has exactly the size asked, and the content type and digest where they were given; the store
///   refuses another.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the time is zero or longer than the store allows (7 days on S3), [`TooLarge`](crate::ErrorKind::TooLarge) if an
/// upload is over [`MAX_OBJECT_BYTES`](crate::MAX_OBJECT_BYTES), [`PermissionDenied`](crate::ErrorKind::PermissionDenied) if there are no credentials to sign with.
#[async_trait]
pub trait Presign: fmt::Debug + Send + Sync + 'static {
    /// A link that uploads the object `key`.
    async fn presign_upload(&self, key: &Key, options: UploadOptions) -> Result<SignedRequest>;
    /// A link that downloads the object `key`.
    async fn presign_download(&self, key: &Key, options: DownloadOptions) -> Result<SignedRequest>;
}

/// What an upload by a link must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// How long the link holds.
    pub expires_in: Duration,
    /// The exact size in bytes.
    pub size: u64,
    /// The content type that must be sent, where one is asked for.
    pub content_type: Option<String>,
    /// The digest that the bytes must have, where it is known.
    pub digest: Option<Digest>,
}

/// How a download by a link is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadOptions {
    /// How long the link holds.
    pub expires_in: Duration,
    /// The content type of the answer, if not the stored one.
    pub content_type: Option<String>,
    /// The file name that a browser saves it under.
    pub file_name: Option<String>,
}

/// A request that is signed already: to be sent as it is, with these headers and no others that begin with `x-`.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedRequest {
    /// The method, `PUT` or `GET`.
    pub method: String,
    /// The URL with its signature.
    pub url: String,
    /// The headers that must be sent; HTTP clients set `host` and `content-length` on their own.
    pub headers: Vec<(String, String)>,
    /// When the link stops to hold.
    pub expires: Timestamp,
}

/// Without the signature, which is a secret.
impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedRequest")
            .field("method", &self.method)
            .field("url", &self.url.split('?').next().unwrap_or_default())
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
