//! Ports that fail when a test says so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    ArtifactStore, BoxStream, Delivery, Depth, Error, Guarantees, JobQueue, Key, ListOptions, MessageId, NewMessage,
    ObjectMeta, Outbox, ReadOptions, Receipt, ReceiveOptions, Result,
};

/// On which side of an operation's effect it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Nothing happened.
    Before,
    /// It happened, and the caller is not told.
    After,
}

/// Counts operations over several ports and fails one of them.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    count: AtomicUsize,
    at: Option<(usize, Side)>,
    /// The process is dead after the fault: nothing works any more.
    crash: bool,
    crashed: AtomicBool,
    pub(crate) offline: AtomicBool,
    /// No answer comes, ever.
    pub(crate) silent: AtomicBool,
    /// Others get their turn before each operation, as with a store across a network.
    pub(crate) slow: AtomicBool,
}

impl Faults {
    pub(crate) fn none() -> Arc<Self> {
        Arc::default()
    }

    /// The operation number `at`, from zero, fails once.
    pub(crate) fn once(at: usize, side: Side) -> Arc<Self> {
        Arc::new(Self { at: Some((at, side)), ..Self::default() })
    }

    /// From the operation number `at` on nothing works.
    pub(crate) fn crash(at: usize, side: Side) -> Arc<Self> {
        Arc::new(Self { at: Some((at, side)), crash: true, ..Self::default() })
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn fault() -> Error {
        Error::unavailable("call port", "a planted fault")
    }

    async fn enter(&self) -> Result<usize> {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.slow.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        self.begin()
    }

    fn begin(&self) -> Result<usize> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        if self.at == Some((number, Side::Before)) {
            self.crashed.store(self.crash, Ordering::Relaxed);
            return Err(Self::fault());
        }
        if self.crashed.load(Ordering::Relaxed) || self.offline.load(Ordering::Relaxed) {
            return Err(Self::fault());
        }
        Ok(number)
    }

    fn leave<T>(&self, number: usize, answer: Result<T>) -> Result<T> {
        if self.at == Some((number, Side::After)) {
            self.crashed.store(self.crash, Ordering::Relaxed);
            return Err(Self::fault());
        }
        answer
    }
}

/// A port with faults.
#[derive(Debug)]
pub(crate) struct Faulty<P> {
    pub(crate) inner: P,
    pub(crate) faults: Arc<Faults>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: ArtifactStore> ArtifactStore for Faulty<P> {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.create(key, bytes).await)
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.read(key, options).await)
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.head(key).await)
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.faults.begin().and_then(|number| self.faults.leave(number, Ok(()))) {
            Ok(()) => self.inner.list(prefix, options),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.delete(key).await)
    }
}

#[async_trait]
impl Outbox for Faulty<Arc<dyn Outbox>> {
    async fn append(&self, record: Bytes) -> Result<u64> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.append(record).await)
    }

    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.pending(after, max).await)
    }

    async fn remove(&self, records: &[u64]) -> Result<()> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.remove(records).await)
    }

    async fn len(&self) -> Result<u64> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.len().await)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: JobQueue> JobQueue for Faulty<P> {
    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.send(messages).await)
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.receive(options).await)
    }

    async fn extend(&self, leases: &[(Receipt, std::time::Duration)]) -> Result<Vec<Result<()>>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.extend(leases).await)
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.ack(receipts).await)
    }

    async fn nack(&self, receipts: &[(Receipt, std::time::Duration)]) -> Result<Vec<Result<()>>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.nack(receipts).await)
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.release(receipts).await)
    }

    async fn depth(&self) -> Result<Depth> {
        let number = self.faults.enter().await?;
        self.faults.leave(number, self.inner.depth().await)
    }
}
