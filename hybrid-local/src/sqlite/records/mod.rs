mod table;

use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    BoxStream, Clock, CollectionName, IdSource, NewRecord, PutCondition, Record, RecordKey, RecordPage, RecordQuery,
    RecordStore, RecordVersion, Result, SystemClock, SystemIds, TenantId,
};
use rusqlite::Connection;

use super::{
    database,
    writer::{Access, Writer},
};
use table::Place;

/// The most records that an export reads at once.
const EXPORT_PAGE: usize = 100;
/// Bytes of values after which a page ends, so that a page of large records does not fill the memory.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// How a [`SqliteRecordStore`] behaves.
#[derive(Clone, Debug)]
pub struct SqliteRecordOptions {
    /// Where the time comes from, by which records end.
    pub clock: Arc<dyn Clock>,
    /// Where versions come from.
    pub ids: Arc<dyn IdSource>,
}

impl Default for SqliteRecordOptions {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), ids: Arc::new(SystemIds::default()) }
    }
}

/// A [`RecordStore`] in one SQLite file. Clones share it, and so may several processes of one machine.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let scratch = tempfile::tempdir().unwrap();
/// # let path = scratch.path().join("records.db");
/// use hybrid_core::{CollectionName, NewRecord, PutCondition, RecordKey, RecordQuery, RecordStore, TenantId};
/// use hybrid_local::{SqliteRecordOptions, SqliteRecordStore};
///
/// let store = SqliteRecordStore::open(&path, SqliteRecordOptions::default())?;
/// let (bakery, orders) = (TenantId::new("bakery")?, CollectionName::new("orders")?);
/// store.put(&bakery, &orders, &RecordKey::new("2026-03-01/1")?, NewRecord::new("two rye"), PutCondition::Create).await?;
/// let march = store.query(&bakery, &orders, RecordQuery::prefix("2026-03-")).await?;
/// assert_eq!(march.records[0].value, "two rye");
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// - Each change is one durable commit, which callers that come together share; a condition is checked under the file's write lock, so it holds across processes.
/// - Every write of this process removes some records that have expired; [`purge_expired`](Self::purge_expired) removes all of them.
/// - A page ends early after 8 MiB of values, and so does what an export reads at once.
///
/// # Deletes
/// What is deleted, replaced or expired is overwritten with zeros in the file (`secure_delete`). `delete` returns once the write-ahead log, which may still hold
/// copies, has been emptied into the file and cut off. Where SQLite has moved rows between pages, copies of short rows may lie in the pages' unused room: [`erase`](RecordStore::erase) therefore writes
/// the whole file anew, unless nothing was removed or replaced since it was last written so, and [`compact`](Self::compact) does so on demand; this takes memory for a copy of it. Another process that reads at that moment for more than ten seconds makes either
/// [`Unavailable`](hybrid_core::ErrorKind::Unavailable): the records are gone, their last copies may not be; call again. Copies that the file system or a backup made are theirs.
#[derive(Clone)]
pub struct SqliteRecordStore {
    writer: Writer,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    path: Arc<Path>,
}

impl SqliteRecordStore {
    /// Opens the store at `path`; the file and the folders above it are made if they do not exist.
    ///
    /// # Errors
    /// Those of the disk and of a file that is not a record store; each names the path.
    pub fn open(path: impl AsRef<Path>, options: SqliteRecordOptions) -> Result<Self> {
        let path = path.as_ref();
        let SqliteRecordOptions { clock, ids } = options;
        let db = database::open(path, &table::FORMAT, |_| Ok(()))?;
        database::erase_what_is_deleted(&db, path)?;
        Ok(Self { writer: Writer::start(db, path)?, clock, ids, path: path.into() })
    }

    /// Removes the bytes of all records that have expired; answers with how many there were.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn purge_expired(&self) -> Result<u64> {
        let now = self.clock.now();
        let purge = move |db: &Connection| table::purge(db, now, u32::MAX);
        self.writer.call("purge records", Access::Erase, purge, |count| count).await
    }

    /// Writes the file anew, without what was deleted: it shrinks, and no copy is left in the unused room of its pages.
    ///
    /// # Errors
    /// Those of the disk and of memory; the file then is as it was.
    pub async fn compact(&self) -> Result<()> {
        self.writer.call("compact record store", Access::Rewrite, |_| Ok(()), |()| ()).await
    }
}

impl fmt::Debug for SqliteRecordStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteRecordStore").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl RecordStore for SqliteRecordStore {
    async fn put(
        &self,
        tenant: &TenantId,
        collection: &CollectionName,
        key: &RecordKey,
        record: NewRecord,
        condition: PutCondition,
    ) -> Result<RecordVersion> {
        record.validate(key)?;
        let NewRecord { value, expires } = record;
        let (place, version) = (Place::new(tenant, collection, key), RecordVersion::next(&*self.ids));
        let (clock, held_key) = (Arc::clone(&self.clock), key.clone());
        let write = move |db: &Connection| {
            let now = clock.now();
            let held = table::version(db, &place, now)?;
            // Looked at again once committed, for the error's text; here it only decides.
            if condition.check(&place.key, held).is_ok() {
                let record = Record { key: place.key.clone(), value: value.clone(), version, written: now, expires };
                table::write(db, &place, &record)?;
            }
            table::purge(db, now, 16)?;
            Ok(held)
        };
        let answer = move |held| condition.check(&held_key, held).map(|()| version);
        self.writer.call("put record", Access::Write, write, answer).await?
    }

    async fn get(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<Option<Record>> {
        let (place, now) = (Place::new(tenant, collection, key), self.clock.now());
        let read = move |db: &Connection| table::read(db, &place, now);
        self.writer.call("get record", Access::Read, read, |record| record).await
    }

    async fn query(&self, tenant: &TenantId, collection: &CollectionName, query: RecordQuery) -> Result<RecordPage> {
        query.validate()?;
        let (tenant, collection, now) = (tenant.clone(), collection.clone(), self.clock.now());
        let read = move |db: &Connection| table::page(db, &tenant, &collection, &query, now, PAGE_BYTES);
        self.writer.call("query records", Access::Read, read, |page| page).await
    }

    async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()> {
        let place = Place::new(tenant, collection, key);
        let delete = move |db: &Connection| table::delete(db, &place);
        self.writer.call("delete record", Access::Erase, delete, |()| ()).await
    }

    fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>> {
        let (store, tenant) = (self.clone(), tenant.clone());
        // After each page the export goes on behind its last record, so that changes meanwhile shift nothing.
        stream::try_unfold(Some(None), move |after: Option<Option<(CollectionName, RecordKey)>>| {
            let (store, tenant) = (store.clone(), tenant.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let now = store.clock.now();
                let read =
                    move |db: &Connection| table::export(db, &tenant, after.as_ref(), now, EXPORT_PAGE, PAGE_BYTES);
                let (page, more) = store.writer.call("export records", Access::Read, read, |page| page).await?;
                let last = page.last().map(|(collection, record)| (collection.clone(), record.key.clone()));
                let next = last.filter(|_| more).map(Some);
                Ok(Some((stream::iter(page).map(Ok), next)))
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn erase(&self, tenant: &TenantId) -> Result<()> {
        let tenant = tenant.clone();
        let erase = move |db: &Connection| table::erase(db, &tenant);
        self.writer.call("erase tenant", Access::Rewrite, erase, |()| ()).await
    }
}
