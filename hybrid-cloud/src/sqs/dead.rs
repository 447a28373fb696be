//! The dead letters of an SQS queue.

mod redrive;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use hybrid_core::{DeadLetter, DeadLetters, Error, MessageId, Result, Timestamp};
use tokio::sync::Mutex;

use super::{Inner, incoming::Incoming, setup::RedrivePolicy};
use crate::aws::aws_error;

/// The [`DeadLetters`] of an [`SqsQueue`](super::SqsQueue).
///
/// SQS cannot look at messages without receiving them. So each call takes the letters one by one until none is left, keeps those that it is
/// about, and shows the others again; meanwhile nobody else sees them. If it is dropped on the way they come back five minutes later.
///
/// # Behavior
/// - A letter's id is that of the message that was sent first, after hand-overs and redrives too. SQS does not say when a message died.
/// - A letter whose payload cannot be read (see [`ClaimCheck`](super::ClaimCheck)) is listed with the pointer as its body: it may be dead for that very reason.
/// - [`list`](DeadLetters::list) answers [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted) where there are more than ten thousand letters, and
///   [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for an `after` that this adapter has not listed and that is not there.
/// - [`redrive`](DeadLetters::redrive) and [`purge`](DeadLetters::purge) take those named and are safe to repeat. A letter is sent to the queue
///   before it is deleted here, so that it may come twice and is never lost.
/// - In a FIFO queue the letters of one group hide each other: a call sees at most the first ten of each.
#[derive(Clone)]
pub struct SqsDeadLetters {
    inner: Arc<Inner>,
}

/// A queue's dead-letter queue.
pub(super) struct DeadQueue {
    pub(super) url: String,
    arn: String,
    /// How many deliveries a message had that is here.
    deliveries: u32,
    /// How long a look waits for one more letter.
    wait: Duration,
    /// One look at a time: two would hide the letters from each other. Holds when each letter was sent that was ever listed last.
    listed: Mutex<HashMap<MessageId, Timestamp>>,
}

impl DeadQueue {
    pub(super) async fn find(client: &Client, policy: &RedrivePolicy, wait: Duration) -> Result<Self> {
        const OPERATION: &str = "find dead-letter queue";
        let RedrivePolicy { dead_letter_arn, max_receive_count } = policy;
        // arn:aws:sqs:<region>:<account>:<name>
        let mut parts = dead_letter_arn.rsplitn(3, ':');
        let (Some(name), Some(account), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::corrupt(OPERATION, "the redrive policy names no queue").with("found", dead_letter_arn));
        };
        let answer = client.get_queue_url().queue_name(name).queue_owner_aws_account_id(account).send().await;
        let answer = answer.map_err(|error| aws_error("sqs", OPERATION, error).with("queue", dead_letter_arn))?;
        let url = answer
            .queue_url
            .ok_or_else(|| Error::corrupt(OPERATION, "the answer has no URL").with("queue", dead_letter_arn))?;
        let (arn, deliveries) = (dead_letter_arn.clone(), *max_receive_count);
        Ok(Self { url, arn, deliveries, wait, listed: Mutex::default() })
    }
}

impl SqsDeadLetters {
    pub(super) fn of(inner: &Arc<Inner>) -> Option<Self> {
        inner.dead.is_some().then(|| Self { inner: inner.clone() })
    }

    /// The dead-letter queue's URL.
    pub fn url(&self) -> &str {
        self.inner.dead.as_ref().map_or("", |dead| &dead.url)
    }

    /// The dead-letter queue, which there is wherever there is a `Self`.
    fn dead(&self) -> Result<&DeadQueue> {
        self.inner.dead.as_ref().ok_or_else(|| Error::internal("find dead-letter queue", "the queue has none"))
    }

    async fn letter(&self, message: Incoming) -> Result<DeadLetter> {
        let body = match message.payload_size() {
            None => message.body.clone(),
            Some(size) => match self.inner.payload(&message, size).await {
                Ok(body) => body,
                Err(error) if error.is_temporary() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "a dead letter's payload cannot be read");
                    message.body.clone()
                }
            },
        };
        let group = message.group().map(str::to_owned);
        let attempts = self.dead()?.deliveries;
        Ok(DeadLetter { id: message.id(), body, group, sent: message.sent(), died: None, attempts })
    }
}

impl fmt::Debug for SqsDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsDeadLetters").field("url", &self.url()).finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetters for SqsDeadLetters {
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>> {
        const OPERATION: &str = "list dead letters";
        if max == 0 {
            return Ok(Vec::new());
        }
        let dead = self.dead()?;
        let mut listed = dead.listed.lock().await;
        let mut found = self.sweep(dead).await?;
        self.release(dead, &found).await;
        let order = |message: &Incoming| (message.sent(), message.id().0);
        found.sort_by_key(order);
        let from = match after {
            None => None,
            Some(id) => {
                let here = found.iter().find(|message| message.id() == *id).map(Incoming::sent);
                let sent = here.or_else(|| listed.get(id).copied()).ok_or_else(|| {
                    Error::invalid(OPERATION, "no letter of this id was listed; begin without one").with("after", &id.0)
                })?;
                Some((sent, id.0.clone()))
            }
        };
        // What was listed before stays known only where it is asked about, so that the table does not grow for ever.
        listed.retain(|id, _| Some(id) == after);
        listed.extend(found.iter().map(|message| (message.id(), message.sent())));
        drop(listed);
        let wanted = found.into_iter().filter(|message| from.as_ref().is_none_or(|from| order(message) > *from));
        let mut letters = Vec::new();
        for message in wanted.take(max) {
            letters.push(self.letter(message).await?);
        }
        Ok(letters)
    }

    async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        let dead = self.dead()?;
        let _alone = dead.listed.lock().await;
        let chosen = self.take(dead, ids).await?;
        self.send_back(dead, chosen).await
    }

    async fn purge(&self, ids: &[MessageId]) -> Result<u64> {
        const OPERATION: &str = "purge dead letters";
        let dead = self.dead()?;
        let _alone = dead.listed.lock().await;
        let chosen = self.take(dead, ids).await?;
        let handles = chosen.iter().map(|message| message.handle.clone()).collect();
        let deleted = self.inner.delete_all(OPERATION, &dead.url, handles).await?;
        let count = deleted.iter().filter(|outcome| outcome.is_ok()).count();
        match deleted.into_iter().find_map(Result::err) {
            Some(error) => Err(error.with("purged", count)),
            None => Ok(count as u64),
        }
    }
}

impl SqsDeadLetters {
    /// Holds the letters named and shows the others again.
    async fn take(&self, dead: &DeadQueue, ids: &[MessageId]) -> Result<Vec<Incoming>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: HashSet<&MessageId> = ids.iter().collect();
        let found = self.sweep(dead).await?;
        let (chosen, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|message| ids.contains(&message.id()));
        self.release(dead, &others).await;
        Ok(chosen)
    }
}
