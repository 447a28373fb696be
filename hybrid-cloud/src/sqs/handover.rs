//! The note on a copy of a message that says whose copy it is.

use std::collections::HashMap;

use aws_sdk_sqs::types::MessageAttributeValue;

/// The message attribute that holds the note: `1 <deliveries> <sent, ms since the Unix epoch> <id>`.
pub(super) const ATTRIBUTE: &str = "hybrid.handover";

/// What a copy keeps of the message that was sent first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handover {
    /// How many deliveries count from before the copy.
    pub(super) deliveries: u32,
    /// When the first was sent, in milliseconds since the Unix epoch, by SQS's clock.
    pub(super) sent_millis: i64,
    /// The id that the first was given.
    pub(super) id: String,
}

impl Handover {
    /// The note in a message's attributes. One of another form is somebody else's, and none.
    pub(super) fn of(attributes: &HashMap<String, MessageAttributeValue>) -> Option<Self> {
        Self::parse(attributes.get(ATTRIBUTE)?.string_value()?)
    }

    pub(super) fn to_text(&self) -> String {
        let Self { deliveries, sent_millis, id } = self;
        format!("1 {deliveries} {sent_millis} {id}")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let version = parts.next()?;
        let note = Self {
            deliveries: parts.next()?.parse().ok()?,
            sent_millis: parts.next()?.parse().ok()?,
            id: parts.next().filter(|id| !id.is_empty())?.to_owned(),
        };
        (version == "1").then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_anything_else_is_none() {
        let note = Handover { deliveries: 3, sent_millis: 1_766_000_000_123, id: "a-b c".to_owned() };
        assert_eq!(Handover::parse(&note.to_text()), Some(note));
        for bad in ["", "1", "1 3 4", "1 3 4 ", "2 3 4 id", "1 -3 4 id", "1 x 4 id"] {
            assert_eq!(Handover::parse(bad), None, "{bad:?}");
        }
    }
}
