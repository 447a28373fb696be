//! Capture: judgments go to a durable list on this machine first, then as segments of a dataset to the bucket.
//!
//! Recording never waits for the network, so a storefront that is offline for a day records on and drains later. Nothing is
//! removed from the outbox before it is durable in the bucket, so a crash at any point loses nothing; at worst a judgment is stored twice, and
//! [`fold_judgments`](hybrid_core::fold_judgments) counts it once.

mod drain;
mod write_through;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, Cancellation, Clock, DatasetName, Document, Error, Judgment, JudgmentSink, Outbox, Result, TenantId,
    Timestamp, WriterId,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::backoff::{Backoff, seed_of};
pub use drain::Drained;
use drain::Place;
pub use write_through::WriteThrough;

/// The most bytes that one judgment may have as JSON: 1 MiB.
pub const MAX_JUDGMENT_BYTES: usize = 1024 * 1024;

/// Records judgments on this machine, as a [`JudgmentSink`], and carries them to the bucket.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
/// use hybrid_core::{
///     Clock, DatasetName, DatasetRef, Judgment, JudgmentId, JudgmentSink, SystemClock, SystemIds, TenantId, WriterId,
///     memory::{MemoryOutbox, MemoryStore},
/// };
/// use hybrid_sync::capture::{Capture, CaptureOptions};
///
/// let store = Arc::new(MemoryStore::default());
/// let clock = Arc::new(SystemClock);
/// let writer = WriterId::new("storefront-1")?;
/// let capture = Capture::new(Arc::new(MemoryOutbox::default()), store.clone(), clock.clone(), writer, CaptureOptions::default());
///
/// let (tenant, dataset) = (TenantId::single(), DatasetName::new("bakery")?);
/// let (asked, said) = (serde_json::json!({ "text": "two dozen rolls, please" }), serde_json::json!({ "label": "order" }));
/// let judgment = Judgment::new(JudgmentId::next(&SystemIds::default()), "classify", asked, said, clock.now());
/// capture.record(&tenant, &dataset, judgment).await?;
/// assert_eq!(capture.drain().await?.judgments, 1);
/// assert_eq!(DatasetRef::fix(&*store, &tenant, &dataset).await?.read(&*store).await?.len(), 1);
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct Capture {
    outbox: Arc<dyn Outbox>,
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    writer: WriterId,
    options: CaptureOptions,
    /// The next number of each sequence that this process has written to; held for the whole of a drain.
    sequences: Mutex<BTreeMap<Place, u64>>,
}

/// How a [`Capture`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// In whose area records end up that are too damaged to say whose they are; `default` by default.
    pub tenant: TenantId,
    /// About how many bytes a segment may have; between 1 and 14 MiB, 4 MiB by default.
    pub segment_bytes: usize,
    /// How many judgments a segment may have, at least one; 1000 by default.
    pub segment_judgments: usize,
    /// The longest wait of [`Capture::run`] after many failures in a row, beyond its interval; 5 minutes by default.
    pub longest_wait: Duration,
    /// Where jitter comes from, beside the writer's name.
    pub seed: u64,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            tenant: TenantId::single(),
            segment_bytes: 4 * 1024 * 1024,
            segment_judgments: 1000,
            longest_wait: Duration::from_secs(300),
            seed: 0,
        }
    }
}

/// What lies in the outbox. It names its place in the bucket whole, so that a drain after a crash finds the same place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    tenant: TenantId,
    dataset: DatasetName,
    recorded: Timestamp,
    judgment: Judgment,
}

impl Document for Record {
    const FORMAT: &'static str = "hybrid.captured";
    const MAJOR: u32 = 1;
}

impl Capture {
    /// Captures into `outbox` and drains into `store` as `writer`, which should be this process's alone. (Two processes with one
    /// writer id lose nothing; they get in each other's way.)
    pub fn new(
        outbox: Arc<dyn Outbox>,
        store: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        writer: WriterId,
        options: CaptureOptions,
    ) -> Self {
        let options = CaptureOptions {
            segment_bytes: options.segment_bytes.clamp(MAX_JUDGMENT_BYTES, 14 * 1024 * 1024),
            segment_judgments: options.segment_judgments.max(1),
            ..options
        };
        Self { outbox, store, clock, writer, options, sequences: Mutex::default() }
    }

    /// How many records wait for the bucket.
    ///
    /// # Errors
    /// Those of the outbox.
    pub async fn pending(&self) -> Result<u64> {
        self.outbox.len().await
    }

    /// Drains every `interval` while something is there, until `cancel` is raised.
    ///
    /// While the bucket is away it waits longer and longer, with jitter, at most [`CaptureOptions::longest_wait`] beyond the interval. It ends at
    /// once when cancelled, also in the middle of a drain: what is left stays in the outbox for the next start. Call [`drain`](Self::drain)
    /// afterwards to send the rest before a planned stop.
    pub async fn run(&self, cancel: Cancellation, interval: Duration) {
        let backoff = Backoff { first: interval.max(Duration::from_secs(1)), cap: self.options.longest_wait };
        let seed = seed_of(self.options.seed, self.writer.as_str().as_bytes());
        let mut failures = 0;
        let drain_and_wait = async {
            loop {
                let wait = match self.drain().await {
                    Ok(_) => {
                        failures = 0;
                        interval
                    }
                    Err(error) => {
                        failures += 1;
                        let wait = interval + backoff.wait(seed, failures).max(error.retry_after().unwrap_or_default());
                        tracing::warn!(%error, failures, ?wait, "the outbox does not drain; it keeps what it has");
                        wait
                    }
                };
                // Never without a pause, whatever interval was asked.
                self.clock.sleep(wait.max(Duration::from_millis(1))).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = drain_and_wait => {}
        }
    }
}

impl Capture {
    /// Puts a judgment into the outbox; answers its record's number.
    async fn append(&self, tenant: &TenantId, dataset: &DatasetName, judgment: Judgment) -> Result<u64> {
        let (id, tenant, dataset) = (judgment.id, tenant.clone(), dataset.clone());
        let bytes = Record { tenant, dataset, recorded: self.clock.now(), judgment }.encode()?;
        // Refused here, where the caller hears of it: no drain could carry it.
        if bytes.len() > MAX_JUDGMENT_BYTES {
            return Err(Error::too_large(
                "record judgment",
                "the judgment is over the limit; put large inputs into the store",
            )
            .with("judgment", id)
            .with("size", bytes.len())
            .with("limit", MAX_JUDGMENT_BYTES));
        }
        self.outbox.append(bytes).await
    }
}

#[async_trait]
impl JudgmentSink for Capture {
    /// As the port says; a judgment over [`MAX_JUDGMENT_BYTES`] is [`TooLarge`](hybrid_core::ErrorKind::TooLarge).
    async fn record(&self, tenant: &TenantId, dataset: &DatasetName, judgment: Judgment) -> Result<()> {
        self.append(tenant, dataset, judgment).await.map(drop)
    }
}
