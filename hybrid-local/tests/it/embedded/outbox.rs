//! What an outbox in a file promises.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use hybrid_core::{
    ErrorKind, Outbox, Result,
    conformance::outbox::{self, OutboxHarness},
};
use hybrid_local::{SqliteOutbox, SqliteQueue, SqliteQueueOptions};

#[derive(Debug)]
struct InFile {
    scratch: tempfile::TempDir,
    made: AtomicUsize,
}

impl InFile {
    fn open(&self, number: usize) -> Result<Arc<dyn Outbox>> {
        Ok(Arc::new(SqliteOutbox::open(self.scratch.path().join(number.to_string()))?))
    }
}

#[async_trait]
impl OutboxHarness for InFile {
    async fn outbox(&self) -> Result<Arc<dyn Outbox>> {
        self.open(self.made.fetch_add(1, Ordering::SeqCst))
    }

    async fn restart(&self, outbox: Arc<dyn Outbox>) -> Result<Option<Arc<dyn Outbox>>> {
        drop(outbox);
        self.open(self.made.load(Ordering::SeqCst) - 1).map(Some)
    }
}

#[tokio::test]
async fn a_file_keeps_the_contract_of_an_outbox() {
    let harness = InFile { scratch: tempfile::tempdir().unwrap(), made: AtomicUsize::new(0) };
    outbox::run(&harness).await.assert();
}

#[tokio::test]
async fn files_of_another_kind_are_refused_and_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let queue = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
    let error = SqliteOutbox::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    drop(queue);
    SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
}
