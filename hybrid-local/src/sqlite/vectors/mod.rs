mod cache;
mod codes;
mod shard;
mod table;

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    BoxStream, Error, Neighbor, Result, TenantId, VectorGuarantees, VectorIndex, VectorKey, VectorProfile, VectorQuery,
    VectorRecord, VectorSchema,
};

use super::{
    database,
    writer::{Access, Writer},
};
use cache::Cache;
use shard::{Change, Hit, Shard};

/// The most neighbours that one query answers with.
const MAX_K: usize = 10_000;
/// Keys that a listing reads at once.
const PAGE: usize = 1_000;
/// How often a query looks again when what it has found changes before its metadata is read.
const LOOKS: usize = 8;
/// Below this many components a scan is shorter than the way to another thread.
const SMALL_SCAN: usize = 64 * 1024;

/// How a [`SqliteVectorIndex`] behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteVectorOptions {
    /// How many bytes of vectors are held in memory; 1 GiB by default. The tenants asked last stay; the one that is asked is always held whole.
    pub memory: usize,
}

impl Default for SqliteVectorOptions {
    fn default() -> Self {
        Self { memory: 1 << 30 }
    }
}

/// A [`VectorIndex`] in one SQLite file that finds the true nearest by looking at every vector. Clones share it, and so may several processes of one machine.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let scratch = tempfile::tempdir().unwrap();
/// # let path = scratch.path().join("vectors.db");
/// use hybrid_core::{TenantId, VectorIndex, VectorQuery, VectorRecord, VectorSchema, vector::Metric};
/// use hybrid_local::{SqliteVectorIndex, SqliteVectorOptions};
///
/// let schema = VectorSchema::new(3, Metric::Cosine)?;
/// let index = SqliteVectorIndex::open(&path, schema, SqliteVectorOptions::default())?;
/// let bakery = TenantId::new("bakery")?;
/// index.upsert(&bakery, vec![VectorRecord::new("faq/1", [1.0, 0.0, 0.0])?]).await?;
/// let nearest = index.query(&bakery, VectorQuery::new([0.9, 0.1, 0.0], 1)).await?;
/// assert_eq!(nearest[0].key.as_str(), "faq/1");
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// - The answers are exact, see all writes that have returned, in whichever process, and break ties by key. A query for at most 10,000 neighbours.
/// - A change is durable when it is answered; an `upsert` or `delete` is one transaction, whole or not at all.
/// - The file is made with the schema and remembers it: opening it with one that does not extend it is [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput).
///
/// # How it searches
/// The first query of a tenant reads its vectors into memory: per component four bytes and one byte of code. A query scans the codes, which bound each
/// distance from both sides with proof (Cauchy–Schwarz on what the rounding left over), and computes in full only those that the bounds leave in the race. So it moves about a quarter of the bytes of a plain scan, and finds the same.
/// Changes are applied to what is held; a change by another process makes the tenant's next query read it again.
///
/// # Deletes
/// What is deleted or replaced is overwritten with zeros in the file (`secure_delete`), and a delete returns once the write-ahead log, which may still hold
/// copies, has been emptied into the file and cut off. Where SQLite has moved rows between pages, though, copies of keys and short rows may lie in the
/// pages' unused room: `drop_tenant` therefore writes the whole file anew, unless nothing was removed or replaced since it was last written so, and [`compact`](Self::compact) does so on demand; this takes memory for a copy of the file. Without it the file keeps its size, and
/// uses the room again. Another process that reads at that moment for more than ten seconds makes it [`Unavailable`](hybrid_core::ErrorKind::Unavailable): the records are gone, their last copies
/// may not be; call again. Copies that the file system or a backup made are theirs.
#[derive(Clone)]
pub struct SqliteVectorIndex {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    cache: Cache,
    profile: VectorProfile,
    path: Arc<Path>,
}

impl SqliteVectorIndex {
    /// Opens the index at `path`; the file and the folders above it are made if they do not exist.
    ///
    /// # Errors
    /// Those of the disk, of a file that is not a vector index, and of one that was made with another schema; each names the path.
    pub fn open(path: impl AsRef<Path>, schema: VectorSchema, options: SqliteVectorOptions) -> Result<Self> {
        let path = path.as_ref();
        let SqliteVectorOptions { memory } = options;
        let db = database::open(path, &table::FORMAT, |_| Ok(()))?;
        database::erase_what_is_deleted(&db, path)?;
        table::settle_schema(&db, path, &schema)?;
        let guarantees = VectorGuarantees { exact: true, read_your_writes: true, ordered_ties: true };
        let inner = Inner {
            writer: Writer::start(db, path)?,
            cache: Cache::new(memory),
            profile: VectorProfile { schema, max_k: MAX_K, guarantees },
            path: path.into(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes the file anew, without what was deleted: it shrinks, and no copy is left in the unused room of its pages.
    ///
    /// # Errors
    /// Those of the disk and of memory; the file then is as it was.
    pub async fn compact(&self) -> Result<()> {
        self.inner.writer.call("compact vector index", Access::Rewrite, |_| Ok(()), |()| ()).await
    }

    /// The tenant's vectors in memory, as new as all writes that have returned. None if it has none.
    async fn shard(&self, tenant: &TenantId) -> Result<Option<Arc<RwLock<Shard>>>> {
        const OPERATION: &str = "query vectors";
        let (inner, name) = (Arc::clone(&self.inner), tenant.clone());
        let read = {
            let name = name.clone();
            move |db: &rusqlite::Connection| table::tenant(db, &name)
        };
        // What is held has had every change of this process applied when the answer of a later call is made.
        let find = move |found: Option<table::Tenant>| match found {
            Some(tenant) => inner.cache.get(&name, tenant.generation).map_or(Found::Stale, Found::Held),
            None => Found::Nothing,
        };
        match self.inner.writer.call(OPERATION, Access::Read, read, find).await? {
            Found::Nothing => return Ok(None),
            Found::Held(shard) => return Ok(Some(shard)),
            Found::Stale => {}
        }
        let (inner, name, schema) = (Arc::clone(&self.inner), tenant.clone(), self.inner.profile.schema.clone());
        let load = {
            let name = name.clone();
            move |db: &rusqlite::Connection| table::load(db, &name, &schema)
        };
        let keep = move |shard: Option<Shard>| shard.map(|shard| inner.cache.insert(&name, shard));
        self.inner.writer.call(OPERATION, Access::Read, load, keep).await
    }

    /// Fills in the metadata that memory does not hold. None if a record has changed since it was found.
    async fn complete(&self, tenant: &TenantId, hits: Vec<Hit>) -> Result<Option<Vec<Neighbor>>> {
        let schema = &self.inner.profile.schema;
        if schema.stored_fields().next().is_none() {
            return Ok(Some(hits.into_iter().map(Hit::into_neighbor).collect()));
        }
        let tenant = tenant.clone();
        let read = move |db: &rusqlite::Connection| {
            let mut neighbors = Vec::with_capacity(hits.len());
            for hit in &hits {
                match table::metadata_at(db, &tenant, &hit.key, hit.changed)? {
                    Some(metadata) => neighbors.push(Neighbor { metadata, ..hit.clone().into_neighbor() }),
                    None => return Ok(None),
                }
            }
            Ok(Some(neighbors))
        };
        self.inner.writer.call("query vectors", Access::Read, read, |neighbors| neighbors).await
    }
}

enum Found {
    Nothing,
    Stale,
    Held(Arc<RwLock<Shard>>),
}

impl fmt::Debug for SqliteVectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteVectorIndex").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl VectorIndex for SqliteVectorIndex {
    fn profile(&self) -> &VectorProfile {
        &self.inner.profile
    }

    async fn upsert(&self, tenant: &TenantId, records: Vec<VectorRecord>) -> Result<()> {
        self.inner.profile.check_records(&records)?;
        if records.is_empty() {
            return Ok(());
        }
        let (inner, records) = (Arc::clone(&self.inner), Arc::new(records));
        let (name, written) = (tenant.clone(), Arc::clone(&records));
        let write = {
            let name = name.clone();
            move |db: &rusqlite::Connection| table::write(db, &name, &written)
        };
        let apply = move |step: table::Step| inner.cache.apply(&name, step, records.iter().map(Change::Put));
        self.inner.writer.call("upsert vectors", Access::Write, write, apply).await
    }

    async fn query(&self, tenant: &TenantId, query: VectorQuery) -> Result<Vec<Neighbor>> {
        self.inner.profile.check_query(&query)?;
        let query = Arc::new(query);
        for _ in 0..LOOKS {
            let Some(shard) = self.shard(tenant).await? else { return Ok(Vec::new()) };
            let query = Arc::clone(&query);
            let search = move || shard.read().unwrap_or_else(PoisonError::into_inner).search(&query);
            let size = self.inner.cache.components(tenant);
            let hits = if size <= SMALL_SCAN { search() } else { on_blocking_thread(search).await? };
            if let Some(neighbors) = self.complete(tenant, hits).await? {
                return Ok(neighbors);
            }
        }
        Err(Error::unavailable("query vectors", "the records nearest to the query keep changing; try again")
            .with("tenant", tenant))
    }

    async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>> {
        let (tenant, keys) = (tenant.clone(), keys.to_vec());
        let read = move |db: &rusqlite::Connection| {
            let mut found = HashMap::new();
            for key in &keys {
                if !found.contains_key(key) {
                    found.insert(key, table::read(db, &tenant, key)?);
                }
            }
            Ok(keys.iter().map(|key| found.get(key).cloned().flatten()).collect())
        };
        self.inner.writer.call("get vectors", Access::Read, read, |found| found).await
    }

    fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>> {
        let (index, tenant) = (self.clone(), tenant.clone());
        // After each page the listing goes on behind its last key, so that changes meanwhile shift nothing.
        stream::try_unfold(Some(None::<VectorKey>), move |after| {
            let (index, tenant) = (index.clone(), tenant.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let read = move |db: &rusqlite::Connection| table::keys(db, &tenant, after.as_ref(), PAGE);
                let page = index.inner.writer.call("list vectors", Access::Read, read, |keys| keys).await?;
                let next = if page.len() < PAGE { None } else { page.last().cloned().map(Some) };
                Ok(Some((stream::iter(page).map(Ok), next)))
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let (inner, keys) = (Arc::clone(&self.inner), Arc::new(keys.to_vec()));
        let (name, gone) = (tenant.clone(), Arc::clone(&keys));
        let erase = {
            let name = name.clone();
            move |db: &rusqlite::Connection| table::delete(db, &name, &gone)
        };
        let apply = move |step: Option<table::Step>| {
            if let Some(step) = step {
                inner.cache.apply(&name, step, keys.iter().map(Change::Delete));
            }
        };
        self.inner.writer.call("delete vectors", Access::Erase, erase, apply).await
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64> {
        let tenant = tenant.clone();
        let count = move |db: &rusqlite::Connection| table::count(db, &tenant);
        self.inner.writer.call("count vectors", Access::Read, count, |count| count).await
    }

    async fn drop_tenant(&self, tenant: &TenantId) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), tenant.clone());
        let erase = {
            let name = name.clone();
            move |db: &rusqlite::Connection| table::drop_tenant(db, &name)
        };
        let forget = move |()| inner.cache.remove(&name);
        self.inner.writer.call("drop tenant", Access::Rewrite, erase, forget).await
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => Ok(answer),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::cancelled("query vectors", "the runtime is shutting down").with_source(error)),
        },
    }
}
