//! Dead letters beyond what the suite asks.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    sqs::{QueueSetup, SqsQueue},
    testkit::{Fault, FaultProxy, Ministack},
};
use hybrid_core::{DeadLetters, ErrorKind, JobQueue, JobQueueExt, ManualClock, NewMessage, ReceiveOptions};

use super::{aws, name, open, options};

/// Sends messages and lets each of them die.
async fn kill(queue: &SqsQueue, count: usize) {
    let messages = (0..count).map(|i| NewMessage { group: Some("tenant-a".into()), ..NewMessage::new(i.to_string()) });
    for answer in queue.send(messages.collect()).await.unwrap() {
        answer.unwrap();
    }
    let receive = ReceiveOptions { max: 10, wait: Duration::from_secs(1), lease: Duration::from_secs(60) };
    loop {
        let found = queue.receive(receive).await.unwrap();
        if found.is_empty() {
            return;
        }
        let back: Vec<_> = found.into_iter().map(|delivery| (delivery.receipt, Duration::ZERO)).collect();
        for answer in queue.nack(&back).await.unwrap() {
            answer.unwrap();
        }
    }
}

fn setup(ending: &str) -> QueueSetup {
    QueueSetup { max_deliveries: 1, ..QueueSetup::new(name(ending)) }
}

/// ministack knows no `StartMessageMoveTask`.
#[tokio::test]
async fn a_server_that_moves_no_messages_has_all_of_them_sent_back() {
    for ending in ["", ".fifo"] {
        let queue = open(&aws().await, setup(ending), options()).await;
        kill(&queue, 23).await;
        let letters = queue.dead_letters().unwrap();
        assert_eq!(letters.redrive_all().await.unwrap(), 23, "{ending:?}");
        assert!(letters.list(100, None).await.unwrap().is_empty());
        let mut bodies = Vec::new();
        while let Some(delivery) = super::take(&queue, 1, 60).await.into_iter().next() {
            assert_eq!(delivery.attempt, 1);
            bodies.push(delivery.body);
            queue.ack_one(&delivery.receipt).await.unwrap();
        }
        if ending == ".fifo" {
            assert_eq!(bodies, (0..23).map(|i| i.to_string()).collect::<Vec<_>>(), "in the order of their group");
        }
    }
}

#[tokio::test]
async fn two_looks_at_once_do_not_hide_letters_from_each_other() {
    let queue = open(&aws().await, setup(""), options()).await;
    kill(&queue, 15).await;
    let letters = queue.dead_letters().unwrap();
    let looks: Vec<_> = (0..4)
        .map(|_| {
            let letters = letters.clone();
            tokio::spawn(async move { letters.list(100, None).await.unwrap().len() })
        })
        .collect();
    for look in looks {
        assert_eq!(look.await.unwrap(), 15);
    }
}

#[tokio::test]
async fn pages_go_on_after_a_letter_that_was_purged() {
    let queue = open(&aws().await, setup(""), options()).await;
    kill(&queue, 5).await;
    let letters = queue.dead_letters().unwrap();
    let all = letters.list(100, None).await.unwrap();
    let first = letters.list(2, None).await.unwrap();
    assert_eq!(letters.purge(&[first[1].id.clone()]).await.unwrap(), 1);
    assert_eq!(letters.list(100, Some(&first[1].id)).await.unwrap(), all[2..]);
    let unknown = hybrid_core::MessageId("nobody".to_owned());
    assert_eq!(letters.list(1, Some(&unknown)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// A proxy that answers the calls of a move as the service's model describes them.
async fn mover(states: &'static [&'static str]) -> (FaultProxy, SqsQueue, ManualClock, Arc<Mutex<Vec<String>>>) {
    let server = Ministack::shared().unwrap();
    let (proxy, clock, asked) = (FaultProxy::start(server.endpoint()).unwrap(), ManualClock::default(), Arc::default());
    let log: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
    let mut looks = 0;
    proxy.script(move |request| {
        let operation = request.header("x-amz-target")?.strip_prefix("AmazonSQS.")?.to_owned();
        let answer = |body: String| Some(Fault::Answer { status: 200, body });
        let found = match operation.as_str() {
            "StartMessageMoveTask" => answer(r#"{"TaskHandle":"handle"}"#.to_owned()),
            "ListMessageMoveTasks" => {
                let state = states[looks.min(states.len() - 1)];
                looks += 1;
                let older = r#"{"Status":"FAILED","SourceArn":"a","ApproximateNumberOfMessagesMoved":1,"FailureReason":"old","StartedTimestamp":1442426968000}"#;
                let newer = format!(
                    r#",{{"TaskHandle":"handle","Status":"{state}","SourceArn":"a","ApproximateNumberOfMessagesMoved":7,
                    "ApproximateNumberOfMessagesToMove":9,"FailureReason":"CouldNotDetermineMessageSource","StartedTimestamp":1742426968000}}"#
                );
                // What was before the move, and what shows of it only after a while.
                let newer = if state.is_empty() { String::new() } else { newer };
                answer(format!(r#"{{"Results":[{older}{newer}]}}"#))
            }
            _ => None,
        };
        if found.is_some() {
            log.lock().unwrap().push(operation);
        }
        found
    });
    let aws = AwsConfig::load(AwsOptions::local(proxy.endpoint(), "test", "test")).await.unwrap();
    let options = hybrid_cloud::sqs::SqsQueueOptions { clock: Arc::new(clock.clone()), ..options() };
    let queue = open(&aws, setup(""), options).await;
    (proxy, queue, clock, asked)
}

#[tokio::test]
async fn a_move_by_the_server_is_waited_for() {
    let (_proxy, queue, clock, asked) = mover(&["", "", "RUNNING", "COMPLETED"]).await;
    let letters = queue.dead_letters().unwrap();
    let moving = tokio::spawn(async move { letters.redrive_all().await });
    for _ in 0..2 {
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(moving.await.unwrap().unwrap(), 7);
    let asked = asked.lock().unwrap();
    let look = "ListMessageMoveTasks";
    assert_eq!(*asked, [look, "StartMessageMoveTask", look, look, look]);
}

#[tokio::test]
async fn a_move_that_failed_says_why_and_how_far_it_came() {
    let (_proxy, queue, ..) = mover(&["", "FAILED"]).await;
    let error = queue.dead_letters().unwrap().redrive_all().await.unwrap_err();
    assert_eq!((error.kind(), error.context("moved")), (ErrorKind::Internal, Some("7")));
    assert_eq!(error.context("reason"), Some("CouldNotDetermineMessageSource"));
    let (_proxy, queue, ..) = mover(&["", "CANCELLED"]).await;
    assert_eq!(queue.dead_letters().unwrap().redrive_all().await.unwrap_err().kind(), ErrorKind::Cancelled);
}
