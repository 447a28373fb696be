use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use crate::{
    BoxStream, Clock, CollectionName, IdSource, NewRecord, PutCondition, Record, RecordKey, RecordOrder, RecordPage,
    RecordQuery, RecordStore, RecordVersion, Result, SystemClock, SystemIds, TenantId,
};

/// A [`RecordStore`] in memory. Clones share their records.
#[derive(Clone, Debug)]
pub struct MemoryRecordStore {
    tenants: Arc<Mutex<BTreeMap<TenantId, Collections>>>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

type Collections = BTreeMap<CollectionName, BTreeMap<RecordKey, Record>>;

impl MemoryRecordStore {
    /// An empty store whose time is `clock`'s.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let ids = Arc::new(SystemIds::new(Arc::clone(&clock)));
        Self { tenants: Arc::default(), clock, ids }
    }

    /// The records as they are now: what has expired is gone.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, Collections>> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        for records in tenants.values_mut().flat_map(BTreeMap::values_mut) {
            records.retain(|_, record| !record.is_expired(now));
        }
        tenants
    }
}

impl Default for MemoryRecordStore {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock))
    }
}

#[async_trait]
impl RecordStore for MemoryRecordStore {
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
        let mut tenants = self.lock();
        let records = tenants.entry(tenant.clone()).or_default().entry(collection.clone()).or_default();
        condition.check(key, records.get(key).map(|held| held.version))?;
        let version = RecordVersion::next(&*self.ids);
        let record = Record { key: key.clone(), value, version, written: self.clock.now(), expires };
        records.insert(key.clone(), record);
        Ok(version)
    }

    async fn get(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<Option<Record>> {
        Ok(self.lock().get(tenant).and_then(|all| all.get(collection)).and_then(|records| records.get(key)).cloned())
    }

    async fn query(&self, tenant: &TenantId, collection: &CollectionName, query: RecordQuery) -> Result<RecordPage> {
        query.validate()?;
        let tenants = self.lock();
        let records = tenants.get(tenant).and_then(|all| all.get(collection));
        let matching = records.into_iter().flat_map(BTreeMap::values).filter(|record| query.matches(&record.key));
        // One more than asked for says whether more follow.
        let wanted = query.limit + 1;
        let mut records: Vec<_> = match query.order {
            RecordOrder::Ascending => matching.take(wanted).cloned().collect(),
            RecordOrder::Descending => matching.rev().take(wanted).cloned().collect(),
        };
        let more = records.len() == wanted;
        records.truncate(query.limit);
        let next = records.last().filter(|_| more).map(|last| query.following(&last.key));
        Ok(RecordPage { records, next })
    }

    async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()> {
        if let Some(records) = self.lock().get_mut(tenant).and_then(|all| all.get_mut(collection)) {
            records.remove(key);
        }
        Ok(())
    }

    fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>> {
        let all = self.lock().get(tenant).cloned().unwrap_or_default();
        let records = all.into_iter().flat_map(|(collection, records)| {
            records.into_values().map(move |record| Ok((collection.clone(), record)))
        });
        stream::iter(records.collect::<Vec<_>>()).boxed()
    }

    async fn erase(&self, tenant: &TenantId) -> Result<()> {
        self.lock().remove(tenant);
        Ok(())
    }
}
