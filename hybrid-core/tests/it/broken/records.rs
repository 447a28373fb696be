use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use hybrid_core::{
    BoxStream, Clock, CollectionName, Error, ManualClock, NewRecord, PutCondition, Record, RecordKey, RecordOrder,
    RecordPage, RecordQuery, RecordStore, RecordVersion, Result, SeededIds, TenantId,
    conformance::{Report, records},
    memory::MemoryRecordStore,
};

use crate::conformance::RecordStores;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RecordFault {
    KeepsTextOnly,
    RefusesTheLargest,
    CutsTheTooLarge,
    FoldsKeys,
    KeepsTheOldEnd,
    CreatesOver,
    ChecksThenWrites,
    IgnoresVersions,
    CountsVersions,
    MissingIsEmpty,
    PrefixIsAPath,
    AfterIsInclusive,
    LosesTheLastPage,
    SmallPagesOnly,
    PagesByOffset,
    ClampsLimits,
    ExportsOneCollection,
    ForgetsOnRestart,
    DeletesByPrefix,
    OneTenant,
    NeverExpires,
    ExpiresButHoldsTheKey,
    ErasesOneCollection,
    LeavesTheExpired,
}

use RecordFault::*;

const PLANTED: &[super::Planted<RecordFault>] = &[
    (KeepsTextOnly, &["values_come_back"]),
    (RefusesTheLargest, &["the_largest_value_is_stored"]),
    (CutsTheTooLarge, &["a_larger_value_is_refused"]),
    (FoldsKeys, &["a_key_may_be_anything_legal"]),
    (KeepsTheOldEnd, &["a_put_replaces_whole"]),
    (CreatesOver, &["create_needs_a_free_key"]),
    (ChecksThenWrites, &["one_of_many_puts_wins"]),
    (IgnoresVersions, &["a_version_must_be_the_one"]),
    (CountsVersions, &["versions_never_come_twice"]),
    (MissingIsEmpty, &["missing_records_are_none"]),
    (PrefixIsAPath, &["a_prefix_is_plain_text"]),
    (AfterIsInclusive, &["bounds_are_exclusive"]),
    (LosesTheLastPage, &["pages_are_complete"]),
    (SmallPagesOnly, &["large_pages_are_complete"]),
    (PagesByOffset, &["paging_bears_changes"]),
    (ClampsLimits, &["a_limit_out_of_range_is_refused"]),
    (ExportsOneCollection, &["an_export_is_complete"]),
    (ForgetsOnRestart, &["a_restart_keeps_records"]),
    (DeletesByPrefix, &["deletes_delete"]),
    (OneTenant, &["tenants_share_nothing"]),
    (NeverExpires, &["expired_records_are_in_no_answer"]),
    (ExpiresButHoldsTheKey, &["an_expired_key_is_free"]),
    (ErasesOneCollection, &["an_erased_tenant_is_gone"]),
    (LeavesTheExpired, &["nothing_is_left_of_an_erased_tenant"]),
];

async fn run(fault: RecordFault) -> Report {
    records::run(&RecordStores::broken(fault)).await
}

#[tokio::test]
async fn the_suite_notices_broken_record_stores() {
    super::check(PLANTED, run).await;
}

/// Everything ever written, with its tenant, as a disk would show it that nobody cleans.
type Disk = Arc<Mutex<BTreeMap<(TenantId, CollectionName, RecordKey), Bytes>>>;

#[derive(Debug)]
pub(crate) struct BrokenRecordStore {
    memory: MemoryRecordStore,
    clock: ManualClock,
    pub(crate) disk: Disk,
    fault: RecordFault,
}

impl BrokenRecordStore {
    pub(crate) fn new(clock: ManualClock, fault: RecordFault) -> Self {
        let time: Arc<dyn Clock> = match fault {
            // A clock that stands still.
            NeverExpires => Arc::new(ManualClock::at(clock.now())),
            _ => Arc::new(clock.clone()),
        };
        Self { memory: MemoryRecordStore::new(time), clock, disk: Disk::default(), fault }
    }

    fn tenant(&self, tenant: &TenantId) -> TenantId {
        if self.fault == OneTenant { TenantId::single() } else { tenant.clone() }
    }

    fn key(&self, key: &RecordKey) -> RecordKey {
        if self.fault == FoldsKeys { RecordKey::new(key.as_str().to_lowercase()).unwrap() } else { key.clone() }
    }
}

#[async_trait]
impl RecordStore for BrokenRecordStore {
    async fn put(
        &self,
        tenant: &TenantId,
        collection: &CollectionName,
        key: &RecordKey,
        mut record: NewRecord,
        mut condition: PutCondition,
    ) -> Result<RecordVersion> {
        let (tenant, key) = (&self.tenant(tenant), &self.key(key));
        let held = self.memory.get(tenant, collection, key).await?;
        match self.fault {
            KeepsTextOnly => record.value = String::from_utf8_lossy(&record.value).into_owned().into(),
            RefusesTheLargest if record.value.len() == hybrid_core::MAX_RECORD_BYTES => {
                return Err(Error::too_large("put record", "the value is over the limit"));
            }
            CutsTheTooLarge => record.value.truncate(hybrid_core::MAX_RECORD_BYTES),
            KeepsTheOldEnd => record.expires = record.expires.or(held.and_then(|held| held.expires)),
            CreatesOver if condition == PutCondition::Create => condition = PutCondition::Always,
            ChecksThenWrites => {
                condition.check(key, held.map(|held| held.version))?;
                tokio::task::yield_now().await;
                condition = PutCondition::Always;
            }
            IgnoresVersions if matches!(condition, PutCondition::Version(_)) => condition = PutCondition::Always,
            ExpiresButHoldsTheKey if condition == PutCondition::Create => {
                let was_there = (tenant.clone(), collection.clone(), key.clone());
                if self.disk.lock().unwrap().contains_key(&was_there) {
                    return Err(Error::already_exists("put record", "the record exists"));
                }
            }
            _ => {}
        }
        let value = record.value.clone();
        let version = self.memory.put(tenant, collection, key, record, condition).await?;
        self.disk.lock().unwrap().insert((tenant.clone(), collection.clone(), key.clone()), value);
        Ok(match self.fault {
            CountsVersions => RecordVersion::next(&SeededIds::new(1)),
            _ => version,
        })
    }

    async fn get(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<Option<Record>> {
        let found = self.memory.get(&self.tenant(tenant), collection, &self.key(key)).await?;
        if self.fault == MissingIsEmpty && found.is_none() {
            let version = RecordVersion::next(&SeededIds::new(0));
            let (value, written) = (Bytes::new(), self.clock.now());
            return Ok(Some(Record { key: key.clone(), value, version, written, expires: None }));
        }
        Ok(found)
    }

    async fn query(
        &self,
        tenant: &TenantId,
        collection: &CollectionName,
        mut query: RecordQuery,
    ) -> Result<RecordPage> {
        let tenant = &self.tenant(tenant);
        match self.fault {
            PrefixIsAPath if !query.prefix.is_empty() && !query.prefix.ends_with('/') => query.prefix.push('/'),
            AfterIsInclusive if query.prefix == "a/" && query.order == RecordOrder::Ascending => {
                if let Some(after) = query.after.take() {
                    let held = self.memory.get(tenant, collection, &after).await?;
                    let mut page = self.memory.query(tenant, collection, query).await?;
                    page.records.retain(|record| record.key > after);
                    page.records.splice(0..0, held);
                    return Ok(page);
                }
            }
            ClampsLimits => query.limit = query.limit.clamp(1, hybrid_core::MAX_PAGE),
            PagesByOffset => {
                // The second page starts where the first ended in the collection as it is now.
                let (asked, limit) = (query.clone(), query.limit);
                let offset = asked.after.as_ref().or(asked.before.as_ref()).map_or(0, |key| key.as_str().len());
                if offset > 0 && limit == 5 {
                    let whole = RecordQuery { after: None, before: None, limit: 1_000, ..query };
                    let all = self.memory.query(tenant, collection, whole).await?.records;
                    return Ok(RecordPage { records: all.into_iter().skip(limit).collect(), next: None });
                }
            }
            _ => {}
        }
        let mut page = self.memory.query(tenant, collection, query).await?;
        match self.fault {
            LosesTheLastPage if page.next.is_none() && page.records.len() > 20 => {
                page.records.pop();
            }
            SmallPagesOnly if page.records.iter().map(|record| record.value.len()).sum::<usize>() > 1_000_000 => {
                page.records.truncate(3);
                page.next = None;
            }
            _ => {}
        }
        Ok(page)
    }

    async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()> {
        let (tenant, key) = (&self.tenant(tenant), &self.key(key));
        if self.fault == DeletesByPrefix {
            let matching = RecordQuery::prefix(key.as_str()).limit(1_000);
            for record in self.memory.query(tenant, collection, matching).await?.records {
                self.memory.delete(tenant, collection, &record.key).await?;
            }
        }
        self.disk.lock().unwrap().remove(&(tenant.clone(), collection.clone(), key.clone()));
        self.memory.delete(tenant, collection, key).await
    }

    fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>> {
        let all = self.memory.export(&self.tenant(tenant));
        if self.fault == ExportsOneCollection {
            return all.try_filter(|(name, _)| std::future::ready(name.as_str() == "orders")).boxed();
        }
        all
    }

    async fn erase(&self, tenant: &TenantId) -> Result<()> {
        let tenant = &self.tenant(tenant);
        if self.fault == ErasesOneCollection {
            let all: Vec<_> = self.memory.export(tenant).try_collect().await?;
            for (collection, record) in all.iter().filter(|(name, _)| name.as_str() == "orders") {
                self.memory.delete(tenant, collection, &record.key).await?;
            }
            return Ok(());
        }
        let live: Vec<_> = self.memory.export(tenant).try_collect().await?;
        self.disk.lock().unwrap().retain(|(whose, collection, key), _| {
            whose != tenant
                || self.fault == LeavesTheExpired
                    && !live.iter().any(|(name, record)| name == collection && record.key == *key)
        });
        self.memory.erase(tenant).await
    }
}
