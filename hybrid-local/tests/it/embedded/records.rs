//! What a record store in a file promises.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use hybrid_core::{
    Clock, CollectionName, ErrorKind, ManualClock, NewRecord, PutCondition, RecordKey, RecordQuery, RecordStore,
    Result, TenantId, Timestamp,
    conformance::records::{self, RecordHarness},
};
use hybrid_local::{SqliteOutbox, SqliteRecordOptions, SqliteRecordStore};

#[derive(Debug)]
struct InFile {
    scratch: tempfile::TempDir,
    made: AtomicUsize,
    clock: ManualClock,
}

impl InFile {
    fn new() -> Self {
        let clock = ManualClock::at("2026-03-01T00:00:00Z".parse().unwrap());
        Self { scratch: tempfile::tempdir().unwrap(), made: AtomicUsize::new(0), clock }
    }

    /// The folder of the store made last.
    fn folder(&self) -> PathBuf {
        self.scratch.path().join(self.made.load(Ordering::SeqCst).to_string())
    }

    fn open(&self) -> Result<SqliteRecordStore> {
        let options = SqliteRecordOptions { clock: Arc::new(self.clock.clone()), ..SqliteRecordOptions::default() };
        SqliteRecordStore::open(self.folder().join("records"), options)
    }
}

#[async_trait]
impl RecordHarness for InFile {
    async fn store(&self) -> Result<Arc<dyn RecordStore>> {
        self.made.fetch_add(1, Ordering::SeqCst);
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
        let files = fs::read_dir(self.folder()).ok()?;
        let holds = |path: PathBuf| fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes);
        Some(files.into_iter().any(|file| holds(file.unwrap().path())))
    }
}

#[tokio::test]
async fn a_file_keeps_the_contract_of_a_record_store() {
    records::run(&InFile::new()).await.assert();
}

#[tokio::test]
async fn conditions_hold_across_processes() {
    let files = InFile::new();
    // Handles that share nothing but the file.
    let stores: Vec<_> = (0..4).map(|_| files.open().unwrap()).collect();
    let (tenant, collection) = (TenantId::single(), CollectionName::new("counters").unwrap());
    let key = RecordKey::new("counter").unwrap();
    stores[0].put(&tenant, &collection, &key, NewRecord::new("0"), PutCondition::Create).await.unwrap();
    // Each adds one, again and again, under the condition that nobody else has meanwhile.
    join_all(stores.iter().map(|store| async {
        let mut added = 0;
        while added < 25 {
            let record = store.get(&tenant, &collection, &key).await.unwrap().unwrap();
            let count: u32 = str::from_utf8(&record.value).unwrap().parse().unwrap();
            let next = NewRecord::new((count + 1).to_string());
            match store.put(&tenant, &collection, &key, next, PutCondition::Version(record.version)).await {
                Ok(_) => added += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
        }
    }))
    .await;
    assert_eq!(stores[0].get(&tenant, &collection, &key).await.unwrap().unwrap().value, "100");
}

#[tokio::test]
async fn writes_clear_away_what_has_expired() {
    let files = InFile::new();
    let (store, tenant) = (files.open().unwrap(), TenantId::single());
    let collection = CollectionName::new("sessions").unwrap();
    let put = async |key: String, record: NewRecord| {
        store.put(&tenant, &collection, &RecordKey::new(key).unwrap(), record, PutCondition::Always).await.unwrap();
    };
    let end = files.now().plus(Duration::from_secs(1));
    for i in 0..40 {
        put(format!("session-{i}"), NewRecord::new("token-of-somebody").until(end)).await;
    }
    files.advance(Duration::from_secs(2)).await;
    put("new".to_owned(), NewRecord::new("x")).await;
    assert_eq!(store.purge_expired().await.unwrap(), 40 - 16);
    assert_eq!(store.purge_expired().await.unwrap(), 0);
    assert_eq!(files.holds(b"token-of-somebody").await, Some(false));
    assert_eq!(store.query(&tenant, &collection, RecordQuery::default()).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn a_deleted_records_value_is_gone_from_the_files() {
    let files = InFile::new();
    let (store, tenant) = (files.open().unwrap(), TenantId::single());
    let (collection, key) = (CollectionName::new("notes").unwrap(), RecordKey::new("secret-key").unwrap());
    let value = "a secret of many words. ".repeat(500);
    store.put(&tenant, &collection, &key, NewRecord::new(value), PutCondition::Create).await.unwrap();
    assert_eq!(files.holds(b"a secret of many words").await, Some(true));
    store.delete(&tenant, &collection, &key).await.unwrap();
    assert_eq!(files.holds(b"a secret of many words").await, Some(false));
    store.compact().await.unwrap();
    assert_eq!(files.holds(b"secret-key").await, Some(false));
}

#[tokio::test]
async fn what_came_and_went_since_the_file_was_last_written_anew_leaves_no_room_behind() {
    let files = InFile::new();
    let (store, collection) = (files.open().unwrap(), CollectionName::new("notes").unwrap());
    let size = || fs::metadata(files.folder().join("records")).unwrap().len();
    store.compact().await.unwrap();
    let empty = size();
    for turn in 0..2 {
        let tenant = TenantId::new(format!("tenant-{turn}")).unwrap();
        for i in 0..50 {
            let key = RecordKey::new(format!("key-of-somebody-{}", i * 7 % 50)).unwrap();
            let record = NewRecord::new("x".repeat(2_000));
            store.put(&tenant, &collection, &key, record, PutCondition::Create).await.unwrap();
        }
        store.erase(&tenant).await.unwrap();
        assert_eq!((size(), files.holds(b"key-of-somebody").await), (empty, Some(false)));
    }
}

#[tokio::test]
async fn a_file_of_another_kind_is_refused() {
    let files = InFile::new();
    drop(files.open().unwrap());
    let error = SqliteOutbox::open(files.folder().join("records")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
