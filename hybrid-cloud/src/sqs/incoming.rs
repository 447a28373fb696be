//! A message as SQS hands it out.

use std::{collections::HashMap, fmt};

use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName};
use hybrid_core::{Error, MessageId, Result, Timestamp};

use super::{claim_check, handover::Handover, outgoing::NO_GROUP};

/// The message attribute that a trace travels as, named as in W3C Trace Context.
pub(super) const TRACE: &str = "traceparent";

/// The system attributes that this adapter reads.
pub(super) const SYSTEM_ATTRIBUTES: [MessageSystemAttributeName; 4] = [
    MessageSystemAttributeName::ApproximateReceiveCount,
    MessageSystemAttributeName::AwsTraceHeader,
    MessageSystemAttributeName::MessageGroupId,
    MessageSystemAttributeName::SentTimestamp,
];

#[derive(Clone, Default)]
pub(super) struct Incoming {
    /// SQS's own id, which is new after a hand-over and after a redrive.
    pub(super) sqs_id: String,
    pub(super) handle: String,
    /// The text, or the pointer to it.
    pub(super) body: String,
    pub(super) attributes: HashMap<String, MessageAttributeValue>,
    /// X-Ray's, which only foreign senders set.
    pub(super) trace_header: Option<String>,
    /// As SQS knows it.
    pub(super) message_group: Option<String>,
    sent_millis: i64,
    receives: u32,
    handover: Option<Handover>,
}

impl Incoming {
    pub(super) fn read(message: Message) -> Result<Self> {
        let missing = |name: &'static str| {
            move || {
                Error::corrupt("read message", "the server's answer has a message that lacks a field")
                    .with("field", name)
            }
        };
        let mut system = message.attributes.unwrap_or_default();
        let mut number = |name: MessageSystemAttributeName| {
            let value = system.remove(&name).and_then(|value| value.parse::<i64>().ok());
            value.ok_or_else(|| missing("attributes")().with("attribute", name.as_str()))
        };
        let receives = number(MessageSystemAttributeName::ApproximateReceiveCount)?;
        let sent_millis = number(MessageSystemAttributeName::SentTimestamp)?;
        let attributes = message.message_attributes.unwrap_or_default();
        Ok(Self {
            sqs_id: message.message_id.ok_or_else(missing("message id"))?,
            handle: message.receipt_handle.ok_or_else(missing("receipt handle"))?,
            body: message.body.ok_or_else(missing("body"))?,
            handover: Handover::of(&attributes),
            attributes,
            trace_header: system.remove(&MessageSystemAttributeName::AwsTraceHeader),
            message_group: system.remove(&MessageSystemAttributeName::MessageGroupId),
            sent_millis,
            receives: u32::try_from(receives).unwrap_or(1),
        })
    }

    /// The id of the message that was sent first.
    pub(super) fn id(&self) -> MessageId {
        MessageId(self.handover.as_ref().map_or(&self.sqs_id, |handover| &handover.id).clone())
    }

    /// When it was sent first.
    pub(super) fn sent(&self) -> Timestamp {
        let millis = self.handover.as_ref().map_or(self.sent_millis, |handover| handover.sent_millis);
        Timestamp::from_unix_micros(millis.saturating_mul(1000))
    }

    /// Which delivery this is, those before a hand-over counted.
    pub(super) fn attempt(&self) -> u32 {
        let before = self.handover.as_ref().map_or(0, |handover| handover.deliveries);
        before.saturating_add(self.receives.max(1))
    }

    /// What a copy of this message says, after `deliveries` of it.
    pub(super) fn handover(&self, deliveries: u32) -> Handover {
        let sent_millis = self.handover.as_ref().map_or(self.sent_millis, |handover| handover.sent_millis);
        Handover { id: self.id().0, sent_millis, deliveries }
    }

    /// The group that it was sent with.
    pub(super) fn group(&self) -> Option<&str> {
        self.message_group.as_deref().filter(|group| !group.starts_with(NO_GROUP))
    }

    pub(super) fn trace(&self) -> Option<&str> {
        self.attributes.get(TRACE).and_then(MessageAttributeValue::string_value)
    }

    /// How long the payload is that the body points to; the text itself is the body where there is none.
    pub(super) fn payload_size(&self) -> Option<&str> {
        let attribute = claim_check::SIZES.iter().find_map(|name| self.attributes.get(*name));
        attribute.map(|attribute| attribute.string_value().unwrap_or_default())
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("sqs_id", &self.sqs_id).finish_non_exhaustive()
    }
}
