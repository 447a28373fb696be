//! The record store port: a customer's live data, under conditions, with an end, for one tenant at a time.

use std::{fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::{CollectionName, Error, IdSource, Result, TenantId, Timestamp, id::serde_as_text, inference::BoxStream};

/// The most bytes that one record's value may have: 384 KiB, so that it fits an item of DynamoDB (400 KB) with its key and all else. What is larger goes to the
/// [`ArtifactStore`](crate::ArtifactStore), and its key into the record.
pub const MAX_RECORD_BYTES: usize = 384 * 1024;
/// The most records that one page has: 1000.
pub const MAX_PAGE: usize = 1000;

/// Live records of customers: conversations, files, judgments awaiting review.
///
/// A record lies in a collection of a tenant under a key. Every call names the tenant, and no call reaches another's records; tenants and collections
/// exist as soon as they have a record.
///
/// # Behavior
/// - [`put`](Self::put) is atomic and durable when it returns, and answers with the record's new version. Versions are opaque and never come twice, also after a delete.
///   With [`PutCondition::Create`] the key must be free, with [`PutCondition::Version`] it must hold that version: otherwise nothing changes, and the answer is
///   [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where the key holds something else, [`NotFound`](crate::ErrorKind::NotFound) where it holds nothing. Of any number of concurrent puts under the same condition one wins.
/// - A value over [`MAX_RECORD_BYTES`] is refused with [`TooLarge`](crate::ErrorKind::TooLarge), and nothing changes.
/// - [`get`](Self::get) and [`query`](Self::query) see every write that has returned before they began. What was put comes back to the byte.
/// - `query` answers with the records of one collection whose keys start with the prefix and lie strictly between the bounds, in byte order of the keys or its reverse, at most
///   [`RecordQuery::limit`] of them, and with the query for the next page if there may be more. Over all pages each record that nobody touched meanwhile comes once. A limit
///   that is not between one and [`MAX_PAGE`] is [`InvalidInput`](crate::ErrorKind::InvalidInput).
/// - [`delete`](Self::delete) removes a record; one that is not there is no error.
/// - From the moment [`NewRecord::expires`] a record is in no answer and its key is free, by the adapter's clock; its bytes are removed some time later, when the adapter says.
/// - [`export`](Self::export) yields every record of the tenant once, of all collections, in no order that is promised.
/// - [`erase`](Self::erase) removes every record of the tenant, the expired ones too, and when it returns nothing of them is left in what the adapter keeps; other tenants notice nothing.
///   Writes for the tenant that run beside it may outlast it: stop them first, or erase again. An adapter says in its own documentation what backups hold.
///
/// # Cancel safety
/// A dropped call may have happened, `erase` also in part. `put` under a condition tells on repetition; everything else is safe to repeat.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use hybrid_core::{CollectionName, NewRecord, PutCondition, RecordKey, RecordStore, TenantId, memory::MemoryRecordStore};
///
/// let store = MemoryRecordStore::default();
/// let (bakery, reviews) = (TenantId::new("bakery")?, CollectionName::new("reviews")?);
/// let key = RecordKey::new("2026-03-01/42")?;
/// let version = store.put(&bakery, &reviews, &key, NewRecord::new("open"), PutCondition::Create).await?;
/// // Only one of two reviewers who read the same version takes it.
/// store.put(&bakery, &reviews, &key, NewRecord::new("taken by ada"), PutCondition::Version(version)).await?;
/// assert!(store.put(&bakery, &reviews, &key, NewRecord::new("taken by bob"), PutCondition::Version(version)).await.is_err());
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
#[async_trait]
pub trait RecordStore: fmt::Debug + Send + Sync + 'static {
    /// Writes a record if the condition holds; answers with its new version.
    async fn put(
        &self,
        tenant: &TenantId,
        collection: &CollectionName,
        key: &RecordKey,
        record: NewRecord,
        condition: PutCondition,
    ) -> Result<RecordVersion>;
    /// Reads a record.
    async fn get(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<Option<Record>>;
    /// Reads a page of a collection.
    async fn query(&self, tenant: &TenantId, collection: &CollectionName, query: RecordQuery) -> Result<RecordPage>;
    /// Removes a record.
    async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()>;
    /// All records of the tenant.
    fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>>;
    /// Removes all records of the tenant and what is left of earlier ones.
    async fn erase(&self, tenant: &TenantId) -> Result<()>;
}

/// What to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// The content, at most [`MAX_RECORD_BYTES`] bytes.
    pub value: Bytes,
    /// When the record ends; never where absent.
    pub expires: Option<Timestamp>,
}

impl NewRecord {
    /// A record that does not end.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), expires: None }
    }

    /// The same until `expires`.
    #[must_use]
    pub fn until(self, expires: Timestamp) -> Self {
        Self { expires: Some(expires), ..self }
    }

    /// Checks what the contract refuses; adapters call it before they write.
    ///
    /// # Errors
    /// [`TooLarge`](crate::ErrorKind::TooLarge) that names key, size and limit.
    pub fn validate(&self, key: &RecordKey) -> Result<()> {
        let Self { value, expires: _ } = self;
        if value.len() <= MAX_RECORD_BYTES {
            return Ok(());
        }
        Err(Error::too_large(
            "put record",
            "the value is over the limit; put it in the artifact store and its key in the record",
        )
        .with("key", key)
        .with("size", value.len())
        .with("limit", MAX_RECORD_BYTES))
    }
}

/// When a put happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PutCondition {
    /// Always, over whatever is there.
    #[default]
    Always,
    /// Only where the key is free.
    Create,
    /// Only over this version.
    Version(RecordVersion),
}

impl PutCondition {
    /// Whether a put may go over `held`; adapters call it on what the key holds, an expired record being nothing.
    ///
    /// # Errors
    /// As [`RecordStore::put`].
    pub fn check(self, key: &RecordKey, held: Option<RecordVersion>) -> Result<()> {
        match (self, held) {
            (Self::Always, _) | (Self::Create, None) => Ok(()),
            (Self::Version(expected), Some(held)) if expected == held => Ok(()),
            (Self::Create, Some(_)) => {
                Err(Error::already_exists("put record", "the record exists; read it and decide again").with("key", key))
            }
            (Self::Version(expected), Some(held)) => {
                Err(Error::already_exists("put record", "the record has another version; read it and decide again")
                    .with("key", key)
                    .with("expected", expected)
                    .with("found", held))
            }
            (Self::Version(expected), None) => {
                Err(Error::not_found("put record", "no record to replace").with("key", key).with("expected", expected))
            }
        }
    }
}

/// A record as it lies in a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: RecordKey,
    /// The content.
    pub value: Bytes,
    /// Which write it comes from.
    pub version: RecordVersion,
    /// When it was written, by the writer's clock.
    pub written: Timestamp,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

impl Record {
    /// Whether it has ended.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// What to read of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordQuery {
    /// What the keys start with, as plain text; the empty prefix is everything.
    pub prefix: String,
    /// Only keys greater than this one.
    pub after: Option<RecordKey>,
    /// Only keys less than this one.
    pub before: Option<RecordKey>,
    /// From the first or from the last.
    pub order: RecordOrder,
    /// How many records at most, between one and [`MAX_PAGE`].
    pub limit: usize,
}

impl Default for RecordQuery {
    fn default() -> Self {
        Self { prefix: String::new(), after: None, before: None, order: RecordOrder::Ascending, limit: 100 }
    }
}

impl RecordQuery {
    /// The records whose keys start with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// The same from the last key to the first.
    #[must_use]
    pub fn descending(self) -> Self {
        Self { order: RecordOrder::Descending, ..self }
    }

    /// The same with pages of `limit`.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The query for the page that follows one which ended at `last`; adapters call it.
    #[must_use]
    pub fn following(self, last: &RecordKey) -> Self {
        match self.order {
            RecordOrder::Ascending => Self { after: Some(last.clone()), ..self },
            RecordOrder::Descending => Self { before: Some(last.clone()), ..self },
        }
    }

    /// Whether a key is asked for, but for the limit.
    pub fn matches(&self, key: &RecordKey) -> bool {
        let Self { prefix, after, before, order: _, limit: _ } = self;
        key.as_str().starts_with(prefix)
            && after.as_ref().is_none_or(|after| key > after)
            && before.as_ref().is_none_or(|before| key < before)
    }

    /// Checks the limit; adapters call it before they read.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names it.
    pub fn validate(&self) -> Result<()> {
        if (1..=MAX_PAGE).contains(&self.limit) {
            return Ok(());
        }
        Err(Error::invalid("query records", "the limit of a page is not between one and the most")
            .with("limit", self.limit)
            .with("most", MAX_PAGE))
    }
}

/// A text above all that start with `prefix`, and hardly above any other: its last character that has a successor is raised. None where there is no such text, as for the empty prefix.
/// Adapters that read ranges call it.
pub fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let code = u32::from(last) + 1;
        // The code points of surrogates are no characters.
        if let Some(next) = char::from_u32(if code == 0xD800 { 0xE000 } else { code }) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// In which order a query reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordOrder {
    /// From the first key in byte order.
    #[default]
    Ascending,
    /// From the last.
    Descending,
}

/// A part of what a query asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPage {
    /// The records, in the query's order. A page may be empty though more follow.
    pub records: Vec<Record>,
    /// What to ask for the next page; absent on the last.
    pub next: Option<RecordQuery>,
}

/// The name of a record within its collection: 1 to 512 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(String);

impl RecordKey {
    /// The most bytes of a key.
    pub const MAX_BYTES: usize = 512;

    /// Checks and wraps `key`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        if (1..=Self::MAX_BYTES).contains(&key.len()) && !key.chars().any(char::is_control) {
            return Ok(Self(key));
        }
        Err(Error::invalid("parse record key", "expected 1 to 512 bytes without control characters")
            .with("bytes", key.len())
            .with("found", format_args!("{:?}", key.chars().take(80).collect::<String>())))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for RecordKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

serde_as_text!(RecordKey);

/// Which write a record comes from: opaque, and never the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordVersion(Uuid);

impl RecordVersion {
    /// The version of a write that is about to happen; adapters take it.
    pub fn next(ids: &dyn IdSource) -> Self {
        Self(ids.next_uuid())
    }
}

impl fmt::Display for RecordVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RecordVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = Uuid::try_parse(text).ok().filter(|uuid| uuid.to_string() == text);
        parsed.map(Self).ok_or_else(|| {
            Error::invalid("parse record version", "not a version that a record store gave")
                .with("found", format_args!("{text:?}"))
        })
    }
}

serde_as_text!(RecordVersion);

macro_rules! forward_records {
    ($($pointer:ident),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<S: RecordStore + ?Sized> RecordStore for $pointer<S> {
            async fn put(
                &self,
                tenant: &TenantId,
                collection: &CollectionName,
                key: &RecordKey,
                record: NewRecord,
                condition: PutCondition,
            ) -> Result<RecordVersion> {
                (**self).put(tenant, collection, key, record, condition).await
            }

            async fn get(
                &self,
                tenant: &TenantId,
                collection: &CollectionName,
                key: &RecordKey,
            ) -> Result<Option<Record>> {
                (**self).get(tenant, collection, key).await
            }

            async fn query(
                &self,
                tenant: &TenantId,
                collection: &CollectionName,
                query: RecordQuery,
            ) -> Result<RecordPage> {
                (**self).query(tenant, collection, query).await
            }

            async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()> {
                (**self).delete(tenant, collection, key).await
            }

            fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>> {
                (**self).export(tenant)
            }

            async fn erase(&self, tenant: &TenantId) -> Result<()> {
                (**self).erase(tenant).await
            }
        }
    )*};
}
forward_records!(Arc, Box);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_above_all_that_start_with_it() {
        assert_eq!(prefix_end("a/").as_deref(), Some("a0"));
        assert_eq!(prefix_end("a\u{D7FF}").as_deref(), Some("a\u{E000}"));
        assert_eq!(prefix_end("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{10FFFF}"), None);
        assert_eq!(prefix_end(""), None);
    }
}
