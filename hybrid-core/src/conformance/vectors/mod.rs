//! The suite of [`VectorIndex`].

mod filters;
mod query;
mod write;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, equal, noise},
};
use crate::{
    Neighbor, Result, TenantId, VectorIndex, VectorIndexExt, VectorKey, VectorQuery, VectorRecord, VectorSchema,
    vector::{FieldKind, Filter, Metadata, Metric},
};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait VectorHarness: Debug + Send + Sync {
    /// A fresh, empty index of this schema, which shares nothing with the ones made before.
    async fn index(&self, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>>;

    /// The same index after a restart of its process; the suite has dropped all its own handles but this. `None`, the default, where it does not outlive its process.
    async fn restart(&self, index: Arc<dyn VectorIndex>) -> Result<Option<Arc<dyn VectorIndex>>> {
        let _ = index;
        Ok(None)
    }

    /// Waits until all that was written is seen, for an adapter that does not declare `read_your_writes`.
    async fn settle(&self) {}
}

/// Runs all cases against an adapter, each on an index of its own.
pub async fn run(harness: &dyn VectorHarness) -> Report {
    let mut report = Report::new("vector index");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        write::records_come_back_as_written => "`get` answers with the record as it was written",
        write::upsert_replaces_whole => "a record with the same key is replaced whole, vector and metadata",
        write::get_answers_per_key_in_order => "`get` answers per key, in the order asked",
        write::a_key_may_be_anything_legal => "any `VectorKey` names a record of its own",
        write::many_records_in_one_call => "`upsert`, `get` and `delete` take any number; `list` yields each key once",
        write::what_the_schema_forbids_is_refused => "`upsert` refuses what the schema does not allow",
        write::a_refused_upsert_writes_nothing => "`upsert` checks all its records before it writes one",
        write::deletes_delete => "when `delete` returns the records are in no answer, and no other is gone",
        write::delete_of_nothing_is_ok => "a key that is not there is no error",
        write::tenants_share_nothing => "no call reaches another tenant's records",
        write::a_dropped_tenant_is_gone => "`drop_tenant` removes all that the index holds of a tenant, and of no other",
        write::a_restart_keeps_records => "a record is durable when `upsert` returns",
        query::the_nearest_come_first => "`query` answers with the nearest, nearest first",
        query::distances_are_the_metrics => "each neighbour has its distance by the schema's metric",
        query::neighbours_have_their_metadata => "each neighbour has its metadata",
        query::k_is_the_most => "there are `k` neighbours, fewer only where fewer match",
        query::ties_come_in_order_of_keys => "with `ordered_ties` records with the same distance come in byte order of their keys",
        query::close_calls_are_told_apart => "with `exact` the nearest are the true nearest",
        query::queries_see_changes => "a query sees the records as they are now",
        query::what_does_not_fit_is_refused => "`k`, a vector or a filter that does not fit is `InvalidInput`",
        filters::filters_mean_what_they_say => "a filter is true or false of a record, nothing in between",
        filters::filters_nest => "`And`, `Or` and `Not` nest, down to no filters at all",
        filters::a_filter_comes_before_the_choice => "the filter is applied before the nearest are chosen",
        filters::a_filter_that_does_not_fit_is_refused => "a filter with a field that is not declared, stored, or of another type is refused",
    ]);
    report
}

/// An index with the tenant of the case.
struct Shelf<'a> {
    harness: &'a dyn VectorHarness,
    index: Arc<dyn VectorIndex>,
    tenant: TenantId,
}

const DIMENSION: usize = 8;

impl<'a> Shelf<'a> {
    async fn new(harness: &'a dyn VectorHarness, metric: Metric) -> CaseResult<Self> {
        let fields = [
            ("text", FieldKind::Text),
            ("number", FieldKind::Number),
            ("flag", FieldKind::Boolean),
            ("stored", FieldKind::Stored),
        ];
        let schema = fields
            .into_iter()
            .try_fold(VectorSchema::new(DIMENSION, metric)?, |schema, (name, kind)| schema.with_field(name, kind))?;
        Ok(Self { harness, index: harness.index(schema).await?, tenant: TenantId::new("bakery")? })
    }

    async fn upsert(&self, records: Vec<VectorRecord>) -> CaseResult {
        self.index.upsert(&self.tenant, records).await?;
        self.settle().await;
        Ok(())
    }

    async fn delete(&self, keys: &[VectorKey]) -> CaseResult {
        self.index.delete(&self.tenant, keys).await?;
        self.settle().await;
        Ok(())
    }

    async fn settle(&self) {
        if !self.index.profile().guarantees.read_your_writes {
            self.harness.settle().await;
        }
    }

    async fn query(&self, vector: &[f32], k: usize, filter: Option<Filter>) -> CaseResult<Vec<Neighbor>> {
        Ok(self.index.query(&self.tenant, VectorQuery { vector: vector.to_vec(), k, filter }).await?)
    }

    async fn keys(&self) -> CaseResult<Vec<VectorKey>> {
        Ok(self.index.keys(&self.tenant).await?)
    }

    /// Checks that the tenant has exactly these records, by every call that shows them.
    async fn check_all(&self, expected: &[VectorRecord]) -> CaseResult {
        let mut keys: Vec<_> = expected.iter().map(|record| record.key.clone()).collect();
        keys.sort();
        equal("the keys listed", &self.keys().await?, &keys)?;
        equal("the count", &self.index.count(&self.tenant).await?, &(expected.len() as u64))?;
        let asked: Vec<_> = expected.iter().map(|record| record.key.clone()).collect();
        let found = self.index.get(&self.tenant, &asked).await?;
        equal("the count of answers", &found.len(), &asked.len())?;
        for (found, expected) in found.iter().zip(expected) {
            check_record(found.as_ref(), expected)?;
        }
        Ok(())
    }
}

/// Checks a record to the bit of its vector, and its metadata up to the spelling of numbers.
fn check_record(found: Option<&VectorRecord>, expected: &VectorRecord) -> CaseResult {
    let VectorRecord { key, vector, metadata } = expected;
    let Some(found) = found else {
        ensure!(false, "the record {key:?} is missing");
        return Ok(());
    };
    equal("the key of a record", &found.key, key)?;
    let bits = |vector: &[f32]| vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    ensure!(
        bits(&found.vector) == bits(vector),
        "the vector of {key:?}: expected {vector:?}, found {:?}",
        found.vector
    );
    check_metadata(key, &found.metadata, metadata)
}

fn check_metadata(key: &VectorKey, found: &Metadata, expected: &Metadata) -> CaseResult {
    let plain = |metadata: &Metadata| -> BTreeMap<String, Value> {
        let number = |value: &Value| value.as_f64().map_or_else(|| value.clone(), |number| json!(number));
        metadata.iter().map(|(field, value)| (field.clone(), number(value))).collect()
    };
    equal(&format!("the metadata of {key:?}"), &plain(found), &plain(expected))
}

fn key(text: impl Into<String>) -> CaseResult<VectorKey> {
    Ok(VectorKey::new(text)?)
}

fn record(key: impl Into<String>, vector: impl Into<Vec<f32>>) -> CaseResult<VectorRecord> {
    Ok(VectorRecord::new(key, vector)?)
}

/// A vector without structure, components between -1 and 1, the same for each seed.
fn some_vector(seed: u64) -> Vec<f32> {
    let bytes = noise(seed + 1, DIMENSION * 2);
    let component = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
    let vector: Vec<f32> = bytes.chunks_exact(2).map(component).collect();
    // Never all zeros, which cosine refuses.
    if vector.iter().all(|value| *value == 0.0) { vec![1.0; DIMENSION] } else { vector }
}

/// A vector with these first components and zeros.
fn point(first: &[f32]) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSION];
    vector[..first.len()].copy_from_slice(first);
    vector
}

/// Records with a part of the metadata each, so that every field is missing somewhere.
fn some_records(count: usize) -> CaseResult<Vec<VectorRecord>> {
    (0..count)
        .map(|i| {
            let mut record = record(format!("record/{i:04}"), some_vector(i as u64))?;
            if i % 5 != 0 {
                record = record.with("text", ["rye", "wheat", "spelt"][i % 3]);
            }
            if i % 7 != 0 {
                record = record.with("number", json!(i as f64 / 2.0));
            }
            if i % 3 != 0 {
                record = record.with("flag", i % 2 == 0);
            }
            if i % 2 == 0 {
                record = record.with("stored", format!("passage {i}"));
            }
            Ok(record)
        })
        .collect()
}
