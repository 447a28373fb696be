//! The vector index port: embeddings of one tenant, the nearest of them, and deletes that delete.

mod filter;
mod schema;

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result, TenantId, id::serde_as_text, inference::BoxStream};

pub use filter::{Filter, MAX_FILTER_DEPTH, MAX_FILTER_PARTS};
pub use schema::{FieldKind, MAX_FILTERABLE_BYTES, MAX_METADATA_BYTES, MAX_VECTOR_DIMENSION, Metric, VectorSchema};

/// What is known about a vector, as JSON: values of the fields that the index's [`VectorSchema`] declares.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// Vectors with metadata, per tenant, and the nearest of them to a query.
///
/// An index has one [`VectorSchema`]: the dimension, the metric and the metadata fields with their types. Every call names the tenant, and no call
/// reaches another's records; a tenant exists as soon as it has a record.
///
/// # Behavior
/// - A record is durable when [`upsert`](Self::upsert) returns; one with the same key is replaced whole, vector and metadata. `upsert` checks all its
///   records before it writes one, and refuses with [`InvalidInput`](crate::ErrorKind::InvalidInput) or [`TooLarge`](crate::ErrorKind::TooLarge) what the schema does not allow, and a key that comes twice. When it
///   fails otherwise some of the records may have been written, each whole: repeat it.
/// - [`query`](Self::query) answers with the [`VectorQuery::k`] records nearest to the query's vector among those that the filter matches, nearest
///   first, each with its distance by the schema's metric (within 1 part in 10,000 of the longer of one and the distance) and its metadata. There are fewer only where fewer match. The filter is applied before
///   the nearest are chosen. `k` is at least one and at most [`VectorProfile::max_k`], [`InvalidInput`](crate::ErrorKind::InvalidInput) otherwise; so is a vector or a filter that does not fit the schema.
/// - [`get`](Self::get) answers per key, in the order asked, with the record as it was written (numbers in metadata may come back in another spelling: `5.0` for `5`).
/// - [`list`](Self::list) yields each key once, in no order that is promised. Records written or deleted meanwhile may or may not be seen; every other one is.
/// - [`delete`](Self::delete) removes records for good: when it returns they are in no answer. A key that is not there is no error. [`drop_tenant`](Self::drop_tenant) removes all that the
///   index holds of a tenant; other tenants notice nothing, and the same tenant may come back with nothing of what it had.
///   An adapter says in its own documentation what a delete leaves in files, logs and backups.
/// - [`VectorGuarantees`] say what else holds. With `exact` the nearest are the true nearest; without it they are near, and the distances still true. With
///   `read_your_writes` every call sees the writes that have returned before it began. With `ordered_ties` records with the same distance come in byte order of their keys.
///
/// # Cancel safety
/// A dropped `upsert`, `delete` or `drop_tenant` may have happened in part. Every call is safe to repeat.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use hybrid_core::{TenantId, VectorIndex, VectorQuery, VectorRecord, VectorSchema};
/// use hybrid_core::{memory::MemoryVectorIndex, vector::{FieldKind, Filter, Metric}};
///
/// let schema = VectorSchema::new(2, Metric::Cosine)?.with_field("language", FieldKind::Text)?.with_field("text", FieldKind::Stored)?;
/// let index = MemoryVectorIndex::new(schema);
/// let bakery = TenantId::new("bakery")?;
/// index.upsert(&bakery, vec![
///     VectorRecord::new("faq/1", [0.9, 0.1])?.with("language", "en").with("text", "We open at six."),
///     VectorRecord::new("faq/2", [0.8, 0.2])?.with("language", "de").with("text", "Wir öffnen um sechs."),
/// ]).await?;
/// let query = VectorQuery::new([1.0, 0.0], 1).filtered(Filter::equals("language", "de"));
/// let nearest = index.query(&bakery, query).await?;
/// assert_eq!(nearest[0].key.as_str(), "faq/2");
/// assert_eq!(nearest[0].metadata["text"], "Wir öffnen um sechs.");
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
#[async_trait]
pub trait VectorIndex: fmt::Debug + Send + Sync + 'static {
    /// What this index is, and what it declares beyond the contract.
    fn profile(&self) -> &VectorProfile;
    /// Writes records, replacing those with the same keys.
    async fn upsert(&self, tenant: &TenantId, records: Vec<VectorRecord>) -> Result<()>;
    /// The records nearest to a vector.
    async fn query(&self, tenant: &TenantId, query: VectorQuery) -> Result<Vec<Neighbor>>;
    /// Reads records by key.
    async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>>;
    /// The keys of all records of the tenant.
    fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>>;
    /// Removes records.
    async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()>;
    /// How many records the tenant has. Where the service keeps no count this costs a listing.
    async fn count(&self, tenant: &TenantId) -> Result<u64>;
    /// Removes all records of the tenant.
    async fn drop_tenant(&self, tenant: &TenantId) -> Result<()>;
}

/// What an index is.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorProfile {
    /// The shape of its records.
    pub schema: VectorSchema,
    /// The most neighbours that one query answers with.
    pub max_k: usize,
    /// What it declares beyond the contract.
    pub guarantees: VectorGuarantees,
}

impl VectorProfile {
    /// Checks what the contract refuses of an upsert; adapters call it before they write.
    ///
    /// # Errors
    /// As [`VectorIndex::upsert`].
    pub fn check_records(&self, records: &[VectorRecord]) -> Result<()> {
        records.iter().try_for_each(|record| self.schema.check_record(record))?;
        check_keys(records)
    }

    /// Checks what the contract refuses of a query; adapters call it before they search.
    ///
    /// # Errors
    /// As [`VectorIndex::query`].
    pub fn check_query(&self, query: &VectorQuery) -> Result<()> {
        let VectorQuery { vector, k, filter } = query;
        if !(1..=self.max_k).contains(k) {
            return Err(Error::invalid("query vectors", "k is not between one and this index's limit")
                .with("k", k)
                .with("limit", self.max_k));
        }
        self.schema.check_vector("query vectors", vector)?;
        filter.as_ref().map_or(Ok(()), |filter| self.schema.check_filter(filter))
    }
}

/// Checks that no key comes twice: the part of [`VectorProfile::check_records`] that concerns all records at once.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the key.
pub fn check_keys(records: &[VectorRecord]) -> Result<()> {
    let mut keys = BTreeSet::new();
    match records.iter().find(|record| !keys.insert(&record.key)) {
        None => Ok(()),
        Some(VectorRecord { key, .. }) => {
            let message = "the key comes twice in one call; which would win is not defined";
            Err(Error::invalid("upsert vectors", message).with("key", key))
        }
    }
}

/// What a vector adapter declares beyond the contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorGuarantees {
    /// The nearest are the true nearest, not an approximation.
    pub exact: bool,
    /// Every call sees the writes that have returned before it began.
    pub read_your_writes: bool,
    /// Records with the same distance come in byte order of their keys.
    pub ordered_ties: bool,
}

/// A vector with its key and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorRecord {
    /// Its name, unique within the tenant.
    pub key: VectorKey,
    /// The components, as many as the schema's dimension.
    pub vector: Vec<f32>,
    /// Values of the schema's fields; each may be absent.
    pub metadata: Metadata,
}

impl VectorRecord {
    /// A record without metadata.
    ///
    /// # Errors
    /// As [`VectorKey::new`].
    pub fn new(key: impl Into<String>, vector: impl Into<Vec<f32>>) -> Result<Self> {
        Ok(Self { key: VectorKey::new(key)?, vector: vector.into(), metadata: Metadata::new() })
    }

    /// The same with a value for a metadata field.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.metadata.insert(field.into(), value.into());
        self
    }
}

/// What to look for.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorQuery {
    /// The vector whose neighbours are wanted, of the schema's dimension.
    pub vector: Vec<f32>,
    /// How many neighbours are wanted.
    pub k: usize,
    /// Which records count; all where absent.
    pub filter: Option<Filter>,
}

impl VectorQuery {
    /// The `k` nearest of all records.
    pub fn new(vector: impl Into<Vec<f32>>, k: usize) -> Self {
        Self { vector: vector.into(), k, filter: None }
    }

    /// The same among the records that `filter` matches.
    #[must_use]
    pub fn filtered(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }
}

/// A record found near a query's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbor {
    /// The record's key.
    pub key: VectorKey,
    /// How far it is, by the schema's [`Metric`].
    pub distance: f32,
    /// The record's metadata.
    pub metadata: Metadata,
}

/// The name of a vector record within its tenant: 1 to 1024 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VectorKey(String);

impl VectorKey {
    /// The most bytes of a key.
    pub const MAX_BYTES: usize = 1024;

    /// Checks and wraps `key`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        if (1..=Self::MAX_BYTES).contains(&key.len()) && !key.chars().any(char::is_control) {
            return Ok(Self(key));
        }
        Err(Error::invalid("parse vector key", "expected 1 to 1024 bytes without control characters")
            .with("bytes", key.len())
            .with("found", format_args!("{:?}", key.chars().take(80).collect::<String>())))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VectorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VectorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for VectorKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

serde_as_text!(VectorKey);

/// Convenience over any [`VectorIndex`].
#[async_trait]
pub trait VectorIndexExt: VectorIndex {
    /// All keys of a tenant, in byte order.
    ///
    /// # Errors
    /// As [`VectorIndex::list`].
    async fn keys(&self, tenant: &TenantId) -> Result<Vec<VectorKey>> {
        let mut keys: Vec<_> = self.list(tenant).try_collect().await?;
        keys.sort();
        Ok(keys)
    }
}

impl<I: VectorIndex + ?Sized> VectorIndexExt for I {}

macro_rules! forward_index {
    ($($pointer:ident),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<I: VectorIndex + ?Sized> VectorIndex for $pointer<I> {
            fn profile(&self) -> &VectorProfile {
                (**self).profile()
            }

            async fn upsert(&self, tenant: &TenantId, records: Vec<VectorRecord>) -> Result<()> {
                (**self).upsert(tenant, records).await
            }

            async fn query(&self, tenant: &TenantId, query: VectorQuery) -> Result<Vec<Neighbor>> {
                (**self).query(tenant, query).await
            }

            async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>> {
                (**self).get(tenant, keys).await
            }

            fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>> {
                (**self).list(tenant)
            }

            async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()> {
                (**self).delete(tenant, keys).await
            }

            async fn count(&self, tenant: &TenantId) -> Result<u64> {
                (**self).count(tenant).await
            }

            async fn drop_tenant(&self, tenant: &TenantId) -> Result<()> {
                (**self).drop_tenant(tenant).await
            }
        }
    )*};
}
forward_index!(Arc, Box);
