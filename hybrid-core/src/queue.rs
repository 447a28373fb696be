//! The job queue port: at-least-once delivery under leases.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Timestamp};

/// The most bytes that one message body may have: 1 MiB. What is larger goes to the store, and its key into the message.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The longest delay of a message: 900 s.
pub const MAX_DELAY: Duration = Duration::from_secs(900);

/// A queue of jobs: every message is delivered at least once, to one holder of a lease at a time.
///
/// A queue is made with a number of deliveries that each message may have; a message whose deliveries are used up goes to the
/// dead letters (see [`DeadLetters`]).
///
/// # Behavior
/// - [`send`](Self::send), [`extend`](Self::extend), [`ack`](Self::ack), [`nack`](Self::nack) and [`release`](Self::release) answer per item, in the order given; one
///   item that fails leaves the others alone. The outer error means that nothing is known about any of them: send or ack again.
/// - A message is durable when `send` returns its id. A body that is over [`MAX_BODY_BYTES`] is refused with
///   [`TooLarge`](crate::ErrorKind::TooLarge); one that is empty or has characters outside XML 1.0 (control characters but tab, line feed,
///   carriage return; U+FFFE, U+FFFF), or a delay over [`MAX_DELAY`], with [`InvalidInput`](crate::ErrorKind::InvalidInput).
/// - A message is not delivered before its delay has passed.
/// - [`receive`](Self::receive) waits until at least one message can be leased or [`ReceiveOptions::wait`] has passed, and answers with at most
///   [`ReceiveOptions::max`] deliveries. An empty answer is no error. Dropping it loses nothing: what was leased comes again.
/// - A delivery is held for [`ReceiveOptions::lease`], from the answer; `extend` makes it last for the given time from now.
///   When it ends without `ack` the message is delivered again with [`Delivery::attempt`] one higher, or goes to the dead letters.
/// - `ack` removes the message for good. `nack` ends the lease now; the message comes again after the delay. A delay over [`MAX_DELAY`]
///   is refused with [`InvalidInput`](crate::ErrorKind::InvalidInput), and the lease goes on.
/// - `release` ends the lease now for a holder that stops for reasons of its own; the message comes again at once. With `free_release` the delivery does
///   not count, the last one either: the next has the same [`Delivery::attempt`].
/// - After a lease has ended by the adapter's own monotonic clock, `ack`, `nack`, `release` and `extend` answer
///   [`LeaseLost`](crate::ErrorKind::LeaseLost) for it and change nothing, whatever a server would accept. So does `ack` for
///   an already acked message.
/// - [`Guarantees`] say what else holds: with `exclusive_lease` no message is delivered while its lease lasts; with `exact_depth` [`depth`](Self::depth)
///   is exact; with `free_release` a released delivery does not count; with `ordered` messages of one group come in the order sent, the next only after the one before is acked or dead.
///   Correctness never rests on exclusiveness: effects are created once and keyed by the job.
///
/// # Cancel safety
/// A dropped call may or may not have happened. Sending again may duplicate; everything else is safe to repeat.
#[async_trait]
pub trait JobQueue: fmt::Debug + Send + Sync + 'static {
    /// What this adapter declares beyond the contract.
    fn guarantees(&self) -> Guarantees;
    /// Sends messages; answers with the id of each.
    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>>;
    /// Leases messages that are ready, waiting for one if need be.
    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>>;
    /// Makes leases last for the given time from now.
    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>>;
    /// Removes messages whose work is done.
    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>>;
    /// Gives messages back, to come again after the given delays.
    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>>;
    /// Gives messages back that were not worked on, or not to an end, for no fault of theirs.
    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>>;
    /// How many messages there are.
    async fn depth(&self) -> Result<Depth>;
}

/// What a queue adapter declares beyond the contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarantees {
    /// No message is delivered while its lease lasts.
    pub exclusive_lease: bool,
    /// Depth counts are exact, not estimates.
    pub exact_depth: bool,
    /// Messages of one group come in the order sent.
    pub ordered: bool,
    /// A delivery that is given back by [`release`](JobQueue::release) does not count.
    pub free_release: bool,
}

/// A message to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewMessage {
    /// The text, at most [`MAX_BODY_BYTES`] bytes.
    pub body: String,
    /// Whose turn it counts as, where the queue is fair or ordered by group: usually the tenant.
    pub group: Option<String>,
    /// How long the message stays hidden, at most [`MAX_DELAY`].
    pub delay: Duration,
    /// The sender's trace, as a W3C `traceparent` value.
    pub trace: Option<String>,
}

impl NewMessage {
    /// A message with no group, delay or trace.
    pub fn new(body: impl Into<String>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// Checks what the contract refuses; adapters call it for each item.
    ///
    /// # Errors
    /// As [`JobQueue::send`].
    pub fn validate(&self) -> Result<()> {
        let Self { body, group: _, delay, trace: _ } = self;
        if body.len() > MAX_BODY_BYTES {
            return Err(Error::too_large(
                "send message",
                "the body is over the limit; put it in the store and send its key",
            )
            .with("size", body.len())
            .with("limit", MAX_BODY_BYTES));
        }
        if body.is_empty() {
            return Err(Error::invalid("send message", "the body is empty"));
        }
        if let Some((at, char)) = body.char_indices().find(|(_, char)| !is_xml_char(*char)) {
            return Err(Error::invalid("send message", "the body has a character that queues do not carry; escape it")
                .with("character", format_args!("U+{:04X}", u32::from(char)))
                .with("at byte", at));
        }
        check_delay(*delay)
    }
}

/// Checks a delay against [`MAX_DELAY`].
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput).
pub fn check_delay(delay: Duration) -> Result<()> {
    if delay <= MAX_DELAY {
        return Ok(());
    }
    Err(Error::invalid("delay message", "the delay is over the limit")
        .with("delay", format_args!("{delay:?}"))
        .with("limit", format_args!("{MAX_DELAY:?}")))
}

/// The characters of XML 1.0 §2.2, which is what SQS carries.
fn is_xml_char(char: char) -> bool {
    matches!(char, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// How to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// The most deliveries to answer with, at least one. An adapter may answer with fewer.
    pub max: usize,
    /// How long to wait for the first message. An adapter may wait less, and then answers with none.
    pub wait: Duration,
    /// How long each delivery is held.
    pub lease: Duration,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(30) }
    }
}

/// A message held under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id, the same in each delivery.
    pub id: MessageId,
    /// The text.
    pub body: String,
    /// The group it was sent with.
    pub group: Option<String>,
    /// The trace it was sent with.
    pub trace: Option<String>,
    /// When it was sent, by the queue's clock.
    pub sent: Timestamp,
    /// Which delivery this is, from one.
    pub attempt: u32,
    /// How many deliveries the message may have in all, where the queue knows.
    pub max_attempts: Option<u32>,
    /// What names this lease.
    pub receipt: Receipt,
}

impl Delivery {
    /// Whether the message goes to the dead letters if this delivery is not acked.
    pub fn is_last(&self) -> bool {
        self.max_attempts.is_some_and(|max| self.attempt >= max)
    }
}

/// The id that a queue gave a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub String);

/// The name of one lease of one message, opaque to all but the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// How many messages a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be received.
    pub ready: u64,
    /// Held under a lease.
    pub leased: u64,
    /// Hidden by a delay.
    pub delayed: u64,
}

/// The messages of a queue whose deliveries are used up. An optional power of a queue.
///
/// # Behavior
/// - A message whose last delivery ends without `ack` is here, and nowhere else, when its lease or nack delay would have ended.
/// - [`list`](Self::list) yields the oldest first, strictly after the id given.
/// - [`redrive`](Self::redrive) sends messages back with their deliveries counted from one again; ids not here are passed over, of whatever form. It answers with how many went back.
/// - [`purge`](Self::purge) removes them for good, passes over ids that are not here, and answers with how many it removed.
#[async_trait]
pub trait DeadLetters: fmt::Debug + Send + Sync + 'static {
    /// Lists dead letters, at most `max`.
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>>;
    /// Sends dead letters back to the queue.
    async fn redrive(&self, ids: &[MessageId]) -> Result<u64>;
    /// Removes dead letters for good.
    async fn purge(&self, ids: &[MessageId]) -> Result<u64>;
}

/// A message whose deliveries are used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message's id.
    pub id: MessageId,
    /// The text.
    pub body: String,
    /// The group it was sent with.
    pub group: Option<String>,
    /// When it was sent.
    pub sent: Timestamp,
    /// When it died, where the queue knows.
    pub died: Option<Timestamp>,
    /// How many deliveries it had.
    pub attempts: u32,
}

/// Convenience over any [`JobQueue`]: one item at a time.
#[async_trait]
pub trait JobQueueExt: JobQueue {
    /// Sends one message.
    ///
    /// # Errors
    /// As [`JobQueue::send`].
    async fn send_one(&self, message: NewMessage) -> Result<MessageId> {
        only(self.send(vec![message]).await?)
    }

    /// Extends one lease.
    ///
    /// # Errors
    /// As [`JobQueue::extend`].
    async fn extend_one(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        only(self.extend(&[(receipt.clone(), lease)]).await?)
    }

    /// Acks one delivery.
    ///
    /// # Errors
    /// As [`JobQueue::ack`].
    async fn ack_one(&self, receipt: &Receipt) -> Result<()> {
        only(self.ack(std::slice::from_ref(receipt)).await?)
    }

    /// Gives one delivery back.
    ///
    /// # Errors
    /// As [`JobQueue::nack`].
    async fn nack_one(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        only(self.nack(&[(receipt.clone(), delay)]).await?)
    }

    /// Releases one delivery.
    ///
    /// # Errors
    /// As [`JobQueue::release`].
    async fn release_one(&self, receipt: &Receipt) -> Result<()> {
        only(self.release(std::slice::from_ref(receipt)).await?)
    }
}

impl<Q: JobQueue + ?Sized> JobQueueExt for Q {}

fn only<T>(mut answers: Vec<Result<T>>) -> Result<T> {
    match (answers.pop(), answers.is_empty()) {
        (Some(answer), true) => answer,
        _ => Err(Error::internal("call queue", "the adapter did not answer one item with one outcome")),
    }
}

macro_rules! forward_queue {
    ($($pointer:ident),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<Q: JobQueue + ?Sized> JobQueue for $pointer<Q> {
            fn guarantees(&self) -> Guarantees {
                (**self).guarantees()
            }

            async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
                (**self).send(messages).await
            }

            async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
                (**self).receive(options).await
            }

            async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
                (**self).extend(leases).await
            }

            async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
                (**self).ack(receipts).await
            }

            async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
                (**self).nack(receipts).await
            }

            async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
                (**self).release(receipts).await
            }

            async fn depth(&self) -> Result<Depth> {
                (**self).depth().await
            }
        }
    )*};
}
forward_queue!(Arc, Box);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_body_that_some_queue_cannot_carry_is_refused_by_all() {
        let check = |body: &str| NewMessage::new(body).validate().map_err(|error| error.kind());
        assert_eq!(check("tab\t line\n ü 🥐"), Ok(()));
        for bad in ["", "nul\0", "bell\u{7}", "\u{FFFE}"] {
            assert_eq!(check(bad), Err(ErrorKind::InvalidInput), "{bad:?}");
        }
        assert_eq!(check(&"x".repeat(MAX_BODY_BYTES)), Ok(()));
        assert_eq!(check(&"x".repeat(MAX_BODY_BYTES + 1)), Err(ErrorKind::TooLarge));
    }
}
