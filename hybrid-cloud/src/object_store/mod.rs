//! Artifacts on whatever the `object_store` crate reaches: GCS, Azure, R2, MinIO and the like. See [`ObjectStoreAdapter`].

#[cfg(feature = "aws")]
mod bridge;
mod error;
mod url;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use ::object_store::{
    Attribute, AttributeValue, Attributes, Error as StoreError, GetOptions, GetRange, ObjectMeta as StoredMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    ArtifactStore, BoxStream, Clock, Error, ErrorKind, IdSource, Key, ListOptions, MAX_OBJECT_BYTES, ObjectMeta,
    ReadOptions, Result, SystemClock, SystemIds, Timestamp, check_object_size, checked_range,
};

use error::convert;

const CREATE: &str = "create object";
const READ: &str = "read object";
const LIST: &str = "list objects";
/// The metadata field that tells a creator its own object from one with the same bytes. Azure allows no hyphen in it.
const NONCE: &str = "hybridnonce";
/// How often a create is tried whose outcome is nowhere to be seen; below it the crate makes retries of its own.
const ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// An [`ArtifactStore`] on an [`ObjectStore`], below a prefix. Clones share their state.
///
/// [`from_url`](Self::from_url) takes `gs://`, `az://` and `s3://` with the crate's own credentials; [`new`](Self::new) takes any store that the application has
/// built. For AWS itself, [`S3Store`](crate::s3::S3Store) checks more: use this where the server is another's. For a folder, `hybrid-local` has a store that is
/// durable against power failures.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use std::sync::Arc;
/// use hybrid_cloud::object_store::ObjectStoreAdapter;
/// use hybrid_core::{ArtifactStore, ArtifactStoreExt, Key};
///
/// let store = ObjectStoreAdapter::new(Arc::new(object_store::memory::InMemory::new()), "prod")?;
/// let key = Key::new("blobs/a")?;
/// store.create(&key, "bytes".into()).await?;
/// assert_eq!(store.get(&key).await?, "bytes");
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// - `create` is the crate's conditional put with a nonce in the object's metadata (`hybridnonce`). The crate repeats a put whose answer was a 5xx, and then takes the object
///   that its own first try has left for another's; it also takes a 409 with nothing stored for an object. So each `AlreadyExists`, and each failure, is settled
///   by reading the nonce back: ours is `Ok`, another's is `AlreadyExists`, nothing is tried again.
/// - A store that keeps no metadata, as a folder, is taken at its word.
/// - The crate checks no checksum when it reads: only a [`ReadOptions::digest`] makes sure of the bytes.
/// - The store must list in byte order of the names, as S3, GCS, Azure and R2 do. One that does not, as a folder, is noticed and its listing ends with
///   [`Unsupported`](hybrid_core::ErrorKind::Unsupported), unless [`sorting`](Self::sorting) is on.
/// - Retries, time limits and parallelism are the store's own (`RetryConfig`, `ClientOptions`, `LimitStore`).
#[derive(Clone)]
pub struct ObjectStoreAdapter {
    store: Arc<dyn ObjectStore>,
    /// Empty, or ends in `/`.
    prefix: String,
    sorting: bool,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl ObjectStoreAdapter {
    /// The objects of `store` below `prefix`, which may be empty.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the prefix is no path: parts between single slashes, none of them `.` or `..`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid("open object store", "expected a prefix such as a/b")
                .with("prefix", format_args!("{prefix:?}"))
        };
        let path = Path::parse(prefix).map_err(|error| invalid().with_source(error))?;
        let prefix = if path.as_ref().is_empty() { String::new() } else { format!("{path}/") };
        Ok(Self { store, prefix, sorting: false, clock: Arc::new(SystemClock), ids: Arc::new(SystemIds::default()) })
    }

    /// The same store with another source of time and of nonces; for tests.
    #[must_use]
    pub fn with_sources(self, clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        Self { clock, ids, ..self }
    }

    /// The same store with listings that are read whole and sorted in memory before their first object: for those that list in another order, as folders and SeaweedFS do.
    #[must_use]
    pub fn sorting(self) -> Self {
        Self { sorting: true, ..self }
    }

    fn path(&self, key: &Key) -> Result<Path> {
        Path::parse(format!("{}{key}", self.prefix)).map_err(|error| {
            Error::invalid("name object", "the key is no path of this store").with("key", key).with_source(error)
        })
    }

    async fn put(&self, path: &Path, bytes: Bytes, nonce: Option<&str>) -> ::object_store::Result<()> {
        let mut attributes = Attributes::new();
        if let Some(nonce) = nonce {
            attributes.insert(Attribute::Metadata(NONCE.into()), AttributeValue::from(nonce.to_owned()));
        }
        let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
        self.store.put_opts(path, PutPayload::from(bytes), options).await.map(drop)
    }

    async fn stat(&self, path: &Path) -> ::object_store::Result<(StoredMeta, Attributes)> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let found = self.store.get_opts(path, options).await?;
        Ok((found.meta, found.attributes))
    }

    async fn owner(&self, path: &Path, nonce: &str) -> ::object_store::Result<Owner> {
        match self.stat(path).await {
            Ok((_, attributes)) => {
                let found = attributes.get(&Attribute::Metadata(NONCE.into()));
                Ok(if found.is_some_and(|found| found.as_ref() == nonce) { Owner::Us } else { Owner::Another })
            }
            Err(StoreError::NotFound { .. }) => Ok(Owner::Nobody),
            Err(error) => Err(error),
        }
    }

    async fn read_range(&self, key: &Key, path: &Path, range: Range<u64>) -> Result<Bytes> {
        let convert = |error| convert(READ, error).with("key", key);
        if range.start >= range.end {
            // No request can ask for it, so its place is checked against the size.
            checked_range(key, &range, self.stat(path).await.map_err(convert)?.0.size)?;
            return Ok(Bytes::new());
        }
        let end = range.end.min(range.start.saturating_add(MAX_OBJECT_BYTES as u64 + 1));
        let options = GetOptions { range: Some(GetRange::Bounded(range.start..end)), ..GetOptions::default() };
        let found = match self.store.get_opts(path, options).await {
            Ok(found) => found,
            Err(error @ StoreError::NotFound { .. }) => return Err(convert(error)),
            Err(error) => {
                // Each store refuses a range in its own way; the size says whether that is what it was.
                let size = self.stat(path).await.map_err(convert)?.0.size;
                checked_range(key, &range, size)?;
                return Err(convert(error));
            }
        };
        checked_range(key, &range, found.meta.size)?;
        let wanted = range.end - range.start;
        check_readable(key, wanted)?;
        if found.range != range {
            return Err(Error::unavailable(READ, "the server answers with another range").with("key", key));
        }
        let bytes = found.bytes().await.map_err(convert)?;
        check_length(key, wanted, &bytes)?;
        Ok(bytes)
    }
}

enum Owner {
    Us,
    Another,
    Nobody,
}

impl fmt::Debug for ObjectStoreAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreAdapter")
            .field("store", &format_args!("{}", self.store))
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ArtifactStore for ObjectStoreAdapter {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        check_object_size(key, bytes.len())?;
        let path = self.path(key)?;
        let nonce = self.ids.next_uuid().to_string();
        let taken = || Error::already_exists(CREATE, "the object exists").with("key", key);
        let mut attempt = 1;
        loop {
            let error = match self.put(&path, bytes.clone(), Some(&nonce)).await {
                Ok(()) => return Ok(()),
                Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                    return self.put(&path, bytes, None).await.map_err(|error| convert(CREATE, error).with("key", key));
                }
                Err(error) => error,
            };
            let exists = matches!(error, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. });
            let failed = match self.owner(&path, &nonce).await {
                Ok(Owner::Us) => return Ok(()),
                Ok(Owner::Another) => return Err(taken()),
                Ok(Owner::Nobody) if exists => {
                    Error::unavailable(CREATE, "the server says that the object exists, and it does not")
                        .with_source(error)
                }
                Ok(Owner::Nobody) => convert(CREATE, error),
                // Who may create and not read still learns that the name is taken, unless it may be by an earlier attempt of ours.
                Err(StoreError::PermissionDenied { .. }) if exists && attempt == 1 => return Err(taken()),
                Err(looking) if exists => convert(CREATE, looking),
                Err(_) => convert(CREATE, error),
            };
            if !failed.is_temporary() || attempt >= ATTEMPTS {
                return Err(failed.with("key", key).with("attempts", attempt));
            }
            self.clock.sleep(FIRST_BACKOFF * 2_u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        let ReadOptions { range, digest } = options;
        let path = self.path(key)?;
        let bytes = match range {
            Some(range) => self.read_range(key, &path, range).await?,
            None => {
                let convert = |error| convert(READ, error).with("key", key);
                let found = self.store.get_opts(&path, GetOptions::default()).await.map_err(convert)?;
                let size = found.meta.size;
                check_readable(key, size)?;
                let bytes = found.bytes().await.map_err(convert)?;
                check_length(key, size, &bytes)?;
                bytes
            }
        };
        ReadOptions { range: None, digest }.apply(key, bytes)
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let path = self.path(key)?;
        let (found, _) = self.stat(&path).await.map_err(|error| convert("head object", error).with("key", key))?;
        Ok(ObjectMeta { key: key.clone(), size: found.size, created: created(&found) })
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let ListOptions { start_after } = options;
        let wanted = prefix.to_owned();
        // The crate's prefixes are whole parts: list the part above and pick.
        let folder = format!("{}{}", self.prefix, wanted.rsplit_once('/').map_or("", |(folder, _)| folder));
        let Ok(folder) = Path::parse(folder.trim_end_matches('/')) else {
            // No key begins with it.
            return stream::empty().boxed();
        };
        let folder = (!folder.as_ref().is_empty()).then_some(folder);
        let (root, sorting) = (self.prefix.len(), self.sorting);
        // A store with an order of its own takes the offset in that, and would leave out what comes later in ours.
        let found = match start_after.as_ref().filter(|_| !sorting).map(|key| self.path(key)) {
            None => self.store.list(folder.as_ref()),
            Some(Ok(offset)) => self.store.list_with_offset(folder.as_ref(), &offset),
            Some(Err(error)) => return stream::once(async { Err(error) }).boxed(),
        };
        let of_error = wanted.clone();
        let found = found.map_err(move |error| convert(LIST, error).with("prefix", &of_error));
        let in_order = if sorting {
            let sorted = async move {
                let mut all: Vec<StoredMeta> = found.try_collect().await?;
                all.sort_by(|one, other| one.location.as_ref().cmp(other.location.as_ref()));
                Result::Ok(stream::iter(all.into_iter().map(Ok)))
            };
            stream::once(sorted).try_flatten().boxed()
        } else {
            found
                .scan(String::new(), |last, found| {
                    std::future::ready(Some(found.and_then(|meta| in_order(last, meta))))
                })
                .boxed()
        };
        in_order
            .try_filter_map(move |meta| {
                let key = meta.location.as_ref().get(root..).filter(|name| name.starts_with(&wanted));
                let key = key.and_then(|name| Key::new(name).ok());
                let key = key.filter(|key| start_after.as_ref().is_none_or(|after| key > after));
                std::future::ready(Ok(key.map(|key| ObjectMeta { key, size: meta.size, created: created(&meta) })))
            })
            .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path(key)?;
        match self.store.delete(&path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(convert("delete object", error).with("key", key)),
        }
    }
}

fn in_order(last: &mut String, meta: StoredMeta) -> Result<StoredMeta> {
    let name = meta.location.as_ref();
    if !last.is_empty() && last.as_str() >= name {
        return Err(Error::new(
            ErrorKind::Unsupported,
            LIST,
            "the store does not list in byte order; switch sorting on",
        )
        .with("after", &*last)
        .with("found", name));
    }
    name.clone_into(last);
    Ok(meta)
}

fn created(meta: &StoredMeta) -> Timestamp {
    Timestamp::from_unix_micros(meta.last_modified.timestamp_micros())
}

fn check_readable(key: &Key, size: u64) -> Result<()> {
    if size <= MAX_OBJECT_BYTES as u64 {
        return Ok(());
    }
    Err(Error::corrupt(READ, "the object is larger than an object can be; no store wrote it")
        .with("key", key)
        .with("size", size)
        .with("limit", MAX_OBJECT_BYTES))
}

fn check_length(key: &Key, expected: u64, bytes: &Bytes) -> Result<()> {
    if bytes.len() as u64 == expected {
        return Ok(());
    }
    Err(Error::unavailable(READ, "the answer is shorter than it says")
        .with("key", key)
        .with("expected", expected)
        .with("found", bytes.len()))
}
