//! The job queue on SQS, against real servers of its protocol.

mod clocked;
mod conformance;
mod dead;
#[cfg(feature = "s3")]
mod extended;
mod faults;
mod fifo;
mod interop;
mod limits;
mod twelve_hours;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use hybrid_cloud::{
    aws::AwsConfig,
    sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
    testkit::Ministack,
};
use hybrid_core::{Delivery, JobQueue, ReceiveOptions};

/// The shared server.
async fn aws() -> AwsConfig {
    let server = Ministack::shared().unwrap();
    server.config(server.endpoint()).await.unwrap()
}

/// A queue of its own.
async fn open(aws: &AwsConfig, setup: QueueSetup, options: SqsQueueOptions) -> SqsQueue {
    let urls = setup.create(aws).await.unwrap();
    SqsQueue::open(aws, urls.queue, options).await.unwrap()
}

/// A queue's name that no other test of this process uses.
fn name(ending: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}{ending}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Options of tests that look at dead letters, on servers whose short polls miss nothing.
fn options() -> SqsQueueOptions {
    SqsQueueOptions { dead_letter_wait: Duration::ZERO, ..SqsQueueOptions::default() }
}

async fn take(queue: &SqsQueue, wait: u64, lease: u64) -> Vec<Delivery> {
    let (wait, lease) = (Duration::from_secs(wait), Duration::from_secs(lease));
    queue.receive(ReceiveOptions { max: 10, wait, lease }).await.unwrap()
}
