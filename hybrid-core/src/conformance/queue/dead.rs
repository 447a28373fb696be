//! Messages whose deliveries are used up.

use super::{
    QueueHarness,
    line::{LONG, Line, PATIENCE},
};
use crate::{
    DeadLetter, DeadLetters, Delivery, Depth, JobQueue, MessageId, NewMessage,
    conformance::case::{CaseResult, equal, fail},
};

type Harness<'a> = &'a dyn QueueHarness;

/// The dead letters, once there are `count` of them.
async fn dead(line: &Line<'_>, letters: &dyn DeadLetters, count: usize) -> CaseResult<Vec<DeadLetter>> {
    for _ in 0..PATIENCE {
        let found = letters.list(100, None).await?;
        if found.len() >= count {
            equal("the count of dead letters", &found.len(), &count)?;
            return Ok(found);
        }
        // Some queues bury a message only when somebody asks for it.
        line.nothing("the message's deliveries are used up").await?;
        line.pass(1).await;
    }
    fail(format!("of {count} dead letters there were {:?} after {PATIENCE} ticks", letters.list(100, None).await?))
}

/// Uses up the deliveries of a queue's only message.
async fn use_up(line: &Line<'_>) -> CaseResult<Delivery> {
    let mut delivery = line.take_one(LONG).await?;
    for attempt in 1..=line.max_deliveries {
        if attempt > 1 {
            delivery = line.take_one(LONG).await?;
        }
        equal("the attempt", &delivery.attempt, &attempt)?;
        let last = delivery.max_attempts.map(|_| attempt == line.max_deliveries);
        ensure!(
            last.is_none_or(|last| last == delivery.is_last()),
            "delivery {attempt} of {} says is_last() = {}",
            line.max_deliveries,
            delivery.is_last()
        );
        line.nack(&delivery.receipt, 0).await?;
    }
    Ok(delivery)
}

async fn check_gone(line: &Line<'_>) -> CaseResult {
    line.nothing("the message's deliveries are used up").await?;
    line.pass(3).await;
    line.nothing("the message's deliveries were used up 3 ticks ago").await?;
    if line.guarantees().exact_depth {
        equal("the depth with all messages dead", &line.queue.depth().await?, &Depth::default())?;
    }
    Ok(())
}

pub(super) async fn used_up_leases_end_deliveries(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 2).await?;
    line.send("poison").await?;
    for attempt in 1..=2 {
        equal("the attempt", &line.take_one(2).await?.attempt, &attempt)?;
        line.pass(3).await;
    }
    check_gone(&line).await
}

pub(super) async fn used_up_nacks_end_deliveries(harness: Harness<'_>) -> CaseResult {
    for max_deliveries in [1, 3] {
        let line = Line::open(harness, max_deliveries).await?;
        line.send("poison").await?;
        use_up(&line).await?;
        check_gone(&line).await?;
    }
    Ok(())
}

pub(super) async fn the_last_delivery_can_be_acked(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 1).await?;
    line.send("just in time").await?;
    let held = line.take_one(4).await?;
    line.extend(&held.receipt, 6).await?;
    line.pass(4).await;
    let letters = line.dead_letters();
    if let Ok(letters) = &letters {
        equal("dead letters while the last lease lasts", &letters.list(10, None).await?, &vec![])?;
    }
    line.ack(&held.receipt).await?;
    line.pass(3).await;
    line.nothing("the message is acked").await?;
    if let Ok(letters) = &letters {
        equal("dead letters after the last delivery was acked", &letters.list(10, None).await?, &vec![])?;
    }
    Ok(())
}

pub(super) async fn dead_letters_are_listed(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 2).await?;
    let letters = line.dead_letters()?;
    let message = NewMessage { group: Some("tenant-a".to_owned()), ..NewMessage::new("poison 🥐\n") };
    line.send_message(message.clone()).await?;
    line.take_one(2).await?;
    line.pass(3).await;
    let last = line.take_one(2).await?;
    equal("dead letters while the last lease lasts", &letters.list(10, None).await?, &vec![])?;
    line.pass(3).await;
    for DeadLetter { id: _, body, group, sent, died, attempts } in dead(&line, &*letters, 1).await? {
        equal("the body", &body, &message.body)?;
        equal("the group", &group, &message.group)?;
        equal("when it was sent", &sent, &last.sent)?;
        ensure!(died.is_none_or(|died| died >= sent), "it died at {died:?}, before it was sent at {sent}");
        equal("the attempts", &attempts, &2)?;
    }
    line.over("of a dead letter", &last.receipt).await?;
    check_gone(&line).await
}

pub(super) async fn dead_letters_wait_for_a_nack_delay(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 1).await?;
    let letters = line.dead_letters()?;
    line.send("poison").await?;
    let held = line.take_one(LONG).await?;
    line.nack(&held.receipt, 3).await?;
    line.nothing("it was given back for good").await?;
    line.pass(4).await;
    dead(&line, &*letters, 1).await.map(drop)
}

/// Lets `count` messages die, one after the other.
async fn kill(line: &Line<'_>, letters: &dyn DeadLetters, count: usize) -> CaseResult<Vec<DeadLetter>> {
    for i in 0..count {
        line.send(&format!("poison {i}")).await?;
        use_up(line).await?;
        dead(line, letters, i + 1).await?;
        line.pass(1).await;
    }
    letters.list(100, None).await.map_err(Into::into)
}

fn bodies(letters: &[DeadLetter]) -> Vec<&str> {
    letters.iter().map(|letter| letter.body.as_str()).collect()
}

pub(super) async fn dead_letters_come_oldest_first(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 1).await?;
    let letters = line.dead_letters()?;
    let all = kill(&line, &*letters, 5).await?;
    let expected = ["poison 0", "poison 1", "poison 2", "poison 3", "poison 4"];
    equal("all dead letters", &bodies(&all), &expected.to_vec())?;
    for max in [0, 1, 3, 5] {
        equal(&format!("the first {max}"), &bodies(&letters.list(max, None).await?), &expected[..max].to_vec())?;
    }
    for (i, letter) in all.iter().enumerate() {
        equal(
            &format!("all after number {i}"),
            &bodies(&letters.list(100, Some(&letter.id)).await?),
            &expected[i + 1..].to_vec(),
        )?;
    }
    equal("one after number 1", &bodies(&letters.list(1, Some(&all[1].id)).await?), &vec!["poison 2"])
}

pub(super) async fn redrive_counts_from_one(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 2).await?;
    let letters = line.dead_letters()?;
    let all = kill(&line, &*letters, 3).await?;
    let alive = line.send_delayed("alive", 60).await?;
    let unknown = MessageId("no such message".to_owned());
    let ids = [all[0].id.clone(), unknown, alive, all[2].id.clone()];
    equal("how many of [dead, unknown, alive, dead] went back", &letters.redrive(&ids).await?, &2)?;
    equal("the dead letters left", &bodies(&letters.list(10, None).await?), &vec!["poison 1"])?;
    equal("how many went back the second time", &letters.redrive(&ids).await?, &0)?;

    let mut again = line.take(2, LONG).await?;
    again.sort_by(|a, b| a.body.cmp(&b.body));
    let found: Vec<_> = again.iter().map(|delivery| (delivery.body.as_str(), delivery.attempt)).collect();
    equal("what comes again, with its attempt", &found, &vec![("poison 0", 1), ("poison 2", 1)])?;
    // And they may be delivered as often as at first.
    line.ack(&again[1].receipt).await?;
    line.nack(&again[0].receipt, 0).await?;
    let second = line.take_one(LONG).await?;
    equal("the attempt after a nack", &second.attempt, &2)?;
    line.nack(&second.receipt, 0).await?;
    dead(&line, &*letters, 2).await.map(drop)
}

pub(super) async fn purge_removes_for_good(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, 1).await?;
    let letters = line.dead_letters()?;
    let all = kill(&line, &*letters, 3).await?;
    let alive = line.send("alive").await?;
    let unknown = MessageId("no such message".to_owned());
    let ids = [all[0].id.clone(), unknown, alive.clone(), all[1].id.clone()];
    equal("how many of [dead, unknown, alive, dead] were purged", &letters.purge(&ids).await?, &2)?;
    equal("the dead letters left", &bodies(&letters.list(10, None).await?), &vec!["poison 2"])?;
    equal("how many were purged the second time", &letters.purge(&ids).await?, &0)?;
    equal("how many purged letters can be sent back", &letters.redrive(&ids).await?, &0)?;
    equal("the message alive", &line.take_one(LONG).await?.id, &alive)?;
    line.nothing("the others are purged or dead").await
}
