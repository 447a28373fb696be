//! Receiving and waiting.

use std::{collections::HashSet, pin::pin};

use futures_util::{future::join_all, poll};

use super::{
    QueueHarness,
    line::{LONG, Line, MANY},
};
use crate::conformance::case::{CaseResult, equal, fail};

type Harness<'a> = &'a dyn QueueHarness;

pub(super) async fn first_deliveries_count_one(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 3).await?;
    line.send("first").await?;
    let delivery = line.take_one(LONG).await?;
    equal("the attempt of a first delivery", &delivery.attempt, &1)?;
    if let Some(max) = delivery.max_attempts {
        equal("the deliveries that a message may have", &max, &line.max_deliveries)?;
    }
    ensure!(!delivery.is_last(), "the first of three deliveries says that it is the last");
    Ok(())
}

pub(super) async fn receive_keeps_to_max(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    for i in 0..9 {
        line.send(&format!("message {i}")).await?;
    }
    for max in [1, 2, 3] {
        let found = line.receive(max, 0, LONG).await?;
        ensure!(found.len() <= max, "a receive of at most {max} answered with {}: {found:?}", found.len());
    }
    // More than any server gives at once.
    let found = line.receive(1_000, 0, LONG).await?;
    ensure!(found.len() <= 9, "a queue of nine messages answered with {}", found.len());
    Ok(())
}

pub(super) async fn an_empty_answer_is_no_error(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.nothing("the queue is empty").await?;
    for wait in [1, 3] {
        let Some(found) = line.drive(wait + 1, line.receive(10, wait, LONG)).await else {
            return fail(format!("a receive with a wait of {wait} ticks still waited after {} ticks", wait + 1));
        };
        equal(&format!("the answer of an empty queue after {wait} ticks"), &found?, &vec![])?;
    }
    Ok(())
}

pub(super) async fn a_waiting_receive_sees_a_send(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let delivery = line.sees("a message is sent", 0, async { line.send("awaited").await.map(drop) }).await?;
    equal("the body", &delivery.body.as_str(), &"awaited")
}

pub(super) async fn a_waiting_receive_sees_a_delay_end(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send_delayed("late", 3).await?;
    let delivery = line.sees("a delay of 3 ticks ends", 3, async { Ok(()) }).await?;
    equal("the body", &delivery.body.as_str(), &"late")
}

pub(super) async fn a_waiting_receive_sees_a_lease_end(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("left").await?;
    line.take_one(3).await?;
    let delivery = line.sees("a lease of 3 ticks ends", 3, async { Ok(()) }).await?;
    equal("the attempt", &delivery.attempt, &2)?;

    // A waiting receive must not sleep until the end that the lease had when it began to wait.
    let extended = line
        .sees("a lease is shortened to one tick", 1, async { Ok(line.extend(&delivery.receipt, 1).await?) })
        .await?;
    equal("the attempt", &extended.attempt, &3)
}

pub(super) async fn a_waiting_receive_sees_a_nack(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("returned").await?;
    let held = line.take_one(LONG).await?;
    let delivery = line.sees("a message is given back", 0, async { Ok(line.nack(&held.receipt, 0).await?) }).await?;
    equal("the attempt", &delivery.attempt, &2)
}

pub(super) async fn a_dropped_receive_loses_nothing(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    // Dropped while it waits for a message.
    {
        let mut receive = pin!(line.receive(1, LONG, 2));
        if let std::task::Poll::Ready(found) = poll!(&mut receive) {
            equal("the answer of an empty queue", &found?, &vec![])?;
        }
    }
    let id = line.send("wanted").await?;
    equal("the message after a dropped wait", &line.take_one(2).await?.id, &id)?;
    // Dropped at various moments of leasing one.
    for polls in 1..5 {
        line.pass(3).await;
        {
            let mut receive = pin!(line.receive(1, 1, 2));
            for _ in 0..polls {
                if poll!(&mut receive).is_ready() {
                    break;
                }
            }
        }
        line.pass(3).await;
        equal("the message after a dropped lease", &line.take_one(2).await?.id, &id)?;
    }
    Ok(())
}

pub(super) async fn receivers_side_by_side_get_everything(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let mut sent = HashSet::new();
    for i in 0..24 {
        sent.insert(line.send(&format!("message {i}")).await?);
    }
    let receivers = join_all((0..8).map(|_| line.receive(2, 0, LONG))).await;
    for found in receivers {
        for delivery in found? {
            ensure!(
                sent.remove(&delivery.id) || !line.guarantees().exclusive_lease,
                "two receivers got {:?} though leases are exclusive",
                delivery.id
            );
        }
    }
    let missing = sent.len();
    for delivery in line.take(missing, LONG).await? {
        sent.remove(&delivery.id);
    }
    ensure!(!line.guarantees().exclusive_lease || sent.is_empty(), "these messages never came: {sent:?}");
    Ok(())
}
