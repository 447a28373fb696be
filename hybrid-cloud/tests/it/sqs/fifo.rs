//! FIFO queues with several consumers.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use hybrid_cloud::sqs::{QueueSetup, SqsQueueOptions};
use hybrid_core::{ErrorKind, JobQueue, JobQueueExt, NewMessage, ReceiveOptions};

use super::{aws, name, open};

const GROUPS: usize = 5;
const EACH: usize = 8;

#[tokio::test]
async fn each_group_is_worked_off_in_order_by_six_consumers() {
    let queue = Arc::new(open(&aws().await, QueueSetup::new(name(".fifo")), SqsQueueOptions::default()).await);
    let message = |i: usize| NewMessage {
        group: Some(format!("tenant-{}", i % GROUPS)),
        ..NewMessage::new((i / GROUPS).to_string())
    };
    for answer in queue.send((0..GROUPS * EACH).map(message).collect()).await.unwrap() {
        answer.unwrap();
    }
    #[derive(Default)]
    struct Seen {
        done: HashMap<String, Vec<usize>>,
        held: HashSet<String>,
        count: usize,
    }
    impl Seen {
        /// Noted before the ack, after which the next of the group may come at once.
        fn finish(&mut self, group: &str, number: usize) {
            self.done.entry(group.to_owned()).or_default().push(number);
            self.count += 1;
            self.held.remove(group);
        }
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let consumers: Vec<_> = (0..6)
        .map(|_| {
            let (queue, seen) = (queue.clone(), seen.clone());
            tokio::spawn(async move {
                let lease = Duration::from_secs(60);
                let options = ReceiveOptions { max: 3, wait: Duration::from_secs(1), lease };
                while seen.lock().unwrap().count < GROUPS * EACH {
                    for delivery in queue.receive(options).await.unwrap() {
                        let group = delivery.group.clone().unwrap();
                        assert!(seen.lock().unwrap().held.insert(group.clone()), "two hold messages of {group}");
                        // So that another consumer has its turn while this one holds.
                        queue.extend_one(&delivery.receipt, lease).await.unwrap();
                        seen.lock().unwrap().finish(&group, delivery.body.parse().unwrap());
                        queue.ack_one(&delivery.receipt).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for consumer in consumers {
        consumer.await.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.done.len(), GROUPS);
    for (group, order) in &seen.done {
        assert_eq!(*order, (0..EACH).collect::<Vec<_>>(), "{group}");
    }
}

#[tokio::test]
async fn equal_bodies_are_messages_of_their_own_and_a_delay_is_refused() {
    let queue = open(&aws().await, QueueSetup::new(name(".fifo")), SqsQueueOptions::default()).await;
    let ids: HashSet<_> = [
        queue.send_one(NewMessage::new("same")).await.unwrap(),
        queue.send_one(NewMessage::new("same")).await.unwrap(),
    ]
    .into();
    assert_eq!(ids.len(), 2);
    let delayed = NewMessage { delay: Duration::from_secs(1), ..NewMessage::new("later") };
    let error = queue.send_one(delayed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("FIFO"), "{error}");
    let found = super::take(&queue, 1, 30).await;
    assert_eq!(found.iter().map(|delivery| delivery.id.clone()).collect::<HashSet<_>>(), ids);
    assert!(found.iter().all(|delivery| delivery.group.is_none()), "{found:?}");
}
