//! Messages through SQS: our adapter, and the bare SDK with the same calls to the same server.

use std::time::Duration;

use aws_sdk_sqs::{
    Client,
    types::{DeleteMessageBatchRequestEntry, MessageSystemAttributeName, SendMessageBatchRequestEntry},
};
use hybrid_cloud::{
    sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
    testkit::Ministack,
};
use hybrid_core::{JobQueue, NewMessage, ReceiveOptions};
use tokio::runtime::Runtime;

use super::at_once;
use crate::must;

/// Callers at once.
pub const CALLERS: usize = 16;
/// Messages of one call.
pub const BATCH: usize = 10;

/// As large as the messages of the other queues' figures.
const BODY_BYTES: usize = 200;
const WAIT_SECONDS: i32 = 20;
const LEASE_SECONDS: i32 = 60;

/// A server, and a queue on it for either side.
#[derive(Debug)]
pub struct Site {
    // Ends with the site.
    _server: Ministack,
    client: Client,
    url: String,
    queue: SqsQueue,
}

impl Site {
    /// Starts the server.
    pub fn start(runtime: &Runtime) -> Self {
        let server = must(Ministack::start());
        runtime.block_on(async {
            let aws = must(server.config(server.endpoint()).await);
            let ours = must(QueueSetup::new("ours").create(&aws).await).queue;
            let url = must(QueueSetup::new("bare").create(&aws).await).queue;
            let queue = must(SqsQueue::open(&aws, ours, SqsQueueOptions::default()).await);
            Self { client: Client::new(aws.sdk()), _server: server, url, queue }
        })
    }

    /// Each caller sends a batch, receives one and acknowledges it, `turns` times; the time until the last is done, by our adapter.
    pub fn ours(&self, runtime: &Runtime, turns: usize) -> Duration {
        at_once(runtime, CALLERS, |_| {
            let queue = self.queue.clone();
            async move {
                for _ in 0..turns {
                    ours(&queue).await;
                }
            }
        })
    }

    /// The same by the SDK alone, looking at each entry's outcome as one must.
    pub fn bare(&self, runtime: &Runtime, turns: usize) -> Duration {
        at_once(runtime, CALLERS, |_| {
            let (client, url) = (self.client.clone(), self.url.clone());
            async move {
                for _ in 0..turns {
                    bare(&client, &url).await;
                }
            }
        })
    }
}

fn body() -> String {
    "x".repeat(BODY_BYTES)
}

async fn ours(queue: &SqsQueue) {
    for answer in must(queue.send((0..BATCH).map(|_| NewMessage::new(body())).collect()).await) {
        must(answer);
    }
    let seconds = |seconds: i32| Duration::from_secs(seconds.unsigned_abs().into());
    let options = ReceiveOptions { max: BATCH, wait: seconds(WAIT_SECONDS), lease: seconds(LEASE_SECONDS) };
    let deliveries = must(queue.receive(options).await);
    assert_eq!(deliveries.len(), BATCH, "as many are there for each caller");
    let receipts: Vec<_> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
    for answer in must(queue.ack(&receipts).await) {
        must(answer);
    }
}

async fn bare(client: &Client, url: &str) {
    let entry =
        |number: usize| SendMessageBatchRequestEntry::builder().id(number.to_string()).message_body(body()).build();
    let entries = (0..BATCH).map(|number| must(entry(number))).collect();
    let sent = must(client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await);
    assert_eq!((sent.successful().len(), sent.failed().len()), (BATCH, 0));
    let receive = client
        .receive_message()
        .queue_url(url)
        .max_number_of_messages(10)
        .wait_time_seconds(WAIT_SECONDS)
        .visibility_timeout(LEASE_SECONDS)
        .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
        .message_system_attribute_names(MessageSystemAttributeName::AwsTraceHeader)
        .message_system_attribute_names(MessageSystemAttributeName::MessageGroupId)
        .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
        .message_attribute_names("All");
    let messages = must(receive.send().await).messages.unwrap_or_default();
    assert_eq!(messages.len(), BATCH, "as many are there for each caller");
    let entry = |(number, handle): (usize, Option<String>)| {
        DeleteMessageBatchRequestEntry::builder().id(number.to_string()).set_receipt_handle(handle).build()
    };
    let handles = messages.into_iter().map(|message| message.receipt_handle).enumerate();
    let entries = handles.map(|handle| must(entry(handle))).collect();
    let deleted = must(client.delete_message_batch().queue_url(url).set_entries(Some(entries)).send().await);
    assert_eq!((deleted.successful().len(), deleted.failed().len()), (BATCH, 0));
}
