//! The calls that go out in batches.

use std::{iter, time::Duration};

use aws_sdk_sqs::{
    error::BuildError,
    types::{ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry},
};
use hybrid_core::{Error, Result};

use super::{
    Inner,
    batch::{BATCH, collate, join_calls},
    outgoing::{Outgoing, batches},
};
use crate::aws::aws_error;

/// Calls of one batch under way at a time.
const AT_ONCE: usize = 8;

impl Inner {
    /// Sends messages to a queue; answers with the id that SQS gave each.
    pub(super) async fn send_all(
        &self,
        operation: &'static str,
        url: &str,
        messages: Vec<Outgoing>,
    ) -> Result<Vec<Result<String>>> {
        // What is on the way side by side has no order.
        let at_once = if url.ends_with(".fifo") { 1 } else { AT_ONCE };
        let calls = batches(messages).into_iter().map(|batch| (batch.len(), self.send_batch(operation, url, batch)));
        join_calls(calls.collect(), at_once).await
    }

    async fn send_batch(
        &self,
        operation: &'static str,
        url: &str,
        batch: Vec<Outgoing>,
    ) -> Result<Vec<Result<String>>> {
        let count = batch.len();
        let entries: Vec<_> =
            batch.into_iter().enumerate().map(|(number, message)| message.entry(number)).collect::<Result<_>>()?;
        let answer = self.client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| aws_error("sqs", operation, error).with("queue", url))?;
        let done = answer.successful.into_iter().map(|entry| (entry.id, entry.message_id));
        Ok(collate(operation, count, done, &answer.failed))
    }

    /// Deletes what the receipt handles name.
    pub(super) async fn delete_all(
        &self,
        operation: &'static str,
        url: &str,
        handles: Vec<String>,
    ) -> Result<Vec<Result<()>>> {
        let calls = handles.chunks(BATCH).map(|batch| (batch.len(), self.delete_batch(operation, url, batch)));
        join_calls(calls.collect(), AT_ONCE).await
    }

    async fn delete_batch(&self, operation: &'static str, url: &str, handles: &[String]) -> Result<Vec<Result<()>>> {
        let entry = |(number, handle): (usize, &String)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string()).receipt_handle(handle).build();
            entry.map_err(|error| incomplete(operation, &error))
        };
        let entries: Vec<_> = handles.iter().enumerate().map(entry).collect::<Result<_>>()?;
        let answer = self.client.delete_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| aws_error("sqs", operation, error).with("queue", url))?;
        let done = answer.successful.into_iter().map(|entry| entry.id).zip(iter::repeat(()));
        Ok(collate(operation, handles.len(), done, &answer.failed))
    }

    /// Hides what the receipt handles name for the given times from now.
    pub(super) async fn hide_all(
        &self,
        operation: &'static str,
        url: &str,
        times: Vec<(String, Duration)>,
    ) -> Result<Vec<Result<()>>> {
        let calls = times.chunks(BATCH).map(|batch| (batch.len(), self.hide_batch(operation, url, batch)));
        join_calls(calls.collect(), AT_ONCE).await
    }

    async fn hide_batch(
        &self,
        operation: &'static str,
        url: &str,
        times: &[(String, Duration)],
    ) -> Result<Vec<Result<()>>> {
        let entry = |(number, (handle, time)): (usize, &(String, Duration))| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(handle)
                .visibility_timeout(seconds(*time))
                .build()
                .map_err(|error| incomplete(operation, &error))
        };
        let entries: Vec<_> = times.iter().enumerate().map(entry).collect::<Result<_>>()?;
        let answer = self.client.change_message_visibility_batch().queue_url(url).set_entries(Some(entries)).send();
        let answer = answer.await.map_err(|error| aws_error("sqs", operation, error).with("queue", url))?;
        let done = answer.successful.into_iter().map(|entry| entry.id).zip(iter::repeat(()));
        Ok(collate(operation, times.len(), done, &answer.failed))
    }
}

/// Whole seconds, rounded up: SQS counts in them, and nothing may come early.
pub(super) fn seconds(time: Duration) -> i32 {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

fn incomplete(operation: &'static str, error: &BuildError) -> Error {
    Error::internal(operation, "the request lacks a field").with_source(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_second_is_a_second() {
        for (millis, expected) in [(0, 0), (1, 1), (1000, 1), (1001, 2), (u64::MAX, i32::MAX)] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected, "{millis} ms");
        }
    }
}
