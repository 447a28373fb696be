//! Sending.

use std::{collections::HashMap, time::Duration};

use super::{
    QueueHarness,
    line::{LONG, Line, MANY},
};
use crate::{
    ErrorKind, JobQueue, JobQueueExt, MAX_BODY_BYTES, MAX_DELAY, NewMessage,
    conformance::case::{CaseResult, equal, fail, only, refused, same_bytes},
};

type Harness<'a> = &'a dyn QueueHarness;

pub(super) async fn send_answers_per_item(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let too_late = NewMessage { delay: MAX_DELAY + Duration::from_secs(1), ..NewMessage::new("too late") };
    let messages = vec![
        NewMessage::new("first"),
        NewMessage::new(""),
        NewMessage::new("third"),
        NewMessage::new("bell \u{7}"),
        too_late,
        NewMessage::new("x".repeat(MAX_BODY_BYTES + 1)),
        NewMessage::new("last"),
    ];
    let expected = [
        None,
        Some(ErrorKind::InvalidInput),
        None,
        Some(ErrorKind::InvalidInput),
        Some(ErrorKind::InvalidInput),
        Some(ErrorKind::TooLarge),
        None,
    ];
    let answers = line.queue.send(messages).await?;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(crate::Error::kind)).collect();
    equal("the outcomes of [good, empty, good, bell, delayed too long, too large, good]", &kinds, &expected.to_vec())?;
    let taken = line.take(3, LONG).await?;
    for (index, body) in [(0, "first"), (2, "third"), (6, "last")] {
        let delivery = taken.iter().find(|delivery| Some(&delivery.id) == answers[index].as_ref().ok());
        equal(
            &format!("the body of the message that item {index} was answered with"),
            &delivery.map(|delivery| delivery.body.as_str()),
            &Some(body),
        )?;
    }
    line.nothing_if_exclusive("what was refused is not stored").await
}

pub(super) async fn no_items_have_no_answers(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    equal("answers of send", &line.queue.send(vec![]).await?.len(), &0)?;
    equal("answers of extend", &line.queue.extend(&[]).await?.len(), &0)?;
    equal("answers of ack", &line.queue.ack(&[]).await?.len(), &0)?;
    equal("answers of nack", &line.queue.nack(&[]).await?.len(), &0)?;
    equal("answers of release", &line.queue.release(&[]).await?.len(), &0)
}

pub(super) async fn ids_name_their_messages(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    // More than the ten of an SQS batch.
    let bodies: Vec<_> = (0..23).map(|i| format!("message {i}")).collect();
    let answers = line.queue.send(bodies.iter().map(NewMessage::new).collect()).await?;
    equal("the count of answers", &answers.len(), &bodies.len())?;
    let mut sent = HashMap::new();
    for (answer, body) in answers.into_iter().zip(&bodies) {
        let id = answer?;
        if let Some(other) = sent.insert(id.clone(), body.as_str()) {
            return fail(format!("{other:?} and {body:?} were both given the id {id:?}"));
        }
    }
    for delivery in line.take(bodies.len(), LONG).await? {
        equal(
            &format!("the body of {:?}", delivery.id),
            &Some(delivery.body.as_str()),
            &sent.get(&delivery.id).copied(),
        )?;
    }
    Ok(())
}

pub(super) async fn messages_come_back_as_sent(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let plain = [
        "x",
        " ",
        " leading and trailing \n",
        "tab\t line\n return\r both\r\n",
        "Ünïcode 🥐 漢字 \u{E000}\u{FFFD}\u{10FFFF}",
    ];
    let marked = [
        "<a href=\"b\">&amp;</a>]]>",
        "{\"a\": \"b\\n\\u0000\"}",
        "'; drop table messages; --",
        "%00%0a+&=",
        "\u{FEFF}bom",
    ];
    let mut messages: Vec<_> = plain.into_iter().chain(marked).map(NewMessage::new).collect();
    messages.push(NewMessage { group: Some("tenant-a".to_owned()), ..NewMessage::new("with a group") });
    messages.push(NewMessage { trace: trace.clone(), ..NewMessage::new("with a trace") });
    messages.push(NewMessage { group: Some("tenant-b".to_owned()), trace, ..NewMessage::new("with both") });
    for message in messages {
        let id = line.send_message(message.clone()).await?;
        let delivery = line.take_one(LONG).await?;
        equal("the id", &delivery.id, &id)?;
        equal("the body", &delivery.body, &message.body)?;
        equal("the group", &delivery.group, &message.group)?;
        equal("the trace", &delivery.trace, &message.trace)?;
        line.ack(&delivery.receipt).await?;
    }
    Ok(())
}

pub(super) async fn the_largest_body_is_carried(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    // Full of a character of several bytes, since the limit counts bytes; and two at once, since batches have limits of their own.
    let croissants = "🥐".repeat(MAX_BODY_BYTES / 4);
    let letters = "x".repeat(MAX_BODY_BYTES);
    for answer in line.queue.send(vec![NewMessage::new(&croissants), NewMessage::new(&letters)]).await? {
        answer?;
    }
    let mut bodies: Vec<_> = line.take(2, LONG).await?.into_iter().map(|delivery| delivery.body).collect();
    bodies.sort();
    same_bytes("the largest body of letters", bodies[0].as_bytes(), letters.as_bytes())?;
    same_bytes("the largest body of croissants", bodies[1].as_bytes(), croissants.as_bytes())?;
    for larger in [letters + "x", croissants + "x"] {
        let answer = only("send", line.queue.send(vec![NewMessage::new(larger)]).await?)?;
        refused("a body of one byte more", ErrorKind::TooLarge, answer)?;
    }
    Ok(())
}

pub(super) async fn what_queues_cannot_carry_is_refused(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    for body in ["", "\0", "a\u{1}", "\u{8}b", "\u{B}", "\u{C}", "\u{1F}", "\u{FFFE}", "a\u{FFFF}"] {
        refused(
            &format!("the body {body:?}"),
            ErrorKind::InvalidInput,
            line.queue.send_one(NewMessage::new(body)).await,
        )?;
    }
    let delayed = |delay| NewMessage { delay, ..NewMessage::new("delayed") };
    for delay in [MAX_DELAY + Duration::from_secs(1), Duration::MAX] {
        refused(&format!("a delay of {delay:?}"), ErrorKind::InvalidInput, line.queue.send_one(delayed(delay)).await)?;
    }
    line.nothing("what was refused is not stored").await?;
    line.send_message(delayed(MAX_DELAY)).await?;
    line.nothing("a message is delayed by the most there is").await
}

pub(super) async fn a_delay_hides_a_message(harness: Harness<'_>) -> CaseResult {
    let line = Line::open(harness, MANY).await?;
    let late = line.send_delayed("late", 4).await?;
    let soon = line.send("soon").await?;
    equal("the first message", &line.take_one(LONG).await?.id, &soon)?;
    line.nothing_if_exclusive("a message is delayed by 4 ticks").await?;
    line.pass(2).await;
    line.nothing_if_exclusive("a message is delayed by 4 ticks, of which 2 have passed").await?;
    line.pass(3).await;
    let delivery = line.take_one(LONG).await?;
    equal("the delayed message", &delivery.id, &late)?;
    equal("its attempt", &delivery.attempt, &1)
}
