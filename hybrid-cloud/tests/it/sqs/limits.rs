//! What the adapter refuses, and how it sends what SQS counts differently.

use std::{sync::Arc, time::Duration};

use hybrid_cloud::sqs::{ClaimCheck, QueueSetup, SqsQueueOptions};
use hybrid_core::{
    ArtifactStoreExt, ErrorKind, JobQueue, JobQueueExt, Key, MAX_BODY_BYTES, NewMessage, ReceiveOptions,
    memory::MemoryStore,
};

use super::{aws, name, open, take};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn full(trace: Option<&str>) -> NewMessage {
    NewMessage { trace: trace.map(str::to_owned), ..NewMessage::new("x".repeat(MAX_BODY_BYTES)) }
}

#[tokio::test]
async fn a_body_that_fits_only_without_its_trace_goes_to_the_bucket_or_is_refused() {
    let (aws, store) = (aws().await, Arc::new(MemoryStore::default()));
    let plain = open(&aws, QueueSetup::new(name("")), SqsQueueOptions::default()).await;
    plain.send_one(full(None)).await.unwrap();
    let error = plain.send_one(full(Some(TRACE))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");

    let check = ClaimCheck::new(store.clone(), "bucket", Key::new("t/default/payloads").unwrap());
    let options = SqsQueueOptions { claim_check: Some(check), ..SqsQueueOptions::default() };
    let checked = open(&aws, QueueSetup::new(name("")), options).await;
    checked.send_one(full(None)).await.unwrap();
    assert!(store.list_all("").await.unwrap().is_empty(), "a body that fits is sent as it is");
    let delivery = take(&checked, 1, 30).await.pop().unwrap();
    checked.ack_one(&delivery.receipt).await.unwrap();

    checked.send_one(full(Some(TRACE))).await.unwrap();
    let delivery = take(&checked, 1, 30).await.pop().unwrap();
    assert_eq!((delivery.body.len(), delivery.trace.as_deref()), (MAX_BODY_BYTES, Some(TRACE)));
    checked.ack_one(&delivery.receipt).await.unwrap();
    // An ack may be lost, and the message come again: the payload stays.
    assert_eq!(store.list_all("t/default/payloads/").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_message_without_its_payload_is_an_error_that_names_it_and_holds_up_no_other() {
    let (aws, queue_name) = (aws().await, name(""));
    let check = ClaimCheck::new(Arc::new(MemoryStore::default()), "bucket", Key::new("payloads").unwrap());
    let writer = SqsQueueOptions {
        claim_check: Some(ClaimCheck { threshold: 100, bucket: "elsewhere".to_owned(), ..check.clone() }),
        ..SqsQueueOptions::default()
    };
    let writer = open(&aws, QueueSetup::new(&queue_name), writer).await;
    let reader = SqsQueueOptions { claim_check: Some(check), ..SqsQueueOptions::default() };
    let reader = open(&aws, QueueSetup::new(&queue_name), reader).await;
    let bare = open(&aws, QueueSetup::new(&queue_name), SqsQueueOptions::default()).await;
    let soon = ReceiveOptions { wait: Duration::from_secs(5), lease: Duration::ZERO, ..ReceiveOptions::default() };

    writer.send_one(NewMessage::new("x".repeat(200))).await.unwrap();
    let error = reader.receive(soon).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("elsewhere"), "{error}");
    assert_eq!(bare.receive(soon).await.unwrap_err().kind(), ErrorKind::Unsupported);
    writer.send_one(NewMessage::new("small")).await.unwrap();
    let delivery = take(&reader, 5, 30).await.pop().unwrap();
    assert_eq!(delivery.body, "small");
}

#[tokio::test]
async fn groups_traces_and_leases_that_sqs_does_not_take_are_refused_before_it_is_asked() {
    let queue = open(&aws().await, QueueSetup::new(name("")), SqsQueueOptions::default()).await;
    let grouped = |group: &str| NewMessage { group: Some(group.to_owned()), ..NewMessage::new("x") };
    let traced = |trace: &str| NewMessage { trace: Some(trace.to_owned()), ..NewMessage::new("x") };
    for message in [grouped(""), grouped("a b"), grouped("hybrid.no-group.x"), traced(""), traced("ü")] {
        assert_eq!(queue.send_one(message.clone()).await.unwrap_err().kind(), ErrorKind::InvalidInput, "{message:?}");
    }
    let long = Duration::from_secs(12 * 60 * 60 + 1);
    let options = ReceiveOptions { lease: long, ..ReceiveOptions::default() };
    assert_eq!(queue.receive(options).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    queue.send_one(NewMessage::new("x")).await.unwrap();
    let delivery = take(&queue, 1, 30).await.pop().unwrap();
    assert_eq!(queue.extend_one(&delivery.receipt, long).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    queue.ack_one(&delivery.receipt).await.unwrap();
}

#[tokio::test]
async fn a_setup_can_be_done_again_and_changed() {
    let (aws, queue_name) = (aws().await, name(""));
    let setup = |max_deliveries| QueueSetup { max_deliveries, ..QueueSetup::new(&queue_name) };
    let urls = setup(2).create(&aws).await.unwrap();
    assert_eq!(setup(2).create(&aws).await.unwrap(), urls);
    assert_eq!(setup(3).create(&aws).await.unwrap(), urls);
    let queue = open(&aws, setup(4), SqsQueueOptions::default()).await;
    queue.send_one(NewMessage::new("x")).await.unwrap();
    assert_eq!(take(&queue, 1, 30).await[0].max_attempts, Some(4));
    let missing = format!("{}-not", queue.url());
    let error = hybrid_cloud::sqs::SqsQueue::open(&aws, missing, SqsQueueOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
