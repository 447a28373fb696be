use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, BoxStream, Cancellation, Clock, Error, ErrorKind, JobQueue, JobQueueExt, Key, ListOptions,
    Monotonic, ObjectMeta, ReadOptions, Receipt, Result,
};

/// The holder's own view of a lease: never longer than the queue's, since it counts from before each call and stops short of the end.
pub(super) struct Lease {
    queue: Arc<dyn JobQueue>,
    clock: Arc<dyn Clock>,
    pub(super) receipt: Receipt,
    length: Duration,
    /// From when on nothing is written under this lease.
    stop: Mutex<Monotonic>,
    lost: Cancellation,
}

impl Lease {
    /// A lease of `length` that begins now.
    pub(super) fn new(
        queue: Arc<dyn JobQueue>,
        clock: Arc<dyn Clock>,
        receipt: Receipt,
        length: Duration,
    ) -> Arc<Self> {
        let stop = Mutex::new(clock.monotonic().plus(usable(length)));
        Arc::new(Self { queue, clock, receipt, length, stop, lost: Cancellation::new() })
    }

    /// Raised when the lease is lost.
    pub(super) fn lost(&self) -> &Cancellation {
        &self.lost
    }

    /// Checks that the lease holds.
    pub(super) fn check(&self) -> Result<()> {
        if !self.lost.is_cancelled() && !self.left().is_zero() {
            return Ok(());
        }
        self.lost.cancel();
        Err(Error::lease_lost("hold job", "the lease has run out or was taken over; nothing more is written"))
    }

    /// Extends the lease, if it holds.
    pub(super) async fn renew(&self) -> Result<()> {
        self.check()?;
        let asked = self.clock.monotonic();
        let answer = self.queue.extend_one(&self.receipt, self.length).await;
        match &answer {
            Ok(()) => *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = asked.plus(usable(self.length)),
            Err(error) if error.kind() == ErrorKind::LeaseLost => self.lost.cancel(),
            Err(_) => {}
        }
        answer
    }

    /// Keeps the lease by a heartbeat at a third of its length; returns once it is lost.
    pub(super) async fn keep(self: Arc<Self>) {
        while !self.lost.is_cancelled() {
            self.clock.sleep(self.length / 3).await;
            while !self.lost.is_cancelled() {
                // An answer that does not come is silence too.
                let renewed = tokio::select! {
                    biased;
                    answer = self.renew() => answer,
                    () = self.clock.sleep(self.left()) => Err(Error::lease_lost("extend lease", "no heartbeat went through until near its end")),
                };
                match renewed {
                    Ok(()) => break,
                    Err(error) if error.kind() == ErrorKind::LeaseLost => {
                        tracing::warn!(%error, "the lease is lost");
                        self.lost.cancel();
                    }
                    Err(error) => {
                        tracing::warn!(%error, left = ?self.left(), "a heartbeat did not go through");
                        self.clock.sleep((self.length / 12).min(self.left())).await;
                    }
                }
            }
        }
    }

    fn left(&self) -> Duration {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).since(self.clock.monotonic())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("receipt", &self.receipt).field("left", &self.left()).finish_non_exhaustive()
    }
}

/// The last sixth is left for a write on its way when the check was made.
fn usable(length: Duration) -> Duration {
    length - length / 6
}

/// A store that takes no writes once the lease is lost.
#[derive(Debug)]
pub(super) struct LeasedStore {
    pub(super) inner: Arc<dyn ArtifactStore>,
    pub(super) lease: Arc<Lease>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ArtifactStore for LeasedStore {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.lease.check().map_err(|error| error.with("key", key))?;
        self.inner.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.lease.check().map_err(|error| error.with("key", key))?;
        self.inner.delete(key).await
    }
}
