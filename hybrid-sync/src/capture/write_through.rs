use std::sync::Arc;

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, Clock, DatasetName, Error, Judgment, JudgmentSink, Result, TenantId, WriterId, memory::MemoryOutbox,
};

use super::{Capture, CaptureOptions};

/// How many judgments may wait in memory for a bucket that is away, their senders gone.
const MAX_WAITING: u64 = 10_000;

/// Records judgments straight in the bucket, for a process without a disk that lasts, such as a cloud function.
///
/// A [`Capture`] says yes once a judgment is on this machine's disk; this one only when it is in the bucket. Judgments that arrive together share
/// a segment. It therefore waits for the network: where there is a disk, prefer [`Capture`].
///
/// The writer id must be this process's alone, such as one made of a fresh UUID at its start.
#[derive(Debug)]
pub struct WriteThrough {
    capture: Capture,
}

impl WriteThrough {
    /// Records into `store` as `writer`.
    pub fn new(
        store: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        writer: WriterId,
        options: CaptureOptions,
    ) -> Self {
        Self { capture: Capture::new(Arc::new(MemoryOutbox::default()), store, clock, writer, options) }
    }
}

#[async_trait]
impl JudgmentSink for WriteThrough {
    /// As the port says, once the judgment is in the bucket. After an error it may be there or come there later; a retry counts once.
    ///
    /// # Errors
    /// As [`Capture`]'s, those of the store, and [`Unavailable`](hybrid_core::ErrorKind::Unavailable) while too many wait for the store already.
    async fn record(&self, tenant: &TenantId, dataset: &DatasetName, judgment: Judgment) -> Result<()> {
        let waiting = self.capture.pending().await?;
        if waiting >= MAX_WAITING {
            // One more try, or nothing would ever be taken again.
            self.capture.drain().await?;
            return Err(Error::unavailable("record judgment", "too many judgments wait for the store; try again")
                .with("waiting", waiting));
        }
        let number = self.capture.append(tenant, dataset, judgment).await?;
        // One drain at a time: whoever waits for another's finds its own judgment carried along, or carries it now.
        let Err(error) = self.capture.drain().await else { return Ok(()) };
        // Others' judgments may be what the store refuses.
        let outbox = &self.capture.outbox;
        match outbox.pending(number - 1, 1).await?.first() {
            Some((first, _)) if *first == number => {
                outbox.remove(&[number]).await?;
                Err(error)
            }
            _ => Ok(()),
        }
    }
}
