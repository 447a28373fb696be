//! Leases that end and leases that are extended.

use super::{
    QueueHarness,
    line::{LONG, Line, MANY},
};
use crate::{
    Delivery, ErrorKind, JobQueue, NewMessage,
    conformance::case::{CaseResult, equal, refused},
};

type Harness<'a> = &'a dyn QueueHarness;

/// A message that one holder let go by, and that another holds now for `lease` ticks.
pub(super) async fn taken_over(line: &Line<'_>, lease: u32) -> CaseResult<(Delivery, Delivery)> {
    line.send("contested").await?;
    let old = line.take_one(2).await?;
    line.pass(3).await;
    let new = line.take_one(lease).await?;
    equal("the id of the redelivered message", &new.id, &old.id)?;
    Ok((old, new))
}

pub(super) async fn a_lease_that_ends_delivers_again(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let message = NewMessage {
        group: Some("tenant-a".to_owned()),
        trace: Some("00-aa-bb-01".to_owned()),
        ..NewMessage::new("again")
    };
    line.send_message(message).await?;
    let first = line.take_one(3).await?;
    line.nothing_if_exclusive("the message is held").await?;
    line.pass(4).await;
    let mut second = line.take_one(LONG).await?;
    equal("the attempt of the second delivery", &second.attempt, &2)?;
    ensure!(second.receipt != first.receipt, "both deliveries have the receipt {:?}", first.receipt);
    // All else is as it was.
    (second.attempt, second.receipt) = (first.attempt, first.receipt.clone());
    equal("the second delivery", &second, &first)
}

pub(super) async fn each_delivery_has_its_own_lease(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("one").await?;
    line.send("other").await?;
    let short = line.take_one(3).await?;
    let long = line.take_one(LONG).await?;
    line.pass(4).await;
    let again = line.take_one(LONG).await?;
    equal("the message that comes again", &again.id, &short.id)?;
    line.over("of the short lease", &short.receipt).await?;
    line.ack(&long.receipt).await?;
    line.nothing_if_exclusive("the long lease lasts").await
}

pub(super) async fn extend_counts_from_now(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("long work").await?;
    let held = line.take_one(4).await?;
    line.pass(2).await;
    line.extend(&held.receipt, 20).await?;
    line.pass(4).await;
    // The first end has passed, the new one has not.
    line.nothing_if_exclusive("the lease was extended").await?;
    line.extend(&held.receipt, 3).await?;
    // Counted from the end so far it would last for 19 more ticks, counted from now for three.
    line.pass(4).await;
    equal("the attempt after the extended lease", &line.take_one(LONG).await?.attempt, &2)?;
    line.over("after the extended lease", &held.receipt).await
}

pub(super) async fn extend_may_shorten(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("short work").await?;
    let held = line.take_one(LONG).await?;
    line.extend(&held.receipt, 2).await?;
    line.pass(3).await;
    equal("the attempt after the shortened lease", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn an_ended_lease_cannot_be_extended(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("late").await?;
    let held = line.take_one(2).await?;
    line.pass(3).await;
    refused("extend after the lease", ErrorKind::LeaseLost, line.extend(&held.receipt, LONG).await)?;
    equal("the attempt of the next delivery", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn a_stale_extend_changes_nothing(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let (old, new) = taken_over(&line, 3).await?;
    refused("extend under the old lease", ErrorKind::LeaseLost, line.extend(&old.receipt, LONG).await)?;
    line.pass(4).await;
    equal("the attempt after the new lease", &line.take_one(LONG).await?.attempt, &(new.attempt + 1))
}

pub(super) async fn extend_answers_per_item(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    for body in ["a", "b", "c"] {
        line.send(body).await?;
    }
    let held = line.take(3, 6).await?;
    line.ack(&held[1].receipt).await?;
    let leases: Vec<_> = held.iter().map(|delivery| (delivery.receipt.clone(), line.ticks(LONG))).collect();
    let answers = line.queue.extend(&leases).await?;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(crate::Error::kind)).collect();
    equal("the outcomes of [held, acked, held]", &kinds, &vec![None, Some(ErrorKind::LeaseLost), None])?;
    line.pass(7).await;
    line.nothing_if_exclusive("the other two are extended").await?;
    line.ack(&held[0].receipt).await?;
    Ok(line.ack(&held[2].receipt).await?)
}
