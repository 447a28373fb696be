use std::sync::{Arc, atomic::AtomicBool, atomic::Ordering};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use hybrid_core::{
    BoxStream, Error, Neighbor, Result, TenantId, VectorIndex, VectorIndexExt, VectorKey, VectorProfile, VectorQuery,
    VectorRecord,
    conformance::{Report, vectors},
    memory::MemoryVectorIndex,
    vector::Filter,
};

use crate::conformance::VectorIndexes;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum VectorFault {
    RoundsVectors,
    MergesMetadata,
    SkipsMissing,
    FoldsKeys,
    WritesOneBatch,
    ListsOnePage,
    ChecksNothing,
    ChecksAsItGoes,
    DeletesByPrefix,
    DeletesWhatIsThereOnly,
    OneTenant,
    DropsEveryone,
    ForgetsOnRestart,
    FarthestFirst,
    SquaresDistances,
    NoMetadata,
    ClampsK,
    TiesInAnyOrder,
    Coarse,
    Stale,
    NegationNeedsTheField,
    InclusiveEnds,
    EmptyOrIsTrue,
    FiltersAfterwards,
    UnknownFieldsAreMissing,
}

use VectorFault::*;

const PLANTED: &[super::Planted<VectorFault>] = &[
    (RoundsVectors, &["records_come_back_as_written"]),
    (MergesMetadata, &["upsert_replaces_whole"]),
    (SkipsMissing, &["get_answers_per_key_in_order"]),
    (FoldsKeys, &["a_key_may_be_anything_legal"]),
    (WritesOneBatch, &["many_records_in_one_call"]),
    (ListsOnePage, &["many_records_in_one_call"]),
    (ChecksNothing, &["what_the_schema_forbids_is_refused"]),
    (ChecksAsItGoes, &["a_refused_upsert_writes_nothing"]),
    (DeletesByPrefix, &["a_key_may_be_anything_legal"]),
    (Stale, &["deletes_delete", "queries_see_changes", "a_dropped_tenant_is_gone"]),
    (DeletesWhatIsThereOnly, &["delete_of_nothing_is_ok"]),
    (OneTenant, &["tenants_share_nothing"]),
    (DropsEveryone, &["a_dropped_tenant_is_gone"]),
    (ForgetsOnRestart, &["a_restart_keeps_records"]),
    (FarthestFirst, &["the_nearest_come_first"]),
    (SquaresDistances, &["distances_are_the_metrics"]),
    (NoMetadata, &["neighbours_have_their_metadata"]),
    (ClampsK, &["what_does_not_fit_is_refused", "k_is_the_most"]),
    (TiesInAnyOrder, &["ties_come_in_order_of_keys"]),
    (Coarse, &["close_calls_are_told_apart"]),
    (NegationNeedsTheField, &["filters_mean_what_they_say"]),
    (InclusiveEnds, &["filters_mean_what_they_say"]),
    (EmptyOrIsTrue, &["filters_nest"]),
    (FiltersAfterwards, &["a_filter_comes_before_the_choice"]),
    (UnknownFieldsAreMissing, &["a_filter_that_does_not_fit_is_refused"]),
];

async fn run(fault: VectorFault) -> Report {
    vectors::run(&VectorIndexes { fault: Some(fault) }).await
}

#[tokio::test]
async fn the_suite_notices_broken_vector_indexes() {
    super::check(PLANTED, run).await;
}

#[derive(Debug)]
pub(crate) struct BrokenVectorIndex {
    memory: MemoryVectorIndex,
    /// What the tenants had when they were first asked about.
    seen: MemoryVectorIndex,
    has_seen: AtomicBool,
    fault: VectorFault,
}

impl BrokenVectorIndex {
    pub(crate) fn new(memory: MemoryVectorIndex, fault: VectorFault) -> Arc<Self> {
        let seen = MemoryVectorIndex::new(memory.profile().schema.clone());
        Arc::new(Self { memory, seen, has_seen: false.into(), fault })
    }

    fn tenant(&self, tenant: &TenantId) -> TenantId {
        if self.fault == OneTenant { TenantId::single() } else { tenant.clone() }
    }

    fn key(&self, key: &VectorKey) -> VectorKey {
        if self.fault == FoldsKeys { VectorKey::new(key.as_str().to_lowercase()).unwrap() } else { key.clone() }
    }

    /// All records, nearest first.
    async fn all(&self, tenant: &TenantId, vector: Vec<f32>) -> Result<Vec<Neighbor>> {
        self.memory.query(tenant, VectorQuery::new(vector, self.memory.profile().max_k)).await
    }

    fn spoil(&self, filter: Filter) -> Filter {
        let inner = |filters: Vec<Filter>| filters.into_iter().map(|filter| self.spoil(filter)).collect::<Vec<_>>();
        match (self.fault, filter) {
            (NegationNeedsTheField, Filter::Not(filter)) => match *filter {
                Filter::Equals { ref field, .. } => Filter::exists(field) & Filter::Not(filter),
                filter => !self.spoil(filter),
            },
            (InclusiveEnds, Filter::Range { field, from, to: std::ops::Bound::Excluded(end) }) => {
                Filter::Range { field, from, to: std::ops::Bound::Included(end) }
            }
            (EmptyOrIsTrue, Filter::Or(filters)) if filters.is_empty() => Filter::And(vec![]),
            (_, Filter::And(filters)) => Filter::And(inner(filters)),
            (_, Filter::Or(filters)) => Filter::Or(inner(filters)),
            (_, Filter::Not(filter)) => !self.spoil(*filter),
            (_, leaf) => leaf,
        }
    }
}

#[async_trait]
impl VectorIndex for BrokenVectorIndex {
    fn profile(&self) -> &VectorProfile {
        self.memory.profile()
    }

    async fn upsert(&self, tenant: &TenantId, mut records: Vec<VectorRecord>) -> Result<()> {
        let tenant = &self.tenant(tenant);
        for record in &mut records {
            record.key = self.key(&record.key);
            if self.fault == RoundsVectors {
                record.vector.iter_mut().for_each(|x| *x = (*x * 1_024.0).round() / 1_024.0 + 1e-9);
            }
            if self.fault == MergesMetadata
                && let [Some(old)] = &self.memory.get(tenant, std::slice::from_ref(&record.key)).await?[..]
            {
                let new = std::mem::replace(&mut record.metadata, old.metadata.clone());
                record.metadata.extend(new);
            }
        }
        match self.fault {
            FoldsKeys => {
                for record in records {
                    self.memory.upsert(tenant, vec![record]).await?;
                }
                Ok(())
            }
            WritesOneBatch => {
                records.truncate(500);
                self.memory.upsert(tenant, records).await
            }
            ChecksNothing => {
                records.retain(|record| self.profile().schema.check_record(record).is_ok());
                self.memory.upsert(tenant, records).await
            }
            ChecksAsItGoes => {
                for record in records {
                    self.memory.upsert(tenant, vec![record]).await?;
                }
                Ok(())
            }
            _ => self.memory.upsert(tenant, records).await,
        }
    }

    async fn query(&self, tenant: &TenantId, mut query: VectorQuery) -> Result<Vec<Neighbor>> {
        let tenant = &self.tenant(tenant);
        let max = self.profile().max_k;
        if self.fault == ClampsK {
            query.k = query.k.clamp(1, 10);
        }
        if self.fault == UnknownFieldsAreMissing {
            query.filter = query.filter.filter(|filter| self.profile().schema.check_filter(filter).is_ok());
        }
        self.profile().check_query(&query)?;
        query.filter = query.filter.map(|filter| self.spoil(filter));
        match self.fault {
            FarthestFirst => {
                let mut all = self.memory.query(tenant, VectorQuery { k: max, ..query.clone() }).await?;
                all.reverse();
                all.truncate(query.k);
                Ok(all)
            }
            SquaresDistances => {
                let mut found = self.memory.query(tenant, query).await?;
                found.iter_mut().for_each(|neighbor| neighbor.distance *= neighbor.distance);
                Ok(found)
            }
            NoMetadata => {
                let mut found = self.memory.query(tenant, query).await?;
                found.iter_mut().for_each(|neighbor| neighbor.metadata.clear());
                Ok(found)
            }
            TiesInAnyOrder => {
                let mut all = self.memory.query(tenant, VectorQuery { k: max, ..query.clone() }).await?;
                all.sort_by(|a, b| a.distance.total_cmp(&b.distance).then_with(|| b.key.cmp(&a.key)));
                all.truncate(query.k);
                Ok(all)
            }
            Coarse => {
                let mut all = self.memory.query(tenant, VectorQuery { k: max, ..query.clone() }).await?;
                let step = |neighbor: &Neighbor| (neighbor.distance * 128.0) as i64;
                all.sort_by(|a, b| step(a).cmp(&step(b)).then_with(|| a.key.cmp(&b.key)));
                all.truncate(query.k);
                Ok(all)
            }
            Stale => {
                if !self.has_seen.swap(true, Ordering::SeqCst) {
                    let keys = self.memory.keys(tenant).await?;
                    let records = self.memory.get(tenant, &keys).await?;
                    self.seen.upsert(tenant, records.into_iter().flatten().collect()).await?;
                }
                self.seen.query(tenant, query).await
            }
            FiltersAfterwards => {
                let VectorQuery { vector, k, filter } = query;
                let mut nearest = self.all(tenant, vector.clone()).await?;
                nearest.truncate(k);
                let matching = self.memory.query(tenant, VectorQuery { vector, k: max, filter }).await?;
                nearest.retain(|neighbor| matching.contains(neighbor));
                Ok(nearest)
            }
            _ => self.memory.query(tenant, query).await,
        }
    }

    async fn get(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>> {
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        let mut found = self.memory.get(&self.tenant(tenant), &keys).await?;
        if self.fault == SkipsMissing {
            found.retain(Option::is_some);
        }
        Ok(found)
    }

    fn list(&self, tenant: &TenantId) -> BoxStream<'static, Result<VectorKey>> {
        let all = self.memory.list(&self.tenant(tenant));
        if self.fault == ListsOnePage { all.take(1_000).boxed() } else { all }
    }

    async fn delete(&self, tenant: &TenantId, keys: &[VectorKey]) -> Result<()> {
        let tenant = &self.tenant(tenant);
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        match self.fault {
            DeletesWhatIsThereOnly if self.memory.get(tenant, &keys).await?.iter().any(Option::is_none) => {
                Err(Error::not_found("delete vectors", "no such key"))
            }
            DeletesByPrefix => {
                let all: Vec<VectorKey> = self.memory.list(tenant).try_collect().await?;
                let gone = |held: &&VectorKey| keys.iter().any(|key| held.as_str().starts_with(key.as_str()));
                self.memory.delete(tenant, &all.iter().filter(gone).cloned().collect::<Vec<_>>()).await
            }
            _ => self.memory.delete(tenant, &keys).await,
        }
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64> {
        self.memory.count(&self.tenant(tenant)).await
    }

    async fn drop_tenant(&self, tenant: &TenantId) -> Result<()> {
        if self.fault == DropsEveryone {
            for name in ["bakery", "other"] {
                self.memory.drop_tenant(&TenantId::new(name)?).await?;
            }
        }
        self.memory.drop_tenant(&self.tenant(tenant)).await
    }
}
