//! The port's own suite.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hybrid_cloud::sqs::{ClaimCheck, QueueSetup, SqsQueue, SqsQueueOptions};
use hybrid_core::{
    Key, Result,
    conformance::{
        Report,
        queue::{self, QueueHarness, QueueUnderTest},
    },
    memory::MemoryStore,
};

use super::clocked::{Clocked, Kind};

#[derive(Debug)]
struct Harness {
    server: Clocked,
    claim_check: Option<ClaimCheck>,
    ending: &'static str,
    next: AtomicU32,
}

#[async_trait]
impl QueueHarness for Harness {
    async fn queue(&self, max_deliveries: u32) -> Result<QueueUnderTest> {
        let Self { server, claim_check, ending, next } = self;
        let name = format!("suite-{}{ending}", next.fetch_add(1, Ordering::Relaxed));
        let urls = QueueSetup { max_deliveries, ..QueueSetup::new(name) }.create(&server.aws).await?;
        let options = SqsQueueOptions {
            clock: Arc::new(server.clock.clone()),
            claim_check: claim_check.clone(),
            dead_letter_wait: Duration::ZERO,
            ..SqsQueueOptions::default()
        };
        let queue = Arc::new(SqsQueue::open(&server.aws, urls.queue, options).await?);
        let dead_letters = queue.dead_letters().map(|letters| Arc::new(letters) as _);
        Ok(QueueUnderTest { queue, dead_letters })
    }

    async fn advance(&self, by: Duration) {
        self.server.advance(by);
    }
}

async fn run(kind: Kind, ending: &'static str, threshold: Option<usize>) -> Report {
    let claim_check = threshold.map(|threshold| {
        let check = ClaimCheck::new(Arc::new(MemoryStore::default()), "bucket", Key::new("payloads").unwrap());
        ClaimCheck { threshold, ..check }
    });
    let server = Clocked::start(kind).await;
    queue::run(&Harness { server, claim_check, ending, next: AtomicU32::default() }).await
}

#[tokio::test]
async fn on_ministack() {
    run(Kind::Ministack, "", None).await.assert();
}

#[tokio::test]
async fn on_ministack_with_every_body_in_the_bucket() {
    run(Kind::Ministack, "", Some(0)).await.assert();
}

#[tokio::test]
async fn on_moto() {
    run(Kind::Moto, "", Some(usize::MAX)).await.assert();
}

/// SQS delays no single message of a FIFO queue; all else holds.
#[tokio::test]
async fn a_fifo_queue_keeps_all_of_the_contract_but_for_delays() {
    let report = run(Kind::Ministack, ".fifo", None).await;
    let failed: Vec<_> = report.failures().map(|case| case.name).collect();
    let about_delays = [
        "what_queues_cannot_carry_is_refused",
        "a_delay_hides_a_message",
        "a_waiting_receive_sees_a_delay_end",
        "redrive_counts_from_one",
    ];
    assert_eq!(failed, about_delays, "{report}");
}
