use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    Delivery, Depth, Error, Guarantees, JobQueue, MessageId, NewMessage, Receipt, ReceiveOptions, Result,
    memory::MemoryQueue,
};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Line {
    #[default]
    Good,
    /// The queue says that the lease is lost.
    LeaseLost,
    /// The queue is not reached.
    Down,
    /// No answer comes, ever.
    Silent,
}

impl Line {
    async fn pass(line: &Mutex<Self>) -> Result<()> {
        let line = *line.lock().unwrap();
        match line {
            Self::Good => Ok(()),
            Self::LeaseLost => Err(Error::lease_lost("call queue", "planted")),
            Self::Down => Err(Error::unavailable("call queue", "planted")),
            Self::Silent => std::future::pending().await,
        }
    }
}

/// The way to a queue, on which calls can get lost; it remembers what went over it.
#[derive(Debug)]
pub(crate) struct Wire {
    queue: MemoryQueue,
    pub(crate) receive: Mutex<Line>,
    pub(crate) extend: Mutex<Line>,
    pub(crate) ack: Mutex<Line>,
    pub(crate) nack: Mutex<Line>,
    pub(crate) receives: AtomicUsize,
    pub(crate) extends: AtomicUsize,
    pub(crate) nacks: Mutex<Vec<Duration>>,
}

impl Wire {
    pub(crate) fn new(queue: MemoryQueue) -> Self {
        Self {
            queue,
            receive: Mutex::default(),
            extend: Mutex::default(),
            ack: Mutex::default(),
            nack: Mutex::default(),
            receives: AtomicUsize::new(0),
            extends: AtomicUsize::new(0),
            nacks: Mutex::default(),
        }
    }

    pub(crate) fn nacks(&self) -> Vec<Duration> {
        self.nacks.lock().unwrap().clone()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JobQueue for Wire {
    fn guarantees(&self) -> Guarantees {
        self.queue.guarantees()
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        self.queue.send(messages).await
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        Line::pass(&self.receive).await?;
        self.queue.receive(options).await
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.extends.fetch_add(1, Ordering::Relaxed);
        Line::pass(&self.extend).await?;
        self.queue.extend(leases).await
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        Line::pass(&self.ack).await?;
        self.queue.ack(receipts).await
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.nacks.lock().unwrap().extend(receipts.iter().map(|(_, delay)| *delay));
        Line::pass(&self.nack).await?;
        self.queue.nack(receipts).await
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        Line::pass(&self.nack).await?;
        self.queue.release(receipts).await
    }

    async fn depth(&self) -> Result<Depth> {
        self.queue.depth().await
    }
}
