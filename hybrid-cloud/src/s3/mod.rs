//! Artifacts, links and staged files on S3 and on servers that speak its protocol: see [`S3Store`].

mod attempt;
mod create;
mod list;
mod location;
mod presign;
mod read;
mod staging;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    types::{ChecksumAlgorithm, ServerSideEncryption},
};
use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, BoxStream, Clock, Error, IdSource, Key, ListOptions, ObjectMeta, ReadOptions, Result, SystemClock,
    SystemIds,
};
use tokio::sync::Semaphore;

use crate::aws::AwsConfig;

pub use location::S3Location;
pub use staging::S3Staging;

/// An [`ArtifactStore`] in a bucket, below a prefix. Clones share their state.
///
/// ```no_run
/// use hybrid_cloud::{aws::{AwsConfig, AwsOptions}, s3::{S3Options, S3Store}};
///
/// # async fn open() -> hybrid_core::Result<()> {
/// let config = AwsConfig::load(AwsOptions::default()).await?;
/// let store = S3Store::new(&config, "s3://bakery/prod".parse()?, S3Options::default())?;
/// store.check().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Behavior
/// - `create` is one conditional put (`If-None-Match: *`) with a checksum that the server verifies and a nonce in the object's metadata
///   (`hybrid-nonce`). An answer from which it does not follow what happened (a lost connection, a time-out, a 5xx, a 412 that may be about our own earlier
///   attempt) is settled by reading the nonce back: of two creators of the same bytes too, exactly one is told `Ok`. A conflict with nothing stored
///   (409) is tried again.
/// - A whole object is checked against the checksum that it was stored with, whether or not the caller gave a digest.
/// - Failures that are temporary are repeated with back-off, as often as the [`AwsConfig`] says in all; the SDK's own retries are off, since they know no nonce.
/// - Each attempt has a time limit that grows with the bytes that it moves ([`S3Options::answer_within`], [`S3Options::slowest`]), and a body that stands still ends
///   after [`TimeLimits::stall`](crate::aws::TimeLimits::stall).
/// - Objects below the prefix whose names are no [`Key`] are not listed.
///
/// # Permissions
/// `s3:GetObject`, `s3:PutObject`, `s3:ListBucket`; `s3:DeleteObject` for a collector alone. Without `s3:ListBucket`, S3 answers 403 where an object does not exist, and a
/// missing key is [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied). A bucket that does not exist is
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput).
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

/// How an [`S3Store`] speaks to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Options {
    /// `http://host/bucket/key` in place of `http://bucket.host/key`: for servers without a name for each bucket. An endpoint that is an IP address gets it anyway.
    pub path_style: bool,
    /// How the server encrypts what is created.
    pub encryption: Encryption,
    /// The checksum that is sent with each object.
    pub checksum: Checksum,
    /// In which order the server lists.
    pub listing: Listing,
    /// How many requests are under way at once; more wait their turn.
    pub parallel: usize,
    /// How long one attempt may take beside its transfer.
    pub answer_within: Duration,
    /// The slowest transfer that is waited for, in bytes per second.
    pub slowest: u64,
}

/// How the server encrypts an object at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// As the bucket is configured.
    #[default]
    BucketDefault,
    /// With keys that S3 manages (SSE-S3).
    S3Managed,
    /// With a key of the Key Management Service (SSE-KMS), and a bucket key that keeps the calls to it few.
    Kms {
        /// The key's id, ARN or alias; the account's own S3 key where absent.
        key: Option<String>,
    },
}

/// The checksum that goes with an object and that the server verifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checksum {
    /// CRC-64/NVME, S3's own: fast.
    #[default]
    Crc64Nvme,
    /// SHA-256: for servers that do not know the other.
    Sha256,
}

/// In which order a server lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listing {
    /// In the byte order of the names, as S3 does. A server that does not is noticed, and the listing ends with
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported).
    #[default]
    ByteOrder,
    /// In another order, such as folder by folder (SeaweedFS, S3's directory buckets): a listing is read whole and sorted in memory before its first object.
    Sorted,
}

impl S3Store {
    /// A store at `location`. Asks the server nothing; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if an option makes no sense.
    pub fn new(config: &AwsConfig, location: S3Location, options: S3Options) -> Result<Self> {
        let invalid = |message| Error::invalid("open S3 store", message).with("location", &location);
        if options.parallel == 0 || options.parallel > Semaphore::MAX_PERMITS {
            return Err(invalid("at least one request must be allowed at once").with("parallel", options.parallel));
        }
        if options.slowest == 0 {
            return Err(invalid("the slowest transfer must be more than nothing").with("slowest", options.slowest));
        }
        let sdk = config.sdk();
        let (attempts, max_backoff) = sdk
            .retry_config()
            .map_or((1, Duration::from_secs(20)), |retry| (retry.max_attempts(), retry.max_backoff()));
        // Attempts have their own limits, which know the size of what is moved.
        let mut limits = sdk.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled).into_builder();
        limits.set_read_timeout(None);
        let client = aws_sdk_s3::config::Builder::from(sdk)
            .force_path_style(options.path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(limits.build())
            .build();
        Ok(Self {
            inner: Arc::new(Inner {
                client: Client::from_conf(client),
                location,
                permits: Semaphore::new(options.parallel),
                options,
                attempts: attempts.max(1),
                max_backoff,
                clock: Arc::new(SystemClock),
                ids: Arc::new(SystemIds::default()),
            }),
        })
    }

    /// The same store with another source of time and of nonces; for tests.
    #[must_use]
    pub fn with_sources(self, clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        let Inner { client, location, options, attempts, max_backoff, permits: _, clock: _, ids: _ } = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                client: client.clone(),
                location: location.clone(),
                permits: Semaphore::new(options.parallel),
                options: options.clone(),
                attempts: *attempts,
                max_backoff: *max_backoff,
                clock,
                ids,
            }),
        }
    }

    /// Where the store is.
    pub fn location(&self) -> &S3Location {
        &self.inner.location
    }

    /// Asks whether the bucket exists and may be listed: what a process does once when it starts.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if there is no such bucket, [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied) if the credentials do not
    /// reach it.
    pub async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
}

/// 64 requests at once, 30 s beside the transfer, 64 KiB/s.
impl Default for S3Options {
    fn default() -> Self {
        Self {
            path_style: false,
            encryption: Encryption::default(),
            checksum: Checksum::default(),
            listing: Listing::default(),
            parallel: 64,
            answer_within: Duration::from_secs(30),
            slowest: 64 * 1024,
        }
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("location", &self.inner.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl ArtifactStore for S3Store {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.inner.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let ListOptions { start_after } = options;
        list::objects(Arc::clone(&self.inner), prefix, start_after)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(&self.inner.name(key), "delete object").await
    }
}

struct Inner {
    client: Client,
    location: S3Location,
    options: S3Options,
    attempts: u32,
    max_backoff: Duration,
    permits: Semaphore,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl Inner {
    /// The object's name in the bucket.
    fn name(&self, key: &Key) -> String {
        self.location.name(key.as_str())
    }

    fn bucket(&self) -> &str {
        self.location.bucket()
    }

    async fn check(&self) -> Result<()> {
        const OPERATION: &str = "check bucket";
        self.retried(|| async {
            let call = self.client.head_bucket().bucket(self.bucket()).send();
            self.attempt(OPERATION, 0, call).await.map(drop)
        })
        .await
        .map_err(|error| match error.kind() {
            hybrid_core::ErrorKind::NotFound => {
                Error::invalid(OPERATION, "the bucket does not exist; create it, or correct the URL")
                    .with("bucket", self.bucket())
                    .with_source(error)
            }
            _ => error.with("bucket", self.bucket()),
        })
    }

    async fn delete(&self, name: &str, operation: &'static str) -> Result<()> {
        let deleted = self
            .retried(|| async {
                let call = self.client.delete_object().bucket(self.bucket()).key(name).send();
                self.attempt(operation, 0, call).await.map(drop)
            })
            .await;
        match deleted {
            Err(error) if error.kind() == hybrid_core::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| self.about(error, name)),
        }
    }

    /// An error with what it is about.
    fn about(&self, error: Error, name: &str) -> Error {
        error.with("bucket", self.bucket()).with("key", name)
    }
}

impl Encryption {
    /// What a put says: the way of encryption, the key's id, and whether a bucket key is used.
    fn parts(&self) -> (Option<ServerSideEncryption>, Option<String>, Option<bool>) {
        match self {
            Self::BucketDefault => (None, None, None),
            Self::S3Managed => (Some(ServerSideEncryption::Aes256), None, None),
            Self::Kms { key } => (Some(ServerSideEncryption::AwsKms), key.clone(), Some(true)),
        }
    }
}

impl Checksum {
    fn algorithm(self) -> ChecksumAlgorithm {
        match self {
            Self::Crc64Nvme => ChecksumAlgorithm::Crc64Nvme,
            Self::Sha256 => ChecksumAlgorithm::Sha256,
        }
    }
}
