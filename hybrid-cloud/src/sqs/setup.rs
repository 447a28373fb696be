//! Making queues, and reading what they are.

use std::collections::HashMap;

use aws_sdk_sqs::{Client, types::QueueAttributeName};
use hybrid_core::{Error, Result};
use serde_json::{Value, json};

use crate::aws::{AwsConfig, aws_error};

/// A queue to make, with a second one for messages whose deliveries are used up.
///
/// For tests, development and small installations; larger ones have their infrastructure code do it. A name that ends in `.fifo` makes both FIFO queues, which
/// sort and count per group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// The queue's name: up to 80 letters, digits, `-` and `_`, and perhaps `.fifo`.
    pub name: String,
    /// The name of the queue for dead letters; by default `<name>-dead`, `.fifo` at its end where the queue is one.
    pub dead_letter_name: Option<String>,
    /// How many deliveries a message may have, at least one; five by default.
    pub max_deliveries: u32,
}

/// The queues that a [`QueueSetup`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueUrls {
    /// The queue.
    pub queue: String,
    /// The queue for its dead letters.
    pub dead_letters: String,
}

/// How long both queues keep a message, in seconds: 14 days, the longest there is.
const RETENTION: u32 = 14 * 24 * 60 * 60;

impl QueueSetup {
    /// A queue whose messages may have five deliveries.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), dead_letter_name: None, max_deliveries: 5 }
    }

    /// Makes what is missing and sets the retention and the redrive policy. Doing it again changes nothing.
    ///
    /// # Errors
    /// Those of the calls; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a name that SQS refuses.
    pub async fn create(&self, aws: &AwsConfig) -> Result<QueueUrls> {
        let Self { name, dead_letter_name, max_deliveries } = self;
        let client = Client::new(aws.sdk());
        let dead_name = match (dead_letter_name, name.strip_suffix(".fifo")) {
            (Some(name), _) => name.clone(),
            (None, Some(stem)) => format!("{stem}-dead.fifo"),
            (None, None) => format!("{name}-dead"),
        };
        let dead_letters = create_queue(&client, &dead_name).await?;
        let retention = (QueueAttributeName::MessageRetentionPeriod, RETENTION.to_string());
        set_attributes(&client, &dead_letters, HashMap::from([retention.clone()])).await?;
        let arn = attributes(&client, "create queue", &dead_letters).await?.remove(&QueueAttributeName::QueueArn);
        let arn =
            arn.ok_or_else(|| Error::corrupt("create queue", "the queue has no ARN").with("queue", &dead_letters))?;
        let queue = create_queue(&client, name).await?;
        let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": (*max_deliveries).max(1) });
        let redrive = (QueueAttributeName::RedrivePolicy, policy.to_string());
        set_attributes(&client, &queue, HashMap::from([retention, redrive])).await?;
        Ok(QueueUrls { queue, dead_letters })
    }
}

async fn create_queue(client: &Client, name: &str) -> Result<String> {
    const OPERATION: &str = "create queue";
    let mut request = client.create_queue().queue_name(name);
    if name.ends_with(".fifo") {
        // What cannot be changed later, and what lets groups pass each other at full speed.
        request = request
            .attributes(QueueAttributeName::FifoQueue, "true")
            .attributes(QueueAttributeName::DeduplicationScope, "messageGroup")
            .attributes(QueueAttributeName::FifoThroughputLimit, "perMessageGroupId");
    }
    let answer = request.send().await.map_err(|error| aws_error("sqs", OPERATION, error).with("queue", name))?;
    answer.queue_url.ok_or_else(|| Error::corrupt(OPERATION, "the answer has no URL").with("queue", name))
}

async fn set_attributes(client: &Client, url: &str, attributes: HashMap<QueueAttributeName, String>) -> Result<()> {
    let answer = client.set_queue_attributes().queue_url(url).set_attributes(Some(attributes)).send().await;
    answer.map(drop).map_err(|error| aws_error("sqs", "configure queue", error).with("queue", url))
}

/// All attributes of a queue.
pub(super) async fn attributes(
    client: &Client,
    operation: &'static str,
    url: &str,
) -> Result<HashMap<QueueAttributeName, String>> {
    let answer = client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All).send().await;
    let answer = answer.map_err(|error| aws_error("sqs", operation, error).with("queue", url))?;
    Ok(answer.attributes.unwrap_or_default())
}

/// Where a queue's dead letters go, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedrivePolicy {
    pub(super) dead_letter_arn: String,
    pub(super) max_receive_count: u32,
}

impl RedrivePolicy {
    /// Reads the attribute's JSON, in which people write the count as a number or as a text.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let read = |policy: &Value| {
            let count = policy.get("maxReceiveCount")?;
            let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
            Some(Self {
                dead_letter_arn: policy.get("deadLetterTargetArn")?.as_str()?.to_owned(),
                max_receive_count: u32::try_from(count).ok()?,
            })
        };
        let policy = serde_json::from_str(text).ok();
        policy
            .as_ref()
            .and_then(read)
            .ok_or_else(|| Error::corrupt("open queue", "the redrive policy cannot be read").with("found", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_policy_is_read_as_people_write_it() {
        let expected = RedrivePolicy { dead_letter_arn: "arn:aws:sqs:r:1:d".to_owned(), max_receive_count: 5 };
        for count in ["5", "\"5\""] {
            let text = format!(r#"{{"deadLetterTargetArn":"arn:aws:sqs:r:1:d","maxReceiveCount":{count}}}"#);
            assert_eq!(RedrivePolicy::parse(&text).unwrap(), expected);
        }
        assert!(RedrivePolicy::parse("{}").is_err());
        assert!(RedrivePolicy::parse("").is_err());
    }
}
