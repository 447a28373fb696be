//! Ending a lease: done, or given back.

use std::time::Duration;

use super::{
    QueueHarness,
    lease::taken_over,
    line::{LONG, Line, MANY},
};
use crate::{
    Delivery, ErrorKind, JobQueue, JobQueueExt, MAX_DELAY,
    conformance::case::{CaseResult, equal, refused},
};

type Harness<'a> = &'a dyn QueueHarness;

/// Three held messages, of which the middle one is acked.
async fn three_with_one_gone(line: &Line<'_>, lease: u32) -> CaseResult<Vec<Delivery>> {
    for body in ["a", "b", "c"] {
        line.send(body).await?;
    }
    let held = line.take(3, lease).await?;
    line.ack(&held[1].receipt).await?;
    Ok(held)
}

fn check_outcomes(answers: &[crate::Result<()>]) -> CaseResult {
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(crate::Error::kind)).collect();
    equal("the outcomes of [held, acked, held]", &kinds, &vec![None, Some(ErrorKind::LeaseLost), None])
}

pub(super) async fn ack_removes_for_good(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("done").await?;
    let held = line.take_one(3).await?;
    line.ack(&held.receipt).await?;
    line.nothing("the message is acked").await?;
    line.pass(4).await;
    line.nothing("the message is acked and its lease would have ended").await
}

pub(super) async fn ack_twice_is_refused(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("done").await?;
    let held = line.take_one(LONG).await?;
    line.ack(&held.receipt).await?;
    line.over("after an ack", &held.receipt).await?;
    line.nothing("the message is acked").await
}

pub(super) async fn an_ended_lease_cannot_ack(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("too slow").await?;
    let held = line.take_one(2).await?;
    line.pass(3).await;
    refused("ack after the lease", ErrorKind::LeaseLost, line.ack(&held.receipt).await)?;
    equal("the attempt of the next delivery", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn a_stale_ack_changes_nothing(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let (old, new) = taken_over(&line, 4).await?;
    refused("ack under the old lease", ErrorKind::LeaseLost, line.ack(&old.receipt).await)?;
    line.extend(&new.receipt, 4).await?;
    line.pass(5).await;
    // Were the message gone, it could not come again.
    let third = line.take_one(LONG).await?;
    equal("the attempt after the new lease", &third.attempt, &(new.attempt + 1))?;
    Ok(line.ack(&third.receipt).await?)
}

pub(super) async fn ack_answers_per_item(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let held = three_with_one_gone(&line, 8).await?;
    let receipts: Vec<_> = held.iter().map(|delivery| delivery.receipt.clone()).collect();
    check_outcomes(&line.queue.ack(&receipts).await?)?;
    line.pass(9).await;
    line.nothing("all are acked").await
}

pub(super) async fn nack_gives_back_at_once(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("returned").await?;
    let held = line.take_one(LONG).await?;
    line.nack(&held.receipt, 0).await?;
    let again = line.take_one(LONG).await?;
    equal("the message that comes again", &again.id, &held.id)?;
    equal("its attempt", &again.attempt, &2)?;
    Ok(line.ack(&again.receipt).await?)
}

pub(super) async fn nack_delay_is_kept(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("later").await?;
    let held = line.take_one(2).await?;
    line.nack(&held.receipt, 5).await?;
    line.nothing("it was given back with a delay of 5 ticks").await?;
    // The delay counts, not the rest of the lease.
    line.pass(3).await;
    line.nothing("it was given back with a delay of 5 ticks, of which 3 have passed").await?;
    line.pass(3).await;
    equal("the attempt after the delay", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn nack_delay_is_limited(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("never").await?;
    let held = line.take_one(LONG).await?;
    for delay in [MAX_DELAY + Duration::from_secs(1), Duration::MAX] {
        let answer = line.queue.nack_one(&held.receipt, delay).await;
        refused(&format!("a nack with a delay of {delay:?}"), ErrorKind::InvalidInput, answer)?;
    }
    line.nothing_if_exclusive("the lease goes on").await?;
    Ok(line.ack(&held.receipt).await?)
}

pub(super) async fn nack_ends_the_lease(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("returned").await?;
    let held = line.take_one(LONG).await?;
    line.nack(&held.receipt, 3).await?;
    line.over("during the delay of a nack", &held.receipt).await?;
    line.pass(4).await;
    line.over("after the delay of a nack", &held.receipt).await?;
    equal("the attempt of the next delivery", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn release_gives_back_at_once(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("returned").await?;
    let held = line.take_one(LONG).await?;
    line.release(&held.receipt).await?;
    line.over("after a release", &held.receipt).await?;
    let again = line.take_one(LONG).await?;
    equal("the message that comes again", &again.id, &held.id)?;
    let counted = u32::from(!line.guarantees().free_release);
    equal("its attempt", &again.attempt, &(1 + counted))?;
    Ok(line.ack(&again.receipt).await?)
}

pub(super) async fn an_ended_lease_cannot_release(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("too slow").await?;
    let held = line.take_one(2).await?;
    line.pass(3).await;
    refused("release after the lease", ErrorKind::LeaseLost, line.release(&held.receipt).await)?;
    let next = line.take_one(LONG).await?;
    equal("the attempt of the next delivery", &next.attempt, &2)?;
    refused("release under the old lease", ErrorKind::LeaseLost, line.release(&held.receipt).await)?;
    Ok(line.ack(&next.receipt).await?)
}

pub(super) async fn release_answers_per_item(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let held = three_with_one_gone(&line, LONG).await?;
    let receipts: Vec<_> = held.iter().map(|delivery| delivery.receipt.clone()).collect();
    check_outcomes(&line.queue.release(&receipts).await?)?;
    let mut again: Vec<_> = line.take(2, LONG).await?.into_iter().map(|delivery| delivery.id.0).collect();
    again.sort();
    let mut expected = vec![held[0].id.0.clone(), held[2].id.0.clone()];
    expected.sort();
    equal("the messages given back", &again, &expected)
}

pub(super) async fn an_ended_lease_cannot_nack(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    line.send("too slow").await?;
    let held = line.take_one(2).await?;
    line.pass(3).await;
    refused("nack after the lease", ErrorKind::LeaseLost, line.nack(&held.receipt, 60).await)?;
    equal("the attempt of the next delivery", &line.take_one(LONG).await?.attempt, &2)
}

pub(super) async fn a_stale_nack_changes_nothing(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let (old, new) = taken_over(&line, LONG).await?;
    refused("nack under the old lease", ErrorKind::LeaseLost, line.nack(&old.receipt, 0).await)?;
    line.nothing_if_exclusive("the new lease lasts").await?;
    Ok(line.ack(&new.receipt).await?)
}

pub(super) async fn nack_answers_per_item(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let held = three_with_one_gone(&line, LONG).await?;
    let receipts: Vec<_> = held.iter().map(|delivery| (delivery.receipt.clone(), Duration::ZERO)).collect();
    check_outcomes(&line.queue.nack(&receipts).await?)?;
    let mut again: Vec<_> =
        line.take(2, LONG).await?.into_iter().map(|delivery| (delivery.id.0, delivery.attempt)).collect();
    again.sort();
    let mut expected = vec![(held[0].id.0.clone(), 2), (held[2].id.0.clone(), 2)];
    expected.sort();
    equal("the messages given back", &again, &expected)
}
