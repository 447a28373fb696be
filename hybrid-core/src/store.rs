//! The artifact store port: objects that are created once and never changed.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Digest, Error, Result, Timestamp, id::serde_as_text, inference::BoxStream};

/// The most bytes that one object may have: 16 MiB. What is larger is a manifest over chunks.
pub const MAX_OBJECT_BYTES: usize = 16 * 1024 * 1024;

/// A place for objects that are created once and never changed.
///
/// There is no overwrite, no compare-and-swap and no lock, so the same code works on S3, GCS, Azure and a folder.
/// A thing that moves is a numbered sequence of objects: whoever creates the next number first has won.
///
/// # Behavior
/// - [`create`](Self::create) is atomic: readers and listings see the whole object or nothing. When it returns `Ok` the object is
///   durable. Of any number of concurrent creators of one key exactly one gets `Ok`, and its bytes are the object; the others get
///   [`AlreadyExists`](crate::ErrorKind::AlreadyExists) and change nothing.
/// - `create` of more than [`MAX_OBJECT_BYTES`] is refused with [`TooLarge`](crate::ErrorKind::TooLarge) and stores nothing.
/// - After `create` has returned, [`read`](Self::read), [`head`](Self::head) and a [`list`](Self::list) that starts later see the object.
/// - `read` returns exactly the bytes created, or those of [`ReadOptions::range`], which must lie within the object
///   ([`InvalidInput`](crate::ErrorKind::InvalidInput) otherwise). With [`ReadOptions::digest`] the adapter checks the bytes it is about
///   to return and answers [`Corrupt`](crate::ErrorKind::Corrupt) if they differ. An empty object and an empty range are legal.
/// - `read`, `head` of a key that does not exist answer [`NotFound`](crate::ErrorKind::NotFound).
/// - `list` yields each object whose key starts with the prefix, once, in byte order of the keys, strictly after
///   [`ListOptions::start_after`]. Objects created or deleted meanwhile may or may not be seen; every other one is.
/// - [`delete`](Self::delete) of a key that does not exist is `Ok`. Only garbage collection and the erasure of customers' data delete; a deleted key is never created again.
/// - No key in use is a path prefix of another (`a` beside `a/b`): a folder cannot hold both.
///
/// # Cancel safety
/// A dropped `create` may or may not have created the object; whole or not at all. Create again, and read on `AlreadyExists`.
#[async_trait]
pub trait ArtifactStore: fmt::Debug + Send + Sync + 'static {
    /// Creates the object `key`, which must not exist.
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()>;
    /// Reads an object or a part of it.
    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes>;
    /// What is known about an object without reading it.
    async fn head(&self, key: &Key) -> Result<ObjectMeta>;
    /// Lists the objects whose keys start with `prefix`, which is plain text: `a/b` matches `a/bc`, the empty prefix everything.
    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>>;
    /// Deletes an object: for garbage collection and erasure only.
    async fn delete(&self, key: &Key) -> Result<()>;
}

/// How to read an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The bytes wanted, from zero; the whole object where absent.
    pub range: Option<Range<u64>>,
    /// The digest that the bytes returned must have.
    pub digest: Option<Digest>,
}

impl ReadOptions {
    /// The whole object, checked against `digest`.
    pub fn verified(digest: Digest) -> Self {
        Self { range: None, digest: Some(digest) }
    }

    /// A part of the object.
    pub fn range(range: Range<u64>) -> Self {
        Self { range: Some(range), digest: None }
    }

    /// Cuts and checks what an adapter has read whole; adapters without a range read of their own call it.
    ///
    /// # Errors
    /// As [`ArtifactStore::read`].
    pub fn apply(self, key: &Key, whole: Bytes) -> Result<Bytes> {
        let Self { range, digest } = self;
        let bytes = match range {
            None => whole,
            Some(range) => whole.slice(checked_range(key, &range, whole.len() as u64)?),
        };
        if let Some(digest) = digest {
            digest.verify("read object", &bytes).map_err(|error| error.with("key", key))?;
        }
        Ok(bytes)
    }
}

/// Checks that `range` lies within an object of `size` bytes.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names key, range and size.
pub fn checked_range(key: &Key, range: &Range<u64>, size: u64) -> Result<Range<usize>> {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) if start <= end && range.end <= size => Ok(start..end),
        _ => Err(Error::invalid("read object", "the range does not lie within the object")
            .with("key", key)
            .with("range", format_args!("{}..{}", range.start, range.end))
            .with("size", size)),
    }
}

/// Checks that an object of `size` bytes may be created.
///
/// # Errors
/// [`TooLarge`](crate::ErrorKind::TooLarge) that names key, size and limit.
pub fn check_object_size(key: &Key, size: usize) -> Result<()> {
    if size <= MAX_OBJECT_BYTES {
        return Ok(());
    }
    Err(Error::too_large("create object", "the object is over the limit; store it in chunks")
        .with("key", key)
        .with("size", size)
        .with("limit", MAX_OBJECT_BYTES))
}

/// How to list objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only keys after this one, in byte order.
    pub start_after: Option<Key>,
}

/// What a store knows about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key.
    pub key: Key,
    /// The size in bytes.
    pub size: u64,
    /// When it was created, by the store's own clock.
    pub created: Timestamp,
}

/// The name of an object: lower case, `/` between its parts.
///
/// At most 512 bytes of `a-z`, `0-9`, `.`, `_`, `-` and `/`; parts of 1 to 200 bytes, none of them `.` or `..`. Safe as a path below a folder.
///
/// ```
/// use hybrid_core::Key;
///
/// let key: Key = "blobs/ab.1".parse().unwrap();
/// assert_eq!(key.as_str(), "blobs/ab.1");
/// assert!("blobs/../etc".parse::<Key>().is_err());
/// assert!("/blobs".parse::<Key>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks and wraps `key`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
    pub fn new(key: impl AsRef<str>) -> Result<Self> {
        let key = key.as_ref();
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let part_fits =
            |part: &str| (1..=200).contains(&part.len()) && part != "." && part != ".." && part.bytes().all(legal);
        if key.len() <= 512 && key.split('/').all(part_fits) {
            return Ok(Self(key.into()));
        }
        Err(Error::invalid(
            "parse key",
            "expected at most 512 bytes in parts of 1 to 200 characters of a-z, 0-9, ., _ and -, none of them . or ..",
        )
        .with("found", format_args!("{key:?}")))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// Lets a map of keys be searched by text; both have the order of their bytes.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

serde_as_text!(Key);

/// Convenience over any [`ArtifactStore`].
#[async_trait]
pub trait ArtifactStoreExt: ArtifactStore {
    /// Reads a whole object.
    ///
    /// # Errors
    /// As [`ArtifactStore::read`].
    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.read(key, ReadOptions::default()).await
    }

    /// Whether an object exists.
    ///
    /// # Errors
    /// As [`ArtifactStore::head`], but for [`NotFound`](crate::ErrorKind::NotFound).
    async fn exists(&self, key: &Key) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == crate::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates an object that may be there already with the same bytes: what a retry of an effect does.
    ///
    /// # Errors
    /// As [`ArtifactStore::create`]; [`AlreadyExists`](crate::ErrorKind::AlreadyExists) only if other bytes are there.
    async fn create_same(&self, key: &Key, bytes: Bytes) -> Result<()> {
        match self.create(key, bytes.clone()).await {
            Err(error) if error.kind() == crate::ErrorKind::AlreadyExists => {
                if self.get(key).await? == bytes {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }

    /// All objects under `prefix`, in memory: for prefixes that are known to be short.
    ///
    /// # Errors
    /// As [`ArtifactStore::list`].
    async fn list_all(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.list(prefix, ListOptions::default()).try_collect().await
    }
}

impl<S: ArtifactStore + ?Sized> ArtifactStoreExt for S {}

macro_rules! forward_store {
    ($($pointer:ident),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<S: ArtifactStore + ?Sized> ArtifactStore for $pointer<S> {
            async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
                (**self).create(key, bytes).await
            }

            async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
                (**self).read(key, options).await
            }

            async fn head(&self, key: &Key) -> Result<ObjectMeta> {
                (**self).head(key).await
            }

            fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
                (**self).list(prefix, options)
            }

            async fn delete(&self, key: &Key) -> Result<()> {
                (**self).delete(key).await
            }
        }
    )*};
}
forward_store!(Arc, Box);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_their_root() {
        for good in ["a", "a/b", "blobs/0f.1", "t/default/jobs/x/result", "a..b", "..a"] {
            assert!(Key::new(good).is_ok(), "{good}");
        }
        let long = "a/".repeat(256) + "a";
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            "A",
            "a b",
            "a\\b",
            "a\0",
            "ü",
            &"x".repeat(201),
            &long,
        ] {
            assert!(Key::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_beyond_the_object_is_refused() {
        let key = Key::new("k").unwrap();
        let read = |range| ReadOptions::range(range).apply(&key, Bytes::from_static(b"abc"));
        assert_eq!(read(1..3).unwrap(), &b"bc"[..]);
        assert_eq!(read(3..3).unwrap(), &b""[..]);
        assert!(read(1..4).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = read(2..1);
        assert!(backwards.is_err());
    }
}
