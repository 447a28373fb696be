//! Embeddings on Amazon S3 Vectors: see [`S3VectorIndex`].

mod batch;
mod document;
mod filter;
mod tenant;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use aws_sdk_s3vectors::{
    Client,
    types::{GetOutputVector, PutInputVector, VectorData},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    BoxStream, Error, Neighbor, Result, TenantId, VectorGuarantees, VectorIndex, VectorKey, VectorProfile, VectorQuery,
    VectorRecord, VectorSchema,
};

use crate::aws::AwsConfig;
use filter::Clause;
use tenant::{check_prefix, failed, is_missing};

/// The most neighbours that one query answers with.
const MAX_K: usize = 100;
/// Records that one call reads.
const MAX_GET: usize = 100;
/// Keys that one call deletes.
const MAX_DELETE: usize = 500;
/// Keys that one page of a listing has.
const MAX_LIST: i32 = 1000;

/// Where an [`S3VectorIndex`] lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3VectorOptions {
    /// The vector bucket, which must exist.
    pub bucket: String,
    /// What the names of the tenants' indexes start with, so that several kinds of embeddings share a bucket: 1 to 24 characters of `a-z`, `0-9` and `-`, the first a letter or digit.
    pub prefix: String,
    /// The schema of every tenant's index.
    pub schema: VectorSchema,
}

/// A [`VectorIndex`] on Amazon S3 Vectors, with an index for each tenant. Clones share connections.
///
/// ```no_run
/// # async fn open() -> hybrid_core::Result<()> {
/// use hybrid_cloud::{aws::{AwsConfig, AwsOptions}, s3_vectors::{S3VectorIndex, S3VectorOptions}};
/// use hybrid_core::{TenantId, VectorIndex, VectorQuery, VectorSchema, vector::Metric};
///
/// let config = AwsConfig::load(AwsOptions::default()).await?;
/// let options = S3VectorOptions {
///     bucket: "storefront-vectors".to_owned(),
///     prefix: "passages".to_owned(),
///     schema: VectorSchema::new(1024, Metric::Cosine)?,
/// };
/// let index = S3VectorIndex::new(&config, options)?;
/// let nearest = index.query(&TenantId::new("bakery")?, VectorQuery::new(vec![0.1; 1024], 10)).await?;
/// # drop(nearest);
/// # Ok(())
/// # }
/// ```
///
/// # Indexes
/// A tenant's index is named `prefix.tenant.t`, with each `_` of the tenant as `.`; where that is over 63 characters, `prefix.` with the first 32 digits of the tenant's SHA-256 and `.h`.
/// It is made with the first record. The schema's stored fields become its non-filterable keys, which S3 Vectors lets nobody change later.
/// An index that was made with another schema is refused. A bucket has room for 10,000 indexes.
///
/// # Behavior
/// - The service searches approximately, and promises reads that see all earlier writes. A query for at most 100 neighbours.
/// - Records travel in calls of at most 500 and about 16 MiB. Limits are checked before the first call, so that a refusal writes nothing.
/// - What the service throttles is repeated as the configuration says, then answered with [`RateLimited`](hybrid_core::ErrorKind::RateLimited).
/// - `count` costs a listing of all keys. `drop_tenant` deletes the index, with all that it holds.
/// - The role needs `s3vectors:` `GetIndex`, `CreateIndex`, `DeleteIndex`, `PutVectors`, `GetVectors` (also for filters and metadata), `QueryVectors`, `ListVectors` and `DeleteVectors`.
#[derive(Clone)]
pub struct S3VectorIndex {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    bucket: String,
    prefix: String,
    profile: VectorProfile,
    /// Tenants whose index was seen to exist with this schema.
    seen: Mutex<HashSet<TenantId>>,
}

impl S3VectorIndex {
    /// The index in a bucket of the configuration's account and region. Nothing is called yet.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a prefix that breaks the rule.
    pub fn new(config: &AwsConfig, options: S3VectorOptions) -> Result<Self> {
        let S3VectorOptions { bucket, prefix, schema } = options;
        check_prefix(&prefix)?;
        let guarantees = VectorGuarantees { exact: false, read_your_writes: true, ordered_ties: false };
        let profile = VectorProfile { schema, max_k: MAX_K, guarantees };
        let client = Client::new(config.sdk());
        Ok(Self { inner: Arc::new(Inner { client, bucket, prefix, profile, seen: Mutex::default() }) })
    }

    /// One page of a tenant's keys.
    async fn page(&self, tenant: &TenantId, token: Option<String>) -> Result<(Vec<VectorKey>, Option<String>)> {
        const OPERATION: &str = "list vectors";
        let inner = &self.inner;
        let list = inner
            .client
            .list_vectors()
            .vector_bucket_name(&inner.bucket)
            .index_name(inner.index_name(tenant))
            .max_results(MAX_LIST)
            .set_next_token(token);
        match list.send().await {
            Ok(page) => {
                let keys = page.vectors.into_iter().map(|vector| VectorKey::new(vector.key)).collect::<Result<_>>()?;
                Ok((keys, page.next_token))
            }
            Err(error) if is_missing(&error) => {
                inner.forget(tenant);
                Ok((Vec::new(), None))
            }
            Err(error) => Err(failed(OPERATION, &inner.bucket, error)),
        }
    }
}

impl Inner {
    fn forget(&self, tenant: &TenantId) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }
}

impl fmt::Debug for S3VectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { bucket, prefix, .. } = &*self.inner;
        f.debug_struct("S3VectorIndex").field("bucket", bucket).field("prefix", prefix).finish_non_exhaustive()
    }
}

#[async_trait]
impl VectorIndex for S3VectorIndex {
    fn profile(&self) -> &VectorProfile {
        &self.inner.profile
    }

    async fn upsert(&self, tenant: &TenantId, records: Vec<VectorRecord>) -> Result<()> {
        const OPERATION: &str = "upsert vectors";
        let inner = &self.inner;
        inner.profile.check_records(&records)?;
        for batch in batch::split(records) {
            let vectors = batch.into_iter().map(to_vector).collect::<Result<Vec<_>>>()?;
            // Once more if the index, which was there, has been dropped by somebody else.
            for is_last in [false, true] {
                inner.make_index(tenant).await?;
                let put = inner
                    .client
                    .put_vectors()
                    .vector_bucket_name(&inner.bucket)
                    .index_name(inner.index_name(tenant))
                    .set_vectors(Some(vectors.clone()));
                match put.send().await {
                    Ok(_) => break,
                    Err(error) if is_missing(&error) && !is_last => inner.forget(tenant),
                    Err(error) => return Err(failed(OPERATION, &inner.bucket, error)),
                }
            }
        }
        Ok(())
    }

    async fn query(&self, tenant: &TenantId, query: VectorQuery) -> Result<Vec<Neighbor>> {
        const OPERATION: &str = "query vectors";
        let inner = &self.inner;
        inner.profile.check_query(&query)?;
        let VectorQuery { vector, k, filter } = query;
        let filter = match filter.map_or(Clause::Everything, |filter| filter::translate(&filter)) {
            Clause::Everything => None,
            Clause::Nothing => return Ok(Vec::new()),
            Clause::Where(filter) => Some(filter),
        };
        if !inner.has_index(tenant).await? {
            return Ok(Vec::new());
        }
        let (mut neighbors, mut token) = (Vec::with_capacity(k), None);
        loop {
            let query = inner
                .client
                .query_vectors()
                .vector_bucket_name(&inner.bucket)
                .index_name(inner.index_name(tenant))
                .query_vector(VectorData::Float32(vector.clone()))
                .top_k(i32::try_from(k).unwrap_or(i32::MAX))
                .set_filter(filter.clone())
                .return_distance(true)
                .return_metadata(true)
                .set_next_token(token);
            let page = match query.send().await {
                Ok(page) => page,
                Err(error) if is_missing(&error) => {
                    inner.forget(tenant);
                    return Ok(Vec::new());
                }
                Err(error) => return Err(failed(OPERATION, &inner.bucket, error)),
            };
            for found in page.vectors {
                let distance = found.distance.ok_or_else(|| {
                    Error::corrupt(OPERATION, "the service gave a neighbour without its distance")
                        .with("key", &found.key)
                })?;
                let metadata = document::to_metadata(OPERATION, found.metadata)?;
                neighbors.push(Neighbor { key: VectorKey::new(found.key)?, distance, metadata });
            }
            token = page.next_token;
            if token.is_none() || neighbors.len() >= k {
                break;
            }
        }
        neighbors.sort_by(|a, b| a.distance.total_cmp(&b.distance).then_with(|| a.key.cmp(&b.key)));
        neighbors.truncate(k);
        Ok(neighbors)
    }

    async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>> {
        const OPERATION: &str = "get vectors";
        let inner = &self.inner;
        let mut seen = HashSet::new();
        let wanted: Vec<_> = keys.iter().filter(|key| seen.insert(*key)).map(|key| key.as_str().to_owned()).collect();
        let mut found = HashMap::new();
        for batch in wanted.chunks(MAX_GET) {
            let get = inner
                .client
                .get_vectors()
                .vector_bucket_name(&inner.bucket)
                .index_name(inner.index_name(tenant))
                .set_keys(Some(batch.to_vec()))
                .return_data(true)
                .return_metadata(true);
            match get.send().await {
                Ok(page) => {
                    for vector in page.vectors {
                        let record = from_vector(OPERATION, vector)?;
                        found.insert(record.key.clone(), record);
                    }
                }
                Err(error) if is_missing(&error) => {
                    inner.forget(tenant);
                    break;
                }
                Err(error) => return Err(failed(OPERATION, &inner.bucket, error)),
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>> {
        let (index, tenant) = (self.clone(), tenant.clone());
        stream::try_unfold(Some(None), move |token| {
            let (index, tenant) = (index.clone(), tenant.clone());
            async move {
                let Some(token) = token else { return Ok(None) };
                let (keys, next) = index.page(&tenant, token).await?;
                Ok::<_, Error>(Some((stream::iter(keys).map(Ok), next.map(Some))))
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()> {
        let inner = &self.inner;
        let distinct: HashSet<_> = keys.iter().map(|key| key.as_str().to_owned()).collect();
        let distinct: Vec<_> = distinct.into_iter().collect();
        for batch in distinct.chunks(MAX_DELETE) {
            let delete = inner
                .client
                .delete_vectors()
                .vector_bucket_name(&inner.bucket)
                .index_name(inner.index_name(tenant))
                .set_keys(Some(batch.to_vec()));
            match delete.send().await {
                Ok(_) => {}
                Err(error) if is_missing(&error) => {
                    inner.forget(tenant);
                    return Ok(());
                }
                Err(error) => return Err(failed("delete vectors", &inner.bucket, error)),
            }
        }
        Ok(())
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64> {
        self.list(tenant).try_fold(0, |count, _| std::future::ready(Ok(count + 1))).await
    }

    async fn drop_tenant(&self, tenant: &TenantId) -> Result<()> {
        let inner = &self.inner;
        inner.forget(tenant);
        let name = inner.index_name(tenant);
        let delete = inner.client.delete_index().vector_bucket_name(&inner.bucket).index_name(name).send().await;
        match delete {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(failed("drop tenant", &inner.bucket, error)),
        }
    }
}

fn to_vector(record: VectorRecord) -> Result<PutInputVector> {
    let VectorRecord { key, vector, metadata } = record;
    let builder = PutInputVector::builder()
        .key(key.as_str())
        .data(VectorData::Float32(vector))
        .set_metadata((!metadata.is_empty()).then(|| document::from_metadata(&metadata)));
    builder.build().map_err(|error| {
        Error::internal("upsert vectors", "a request could not be made").with("key", key).with_source(error)
    })
}

fn from_vector(operation: &'static str, vector: GetOutputVector) -> Result<VectorRecord> {
    let Some(VectorData::Float32(data)) = vector.data else {
        return Err(Error::corrupt(operation, "the service gave a record without its vector").with("key", vector.key));
    };
    let metadata = document::to_metadata(operation, vector.metadata)?;
    Ok(VectorRecord { key: VectorKey::new(vector.key)?, vector: data, metadata })
}
