//! What an adapter declares beyond the contract.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::{
    QueueHarness,
    line::{LONG, Line, MANY},
};
use crate::{
    Delivery, Depth, JobQueue,
    conformance::case::{CaseResult, equal, skip},
};

type Harness<'a> = &'a dyn QueueHarness;

pub(super) async fn exclusive_leases_are_exclusive(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    if !line.guarantees().exclusive_lease {
        return skip("exclusive leases are not declared");
    }
    line.send("mine").await?;
    let mut held = line.take_one(6).await?;
    for lease in 1..=2 {
        for tick in 0..4 {
            line.nothing(&format!("{tick} of 6 ticks of lease {lease} have passed")).await?;
            line.pass(1).await;
        }
        line.extend(&held.receipt, 6).await?;
    }
    line.pass(7).await;
    held = line.take_one(LONG).await?;
    line.nothing("a second delivery is held").await?;
    Ok(line.ack(&held.receipt).await?)
}

pub(super) async fn exclusive_receivers_never_share(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    if !line.guarantees().exclusive_lease {
        return skip("exclusive leases are not declared");
    }
    for i in 0..40 {
        line.send(&format!("message {i}")).await?;
    }
    let mut seen = HashSet::new();
    while seen.len() < 40 {
        let before = seen.len();
        for found in join_all((0..16).map(|i| line.receive(1 + i % 3, 0, LONG))).await {
            for delivery in found? {
                ensure!(seen.insert(delivery.id.clone()), "two of 16 receivers got the message {:?}", delivery.body);
            }
        }
        ensure!(seen.len() > before, "16 receivers got nothing while {} of 40 messages were left", 40 - before);
    }
    line.nothing("all messages are held").await
}

pub(super) async fn exact_depth_is_exact(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 2).await?;
    if !line.guarantees().exact_depth {
        // An estimate can be anything, but it can be had.
        line.queue.depth().await?;
        return skip("exact depth is not declared");
    }
    let check = async |when: &str, ready, leased, delayed| {
        equal(&format!("the depth {when}"), &line.queue.depth().await?, &Depth { ready, leased, delayed })
    };
    check("of an empty queue", 0, 0, 0).await?;
    for i in 0..4 {
        line.send(&format!("message {i}")).await?;
    }
    line.send_delayed("late", 20).await?;
    check("of four messages and a delayed one", 4, 0, 1).await?;
    let short = line.take_one(10).await?;
    let held = line.take(2, LONG).await?;
    check("after leasing three", 1, 3, 1).await?;
    line.ack(&held[0].receipt).await?;
    check("after an ack", 1, 2, 1).await?;
    line.nack(&held[1].receipt, 30).await?;
    check("after a nack with a delay", 1, 1, 2).await?;
    line.pass(11).await;
    check("after a lease has ended", 2, 0, 2).await?;
    line.over("of the ended lease", &short.receipt).await?;
    check("after calls that were refused", 2, 0, 2).await?;
    line.pass(10).await;
    check("after a delay has ended", 3, 0, 1).await?;
    let last = line.take(3, LONG).await?;
    for delivery in &last {
        line.nack(&delivery.receipt, 0).await?;
    }
    // One of them was on its second and last delivery: it is dead.
    check("after giving back three, of which one is dead", 2, 0, 1).await
}

pub(super) async fn free_releases_do_not_count(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 2).await?;
    if !line.guarantees().free_release {
        return skip("free releases are not declared");
    }
    line.send("interrupted").await?;
    for attempt in [1, 2] {
        // More often than it may be delivered.
        for _ in 0..3 {
            let held = line.take_one(LONG).await?;
            equal("the attempt", &held.attempt, &attempt)?;
            line.release(&held.receipt).await?;
        }
        let held = line.take_one(LONG).await?;
        equal("the attempt after releases", &held.attempt, &attempt)?;
        line.nack(&held.receipt, 0).await?;
    }
    line.nothing("two deliveries have failed").await
}

async fn ordered(harness: Harness<'_>, max_deliveries: u32) -> CaseResult<Line<'_>> {
    let line = Line::open(harness, max_deliveries).await?;
    if line.guarantees().ordered { Ok(line) } else { skip("order is not declared") }
}

fn bodies(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.body.as_str()).collect()
}

pub(super) async fn ordered_groups_keep_their_order(harness: Harness<'_>) -> CaseResult {
    let line = ordered(harness, MANY).await?;
    for i in 0..6 {
        line.send_group(&i.to_string(), "group").await?;
    }
    for i in 0..6 {
        let held = line.take_one(LONG).await?;
        equal("the next of the group", &held.body, &i.to_string())?;
        line.nothing("the one before of its group is held").await?;
        line.ack(&held.receipt).await?;
    }
    line.nothing("all are acked").await
}

pub(super) async fn ordered_groups_wait_for_a_retry(harness: Harness<'_>) -> CaseResult {
    let line = ordered(harness, MANY).await?;
    for body in ["first", "second"] {
        line.send_group(body, "group").await?;
    }
    // Given back with a delay, left to its lease, and then acked.
    let held = line.take_one(LONG).await?;
    line.nack(&held.receipt, 3).await?;
    line.nothing("the first of the group is delayed").await?;
    line.pass(4).await;
    let held = line.take_one(2).await?;
    equal("the message after a nack", &(held.body.as_str(), held.attempt), &("first", 2))?;
    line.pass(3).await;
    let held = line.take_one(LONG).await?;
    equal("the message after a lease that ended", &(held.body.as_str(), held.attempt), &("first", 3))?;
    line.ack(&held.receipt).await?;
    equal("the message after an ack", &line.take_one(LONG).await?.body.as_str(), &"second")
}

pub(super) async fn ordered_groups_pass_the_dead(harness: Harness<'_>) -> CaseResult {
    let line = ordered(harness, 1).await?;
    for body in ["poison", "bread", "butter"] {
        line.send_group(body, "group").await?;
    }
    let poison = line.take_one(2).await?;
    equal("the first of the group", &poison.body.as_str(), &"poison")?;
    line.pass(3).await;
    let bread = line.take_one(LONG).await?;
    equal("the message after a dead one", &bread.body.as_str(), &"bread")?;
    line.nack(&bread.receipt, 0).await?;
    equal("the message after one given back for good", &line.take_one(LONG).await?.body.as_str(), &"butter")
}

pub(super) async fn ordered_groups_do_not_block_each_other(harness: Harness<'_>) -> CaseResult {
    let line = ordered(harness, MANY).await?;
    for (body, group) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
        line.send_group(body, group).await?;
    }
    for body in ["free 1", "free 2"] {
        line.send(body).await?;
    }
    // The first of each group, and all that have no group.
    let mut held = line.take(4, LONG).await?;
    held.sort_by(|a, b| a.body.cmp(&b.body));
    equal("what can be leased at first", &bodies(&held), &vec!["a1", "b1", "free 1", "free 2"])?;
    line.nothing("the first of each group is held").await?;
    line.ack_all(&held).await?;
    let mut held = line.take(2, LONG).await?;
    held.sort_by(|a, b| a.body.cmp(&b.body));
    equal("what can be leased then", &bodies(&held), &vec!["a2", "b2"])
}
