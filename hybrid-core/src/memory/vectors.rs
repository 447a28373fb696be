use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use crate::{
    BoxStream, Neighbor, Result, TenantId, VectorGuarantees, VectorIndex, VectorKey, VectorProfile, VectorQuery,
    VectorRecord, VectorSchema, vector::Metadata,
};

/// A [`VectorIndex`] in memory that looks at every record. Clones share their records.
#[derive(Clone, Debug)]
pub struct MemoryVectorIndex {
    profile: Arc<VectorProfile>,
    tenants: Arc<RwLock<BTreeMap<TenantId, Records>>>,
}

type Records = BTreeMap<VectorKey, (Vec<f32>, Metadata)>;

impl MemoryVectorIndex {
    /// An empty index.
    pub fn new(schema: VectorSchema) -> Self {
        let guarantees = VectorGuarantees { exact: true, read_your_writes: true, ordered_ties: true };
        Self { profile: Arc::new(VectorProfile { schema, max_k: 10_000, guarantees }), tenants: Arc::default() }
    }

    /// What `look` finds in the tenant's records.
    fn look<T: Default>(&self, tenant: &TenantId, look: impl FnOnce(&Records) -> T) -> T {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant).map(look).unwrap_or_default()
    }
}

#[async_trait]
impl VectorIndex for MemoryVectorIndex {
    fn profile(&self) -> &VectorProfile {
        &self.profile
    }

    async fn upsert(&self, tenant: &TenantId, records: Vec<VectorRecord>) -> Result<()> {
        self.profile.check_records(&records)?;
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let held = tenants.entry(tenant.clone()).or_default();
        held.extend(records.into_iter().map(|VectorRecord { key, vector, metadata }| (key, (vector, metadata))));
        Ok(())
    }

    async fn query(&self, tenant: &TenantId, query: VectorQuery) -> Result<Vec<Neighbor>> {
        self.profile.check_query(&query)?;
        let VectorQuery { vector: wanted, k, filter } = query;
        let metric = self.profile.schema.metric();
        Ok(self.look(tenant, |records| {
            let mut found: Vec<_> = records
                .iter()
                .filter(|(_, (_, metadata))| filter.as_ref().is_none_or(|filter| filter.matches(metadata)))
                .map(|(key, (vector, metadata))| (metric.distance(&wanted, vector), key, metadata))
                .collect();
            // Stable, so that equal distances stay in the map's order, which is that of the keys.
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            let nearest = found.into_iter().take(k);
            nearest
                .map(|(distance, key, metadata)| Neighbor { key: key.clone(), distance, metadata: metadata.clone() })
                .collect()
        }))
    }

    async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>> {
        let read = |records: &Records, key: &VectorKey| {
            let (vector, metadata) = records.get(key)?.clone();
            Some(VectorRecord { key: key.clone(), vector, metadata })
        };
        let mut found = self.look(tenant, |records| keys.iter().map(|key| read(records, key)).collect::<Vec<_>>());
        found.resize(keys.len(), None);
        Ok(found)
    }

    fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>> {
        let keys: Vec<_> = self.look(tenant, |records| records.keys().cloned().map(Ok).collect());
        stream::iter(keys).boxed()
    }

    async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()> {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(records) = tenants.get_mut(tenant) {
            for key in keys {
                records.remove(key);
            }
        }
        Ok(())
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64> {
        Ok(self.look(tenant, |records| records.len() as u64))
    }

    async fn drop_tenant(&self, tenant: &TenantId) -> Result<()> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        Ok(())
    }
}
