//! Receiving.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use hybrid_core::{Delivery, Error, Receipt, ReceiveOptions, Result};

use super::{
    Inner, LONGEST_HOLD, LONGEST_POLL,
    batch::BATCH,
    calls::seconds,
    incoming::{Incoming, SYSTEM_ATTRIBUTES},
    lease::Lease,
    outgoing::Outgoing,
};
use crate::aws::aws_error;

const OPERATION: &str = "receive messages";

/// Kept from the twelve hours, for calls that take their time.
const LIMIT_MARGIN: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        let ReceiveOptions { max, wait, lease } = options;
        if lease > LONGEST_HOLD {
            return Err(Error::invalid(OPERATION, "the lease is over the queue's limit; extend it on the way")
                .with("lease", format_args!("{lease:?}"))
                .with("limit", format_args!("{LONGEST_HOLD:?}")));
        }
        let max = max.clamp(1, BATCH);
        let at_once = if self.fifo { 1 } else { max };
        let mut left = wait;
        let mut deliveries = loop {
            let poll = left.min(LONGEST_POLL);
            let deliveries = self.poll(at_once, poll, lease).await?;
            left = left.saturating_sub(poll);
            if !deliveries.is_empty() || left.is_zero() {
                break deliveries;
            }
        };
        // One at a time, since one call would take several of a group. What is leased counts, whatever comes of the next call.
        while self.fifo && !deliveries.is_empty() && deliveries.len() < max {
            match self.poll(1, Duration::ZERO, lease).await {
                Ok(more) if !more.is_empty() => deliveries.extend(more),
                _ => break,
            }
        }
        Ok(deliveries)
    }

    async fn poll(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        let wait = seconds(wait);
        let asked = self.clock.monotonic();
        let answer = self
            .polling
            .receive_message()
            .queue_url(&self.url)
            .set_max_number_of_messages(i32::try_from(max).ok())
            .wait_time_seconds(wait)
            .visibility_timeout(seconds(lease))
            .set_message_system_attribute_names(Some(SYSTEM_ATTRIBUTES.to_vec()))
            .message_attribute_names("All")
            .send()
            .await;
        let answer = answer.map_err(|error| aws_error("sqs", OPERATION, error).with("queue", &self.url))?;
        // The server handed the messages out when the wait was over at the latest.
        let latest = asked.plus(Duration::from_secs(wait.unsigned_abs().into()));
        let end = self.clock.monotonic().min(latest).plus(lease);
        let limit = asked.plus(LONGEST_HOLD.saturating_sub(LIMIT_MARGIN));

        let messages = answer.messages.unwrap_or_default().into_iter();
        let opened = join_all(messages.map(|message| async move { self.open(Incoming::read(message)?).await })).await;
        let (mut deliveries, mut failure) = (Vec::new(), None);
        for outcome in opened {
            match outcome {
                Ok(Some((message, body))) => {
                    let delivery = self.delivery(&message, body);
                    let lease = Lease { end, limit, message: Arc::new(message) };
                    self.leases.insert(delivery.receipt.0.clone(), lease);
                    deliveries.push(delivery);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, queue = %self.url, "a message cannot be delivered; it comes again");
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if deliveries.is_empty() => Err(error),
            _ => Ok(deliveries),
        }
    }

    /// A message with its text. None if its deliveries were used up before it came.
    async fn open(&self, message: Incoming) -> Result<Option<(Incoming, String)>> {
        if self.max_deliveries.is_some_and(|max| message.attempt() > max) {
            self.bury(&message).await?;
            return Ok(None);
        }
        let body = match message.payload_size() {
            None => message.body.clone(),
            Some(size) => self.payload(&message, size).await?,
        };
        Ok(Some((message, body)))
    }

    /// The text that a message points to.
    pub(super) async fn payload(&self, message: &Incoming, size: &str) -> Result<String> {
        let named = |error: Error| error.with("message", &message.sqs_id).with("queue", &self.url);
        match &self.claim_check {
            Some(check) => check.load(&message.body, size).await.map_err(named),
            None => Err(named(Error::unsupported(
                "read message payload",
                "the message points to a payload; configure a claim check to read it",
            ))),
        }
    }

    fn delivery(&self, message: &Incoming, body: String) -> Delivery {
        Delivery {
            id: message.id(),
            body,
            group: message.group().map(str::to_owned),
            trace: message.trace().map(str::to_owned),
            sent: message.sent(),
            attempt: message.attempt(),
            max_attempts: self.max_deliveries,
            receipt: Receipt(message.handle.clone()),
        }
    }

    /// Puts a message among the dead letters: SQS counts the deliveries of a copy from one, so it does not do that itself.
    async fn bury(&self, message: &Incoming) -> Result<()> {
        const OPERATION: &str = "bury message";
        let Some(dead) = &self.dead else { return Ok(()) };
        let copy = Outgoing::copy(message, &message.handover(0), Duration::ZERO)?;
        let copy = if self.fifo { copy.deduplicated(format!("dead-{}", message.sqs_id)) } else { copy };
        for sent in self.send_all(OPERATION, &dead.url, vec![copy]).await? {
            sent?;
        }
        for deleted in self.delete_all(OPERATION, &self.url, vec![message.handle.clone()]).await? {
            deleted?;
        }
        Ok(())
    }
}
