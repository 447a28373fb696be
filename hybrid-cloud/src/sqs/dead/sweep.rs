//! Taking letters out of the queue's sight and showing them again.

use std::{collections::HashMap, time::Duration};

use hybrid_core::{Error, ErrorKind, Result};

use super::{DeadQueue, SqsDeadLetters};
use crate::{
    aws::aws_error,
    sqs::{
        batch::BATCH,
        calls::seconds,
        incoming::{Incoming, SYSTEM_ATTRIBUTES},
    },
};

/// How long letters are hidden while a call is about them.
const HOLD: Duration = Duration::from_secs(300);
/// The most letters that one call looks through.
const MOST: usize = 10_000;

impl SqsDeadLetters {
    /// Takes all letters that there are, in the order in which SQS gives them.
    pub(super) async fn sweep(&self, dead: &DeadQueue) -> Result<Vec<Incoming>> {
        let mut found: Vec<Incoming> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        loop {
            let some = match self.take_some(dead).await {
                Ok(some) if found.len() + some.len() > MOST => {
                    found.extend(some);
                    Err(Error::new(
                        ErrorKind::ResourceExhausted,
                        "look through dead letters",
                        "there are more than one call looks through; send them all back, or purge the queue",
                    )
                    .with("limit", MOST)
                    .with("queue", &dead.url))
                }
                some => some,
            };
            let some = match some {
                Ok(some) if some.is_empty() => return Ok(found),
                Ok(some) => some,
                Err(error) => {
                    self.release(dead, &found).await;
                    return Err(error);
                }
            };
            for message in some {
                // A standard queue may give one twice; the later handle is the one that counts.
                match places.get(&message.sqs_id) {
                    Some(&place) => found[place] = message,
                    None => {
                        places.insert(message.sqs_id.clone(), found.len());
                        found.push(message);
                    }
                }
            }
        }
    }

    /// Takes up to ten letters.
    pub(super) async fn take_some(&self, dead: &DeadQueue) -> Result<Vec<Incoming>> {
        let answer = self
            .inner
            .polling
            .receive_message()
            .queue_url(&dead.url)
            .set_max_number_of_messages(i32::try_from(BATCH).ok())
            .wait_time_seconds(seconds(dead.wait))
            .visibility_timeout(seconds(HOLD))
            .set_message_system_attribute_names(Some(SYSTEM_ATTRIBUTES.to_vec()))
            .message_attribute_names("All")
            .send()
            .await;
        let answer =
            answer.map_err(|error| aws_error("sqs", "look through dead letters", error).with("queue", &dead.url))?;
        answer.messages.unwrap_or_default().into_iter().map(Incoming::read).collect()
    }

    /// Shows letters again. One that cannot be shown now comes back when its time is over.
    pub(super) async fn release(&self, dead: &DeadQueue, letters: &[Incoming]) {
        if letters.is_empty() {
            return;
        }
        let times = letters.iter().map(|letter| (letter.handle.clone(), Duration::ZERO)).collect();
        let shown = self.inner.hide_all("show dead letters", &dead.url, times).await;
        let failure = match shown {
            Ok(outcomes) => outcomes.into_iter().find_map(Result::err),
            Err(error) => Some(error),
        };
        if let Some(error) = failure {
            tracing::warn!(%error, queue = %dead.url, "dead letters stay hidden for five minutes");
        }
    }
}
