//! Work that takes longer than SQS hides a message.

use std::{sync::Arc, time::Duration};

use hybrid_cloud::{
    sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
    testkit::{Fault, FaultProxy},
};
use hybrid_core::{DeadLetters, Delivery, ErrorKind, JobQueue, JobQueueExt, MAX_DELAY, NewMessage, ReceiveOptions};

use super::clocked::{Clocked, Kind};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

async fn open(server: &Clocked, name: &str, max_deliveries: u32) -> SqsQueue {
    let setup = QueueSetup { max_deliveries, ..QueueSetup::new(name) };
    super::open(&server.aws, setup, options(server)).await
}

fn options(server: &Clocked) -> SqsQueueOptions {
    SqsQueueOptions { clock: Arc::new(server.clock.clone()), ..super::options() }
}

async fn take(queue: &SqsQueue, lease: Duration) -> Option<Delivery> {
    let options = ReceiveOptions { max: 1, wait: Duration::ZERO, lease };
    queue.receive(options).await.unwrap().pop()
}

/// Holds a delivery by a heartbeat of 50 minutes until the lease is lost; answers with how long that was.
async fn hold(server: &Clocked, queue: &SqsQueue, delivery: &Delivery) -> Duration {
    for beat in 1..100 {
        server.advance(50 * MINUTE);
        match queue.extend_one(&delivery.receipt, HOUR).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::LeaseLost => return 50 * MINUTE * beat,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("SQS holds no message for so long");
}

#[tokio::test]
async fn a_long_job_goes_on_by_a_follow_on_message() {
    let server = Clocked::start(Kind::Ministack).await;
    let queue = open(&server, "long", 3).await;
    let message = NewMessage {
        group: Some("tenant-a".to_owned()),
        trace: Some("00-aa-bb-01".to_owned()),
        ..NewMessage::new("fine-tune 🥐")
    };
    let id = queue.send_one(message).await.unwrap();
    let first = take(&queue, HOUR).await.unwrap();
    queue.nack_one(&first.receipt, Duration::ZERO).await.unwrap();
    server.advance(MINUTE);
    let second = take(&queue, HOUR).await.unwrap();
    assert_eq!((&second.id, second.attempt), (&id, 2));

    // At 700 minutes an hour more would be over 720.
    assert_eq!(hold(&server, &queue, &second).await, 700 * MINUTE);
    for answer in [queue.ack_one(&second.receipt).await, queue.extend_one(&second.receipt, MINUTE).await] {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::LeaseLost);
    }
    assert_eq!(take(&queue, HOUR).await, None, "its holder's time is not over");
    server.advance(10 * MINUTE);
    let follow_on = take(&queue, HOUR).await.unwrap();
    // The same message in all but the lease: the hand-over costs no delivery.
    assert_eq!(Delivery { receipt: second.receipt.clone(), ..follow_on.clone() }, second);
    assert_ne!(follow_on.receipt, second.receipt);
    assert_eq!(take(&queue, HOUR).await, None, "the old message is gone");

    // Again, and the note is not lost on the way.
    assert_eq!(hold(&server, &queue, &follow_on).await, 700 * MINUTE);
    server.advance(10 * MINUTE);
    let third = take(&queue, HOUR).await.unwrap();
    assert_eq!(Delivery { receipt: second.receipt.clone(), ..third.clone() }, second);

    // The deliveries are counted on from there, and end where they would have ended.
    queue.nack_one(&third.receipt, Duration::ZERO).await.unwrap();
    server.advance(MINUTE);
    let last = take(&queue, HOUR).await.unwrap();
    assert_eq!((last.attempt, last.is_last()), (3, true));
    queue.nack_one(&last.receipt, Duration::ZERO).await.unwrap();
    server.advance(MINUTE);
    assert_eq!(take(&queue, HOUR).await, None, "its deliveries are used up");
    let letters = queue.dead_letters().unwrap();
    let letter = letters.list(10, None).await.unwrap().pop().unwrap();
    assert_eq!((&letter.id, letter.attempts, letter.sent), (&id, 3, second.sent));

    server.advance(MINUTE);
    assert_eq!(letters.redrive(std::slice::from_ref(&id)).await.unwrap(), 1);
    let back = take(&queue, HOUR).await.unwrap();
    assert_eq!((&back.id, back.attempt, &back.body), (&id, 1, &second.body));
    queue.ack_one(&back.receipt).await.unwrap();
    server.advance(24 * HOUR);
    assert_eq!(take(&queue, HOUR).await, None);
}

/// moto refuses an extension beyond the twelve hours itself.
#[tokio::test]
async fn no_extension_is_asked_for_that_the_server_refuses() {
    let server = Clocked::start(Kind::Moto).await;
    let queue = open(&server, "long", 3).await;
    queue.send_one(NewMessage::new("x")).await.unwrap();
    let held = take(&queue, HOUR).await.unwrap();
    assert_eq!(hold(&server, &queue, &held).await, 700 * MINUTE);
    assert_eq!(take(&queue, HOUR).await, None, "its holder's time is not over");
    server.advance(10 * MINUTE);
    let follow_on = take(&queue, HOUR).await.unwrap();
    assert_eq!((&follow_on.id, follow_on.attempt, follow_on.sent), (&held.id, 1, held.sent));
    assert_eq!(take(&queue, HOUR).await, None, "the old message is gone");
}

#[tokio::test]
async fn a_lease_with_hours_left_is_handed_over_as_late_as_the_queue_can_wait() {
    let server = Clocked::start(Kind::Ministack).await;
    let queue = open(&server, "long-lease", 3).await;
    queue.send_one(NewMessage::new("x")).await.unwrap();
    let held = take(&queue, 10 * HOUR).await.unwrap();
    server.advance(HOUR);
    let refused = queue.extend_one(&held.receipt, 11 * HOUR + 50 * MINUTE).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LeaseLost, "{refused}");
    server.advance(MAX_DELAY + Duration::from_secs(1));
    let follow_on = take(&queue, HOUR).await.unwrap();
    assert_eq!((&follow_on.id, follow_on.attempt), (&held.id, held.attempt));
}

#[tokio::test]
async fn a_nack_near_the_limit_keeps_its_delay() {
    let server = Clocked::start(Kind::Ministack).await;
    let queue = open(&server, "returned", 5).await;
    let id = queue.send_one(NewMessage::new("x")).await.unwrap();
    let held = take(&queue, 12 * HOUR).await.unwrap();
    server.advance(12 * HOUR - 5 * MINUTE);
    queue.nack_one(&held.receipt, MAX_DELAY).await.unwrap();
    assert_eq!(queue.ack_one(&held.receipt).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    server.advance(14 * MINUTE);
    assert_eq!(take(&queue, HOUR).await, None, "its delay is not over");
    server.advance(MINUTE + Duration::from_secs(1));
    let again = take(&queue, HOUR).await.unwrap();
    assert_eq!(again.id, id);
    assert_eq!(take(&queue, HOUR).await, None);
}

#[tokio::test]
async fn a_follow_on_that_is_not_taken_leaves_the_lease_as_it_was() {
    let server = Clocked::start(Kind::Ministack).await;
    let proxy = FaultProxy::start(&server.endpoint).unwrap();
    let options_of_aws = hybrid_cloud::aws::AwsOptions {
        retry: hybrid_cloud::aws::Retry { attempts: 1, ..Default::default() },
        ..hybrid_cloud::aws::AwsOptions::local(proxy.endpoint(), "test", "test")
    };
    let aws = hybrid_cloud::aws::AwsConfig::load(options_of_aws).await.unwrap();
    let queue = super::open(&aws, QueueSetup::new("stays"), options(&server)).await;
    queue.send_one(NewMessage::new("x")).await.unwrap();
    let held = take(&queue, 11 * HOUR).await.unwrap();
    server.advance(10 * HOUR);
    proxy.script(|request| {
        let sends = request.header("x-amz-target") == Some("AmazonSQS.SendMessageBatch");
        sends.then(|| Fault::Answer { status: 503, body: String::new() })
    });
    let error = queue.extend_one(&held.receipt, 3 * HOUR).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    // What fits into the time left can still be had.
    queue.extend_one(&held.receipt, HOUR).await.unwrap();
    queue.ack_one(&held.receipt).await.unwrap();
    server.advance(24 * HOUR);
    assert_eq!(take(&queue, HOUR).await, None);
}

#[tokio::test]
async fn in_a_fifo_queue_a_long_job_keeps_its_place() {
    let server = Clocked::start(Kind::Ministack).await;
    let queue = open(&server, "ordered.fifo", 5).await;
    let message = |body: &str| NewMessage { group: Some("tenant-a".to_owned()), ..NewMessage::new(body) };
    for answer in queue.send(vec![message("first"), message("second")]).await.unwrap() {
        answer.unwrap();
    }
    let first = take(&queue, HOUR).await.unwrap();
    assert_eq!(hold(&server, &queue, &first).await, 700 * MINUTE);
    assert_eq!(take(&queue, HOUR).await, None, "its holder's time is not over");
    server.advance(10 * MINUTE + Duration::from_secs(1));
    let again = take(&queue, HOUR).await.unwrap();
    assert_eq!((&*again.body, again.attempt), ("first", 2));
}
