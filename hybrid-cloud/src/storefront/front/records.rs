//! The way to a tenant's records.

use axum::body::Bytes;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    CollectionName, ErrorKind, NewRecord, PutCondition, Record, RecordKey, RecordPage, RecordQuery, RecordStore,
    RecordVersion,
};
use serde_json::{Value, json};

use super::{
    Admitted,
    call::{Call, Purpose},
    sending::Sending,
};
use crate::storefront::error::ApiError;

impl Admitted {
    fn records(&self) -> Result<&dyn RecordStore, ApiError> {
        self.front.ports.records.as_ref().map(|(store, _)| &**store).ok_or_else(ApiError::not_found)
    }

    /// The collection called `name`, if customers may use it.
    pub(crate) fn collection(&self, name: &str) -> Result<CollectionName, ApiError> {
        let (_, collections) = self.front.ports.records.as_ref().ok_or_else(ApiError::not_found)?;
        let known = collections.iter().find(|known| known.as_str() == name);
        known.cloned().ok_or_else(|| ApiError::unknown_collection(name))
    }

    /// Writes a record of the caller's tenant if the condition holds.
    pub(crate) async fn put_record(
        &self,
        collection: &CollectionName,
        key: &RecordKey,
        record: NewRecord,
        condition: PutCondition,
    ) -> Result<RecordVersion, ApiError> {
        let store = self.records()?;
        let asked = self.told(|| {
            let value = serde_json::from_slice::<Value>(&record.value).ok();
            json!({ "collection": collection, "key": key, "value": value })
        });
        let mut call = Call::begin(self, Purpose::without_model("records.write", asked)).await?;
        let put = store.put(&self.principal.tenant, collection, key, record, condition);
        match call.cx.run("put record", put).await {
            Ok(version) => {
                call.done(None, None).await?;
                Ok(version)
            }
            Err(error) => {
                call.fail(&error, false).await;
                Err(match error.kind() {
                    ErrorKind::AlreadyExists => ApiError::conflict(&error),
                    ErrorKind::NotFound => ApiError::unknown_record(key.as_str()),
                    _ => error.into(),
                })
            }
        }
    }

    /// A record of the caller's tenant.
    pub(crate) async fn get_record(
        &self,
        collection: &CollectionName,
        key: &RecordKey,
    ) -> Result<Option<Record>, ApiError> {
        let store = self.records()?;
        let asked = self.told(|| json!({ "collection": collection, "key": key }));
        self.brief("records.read", asked, "read record", store.get(&self.principal.tenant, collection, key)).await
    }

    /// A page of a collection of the caller's tenant.
    pub(crate) async fn query_records(
        &self,
        collection: &CollectionName,
        query: RecordQuery,
    ) -> Result<RecordPage, ApiError> {
        let store = self.records()?;
        let asked = self.told(|| {
            let RecordQuery { prefix, after, before, limit, order: _ } = &query;
            json!({ "collection": collection, "prefix": prefix, "after": after, "before": before, "limit": limit })
        });
        self.brief("records.list", asked, "list records", store.query(&self.principal.tenant, collection, query)).await
    }

    /// Removes a record of the caller's tenant.
    pub(crate) async fn delete_record(&self, collection: &CollectionName, key: &RecordKey) -> Result<(), ApiError> {
        let store = self.records()?;
        let asked = self.told(|| json!({ "collection": collection, "key": key }));
        self.brief("records.delete", asked, "delete record", store.delete(&self.principal.tenant, collection, key))
            .await
    }

    /// Begins to send all records of the caller's tenant, of all collections, each as `line` writes it, and after the last what `end` writes of their number.
    pub(crate) async fn export_records(
        &self,
        line: impl Fn(CollectionName, Record) -> Bytes + Send + 'static,
        end: impl FnOnce(u64) -> Bytes + Send + 'static,
    ) -> Result<Sending, ApiError> {
        let store = self.records()?;
        let mut call = self.moving("records.export", None).await?;
        call.begun().await?;
        let (mut count, mut end) = (0, Some(end));
        let records = store.export(&self.principal.tenant).map(Some).chain(stream::iter([None]));
        let lines = records.map(move |next| match next {
            Some(Ok((collection, record))) => {
                count += 1;
                Ok(line(collection, record))
            }
            Some(Err(error)) => Err(error),
            None => Ok(end.take().map_or_else(Bytes::new, |end| end(count))),
        });
        Ok(Sending::new(call, "export records", lines.boxed()))
    }

    /// Removes all records of the caller's tenant.
    pub(crate) async fn erase_records(&self) -> Result<(), ApiError> {
        let store = self.records()?;
        self.brief("records.erase", None, "erase records", store.erase(&self.principal.tenant)).await
    }
}
