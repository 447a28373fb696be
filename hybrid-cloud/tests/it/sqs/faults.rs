//! What breaks on the way to SQS and back.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, Retry},
    sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
    testkit::{Fault, FaultProxy, Ministack, Moto},
};
use hybrid_core::{Cancellation, ErrorKind, JobQueue, JobQueueExt, NewMessage, ReceiveOptions};

use super::{name, open, take};

/// A queue behind a proxy, whose calls are tried so many times.
async fn behind_proxy(endpoint: &str, ending: &str, attempts: u32) -> (FaultProxy, SqsQueue) {
    let proxy = FaultProxy::start(endpoint).unwrap();
    let retry = Retry { attempts, max_backoff: Duration::from_millis(50), ..Retry::default() };
    let aws = AwsOptions { retry, ..AwsOptions::local(proxy.endpoint(), "test", "test") };
    let aws = AwsConfig::load(aws).await.unwrap();
    let queue = open(&aws, QueueSetup::new(name(ending)), SqsQueueOptions::default()).await;
    (proxy, queue)
}

async fn ministack(ending: &str, attempts: u32) -> (FaultProxy, SqsQueue) {
    behind_proxy(Ministack::shared().unwrap().endpoint(), ending, attempts).await
}

/// Lets the next call of an operation go wrong.
fn once(proxy: &FaultProxy, operation: &'static str, fault: Fault) {
    let calls = AtomicUsize::new(0);
    proxy.script(move |request| {
        let asked = request.header("x-amz-target").is_some_and(|target| target == format!("AmazonSQS.{operation}"));
        (asked && calls.fetch_add(1, Ordering::Relaxed) == 0).then(|| fault.clone())
    });
}

#[tokio::test]
async fn a_send_whose_answer_is_lost_is_repeated_and_nothing_is_lost() {
    let (proxy, queue) = ministack("", 3).await;
    once(&proxy, "SendMessageBatch", Fault::DropAnswer);
    let messages = ["a", "b", "c"].map(NewMessage::new);
    for answer in queue.send(messages.to_vec()).await.unwrap() {
        answer.unwrap();
    }
    assert_eq!(proxy.faults(), 1);
    let mut bodies: Vec<_> = take(&queue, 1, 30).await.into_iter().map(|delivery| delivery.body).collect();
    bodies.sort();
    // Both tries were heard: duplicates are what a standard queue's sender must expect.
    assert_eq!(bodies, ["a", "a", "b", "b", "c", "c"]);
}

#[tokio::test]
async fn a_send_to_a_fifo_queue_that_is_repeated_arrives_once() {
    let (proxy, queue) = ministack(".fifo", 3).await;
    once(&proxy, "SendMessageBatch", Fault::DropAnswer);
    let id = queue.send_one(NewMessage::new("once")).await.unwrap();
    assert_eq!(proxy.faults(), 1);
    let found: Vec<_> = take(&queue, 1, 30).await.into_iter().map(|delivery| delivery.id).collect();
    assert_eq!(found, [id]);
}

#[tokio::test]
async fn a_send_that_was_never_answered_is_an_error_that_says_try_again() {
    let (proxy, queue) = ministack("", 1).await;
    once(&proxy, "SendMessageBatch", Fault::DropAnswer);
    let error = queue.send(vec![NewMessage::new("unsure")]).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    assert_eq!(take(&queue, 1, 30).await.len(), 1, "the server had heard it");
}

#[tokio::test]
async fn what_was_received_into_a_lost_answer_comes_again_after_its_lease() {
    let (proxy, queue) = ministack("", 3).await;
    queue.send_one(NewMessage::new("unheard")).await.unwrap();
    once(&proxy, "ReceiveMessage", Fault::DropAnswer);
    let lease = Duration::from_secs(1);
    let options = ReceiveOptions { wait: Duration::from_secs(5), lease, ..ReceiveOptions::default() };
    let error = queue.receive(options).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    let again = queue.receive(options).await.unwrap();
    assert_eq!((again.len(), again[0].attempt), (1, 2));
    queue.ack_one(&again[0].receipt).await.unwrap();
}

/// moto takes a second delete of one message for done, as SQS does.
#[tokio::test]
async fn an_ack_whose_answer_is_lost_is_repeated_and_holds() {
    let (proxy, queue) = behind_proxy(Moto::shared().unwrap().endpoint(), "", 3).await;
    queue.send_one(NewMessage::new("done")).await.unwrap();
    let delivery = take(&queue, 1, 1).await.pop().unwrap();
    once(&proxy, "DeleteMessageBatch", Fault::DropAnswer);
    queue.ack_one(&delivery.receipt).await.unwrap();
    assert_eq!(proxy.faults(), 1);
    assert!(take(&queue, 2, 1).await.is_empty());
}

#[tokio::test]
async fn an_ack_that_the_server_never_heard_can_be_made_again() {
    let (proxy, queue) = ministack("", 1).await;
    queue.send_one(NewMessage::new("done")).await.unwrap();
    let delivery = take(&queue, 1, 30).await.pop().unwrap();
    once(&proxy, "DeleteMessageBatch", Fault::Answer { status: 500, body: String::new() });
    assert!(queue.ack_one(&delivery.receipt).await.unwrap_err().is_temporary());
    queue.ack_one(&delivery.receipt).await.unwrap();
}

#[tokio::test]
async fn a_long_poll_that_stalls_is_cancelled_at_once() {
    let (proxy, queue) = ministack("", 1).await;
    queue.send_one(NewMessage::new("x")).await.unwrap();
    once(&proxy, "ReceiveMessage", Fault::StallAnswer { after: 0 });
    let (cancel, asked) = (Cancellation::new(), proxy.requests());
    let receiving = tokio::spawn({
        let (queue, cancel) = (queue.clone(), cancel.clone());
        let options = ReceiveOptions { wait: Duration::from_secs(20), lease: Duration::from_secs(1), max: 1 };
        async move { cancel.run_until_cancelled(queue.receive(options)).await.is_none() }
    });
    while proxy.requests() == asked {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    cancel.cancel();
    assert!(receiving.await.unwrap(), "the receive had not ended by itself");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(take(&queue, 5, 30).await.len(), 1, "what it had leased comes again");
}

#[tokio::test]
async fn an_entry_that_failed_inside_an_answer_of_success_is_told_apart() {
    let (proxy, queue) = ministack("", 3).await;
    // The shapes of SendMessageBatchResult and BatchResultErrorEntry in the service's model.
    let body = r#"{
        "Successful": [{"Id": "1", "MessageId": "5fea7756-0ea4-451a-a703-a558b933e274", "MD5OfMessageBody": "900150983cd24fb0d6963f7d28e17f72"}],
        "Failed": [
            {"Id": "2", "SenderFault": false, "Code": "InternalError", "Message": "We encountered an internal error."},
            {"Id": "0", "SenderFault": true, "Code": "InvalidMessageContents", "Message": "Invalid characters."}
        ]
    }"#;
    once(&proxy, "SendMessageBatch", Fault::Answer { status: 200, body: body.to_owned() });
    let answers = queue.send(["a", "b", "c"].map(NewMessage::new).to_vec()).await.unwrap();
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(hybrid_core::Error::kind)).collect();
    assert_eq!(kinds, [Some(ErrorKind::InvalidInput), None, Some(ErrorKind::Unavailable)]);
    assert_eq!(answers[1].as_ref().unwrap().0, "5fea7756-0ea4-451a-a703-a558b933e274");

    queue.send(["a", "b"].map(NewMessage::new).to_vec()).await.unwrap();
    let receipts: Vec<_> = take(&queue, 1, 30).await.into_iter().map(|delivery| delivery.receipt).collect();
    let body = r#"{"Successful": [], "Failed": [
        {"Id": "0", "SenderFault": false, "Code": "InternalError"},
        {"Id": "1", "SenderFault": true, "Code": "ReceiptHandleIsInvalid"}
    ]}"#;
    once(&proxy, "DeleteMessageBatch", Fault::Answer { status: 200, body: body.to_owned() });
    let answers = queue.ack(&receipts).await.unwrap();
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(hybrid_core::Error::kind)).collect();
    assert_eq!(kinds, [Some(ErrorKind::Unavailable), Some(ErrorKind::LeaseLost)]);
    // The first is still held; the second is lost whatever is said later.
    let answers = queue.ack(&receipts).await.unwrap();
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(hybrid_core::Error::kind)).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::LeaseLost)]);
}
