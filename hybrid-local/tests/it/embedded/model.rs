//! Whatever is done to it, the queue in a file does what the queue in memory does.

use std::{sync::Arc, time::Duration};

use hybrid_core::{
    DeadLetters, Delivery, ErrorKind, JobQueue, JobQueueExt, ManualClock, MessageId, NewMessage, Receipt,
    ReceiveOptions, Result,
    memory::{MemoryQueue, MemoryQueueOptions},
};
use hybrid_local::{SqliteQueue, SqliteQueueOptions};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Send { count: usize, delay: u64 },
    Receive { lease: u64 },
    Ack(usize),
    Nack(usize, u64),
    Extend(usize, u64),
    Advance(u64),
    Redrive(u64),
    Purge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..4_usize, 0..8_u64).prop_map(|(count, delay)| Step::Send { count, delay: delay.saturating_sub(4) }),
        4 => (1..6_u64).prop_map(|lease| Step::Receive { lease }),
        2 => any::<usize>().prop_map(Step::Ack),
        3 => (any::<usize>(), 0..6_u64).prop_map(|(at, delay)| Step::Nack(at, delay.saturating_sub(2))),
        2 => (any::<usize>(), 0..6_u64).prop_map(|(at, time)| Step::Extend(at, time)),
        4 => (1..4_u64).prop_map(Step::Advance),
        1 => (1..20_u64).prop_map(Step::Redrive),
        1 => (1..20_u64).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

/// The part of a delivery that does not depend on the adapter.
fn plain(delivery: &Delivery) -> (u64, &str, u32, Option<u32>, hybrid_core::Timestamp) {
    (delivery.id.0.parse().unwrap(), &delivery.body, delivery.attempt, delivery.max_attempts, delivery.sent)
}

fn kinds(answers: Vec<Result<()>>) -> Vec<Result<(), ErrorKind>> {
    answers.into_iter().map(|answer| answer.map_err(|error| error.kind())).collect()
}

async fn run(steps: Vec<Step>) {
    let seconds = Duration::from_secs;
    let scratch = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let open = || {
        let options =
            SqliteQueueOptions { max_deliveries: 3, clock: Arc::new(clock.clone()), ..SqliteQueueOptions::default() };
        SqliteQueue::open(scratch.path().join("queue"), options).unwrap()
    };
    let model = MemoryQueue::new(MemoryQueueOptions { max_deliveries: 3, ordered: false }, Arc::new(clock.clone()));
    let mut queue = open();
    // Each lease by its name in the model and in the file.
    let mut leases: Vec<(Receipt, Receipt)> = Vec::new();
    for step in steps {
        let pick = |at: usize| leases.get(at % leases.len().max(1)).cloned();
        match step {
            Step::Send { count, delay } => {
                let messages: Vec<_> = (0..count)
                    .map(|i| NewMessage { delay: seconds(delay), ..NewMessage::new(format!("{i}")) })
                    .collect();
                let ids = |answers: Vec<Result<MessageId>>| answers.into_iter().map(Result::unwrap).collect::<Vec<_>>();
                assert_eq!(ids(queue.send(messages.clone()).await.unwrap()), ids(model.send(messages).await.unwrap()));
            }
            Step::Receive { lease } => {
                let options = ReceiveOptions { max: 200, wait: Duration::ZERO, lease: seconds(lease) };
                let (expected, mut found) =
                    (model.receive(options).await.unwrap(), queue.receive(options).await.unwrap());
                // The file answers in the order in which messages became ready, the model in that of their ids.
                found.sort_by_key(|delivery| plain(delivery).0);
                assert_eq!(found.iter().map(plain).collect::<Vec<_>>(), expected.iter().map(plain).collect::<Vec<_>>());
                leases
                    .extend(expected.into_iter().zip(found).map(|(expected, found)| (expected.receipt, found.receipt)));
            }
            Step::Ack(at) => {
                let Some((expected, found)) = pick(at) else { continue };
                assert_eq!(kinds(queue.ack(&[found]).await.unwrap()), kinds(model.ack(&[expected]).await.unwrap()));
            }
            Step::Nack(at, delay) => {
                let Some((expected, found)) = pick(at) else { continue };
                let delay = seconds(delay);
                assert_eq!(
                    kinds(queue.nack(&[(found, delay)]).await.unwrap()),
                    kinds(model.nack(&[(expected, delay)]).await.unwrap())
                );
            }
            Step::Extend(at, time) => {
                let Some((expected, found)) = pick(at) else { continue };
                let expected = model.extend_one(&expected, seconds(time)).await.map_err(|error| error.kind());
                assert_eq!(queue.extend_one(&found, seconds(time)).await.map_err(|error| error.kind()), expected);
            }
            Step::Advance(time) => clock.advance(seconds(time)),
            Step::Redrive(id) => {
                let ids = [MessageId(id.to_string())];
                assert_eq!(queue.redrive(&ids).await.unwrap(), model.redrive(&ids).await.unwrap());
            }
            Step::Purge(id) => {
                let ids = [MessageId(id.to_string())];
                assert_eq!(queue.purge(&ids).await.unwrap(), model.purge(&ids).await.unwrap());
            }
            Step::Reopen => queue = open(),
        }
        assert_eq!(queue.depth().await.unwrap(), model.depth().await.unwrap());
        let dead = |letters: Vec<hybrid_core::DeadLetter>| {
            letters.into_iter().map(|letter| (letter.id, letter.body, letter.attempts)).collect::<Vec<_>>()
        };
        assert_eq!(dead(queue.list(100, None).await.unwrap()), dead(model.list(100, None).await.unwrap()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn a_file_does_what_memory_does(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
