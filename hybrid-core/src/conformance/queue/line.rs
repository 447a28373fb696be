//! One case's queue, with the steps that cases are made of.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};

use super::{QueueHarness, QueueUnderTest};
use crate::{
    Clock, DeadLetters, Delivery, Guarantees, JobQueue, JobQueueExt, MessageId, NewMessage, Receipt, ReceiveOptions,
    Result, SystemClock,
    conformance::case::{CaseResult, fail, only, refused, skip, within},
};

/// How many ticks a message that can be leased may take to arrive.
pub(super) const PATIENCE: u32 = 8;
/// A lease that outlasts every case, in ticks.
pub(super) const LONG: u32 = 600;
/// Deliveries that no case uses up.
pub(super) const MANY: u32 = 100;

/// What an adapter that works on threads of its own may need in real time before the clock moves on.
const SETTLE: Duration = Duration::from_millis(10);
/// What a call may need in real time once the queue's clock has passed the moment of its answer.
const GRACE: Duration = Duration::from_secs(2);

pub(super) struct Line<'a> {
    pub(super) harness: &'a dyn QueueHarness,
    pub(super) queue: Arc<dyn JobQueue>,
    pub(super) max_deliveries: u32,
    dead_letters: Option<Arc<dyn DeadLetters>>,
}

impl<'a> Line<'a> {
    pub(super) async fn open(harness: &'a dyn QueueHarness, max_deliveries: u32) -> CaseResult<Self> {
        let QueueUnderTest { queue, dead_letters } = harness.queue(max_deliveries).await?;
        Ok(Self { harness, queue, max_deliveries, dead_letters })
    }

    pub(super) fn guarantees(&self) -> Guarantees {
        self.queue.guarantees()
    }

    pub(super) fn dead_letters(&self) -> CaseResult<Arc<dyn DeadLetters>> {
        self.dead_letters.clone().map_or_else(|| skip("the adapter shows no dead letters"), Ok)
    }

    pub(super) fn ticks(&self, count: u32) -> Duration {
        self.harness.tick() * count
    }

    pub(super) async fn pass(&self, ticks: u32) {
        self.harness.advance(self.ticks(ticks)).await;
    }

    /// Sends one message.
    pub(super) async fn send(&self, body: &str) -> CaseResult<MessageId> {
        self.send_message(NewMessage::new(body)).await
    }

    pub(super) async fn send_delayed(&self, body: &str, ticks: u32) -> CaseResult<MessageId> {
        self.send_message(NewMessage { delay: self.ticks(ticks), ..NewMessage::new(body) }).await
    }

    pub(super) async fn send_group(&self, body: &str, group: &str) -> CaseResult<MessageId> {
        self.send_message(NewMessage { group: Some(group.to_owned()), ..NewMessage::new(body) }).await
    }

    pub(super) async fn send_message(&self, message: NewMessage) -> CaseResult<MessageId> {
        Ok(only("send", self.queue.send(vec![message]).await?)??)
    }

    fn options(&self, max: usize, wait: u32, lease: u32) -> ReceiveOptions {
        ReceiveOptions { max, wait: self.ticks(wait), lease: self.ticks(lease) }
    }

    /// A receive that has not begun, for cases that do something meanwhile.
    pub(super) async fn receive(&self, max: usize, wait: u32, lease: u32) -> Result<Vec<Delivery>> {
        self.queue.receive(self.options(max, wait, lease)).await
    }

    /// Leases exactly `count` messages that can be leased now.
    pub(super) async fn take(&self, count: usize, lease: u32) -> CaseResult<Vec<Delivery>> {
        let mut taken: Vec<Delivery> = Vec::new();
        let mut waits = 0;
        while taken.len() < count {
            // The adapter may answer with fewer than there are, and an estimate of a queue may miss some at first.
            let missing = count - taken.len();
            let mut found = self.receive(missing, 0, lease).await?;
            if found.is_empty() {
                if waits == PATIENCE {
                    return fail(format!("of {count} messages that can be leased {} came: {taken:?}", taken.len()));
                }
                waits += 1;
                found = self.drive(1, self.receive(missing, 1, lease)).await.unwrap_or(Ok(Vec::new()))?;
            }
            ensure!(found.len() <= missing, "a receive of at most {missing} answered with {}", found.len());
            for delivery in found {
                match taken.iter_mut().find(|other| other.id == delivery.id) {
                    None => taken.push(delivery),
                    Some(other) if self.guarantees().exclusive_lease => {
                        return fail(format!(
                            "delivered again under its lease though leases are exclusive: {other:?}, {delivery:?}"
                        ));
                    }
                    Some(other) => *other = delivery,
                }
            }
        }
        Ok(taken)
    }

    /// Leases the only message that can be leased now.
    pub(super) async fn take_one(&self, lease: u32) -> CaseResult<Delivery> {
        match self.take(1, lease).await?.pop() {
            Some(delivery) => Ok(delivery),
            None => fail("no message came"),
        }
    }

    /// Checks that no message can be leased.
    pub(super) async fn nothing(&self, when: &str) -> CaseResult {
        let found = self.receive(10, 0, LONG).await?;
        ensure!(found.is_empty(), "{when}, yet it was delivered: {found:?}");
        Ok(())
    }

    /// Checks that nothing is delivered under a running lease, where the adapter declares that.
    pub(super) async fn nothing_if_exclusive(&self, when: &str) -> CaseResult {
        if self.guarantees().exclusive_lease { self.nothing(when).await } else { Ok(()) }
    }

    pub(super) async fn extend(&self, receipt: &Receipt, ticks: u32) -> Result<()> {
        self.queue.extend_one(receipt, self.ticks(ticks)).await
    }

    pub(super) async fn ack(&self, receipt: &Receipt) -> Result<()> {
        self.queue.ack_one(receipt).await
    }

    pub(super) async fn nack(&self, receipt: &Receipt, ticks: u32) -> Result<()> {
        self.queue.nack_one(receipt, self.ticks(ticks)).await
    }

    pub(super) async fn release(&self, receipt: &Receipt) -> Result<()> {
        self.queue.release_one(receipt).await
    }

    pub(super) async fn ack_all(&self, deliveries: &[Delivery]) -> CaseResult {
        for delivery in deliveries {
            self.ack(&delivery.receipt).await?;
        }
        Ok(())
    }

    /// Runs a call that waits, while the queue's time moves on by at most `ticks`. `None` if it has not ended then, nor shortly after.
    pub(super) async fn drive<T>(&self, ticks: u32, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        for _ in 0..ticks {
            if let Either::Left((output, _)) = select(&mut call, SystemClock.sleep(SETTLE)).await {
                return Some(output);
            }
            if let Either::Left((output, _)) = select(&mut call, self.harness.advance(self.harness.tick())).await {
                return Some(output);
            }
        }
        within(GRACE, call).await
    }

    /// Starts a waiting receive, makes a message ready by `ready`, and checks that the receive sees it well before its wait is over.
    pub(super) async fn sees(
        &self,
        what: &str,
        within_ticks: u32,
        ready: impl Future<Output = CaseResult>,
    ) -> CaseResult<Delivery> {
        let found = {
            let mut receive = pin!(self.receive(1, 10 * PATIENCE, LONG));
            match select(&mut receive, SystemClock.sleep(SETTLE)).await {
                Either::Left((found, _)) => {
                    let found = found?;
                    ensure!(found.is_empty(), "{what}: a message came before it was ready: {found:?}");
                    ready.await?;
                    None
                }
                Either::Right(_) => {
                    ready.await?;
                    let found = self.drive(within_ticks + PATIENCE, receive).await;
                    ensure!(
                        found.is_some(),
                        "{what}: a waiting receive had not answered {} ticks later",
                        within_ticks + PATIENCE
                    );
                    found
                }
            }
        };
        match found.transpose()?.and_then(|mut found| found.pop()) {
            Some(delivery) => Ok(delivery),
            // An adapter may wait less than asked, and then answers with none.
            None => {
                self.pass(within_ticks).await;
                self.take_one(LONG).await
            }
        }
    }

    /// Checks that all ways to use a lease are refused for one that is over.
    pub(super) async fn over(&self, when: &str, receipt: &Receipt) -> CaseResult {
        use crate::ErrorKind::LeaseLost;
        refused(&format!("ack {when}"), LeaseLost, self.ack(receipt).await)?;
        refused(&format!("nack {when}"), LeaseLost, self.nack(receipt, 0).await)?;
        refused(&format!("release {when}"), LeaseLost, self.release(receipt).await)?;
        refused(&format!("extend {when}"), LeaseLost, self.extend(receipt, LONG).await)
    }
}
