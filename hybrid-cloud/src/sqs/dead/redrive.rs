//! Sending letters back to the queue they come from.

use std::time::Duration;

use aws_sdk_sqs::types::ListMessageMoveTasksResultEntry;
use hybrid_core::{Error, ErrorKind, Result};

use super::{DeadQueue, SqsDeadLetters};
use crate::{
    aws::{aws_error, code_of, status_of},
    sqs::{batch::plain_code, incoming::Incoming, outgoing::Outgoing},
};

const OPERATION: &str = "redrive dead letters";

/// How often a move is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks a move that was begun may take to show.
const PATIENCE: u32 = 60;

impl SqsDeadLetters {
    /// Sends all letters back to the queue with their deliveries counted from one again; answers with how many went back.
    ///
    /// SQS moves them itself (`StartMessageMoveTask`, at the pace that it finds right), and this waits for the end. A move that is under way
    /// already is waited for as well. Dropping the call does not stop the move. A server that knows no such moves is served by receiving each
    /// letter, sending it, and deleting it.
    ///
    /// Letters that SQS moves have new ids. One that was handed over while it was a job's message keeps the count of deliveries from before.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) with SQS's reason if the move failed, [`Cancelled`](ErrorKind::Cancelled) if somebody stopped it; those of the calls.
    pub async fn redrive_all(&self) -> Result<u64> {
        let dead = self.dead()?;
        let _alone = dead.listed.lock().await;
        // A server that cannot say what moves there were will not move anything either.
        let before = self.newest_move(dead).await.ok().flatten();
        let running = before.as_ref().is_some_and(is_running);
        let before = before.map_or(i64::MIN, |task| task.started_timestamp);
        let error = match self.inner.client.start_message_move_task().source_arn(&dead.arn).send().await {
            Ok(_) => return self.moved(dead, before).await,
            // There is one move at a time.
            Err(_) if running => return self.moved(dead, before.saturating_sub(1)).await,
            Err(error) => error,
        };
        let code = code_of(&error).map(plain_code);
        let unknown = match status_of(&error) {
            Some(501) => true,
            _ => matches!(code, Some("UnsupportedOperation" | "InvalidAction" | "UnknownOperationException")),
        };
        if !unknown {
            return Err(aws_error("sqs", OPERATION, error).with("queue", &dead.url));
        }
        tracing::info!(queue = %dead.url, "the server moves no messages itself; each is sent and deleted");
        self.send_all_back(dead).await
    }

    /// Waits for the end of the newest move, which began after the time given.
    async fn moved(&self, dead: &DeadQueue, after: i64) -> Result<u64> {
        let mut looks = 0;
        loop {
            let task = self.newest_move(dead).await?.filter(|task| task.started_timestamp > after);
            let Some(task) = task else {
                looks += 1;
                if looks == PATIENCE {
                    return Err(Error::internal(OPERATION, "the server does not show the move that it has begun")
                        .with("queue", &dead.url));
                }
                self.inner.clock.sleep(LOOK).await;
                continue;
            };
            let count = u64::try_from(task.approximate_number_of_messages_moved).unwrap_or(0);
            let failure = match task.status() {
                Some("COMPLETED") => return Ok(count),
                Some("RUNNING" | "CANCELLING") => {
                    self.inner.clock.sleep(LOOK).await;
                    continue;
                }
                Some("CANCELLED") => Error::cancelled(OPERATION, "somebody stopped the server's move"),
                _ => Error::internal(OPERATION, "the server's move failed"),
            };
            let reason = task.failure_reason.unwrap_or_default();
            return Err(failure.with("queue", &dead.url).with("moved", count).with("reason", reason));
        }
    }

    async fn newest_move(&self, dead: &DeadQueue) -> Result<Option<ListMessageMoveTasksResultEntry>> {
        let answer = self.inner.client.list_message_move_tasks().source_arn(&dead.arn).max_results(10).send().await;
        let answer = answer.map_err(|error| aws_error("sqs", OPERATION, error).with("queue", &dead.url))?;
        Ok(answer.results.unwrap_or_default().into_iter().max_by_key(|task| task.started_timestamp))
    }

    async fn send_all_back(&self, dead: &DeadQueue) -> Result<u64> {
        let mut count = 0;
        loop {
            let some = self.take_some(dead).await?;
            if some.is_empty() {
                return Ok(count);
            }
            count += self.send_back(dead, some).await.map_err(|error| error.with("before", count))?;
        }
    }

    /// Sends held letters to the queue and deletes them here. Those that it does not take are shown here again.
    pub(super) async fn send_back(&self, dead: &DeadQueue, letters: Vec<Incoming>) -> Result<u64> {
        let inner = &*self.inner;
        let mut copies = Vec::with_capacity(letters.len());
        for letter in &letters {
            let copy = Outgoing::copy(letter, &letter.handover(0), Duration::ZERO)?;
            // A note that does not fit is left out: then the letter goes back under a new id.
            let copy = if copy.fits(inner.max_bytes) { copy } else { Outgoing::plain_copy(letter) };
            // The letter's own id: sent again after a crash it arrives once, and when it dies again it has another.
            copies.push(if inner.fifo { copy.deduplicated(format!("redrive-{}", letter.sqs_id)) } else { copy });
        }
        let sent = match inner.send_all(OPERATION, &inner.url, copies).await {
            Ok(sent) => sent,
            Err(error) => {
                self.release(dead, &letters).await;
                return Err(error);
            }
        };
        let (mut back, mut left, mut failure) = (Vec::new(), Vec::new(), None);
        for (letter, outcome) in letters.into_iter().zip(sent) {
            match outcome {
                Ok(_) => back.push(letter),
                Err(error) => {
                    left.push(letter);
                    failure = Some(error);
                }
            }
        }
        self.release(dead, &left).await;
        let handles = back.iter().map(|letter| letter.handle.clone()).collect();
        let deleted = inner.delete_all(OPERATION, &dead.url, handles).await;
        let failure = failure.or_else(|| match deleted {
            Ok(outcomes) => outcomes.into_iter().find_map(Result::err),
            Err(error) => Some(error),
        });
        match failure {
            None => Ok(back.len() as u64),
            Some(error) if error.kind() == ErrorKind::LeaseLost => Err(Error::timeout(
                OPERATION,
                "a letter that was sent back came into sight again here; it may come twice",
            )
            .with("redriven", back.len())),
            Some(error) => Err(error.with("redriven", back.len())),
        }
    }
}

fn is_running(task: &ListMessageMoveTasksResultEntry) -> bool {
    matches!(task.status(), Some("RUNNING" | "CANCELLING"))
}
