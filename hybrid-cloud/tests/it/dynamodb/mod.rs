//! Live records on DynamoDB: the contract on two emulators, and what goes wrong on the wire.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    Client,
    types::{AttributeValue, TimeToLiveSpecification, TimeToLiveStatus},
};
use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, Retry},
    dynamodb::{DynamoRecordOptions, DynamoRecordStore},
    testkit::{Fault, FaultProxy, Ministack, Moto},
};
use hybrid_core::{
    Clock, CollectionName, ErrorKind, ManualClock, NewRecord, PutCondition, RecordKey, RecordQuery, RecordStore,
    Result, SystemClock, TenantId, Timestamp,
    conformance::records::{self, RecordHarness},
};

async fn config(endpoint: &str) -> AwsConfig {
    let retry = Retry { max_backoff: Duration::from_millis(20), ..Retry::default() };
    AwsConfig::load(AwsOptions { retry, ..AwsOptions::local(endpoint, "test", "test") }).await.unwrap()
}

/// Stores on tables of one server.
#[derive(Debug)]
struct Tables {
    config: AwsConfig,
    clock: ManualClock,
    made: AtomicUsize,
}

impl Tables {
    async fn on(endpoint: &str) -> Self {
        // Near the real time, by which an emulator may remove what has expired.
        Self { config: config(endpoint).await, clock: ManualClock::at(SystemClock.now()), made: AtomicUsize::new(0) }
    }

    fn table(&self) -> String {
        format!("records-{}", self.made.load(Ordering::SeqCst))
    }

    fn open(&self) -> Result<DynamoRecordStore> {
        let options =
            DynamoRecordOptions { clock: Arc::new(self.clock.clone()), ..DynamoRecordOptions::table(self.table()) };
        DynamoRecordStore::new(&self.config, options)
    }
}

#[async_trait]
impl RecordHarness for Tables {
    async fn store(&self) -> Result<Arc<dyn RecordStore>> {
        self.made.fetch_add(1, Ordering::SeqCst);
        // The table is made by the machine's clock; a clock that stands still would wait for ever.
        DynamoRecordStore::new(&self.config, DynamoRecordOptions::table(self.table()))?.create_table().await?;
        Ok(Arc::new(self.open()?))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn restart(&self, store: Arc<dyn RecordStore>) -> Result<Option<Arc<dyn RecordStore>>> {
        drop(store);
        Ok(Some(Arc::new(self.open()?)))
    }

    async fn holds(&self, bytes: &[u8]) -> Option<bool> {
        let client = Client::new(self.config.sdk());
        let mut start = None;
        loop {
            let scan = client.scan().table_name(self.table()).consistent_read(true).set_exclusive_start_key(start);
            let page = scan.send().await.unwrap();
            let values = page.items.unwrap_or_default().into_iter().flat_map(|item| item.into_values());
            let raw = values.map(|value| match value {
                AttributeValue::B(blob) => blob.into_inner(),
                AttributeValue::S(text) | AttributeValue::N(text) => text.into_bytes(),
                other => panic!("an attribute that the store does not write: {other:?}"),
            });
            if raw.into_iter().any(|value| value.windows(bytes.len()).any(|window| window == bytes)) {
                return Some(true);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Some(false);
            }
        }
    }
}

#[tokio::test]
async fn the_adapter_keeps_the_contract_on_ministack() {
    let server = Ministack::start().unwrap();
    records::run(&Tables::on(server.endpoint()).await).await.assert();
}

#[tokio::test]
async fn the_adapter_keeps_the_contract_on_moto() {
    let server = Moto::start().unwrap();
    records::run(&Tables::on(server.endpoint()).await).await.assert();
}

/// A store behind a proxy.
async fn behind_proxy() -> (Moto, FaultProxy, DynamoRecordStore) {
    let server = Moto::start().unwrap();
    let proxy = FaultProxy::start(server.endpoint()).unwrap();
    let store = DynamoRecordStore::new(&config(proxy.endpoint()).await, DynamoRecordOptions::table("records")).unwrap();
    store.create_table().await.unwrap();
    store.create_table().await.unwrap();
    (server, proxy, store)
}

#[tokio::test]
async fn a_table_that_was_made_without_an_end_of_records_gets_it() {
    let (_server, proxy, store) = behind_proxy().await;
    let client = Client::new(config(proxy.endpoint()).await.sdk());
    let status = async || {
        let described = client.describe_time_to_live().table_name("records").send().await.unwrap();
        described.time_to_live_description.unwrap().time_to_live_status
    };
    let off = TimeToLiveSpecification::builder().enabled(false).attribute_name("ttl").build().unwrap();
    client.update_time_to_live().table_name("records").time_to_live_specification(off).send().await.unwrap();
    assert_eq!(status().await, Some(TimeToLiveStatus::Disabled));
    store.create_table().await.unwrap();
    assert_eq!(status().await, Some(TimeToLiveStatus::Enabled));
}

fn place() -> (TenantId, CollectionName, RecordKey) {
    (TenantId::single(), CollectionName::new("notes").unwrap(), RecordKey::new("a").unwrap())
}

#[tokio::test]
async fn a_conditional_put_whose_answer_was_lost_is_no_conflict_with_itself() {
    let (_server, proxy, store) = behind_proxy().await;
    let (tenant, collection, key) = place();
    proxy.once("POST", Fault::DropAnswer);
    let first = store.put(&tenant, &collection, &key, NewRecord::new("first"), PutCondition::Create).await.unwrap();
    proxy.once("POST", Fault::DropAnswer);
    let second =
        store.put(&tenant, &collection, &key, NewRecord::new("second"), PutCondition::Version(first)).await.unwrap();
    let held = store.get(&tenant, &collection, &key).await.unwrap().unwrap();
    assert_eq!((held.version, &*held.value), (second, &b"second"[..]));
    // Another's is one.
    let error = store.put(&tenant, &collection, &key, NewRecord::new("x"), PutCondition::Create).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
}

#[tokio::test]
async fn a_throttled_call_is_repeated_and_one_that_stays_throttled_says_so() {
    let (_server, proxy, store) = behind_proxy().await;
    let (tenant, collection, key) = place();
    let throttled = || {
        Fault::Answer {
        status: 400,
        body: r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"slow down"}"#
            .to_owned(),
    }
    };
    proxy.once("POST", throttled());
    store.put(&tenant, &collection, &key, NewRecord::new("x"), PutCondition::Always).await.unwrap();
    proxy.script(move |_| Some(throttled()));
    let error = store.get(&tenant, &collection, &key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
    assert!(error.to_string().contains("records"), "{error}");
}

#[tokio::test]
async fn an_erasure_repeats_what_the_service_has_left_undone() {
    let (_server, proxy, store) = behind_proxy().await;
    let (tenant, collection, _) = place();
    for i in 0..30 {
        let key = RecordKey::new(format!("{i:02}")).unwrap();
        store.put(&tenant, &collection, &key, NewRecord::new("x"), PutCondition::Always).await.unwrap();
    }
    // The first batch is not done at all, and the service says so as it does when it is busy.
    let undone = r#"{"UnprocessedItems":{"records":[{"DeleteRequest":{"Key":{"tenant":{"S":"default"},"place":{"S":"notes/00"}}}}]}}"#;
    let mut is_first = true;
    proxy.script(move |request| {
        let is_batch = request.header("x-amz-target").is_some_and(|target| target.ends_with("BatchWriteItem"));
        let answer = Fault::Answer { status: 200, body: undone.to_owned() };
        (is_batch && std::mem::take(&mut is_first)).then_some(answer)
    });
    store.erase(&tenant).await.unwrap();
    assert!(store.query(&tenant, &collection, RecordQuery::default()).await.unwrap().records.is_empty());
    assert_eq!(proxy.faults(), 1);
}

#[tokio::test]
async fn a_missing_table_is_said_to_be_missing() {
    let server = Moto::start().unwrap();
    let config = config(server.endpoint()).await;
    let store = DynamoRecordStore::new(&config, DynamoRecordOptions::table("no-such-table")).unwrap();
    let (tenant, collection, key) = place();
    let error = store.get(&tenant, &collection, &key).await.unwrap_err();
    assert_eq!((error.kind(), error.context("table")), (ErrorKind::InvalidInput, Some("no-such-table")), "{error}");
    let error = DynamoRecordStore::new(&config, DynamoRecordOptions::table("a/b")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
