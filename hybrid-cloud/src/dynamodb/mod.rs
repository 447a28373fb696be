//! Live records on DynamoDB: see [`DynamoRecordStore`].

mod call;
mod item;
mod table;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use aws_sdk_dynamodb::{Client, types::ReturnValuesOnConditionCheckFailure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    BoxStream, Clock, CollectionName, Error, IdSource, NewRecord, PutCondition, Record, RecordKey, RecordOrder,
    RecordPage, RecordQuery, RecordStore, RecordVersion, Result, SystemClock, SystemIds, TenantId, prefix_end,
};

use crate::aws::AwsConfig;
use call::{failed, retry};
use item::{Item, NAMES, Place};

/// Bytes of values after which a page ends, so that a page of large records does not fill the memory.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// The least that a query reads at once after records that have ended were in its way.
const LEAST_READ: usize = 100;
/// What is true of a record that has not expired.
const LIVE: &str = "(attribute_not_exists(#expires) OR #expires > :now)";

/// How a [`DynamoRecordStore`] behaves.
#[derive(Clone, Debug)]
pub struct DynamoRecordOptions {
    /// The table: 3 to 255 characters of `A-Z`, `a-z`, `0-9`, `_`, `-` and `.`.
    pub table: String,
    /// Where the time comes from, by which records end.
    pub clock: Arc<dyn Clock>,
    /// Where versions come from.
    pub ids: Arc<dyn IdSource>,
}

impl DynamoRecordOptions {
    /// The machine's clock and ids.
    pub fn table(table: impl Into<String>) -> Self {
        Self { table: table.into(), clock: Arc::new(SystemClock), ids: Arc::new(SystemIds::default()) }
    }
}

/// A [`RecordStore`] in one DynamoDB table. Clones share connections.
///
/// ```no_run
/// # async fn open() -> hybrid_core::Result<()> {
/// use hybrid_cloud::{aws::{AwsConfig, AwsOptions}, dynamodb::{DynamoRecordOptions, DynamoRecordStore}};
/// use hybrid_core::{CollectionName, NewRecord, PutCondition, RecordKey, RecordStore, TenantId};
///
/// let config = AwsConfig::load(AwsOptions::default()).await?;
/// let store = DynamoRecordStore::new(&config, DynamoRecordOptions::table("storefront-records"))?;
/// let (bakery, orders) = (TenantId::new("bakery")?, CollectionName::new("orders")?);
/// store.put(&bakery, &orders, &RecordKey::new("2026-03-01/1")?, NewRecord::new("two rye"), PutCondition::Create).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Table
/// The partition key is `tenant` (text), the sort key `place` (text): the collection, a slash, the record's key. Beside them an item has `value` (binary), `version`
/// (text), `written` and, where the record ends, `expires` (numbers: microseconds since the Unix epoch) and `ttl` (a number: the second after the end, for DynamoDB's Time to Live).
/// [`create_table`](Self::create_table) makes such a table; a deployment makes it from its template, with point-in-time recovery as it likes. A policy with
/// `dynamodb:LeadingKeys` can hold a caller to one tenant's items.
///
/// # Behavior
/// - Reads are strongly consistent. Conditions are DynamoDB's own, so they hold across all writers. A conditional put whose answer was lost and that the SDK has repeated knows its own
///   version again and is no conflict.
/// - Calls that the service throttles are repeated as the configuration says, then answered with [`RateLimited`](hybrid_core::ErrorKind::RateLimited). One tenant is one partition key: DynamoDB
///   splits a busy one by sort key in time, but one that jumps from nothing beyond 1,000 writes or 3,000 reads a second is throttled at first.
/// - Expired records are in no answer at once; DynamoDB removes their bytes within days. A page ends early after 8 MiB of values.
/// - [`erase`](RecordStore::erase) deletes item by item, in batches; point-in-time recovery and backups keep what they have until their own time is over.
#[derive(Clone)]
pub struct DynamoRecordStore {
    client: Client,
    table: String,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl DynamoRecordStore {
    /// The store in a table of the configuration's account and region. Nothing is called yet.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a name that no table can have.
    pub fn new(config: &AwsConfig, options: DynamoRecordOptions) -> Result<Self> {
        let DynamoRecordOptions { table, clock, ids } = options;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !(3..=255).contains(&table.len()) || !table.bytes().all(legal) {
            return Err(Error::invalid(
                "open record store",
                "a table's name is 3 to 255 characters of A-Z, a-z, 0-9, _, - and .",
            )
            .with("table", format_args!("{table:?}")));
        }
        Ok(Self { client: Client::new(config.sdk()), table, clock, ids })
    }

    /// Makes the table, paid by request and with Time to Live, and waits until it can be used; one that is there is left as it is.
    ///
    /// # Errors
    /// Those of the service; [`Timeout`](hybrid_core::ErrorKind::Timeout) if the table is not ready after a minute.
    pub async fn create_table(&self) -> Result<()> {
        table::create(&self.client, &self.table, &*self.clock).await
    }

    fn now(&self) -> String {
        self.clock.now().unix_micros().to_string()
    }

    /// What the place holds, expired or not.
    async fn item(&self, operation: &'static str, place: &Place) -> Result<Option<Item>> {
        let get = self.client.get_item().table_name(&self.table).set_key(Some(place.key())).consistent_read(true);
        let found = get.send().await.map_err(|error| failed(operation, &self.table, error))?;
        found.item.map(|attributes| Item::read(operation, attributes)).transpose()
    }

    /// Why a put did not happen, from what the place holds.
    fn refusal(&self, condition: PutCondition, key: &RecordKey, held: Option<&Item>) -> Error {
        let live = held.filter(|item| !item.record.is_expired(self.clock.now())).map(|item| item.record.version);
        match condition.check(key, live) {
            Err(refusal) => refusal,
            // It would be allowed by now: somebody deleted or replaced the record since.
            Ok(()) => Error::already_exists("put record", "another write came in between; read it and decide again")
                .with("key", key),
        }
    }
}

impl fmt::Debug for DynamoRecordStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoRecordStore").field("table", &self.table).finish_non_exhaustive()
    }
}

#[async_trait]
impl RecordStore for DynamoRecordStore {
    async fn put(
        &self,
        tenant: &TenantId,
        collection: &CollectionName,
        key: &RecordKey,
        record: NewRecord,
        condition: PutCondition,
    ) -> Result<RecordVersion> {
        const OPERATION: &str = "put record";
        record.validate(key)?;
        let NewRecord { value, expires } = record;
        let (place, version) = (Place::new(tenant, collection, key), RecordVersion::next(&*self.ids));
        let record = Record { key: key.clone(), value, version, written: self.clock.now(), expires };
        let put = self.client.put_item().table_name(&self.table).set_item(Some(item::write(&place, &record)));
        let put = match condition {
            PutCondition::Always => put,
            PutCondition::Create => put
                .condition_expression("attribute_not_exists(#tenant) OR #expires <= :now")
                .expression_attribute_names("#tenant", NAMES.tenant)
                .expression_attribute_names("#expires", NAMES.expires)
                .expression_attribute_values(":now", item::number(self.now())),
            PutCondition::Version(expected) => put
                .condition_expression(format!("#version = :expected AND {LIVE}"))
                .expression_attribute_names("#version", NAMES.version)
                .expression_attribute_names("#expires", NAMES.expires)
                .expression_attribute_values(":expected", item::text(expected.to_string()))
                .expression_attribute_values(":now", item::number(self.now())),
        };
        let put = put.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let error = match put.send().await {
            Ok(_) => return Ok(version),
            Err(error) => error,
        };
        let held = match error.as_service_error() {
            Some(service) if service.is_conditional_check_failed_exception() => call::held(service),
            _ => return Err(failed(OPERATION, &self.table, error).with("key", key)),
        };
        let held = match held {
            Some(attributes) => Some(Item::read(OPERATION, attributes)?),
            // Not every server that speaks the protocol says what it holds.
            None => self.item(OPERATION, &place).await?,
        };
        match &held {
            // A try before this one, whose answer was lost.
            Some(item) if item.record.version == version => Ok(version),
            held => Err(self.refusal(condition, key, held.as_ref())),
        }
    }

    async fn get(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<Option<Record>> {
        let found = self.item("get record", &Place::new(tenant, collection, key)).await?;
        Ok(found.map(|item| item.record).filter(|record| !record.is_expired(self.clock.now())))
    }

    async fn query(&self, tenant: &TenantId, collection: &CollectionName, query: RecordQuery) -> Result<RecordPage> {
        const OPERATION: &str = "query records";
        query.validate()?;
        let (mut records, mut size) = (Vec::new(), 0);
        let Some((low, high)) = bounds(collection, &query) else {
            return Ok(RecordPage { records, next: None });
        };
        let mut start = None;
        loop {
            let least = if start.is_none() { 0 } else { LEAST_READ };
            let wanted = (query.limit + 1 - records.len()).max(least);
            let wanted = i32::try_from(wanted).unwrap_or(i32::MAX);
            let page = self
                .client
                .query()
                .table_name(&self.table)
                .consistent_read(true)
                .scan_index_forward(query.order == RecordOrder::Ascending)
                .limit(wanted)
                .key_condition_expression("#tenant = :tenant AND #place BETWEEN :low AND :high")
                .filter_expression(LIVE)
                .expression_attribute_names("#tenant", NAMES.tenant)
                .expression_attribute_names("#place", NAMES.place)
                .expression_attribute_names("#expires", NAMES.expires)
                .expression_attribute_values(":tenant", item::text(tenant.as_str()))
                .expression_attribute_values(":low", item::text(&low))
                .expression_attribute_values(":high", item::text(&high))
                .expression_attribute_values(":now", item::number(self.now()))
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| failed(OPERATION, &self.table, error))?;
            for attributes in page.items.unwrap_or_default() {
                let Item { record, .. } = Item::read(OPERATION, attributes)?;
                // The range's upper end belongs to it, but not to what is asked for.
                if !query.matches(&record.key) {
                    continue;
                }
                if records.len() == query.limit || size >= PAGE_BYTES {
                    let next = records.last().map(|last: &Record| query.clone().following(&last.key));
                    return Ok(RecordPage { records, next });
                }
                size += record.value.len();
                records.push(record);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(RecordPage { records, next: None });
            }
        }
    }

    async fn delete(&self, tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Result<()> {
        let place = Place::new(tenant, collection, key);
        let delete = self.client.delete_item().table_name(&self.table).set_key(Some(place.key()));
        let deleted = delete.send().await;
        deleted.map(drop).map_err(|error| failed("delete record", &self.table, error).with("key", key))
    }

    fn export(&self, tenant: &TenantId) -> BoxStream<'static, Result<(CollectionName, Record)>> {
        const OPERATION: &str = "export records";
        let (store, tenant) = (self.clone(), tenant.clone());
        stream::try_unfold(Some(None), move |start| {
            let (store, tenant) = (store.clone(), tenant.clone());
            async move {
                let Some(start) = start else { return Ok(None) };
                let page = call::items_of(&store.client, &store.table, &tenant)
                    .set_exclusive_start_key(start)
                    .send()
                    .await
                    .map_err(|error| failed(OPERATION, &store.table, error))?;
                let now = store.clock.now();
                let mut records = Vec::new();
                for attributes in page.items.unwrap_or_default() {
                    let Item { collection, record } = Item::read(OPERATION, attributes)?;
                    if !record.is_expired(now) {
                        records.push(Ok((collection, record)));
                    }
                }
                Ok::<_, Error>(Some((stream::iter(records), page.last_evaluated_key.map(Some))))
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn erase(&self, tenant: &TenantId) -> Result<()> {
        const OPERATION: &str = "erase tenant";
        loop {
            // From the beginning each time: what was deleted is no longer in the way, and what came meanwhile is seen.
            let page = call::items_of(&self.client, &self.table, tenant)
                .projection_expression("#tenant, #place")
                .expression_attribute_names("#place", NAMES.place)
                .send()
                .await
                .map_err(|error| failed(OPERATION, &self.table, error))?;
            let keys = page.items.unwrap_or_default();
            if keys.is_empty() && page.last_evaluated_key.is_none() {
                return Ok(());
            }
            retry::delete_all(&self.client, &self.table, keys, &*self.clock).await?;
        }
    }
}

/// The first and the last sort key that a query may be about. None where no key lies between them.
fn bounds(collection: &CollectionName, query: &RecordQuery) -> Option<(String, String)> {
    let within = |text: &str| format!("{collection}/{text}");
    let mut low = within(&query.prefix);
    if let Some(after) = &query.after {
        // No key has a control character, so nothing lies between a key and the key with the least of them behind it.
        low = low.max(within(after.as_str()) + "\u{1}");
    }
    let mut high = prefix_end(&within(&query.prefix))?;
    if let Some(before) = &query.before {
        high = high.min(within(before.as_str()));
    }
    (low <= high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_what_is_asked_for_and_their_order() {
        let orders = CollectionName::new("orders").unwrap();
        let key = |text: &str| Some(RecordKey::new(text).unwrap());
        let bounds = |query: RecordQuery| bounds(&orders, &query);
        let range = |low: &str, high: &str| Some((low.to_owned(), high.to_owned()));
        assert_eq!(bounds(RecordQuery::default()), range("orders/", "orders0"));
        assert_eq!(bounds(RecordQuery::prefix("a")), range("orders/a", "orders/b"));
        let between = RecordQuery { after: key("a"), before: key("ab"), ..RecordQuery::default() };
        assert_eq!(bounds(between), range("orders/a\u{1}", "orders/ab"));
        let crossed = RecordQuery { after: key("b"), before: key("a"), ..RecordQuery::default() };
        assert_eq!(bounds(crossed), None);
    }
}
