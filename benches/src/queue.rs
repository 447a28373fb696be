//! Messages through a queue: some callers send while others receive and acknowledge.

use std::{
    fmt,
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hybrid_core::{Cancellation, JobQueue, NewMessage, ReceiveOptions};
use hybrid_local::{SqliteQueue, SqliteQueueOptions};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::must;

/// Messages that a receiver takes at once, here and at the peer, which is faster so than with its default of ten.
pub const BATCH: usize = 100;

/// What passes through the queue.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many messages.
    pub messages: u64,
    /// How many senders at once, and how many receivers.
    pub callers: usize,
    /// Messages that a sender hands over in one call.
    pub per_send: usize,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages: _, callers, per_send } = self;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{callers} caller{}, {per_send} message{} a send", plural(*callers), plural(*per_send))
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Message {
    number: u64,
    text: String,
}

/// `{"number":1000000,"text":"…"}` of 200 bytes, as the peer sends it.
fn message(number: u64) -> Message {
    Message { number: 1_000_000 + number, text: "x".repeat(172) }
}

/// A new queue in `folder`.
pub fn open(folder: &Path) -> Arc<dyn JobQueue> {
    Arc::new(must(SqliteQueue::open(folder.join("hybrid.db"), SqliteQueueOptions::default())))
}

/// Sends, receives and acknowledges all messages, senders and receivers side by side; the time until the last is acknowledged.
pub fn carry(runtime: &Runtime, queue: &Arc<dyn JobQueue>, load: Load) -> Duration {
    let started = Instant::now();
    let elapsed = runtime.block_on(async {
        let (left, done) = (Arc::new(AtomicU64::new(load.messages)), Cancellation::new());
        let receivers: Vec<_> = (0..load.callers)
            .map(|_| tokio::spawn(receive(Arc::clone(queue), Arc::clone(&left), done.clone())))
            .collect();
        let senders: Vec<_> =
            (0..load.callers).map(|caller| tokio::spawn(send(Arc::clone(queue), caller, load))).collect();
        for sender in senders {
            must(sender.await);
        }
        done.cancelled().await;
        let elapsed = started.elapsed();
        for receiver in receivers {
            must(receiver.await);
        }
        elapsed
    });
    let depth = must(runtime.block_on(queue.depth()));
    assert_eq!((depth.ready, depth.leased, depth.delayed), (0, 0, 0), "every message is acknowledged");
    elapsed
}

async fn send(queue: Arc<dyn JobQueue>, caller: usize, load: Load) {
    let share: Vec<u64> = (0..load.messages).skip(caller).step_by(load.callers).collect();
    for numbers in share.chunks(load.per_send) {
        let message = |number: &u64| NewMessage::new(must(serde_json::to_string(&message(*number))));
        for answer in must(queue.send(numbers.iter().map(message).collect()).await) {
            must(answer);
        }
    }
}

async fn receive(queue: Arc<dyn JobQueue>, left: Arc<AtomicU64>, done: Cancellation) {
    let options = ReceiveOptions { max: BATCH, wait: Duration::from_secs(10), ..ReceiveOptions::default() };
    while let Some(deliveries) = done.run_until_cancelled(queue.receive(options)).await {
        let deliveries = must(deliveries);
        for delivery in &deliveries {
            black_box(must(serde_json::from_str::<Message>(&delivery.body)));
        }
        let receipts: Vec<_> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
        for answer in must(queue.ack(&receipts).await) {
            must(answer);
        }
        let acked = receipts.len() as u64;
        if left.fetch_sub(acked, Ordering::Relaxed) == acked {
            done.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_message_has_the_size_that_the_figures_name() {
        assert_eq!(serde_json::to_string(&super::message(1)).unwrap().len(), 200);
    }
}
