//! The suite of [`RecordStore`].

mod end;
mod put;
mod read;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, equal, same_bytes},
};
use crate::{
    CollectionName, NewRecord, PutCondition, Record, RecordKey, RecordQuery, RecordStore, RecordVersion, Result,
    TenantId, Timestamp,
};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait RecordHarness: Debug + Send + Sync {
    /// A fresh, empty store, which shares nothing with the ones made before.
    async fn store(&self) -> Result<Arc<dyn RecordStore>>;

    /// The time on the store's clock.
    fn now(&self) -> Timestamp;

    /// Moves the store's clock, or waits so long.
    async fn advance(&self, by: Duration);

    /// The same store after a restart of its process; the suite has dropped all its own handles but this. `None`, the default, where it does not outlive its process.
    async fn restart(&self, store: Arc<dyn RecordStore>) -> Result<Option<Arc<dyn RecordStore>>> {
        let _ = store;
        Ok(None)
    }

    /// Whether these bytes lie anywhere in what the last store made keeps, looked at behind the port's back. `None`, the default, where nobody can look.
    async fn holds(&self, bytes: &[u8]) -> Option<bool> {
        let _ = bytes;
        None
    }
}

/// Runs all cases against an adapter, each on a store of its own.
pub async fn run(harness: &dyn RecordHarness) -> Report {
    let mut report = Report::new("record store");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        put::values_come_back => "what was put comes back to the byte",
        put::the_largest_value_is_stored => "a value may have `MAX_RECORD_BYTES` bytes",
        put::a_larger_value_is_refused => "a value over `MAX_RECORD_BYTES` is refused with `TooLarge`, and nothing changes",
        put::a_key_may_be_anything_legal => "any `RecordKey` names a record of its own",
        put::a_put_replaces_whole => "a put goes over whatever is there",
        put::create_needs_a_free_key => "with `Create` the key must be free: `AlreadyExists`, and nothing changes",
        put::a_version_must_be_the_one => "with `Version` the key must hold that version: `AlreadyExists` or `NotFound`, and nothing changes",
        put::one_of_many_puts_wins => "of any number of concurrent puts under the same condition one wins",
        put::versions_never_come_twice => "versions never come twice, also after a delete",
        read::missing_records_are_none => "`get` of a key without a record is none",
        read::a_prefix_is_plain_text => "`query` answers with the records whose keys start with the prefix",
        read::bounds_are_exclusive => "`query` answers with keys strictly between the bounds, in either order",
        read::pages_are_complete => "over all pages each record comes once",
        read::large_pages_are_complete => "over all pages each record comes once, however large",
        read::paging_bears_changes => "over all pages each record that nobody touched meanwhile comes once",
        read::a_limit_out_of_range_is_refused => "a limit that is not between one and `MAX_PAGE` is `InvalidInput`",
        read::an_export_is_complete => "`export` yields every record of the tenant once, of all collections",
        read::a_restart_keeps_records => "a record is durable when `put` returns",
        end::deletes_delete => "`delete` removes a record; one that is not there is no error",
        end::tenants_share_nothing => "no call reaches another tenant's records, and no query another collection's",
        end::expired_records_are_in_no_answer => "from the moment `expires` a record is in no answer",
        end::an_expired_key_is_free => "from the moment `expires` its key is free",
        end::an_erased_tenant_is_gone => "`erase` removes every record of the tenant, and of no other",
        end::nothing_is_left_of_an_erased_tenant => "when `erase` returns nothing of the records is left, the expired ones too",
    ]);
    report
}

/// A store with the tenant and the collection of the case.
struct Shelf<'a> {
    harness: &'a dyn RecordHarness,
    store: Arc<dyn RecordStore>,
    tenant: TenantId,
    collection: CollectionName,
}

impl<'a> Shelf<'a> {
    async fn new(harness: &'a dyn RecordHarness) -> CaseResult<Self> {
        let (tenant, collection) = (TenantId::new("bakery")?, CollectionName::new("orders")?);
        Ok(Self { harness, store: harness.store().await?, tenant, collection })
    }

    /// The same store, another tenant and collection.
    fn beside(&self, tenant: &str, collection: &str) -> CaseResult<Self> {
        let (tenant, collection) = (TenantId::new(tenant)?, CollectionName::new(collection)?);
        Ok(Self { harness: self.harness, store: Arc::clone(&self.store), tenant, collection })
    }

    async fn try_put(&self, key: &str, record: NewRecord, condition: PutCondition) -> Result<RecordVersion> {
        self.store.put(&self.tenant, &self.collection, &RecordKey::new(key)?, record, condition).await
    }

    async fn put(&self, key: &str, value: impl Into<Bytes>) -> CaseResult<RecordVersion> {
        Ok(self.try_put(key, NewRecord::new(value), PutCondition::Always).await?)
    }

    async fn get(&self, key: &str) -> CaseResult<Option<Record>> {
        Ok(self.store.get(&self.tenant, &self.collection, &RecordKey::new(key)?).await?)
    }

    async fn delete(&self, key: &str) -> CaseResult {
        Ok(self.store.delete(&self.tenant, &self.collection, &RecordKey::new(key)?).await?)
    }

    /// Checks that the key holds this value and version.
    async fn check(&self, key: &str, value: &[u8], version: RecordVersion) -> CaseResult {
        let Some(record) = self.get(key).await? else {
            ensure!(false, "the record {key:?} is missing");
            return Ok(());
        };
        equal("the key of a record", &record.key.as_str(), &key)?;
        equal(&format!("the version of {key:?}"), &record.version, &version)?;
        same_bytes(&format!("the value of {key:?}"), &record.value, value)
    }

    /// All records that a query asks for, over all its pages.
    async fn all(&self, query: RecordQuery) -> CaseResult<Vec<Record>> {
        let (mut found, mut next, limit) = (Vec::new(), Some(query.clone()), query.limit);
        // More pages than there are records would be a paging that does not get on.
        for _ in 0..10_000 {
            let Some(query) = next else { return Ok(found) };
            let page = self.store.query(&self.tenant, &self.collection, query).await?;
            ensure!(page.records.len() <= limit, "a page of {limit} has {} records", page.records.len());
            found.extend(page.records);
            next = page.next;
        }
        ensure!(false, "the pages of {query:?} do not end");
        Ok(found)
    }

    async fn keys(&self, query: RecordQuery) -> CaseResult<Vec<String>> {
        Ok(self.all(query).await?.into_iter().map(|record| record.key.as_str().to_owned()).collect())
    }

    /// All that an export yields, as `collection/key`, sorted.
    async fn exported(&self) -> CaseResult<Vec<String>> {
        let all: Vec<_> = self.store.export(&self.tenant).try_collect().await?;
        let mut names: Vec<_> = all.iter().map(|(collection, record)| format!("{collection}/{}", record.key)).collect();
        names.sort();
        Ok(names)
    }
}
