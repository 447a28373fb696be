//! Amazon SQS as a [`JobQueue`].
//!
//! ```no_run
//! use hybrid_cloud::{
//!     aws::{AwsConfig, AwsOptions},
//!     sqs::{QueueSetup, SqsQueue, SqsQueueOptions},
//! };
//! use hybrid_core::{JobQueue, JobQueueExt, NewMessage, ReceiveOptions};
//!
//! # async fn run() -> hybrid_core::Result<()> {
//! let aws = AwsConfig::load(AwsOptions::default()).await?;
//! // Once, or by your own infrastructure code: a queue, and a second one for messages whose deliveries are used up.
//! let urls = QueueSetup::new("kitchen-jobs").create(&aws).await?;
//!
//! let queue = SqsQueue::open(&aws, urls.queue, SqsQueueOptions::default()).await?;
//! queue.send_one(NewMessage::new("bake")).await?;
//! for delivery in queue.receive(ReceiveOptions::default()).await? {
//!     queue.ack_one(&delivery.receipt).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What others see
//! The body is the message's text, unchanged. A trace travels as the message attribute `traceparent`, a group as the message group. A body that does
//! not fit travels as the pointer of AWS's extended client libraries (see [`ClaimCheck`]). A message that was handed over has the
//! attribute `hybrid.handover` beside that. Whatever else a foreign sender writes into a message is left alone, and survives a redrive.

mod batch;
mod calls;
mod claim_check;
mod dead;
mod handover;
mod incoming;
mod lease;
mod outgoing;
mod receive;
mod settle;
mod setup;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_sqs::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    types::QueueAttributeName,
};
use hybrid_core::{
    Clock, Delivery, Depth, Error, Guarantees, IdSource, JobQueue, MAX_BODY_BYTES, MessageId, NewMessage, Receipt,
    ReceiveOptions, Result, SystemClock, SystemIds,
};

pub use claim_check::ClaimCheck;
pub use dead::SqsDeadLetters;
pub use setup::{QueueSetup, QueueUrls};

use crate::aws::{AwsConfig, aws_error};
use dead::DeadQueue;
use lease::Leases;

/// The longest that one call waits for a message.
const LONGEST_POLL: Duration = Duration::from_secs(20);
/// The longest that SQS hides a message after one receive, all extensions together.
const LONGEST_HOLD: Duration = Duration::from_secs(12 * 60 * 60);
/// What an answer may need beyond the wait that was asked for.
const ANSWER_GRACE: Duration = Duration::from_secs(15);

/// How an [`SqsQueue`] behaves.
#[derive(Clone, Debug)]
pub struct SqsQueueOptions {
    /// The clock that leases run out by.
    pub clock: Arc<dyn Clock>,
    /// Where deduplication ids and the names of payloads come from.
    pub ids: Arc<dyn IdSource>,
    /// Where bodies lie that do not fit into a message; without it they are refused.
    pub claim_check: Option<ClaimCheck>,
    /// How long a look through the dead letters waits for one more before it takes the queue for empty; one second by default. SQS asks only
    /// some of its servers when it is not told to wait, so with zero a look may miss letters.
    pub dead_letter_wait: Duration,
}

impl Default for SqsQueueOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            ids: Arc::new(SystemIds::default()),
            claim_check: None,
            dead_letter_wait: Duration::from_secs(1),
        }
    }
}

/// A [`JobQueue`] on one SQS queue. Clones share it.
///
/// # Behavior
/// - Leases are visibility timeouts, in whole seconds, rounded up at the server. By this adapter's clock a lease is never longer than asked, counted from the
///   answer, or from the end of the wait where the answer came later than that; an extended one from before the call. A receipt belongs to the adapter
///   that received it: any other, and a process that was started anew, answers [`LeaseLost`](hybrid_core::ErrorKind::LeaseLost) for it.
/// - A receive waits in whole seconds, rounded up, and answers with at most ten deliveries. Dropping it ends the call at once.
/// - A standard queue may deliver early or twice, so leases are not declared exclusive; depths are estimates. A FIFO queue (its name ends in
///   `.fifo`) is declared ordered. There the adapter takes messages one at a time, since SQS would answer with several of one group; it gives
///   each message a deduplication id of its own, so that a send which is repeated inside a call arrives once. FIFO queues delay no
///   single message: a delay is refused with [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput).
/// - A message's group is its `MessageGroupId`: on a standard queue that makes the queue fair between groups, for a surcharge per request;
///   on a FIFO queue it is the group that is kept in order. A message without a group is a group of its own there.
/// - [`Delivery::attempt`] and the limit are SQS's count of receives and the redrive policy's `maxReceiveCount` as it was when the queue was opened.
/// - A message that points to a payload which cannot be read is not delivered. The receive answers with the error if it has no other message to
///   give, and logs it otherwise; the message comes again when the lease would have ended, and in the end is a dead letter.
///
/// # Work that takes longer than twelve hours
/// SQS hides a message for twelve hours after a receive and not longer, whatever is asked. When an `extend` would pass that limit, the adapter *hands the
/// message over*: it sends the same message again, with the old one's id, age and count of deliveries, to come when the present lease would have
/// ended; deletes the old one; and answers [`LeaseLost`](hybrid_core::ErrorKind::LeaseLost). A worker then stops as for any lost lease, and the next delivery
/// goes on from the last checkpoint. Since the holder was alive, the hand-over costs no delivery: the follow-on has the attempt of the delivery that
/// was handed over. A `nack` whose delay would pass the limit does the same. If SQS does not take the follow-on the lease goes on until its end.
/// Between the two calls the message exists twice, never not at all.
///
/// A FIFO queue would sort a follow-on behind the rest of its group. There the message is given back instead, which keeps its place and costs a delivery.
///
/// A [`release`](JobQueue::release) is such a hand-over too, at once: SQS itself counts every receive. So it costs no delivery but on a FIFO queue, where it
/// is not declared free, and for a message with no room for the note of whose copy the follow-on is: one within a hundred bytes of the queue's limit, or with ten attributes. That one is
/// given back as on a FIFO queue.
#[derive(Clone)]
pub struct SqsQueue {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    /// Never repeats a call on its own: when an answer with messages was lost, their leases run already.
    polling: Client,
    url: String,
    fifo: bool,
    max_deliveries: Option<u32>,
    /// The most bytes of a message, attributes and all.
    max_bytes: usize,
    dead: Option<DeadQueue>,
    leases: Leases,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    claim_check: Option<ClaimCheck>,
}

impl SqsQueue {
    /// Opens the queue at `url`, which must exist. Reads its attributes once.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) if there is no such queue; those of the connection and the credentials.
    pub async fn open(aws: &AwsConfig, url: impl Into<String>, options: SqsQueueOptions) -> Result<Self> {
        const OPERATION: &str = "open queue";
        let SqsQueueOptions { clock, ids, claim_check, dead_letter_wait } = options;
        let url = url.into();
        let client = Client::new(aws.sdk());
        let attributes = setup::attributes(&client, OPERATION, &url).await?;
        let redrive = attributes
            .get(&QueueAttributeName::RedrivePolicy)
            .map(|policy| setup::RedrivePolicy::parse(policy).map_err(|error| error.with("queue", &url)))
            .transpose()?;
        let dead = match &redrive {
            None => None,
            Some(policy) => Some(DeadQueue::find(&client, policy, dead_letter_wait).await?),
        };
        let limit = attributes.get(&QueueAttributeName::MaximumMessageSize).and_then(|size| size.parse().ok());
        let inner = Inner {
            polling: polling(&client),
            client,
            fifo: url.ends_with(".fifo"),
            url,
            max_deliveries: redrive.map(|policy| policy.max_receive_count),
            max_bytes: limit.unwrap_or(MAX_BODY_BYTES),
            dead,
            leases: Leases::new(clock.clone()),
            clock,
            ids,
            claim_check,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The queue's URL.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The queue's dead letters, if it has a redrive policy.
    pub fn dead_letters(&self) -> Option<SqsDeadLetters> {
        SqsDeadLetters::of(&self.inner)
    }
}

fn polling(client: &Client) -> Client {
    let config = client.config();
    let timeouts = config.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled);
    let timeouts = timeouts
        .to_builder()
        .read_timeout(LONGEST_POLL + ANSWER_GRACE)
        .operation_attempt_timeout(LONGEST_POLL + ANSWER_GRACE)
        .build();
    Client::from_conf(config.to_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build())
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue").field("url", &self.inner.url).finish_non_exhaustive()
    }
}

#[async_trait]
impl JobQueue for SqsQueue {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            exclusive_lease: false,
            exact_depth: false,
            ordered: self.inner.fifo,
            free_release: !self.inner.fifo,
        }
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        self.inner.send(messages).await
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        self.inner.receive(options).await
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.inner.extend(leases).await
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        self.inner.ack(receipts).await
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.inner.nack(receipts).await
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        self.inner.release(receipts).await
    }

    async fn depth(&self) -> Result<Depth> {
        const OPERATION: &str = "count messages";
        use QueueAttributeName::{
            ApproximateNumberOfMessages, ApproximateNumberOfMessagesDelayed, ApproximateNumberOfMessagesNotVisible,
        };
        let Inner { client, url, .. } = &*self.inner;
        let names =
            [ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible, ApproximateNumberOfMessagesDelayed];
        let answer =
            client.get_queue_attributes().queue_url(url).set_attribute_names(Some(names.to_vec())).send().await;
        let answer = answer.map_err(|error| aws_error("sqs", OPERATION, error).with("queue", url))?;
        let count = |name: &QueueAttributeName| {
            let value = answer.attributes().and_then(|attributes| attributes.get(name));
            value.and_then(|value| value.parse().ok()).ok_or_else(|| {
                Error::corrupt(OPERATION, "the answer has no such number").with("queue", url).with("attribute", name)
            })
        };
        Ok(Depth { ready: count(&names[0])?, leased: count(&names[1])?, delayed: count(&names[2])? })
    }
}
