//! A message on its way to SQS.

use std::{collections::HashMap, time::Duration};

use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};
use futures_util::{StreamExt, stream};
use hybrid_core::{Error, MessageId, NewMessage, Result};

use super::{
    Inner,
    batch::{BATCH, Gaps},
    calls::seconds,
    claim_check,
    handover::{self, Handover},
    incoming::{Incoming, TRACE},
};

/// What the group's name begins with where a message of a FIFO queue has no group: one of its own follows.
pub(super) const NO_GROUP: &str = "hybrid.no-group.";

/// The most characters of a group.
const GROUP_CHARS: usize = 128;
/// The most attributes of a message.
const MAX_ATTRIBUTES: usize = 10;
/// The most bytes of all messages of one call.
const BATCH_BYTES: usize = 1024 * 1024;
/// Payloads that are stored at a time.
const UPLOADS: usize = 8;

pub(super) struct Outgoing {
    body: String,
    attributes: HashMap<String, MessageAttributeValue>,
    trace_header: Option<String>,
    group: Option<String>,
    deduplication: Option<String>,
    delay: Option<i32>,
}

impl Inner {
    pub(super) async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        let prepared: Vec<_> = messages.into_iter().map(|message| self.prepare(message)).collect();
        let prepared: Vec<_> = stream::iter(prepared).buffered(UPLOADS).collect().await;
        let (good, answers) = Gaps::split(prepared.into_iter().map(|message| message.map_err(Err)));
        let sent = self.send_all("send messages", &self.url, good).await?;
        Ok(answers.fill(sent.into_iter().map(|id| id.map(MessageId))))
    }

    /// Checks a message; a body that does not fit is in the store when this returns.
    async fn prepare(&self, message: NewMessage) -> Result<Outgoing> {
        message.validate()?;
        let NewMessage { body, group, delay, trace } = message;
        let mut attributes = HashMap::new();
        if let Some(trace) = trace {
            attributes.insert(TRACE.to_owned(), text_attribute("String", check_trace(trace)?)?);
        }
        if let Some(group) = &group {
            check_group(group)?;
        }
        let mut outgoing = Outgoing { body, attributes, trace_header: None, group, deduplication: None, delay: None };
        if self.fifo {
            if !delay.is_zero() {
                return Err(Error::invalid(
                    "send message",
                    "a FIFO queue delays no single message; send it without a delay, or to a standard queue",
                )
                .with("queue", &self.url)
                .with("delay", format_args!("{delay:?}")));
            }
            let id = self.ids.next_uuid();
            outgoing.group.get_or_insert_with(|| format!("{NO_GROUP}{id}"));
            outgoing.deduplication = Some(id.to_string());
        } else if !delay.is_zero() {
            outgoing.delay = Some(seconds(delay));
        }
        self.fit(outgoing).await
    }

    /// Puts the body into the store if the message is over the limit.
    async fn fit(&self, mut outgoing: Outgoing) -> Result<Outgoing> {
        let (size, checked) = (outgoing.bytes(), self.claim_check.as_ref());
        let limit = checked.map_or(self.max_bytes, |check| check.threshold.min(self.max_bytes));
        if size <= limit {
            return Ok(outgoing);
        }
        let Some(check) = checked else {
            return Err(Error::too_large(
                "send message",
                "the message with its attributes is over the queue's limit; configure a claim check, or put the body into the store and send its key",
            )
            .with("size", size)
            .with("limit", limit));
        };
        let length = outgoing.body.len().to_string();
        outgoing.body = check.save(self.ids.next_uuid(), std::mem::take(&mut outgoing.body)).await?;
        outgoing.attributes.insert(claim_check::SIZE.to_owned(), text_attribute("Number", length)?);
        Ok(outgoing)
    }
}

impl Outgoing {
    /// A copy of a message, whose sender's attributes it keeps.
    pub(super) fn copy(message: &Incoming, note: &Handover, delay: Duration) -> Result<Self> {
        let mut attributes = message.attributes.clone();
        attributes.insert(handover::ATTRIBUTE.to_owned(), text_attribute("String", note.to_text())?);
        Ok(Self {
            body: message.body.clone(),
            attributes,
            trace_header: message.trace_header.clone(),
            group: message.message_group.clone(),
            deduplication: None,
            delay: (!delay.is_zero()).then(|| seconds(delay)),
        })
    }

    /// A copy of a message with no note of whose copy it is.
    pub(super) fn plain_copy(message: &Incoming) -> Self {
        Self {
            body: message.body.clone(),
            attributes: message.attributes.clone(),
            trace_header: message.trace_header.clone(),
            group: message.message_group.clone(),
            deduplication: None,
            delay: None,
        }
    }

    /// As it must be for a FIFO queue: one that is sent again for the same reason arrives once.
    pub(super) fn deduplicated(self, id: String) -> Self {
        Self { deduplication: Some(id), delay: None, ..self }
    }

    /// Whether SQS takes it at all.
    pub(super) fn fits(&self, max_bytes: usize) -> bool {
        self.attributes.len() <= MAX_ATTRIBUTES && self.bytes() <= max_bytes
    }

    /// Its size as SQS counts it: the body, and each attribute's name, type and value.
    pub(super) fn bytes(&self) -> usize {
        let attribute = |(name, value): (&String, &MessageAttributeValue)| {
            let text = value.string_value().map_or(0, str::len);
            let binary = value.binary_value().map_or(0, |blob| blob.as_ref().len());
            name.len() + value.data_type().len() + text + binary
        };
        self.body.len() + self.attributes.iter().map(attribute).sum::<usize>()
    }

    pub(super) fn entry(self, number: usize) -> Result<SendMessageBatchRequestEntry> {
        let Self { body, attributes, trace_header, group, deduplication, delay } = self;
        let mut entry = SendMessageBatchRequestEntry::builder()
            .id(number.to_string())
            .message_body(body)
            .set_delay_seconds(delay)
            .set_message_attributes((!attributes.is_empty()).then_some(attributes))
            .set_message_group_id(group)
            .set_message_deduplication_id(deduplication);
        if let Some(header) = trace_header {
            let value = MessageSystemAttributeValue::builder().data_type("String").string_value(header).build();
            let value = value.map_err(|error| incomplete(&error))?;
            entry = entry.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
        }
        entry.build().map_err(|error| incomplete(&error))
    }
}

/// Parts messages, in order, so that none of the parts is over a call's limits.
pub(super) fn batches(messages: Vec<Outgoing>) -> Vec<Vec<Outgoing>> {
    let mut batches: Vec<Vec<Outgoing>> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let size = message.bytes();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && bytes + size <= BATCH_BYTES => {
                bytes += size;
                batch.push(message);
            }
            _ => {
                bytes = size;
                batches.push(vec![message]);
            }
        }
    }
    batches
}

fn check_trace(trace: String) -> Result<String> {
    if !trace.is_empty() && trace.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Ok(trace);
    }
    Err(Error::invalid("send message", "the trace is empty or has a character outside printable ASCII")
        .with("trace", format_args!("{trace:?}")))
}

fn check_group(group: &str) -> Result<()> {
    if !(1..=GROUP_CHARS).contains(&group.len()) || !group.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid("send message", "expected a group of 1 to 128 visible ASCII characters")
            .with("group", format_args!("{group:?}")));
    }
    if group.starts_with(NO_GROUP) {
        return Err(Error::invalid("send message", "groups with this beginning stand for no group; choose another")
            .with("group", group));
    }
    Ok(())
}

fn text_attribute(data_type: &str, value: String) -> Result<MessageAttributeValue> {
    MessageAttributeValue::builder()
        .data_type(data_type)
        .string_value(value)
        .build()
        .map_err(|error| incomplete(&error))
}

fn incomplete(error: &aws_sdk_sqs::error::BuildError) -> Error {
    Error::internal("send message", "the request lacks a field").with_source(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(size: usize) -> Outgoing {
        Outgoing {
            body: "x".repeat(size),
            attributes: HashMap::new(),
            trace_header: None,
            group: None,
            deduplication: None,
            delay: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_batch_is_over_a_limit_and_none_could_join_the_one_before(
            sizes in prop::collection::vec(prop_oneof![1..2000_usize, 1..=BATCH_BYTES], 0..40)
        ) {
            let found = batches(sizes.iter().map(|size| message(*size)).collect());
            let order: Vec<_> = found.iter().flatten().map(Outgoing::bytes).collect();
            prop_assert_eq!(order, sizes);
            let total = |batch: &Vec<Outgoing>| batch.iter().map(Outgoing::bytes).sum::<usize>();
            for batch in &found {
                prop_assert!((1..=BATCH).contains(&batch.len()) && total(batch) <= BATCH_BYTES);
            }
            for pair in found.windows(2) {
                prop_assert!(pair[0].len() == BATCH || total(&pair[0]) + pair[1][0].bytes() > BATCH_BYTES);
            }
        }
    }

    #[test]
    fn a_message_is_as_large_as_sqs_counts_it() {
        let mut message = message(100);
        message.attributes.insert("abc".to_owned(), text_attribute("Number", "42".to_owned()).unwrap());
        assert_eq!(message.bytes(), 100 + 3 + 6 + 2);
    }

    #[test]
    fn a_group_is_one_that_sqs_takes() {
        for (group, good) in [
            ("tenant-a", true),
            ("~!@#", true),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
            ("", false),
            ("a b", false),
            ("ü", false),
            ("hybrid.no-group.1", false),
        ] {
            assert_eq!(check_group(group).is_ok(), good, "{group:?}");
        }
    }
}
