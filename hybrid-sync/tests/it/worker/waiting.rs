//! Orders that are taken while the queue is away.

use hybrid_core::{
    Delivery, Error, ErrorKind, Guarantees, JobOrder, Jobs, MessageId, Outbox, Receipt, ReceiveOptions,
    memory::MemoryOutbox,
};
use hybrid_sync::job::QueuedJobs;

use super::{orders::order, *};
use crate::faults::{Faults, Faulty, Side};

/// Orders over a queue with `queue`'s faults, and a bucket and a list with those of `rest`.
fn jobs(kitchen: &Kitchen, outbox: &Arc<MemoryOutbox>, queue: &Arc<Faults>, rest: &Arc<Faults>) -> QueuedJobs {
    let queue = Faulty { inner: kitchen.queue.clone(), faults: queue.clone() };
    let store = Faulty { inner: kitchen.store.clone(), faults: rest.clone() };
    let outbox = Faulty { inner: outbox.clone() as Arc<dyn Outbox>, faults: rest.clone() };
    let (clock, ids) = (Arc::new(kitchen.clock.clone()), Arc::new(SeededIds::new(7)));
    QueuedJobs::new(Arc::new(queue), Arc::new(store), clock, ids).with_outbox(Arc::new(outbox))
}

async fn ended(kitchen: &Kitchen, jobs: &QueuedJobs, id: hybrid_core::JobId) -> bool {
    let worker = kitchen.start_script(&Script::succeeding());
    settle().await;
    worker.stop().await;
    jobs.status(&TenantId::single(), id).await.unwrap().unwrap().end.is_some()
}

#[tokio::test]
async fn orders_are_taken_while_the_queue_is_away_and_carried_when_it_is_back() {
    let (kitchen, outbox, queue) = (Kitchen::new(5), Arc::<MemoryOutbox>::default(), Faults::none());
    let jobs = Arc::new(jobs(&kitchen, &outbox, &queue, &Faults::none()));
    let cancel = Cancellation::new();
    let running = tokio::spawn({
        let (jobs, cancel) = (jobs.clone(), cancel.clone());
        async move { jobs.run(cancel, Duration::from_secs(30)).await }
    });
    let first = jobs.submit(order(None)).await.unwrap();
    settle().await;
    assert_eq!(
        (jobs.pending().await.unwrap(), kitchen.depth().await.ready),
        (0, 1),
        "it is sent as soon as it is there"
    );

    queue.offline.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut taken = vec![first];
    for _ in 0..30 {
        taken.push(jobs.submit(order(None)).await.unwrap());
    }
    kitchen.advance(600).await;
    assert_eq!((jobs.pending().await.unwrap(), kitchen.depth().await.ready), (30, 1));

    queue.offline.store(false, std::sync::atomic::Ordering::Relaxed);
    kitchen.advance(30).await;
    assert_eq!((jobs.pending().await.unwrap(), kitchen.depth().await.ready), (0, 31));
    for id in taken {
        assert!(ended(&kitchen, &jobs, id).await);
    }
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_crash_anywhere_between_order_and_queue_loses_no_order_that_was_taken() {
    for side in [Side::Before, Side::After] {
        for call in 0..12 {
            let (kitchen, outbox) = (Kitchen::new(5), Arc::<MemoryOutbox>::default());
            let faults = Faults::crash(call, side);
            let before = jobs(&kitchen, &outbox, &faults, &faults);
            let mut taken = Vec::new();
            for _ in 0..3 {
                taken.extend(before.submit(order(None)).await);
            }
            let _ = before.drain().await;
            drop(before);

            let none = Faults::none();
            let after = jobs(&kitchen, &outbox, &none, &none);
            after.drain().await.unwrap();
            assert_eq!(after.pending().await.unwrap(), 0);
            for id in taken {
                assert!(ended(&kitchen, &after, id).await, "{side:?} of call {call}");
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_order_is_set_aside_and_the_others_are_sent() {
    let (kitchen, outbox, none) = (Kitchen::new(5), Arc::<MemoryOutbox>::default(), Faults::none());
    let jobs = jobs(&kitchen, &outbox, &none, &none);
    let first = jobs.submit(order(None)).await.unwrap();
    outbox.append("no order".into()).await.unwrap();
    let last = jobs.submit(order(None)).await.unwrap();
    assert_eq!(jobs.drain().await.unwrap(), 2);
    assert_eq!(jobs.pending().await.unwrap(), 0);
    use hybrid_core::ArtifactStoreExt;
    assert_eq!(kitchen.store.list_all("t/default/quarantine/orders/").await.unwrap().len(), 1);
    for id in [first, last] {
        assert!(ended(&kitchen, &jobs, id).await);
    }
}

#[tokio::test]
async fn a_repeated_order_that_is_done_is_not_sent_again() {
    let (kitchen, outbox, none) = (Kitchen::new(5), Arc::<MemoryOutbox>::default(), Faults::none());
    let jobs = jobs(&kitchen, &outbox, &none, &none);
    let id = jobs.submit(order(Some("k"))).await.unwrap();
    jobs.drain().await.unwrap();
    assert!(ended(&kitchen, &jobs, id).await);
    assert_eq!(jobs.submit(order(Some("k"))).await.unwrap(), id);
    assert_eq!(jobs.pending().await.unwrap(), 0);
}

/// A queue that refuses messages by what they say: `long` for good, `locked` for another's fault.
#[derive(Debug)]
struct Picky(MemoryQueue);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JobQueue for Picky {
    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        let mut outcomes = Vec::new();
        for message in messages {
            outcomes.push(match &message.body {
                body if body.contains("long") => {
                    Err(Error::too_large("send messages", "the message is over the queue's limit")
                        .with("queue", "oven"))
                }
                body if body.contains("locked") => {
                    Err(Error::new(ErrorKind::PermissionDenied, "send messages", "the key cannot be used"))
                }
                _ => self.0.send_one(message).await,
            });
        }
        Ok(outcomes)
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        self.0.receive(options).await
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.0.extend(leases).await
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        self.0.ack(receipts).await
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        self.0.nack(receipts).await
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        self.0.release(receipts).await
    }

    async fn depth(&self) -> Result<Depth> {
        self.0.depth().await
    }
}

fn picky(kitchen: &Kitchen, outbox: &Arc<MemoryOutbox>, store: &Arc<Faults>) -> Arc<QueuedJobs> {
    let (clock, ids) = (Arc::new(kitchen.clock.clone()), Arc::new(SeededIds::new(7)));
    let store = Faulty { inner: kitchen.store.clone(), faults: store.clone() };
    Arc::new(
        QueuedJobs::new(Arc::new(Picky(kitchen.queue.clone())), Arc::new(store), clock, ids)
            .with_outbox(outbox.clone()),
    )
}

fn saying(word: &str) -> JobOrder {
    JobOrder { payload: word.into(), ..order(None) }
}

#[tokio::test]
async fn an_order_that_the_queue_will_never_take_fails_and_holds_up_no_other() {
    let (kitchen, outbox) = (Kitchen::new(5), Arc::<MemoryOutbox>::default());
    let jobs = picky(&kitchen, &outbox, &Faults::none());
    let long = jobs.submit(saying("long")).await.unwrap();
    let sound = jobs.submit(order(None)).await.unwrap();
    assert_eq!(jobs.drain().await.unwrap(), 1);
    assert_eq!(jobs.pending().await.unwrap(), 0);
    let end = jobs.status(&TenantId::single(), long).await.unwrap().unwrap().end.unwrap();
    let failure = end.outcome.unwrap_err();
    assert_eq!((failure.kind, &*failure.message), (ErrorKind::TooLarge, "the message is over the queue's limit"));
    assert!(ended(&kitchen, &jobs, sound).await);
}

#[tokio::test]
async fn a_failure_that_cannot_be_written_keeps_its_order() {
    let (kitchen, outbox) = (Kitchen::new(5), Arc::<MemoryOutbox>::default());
    let store = Faults::none();
    let jobs = picky(&kitchen, &outbox, &store);
    let long = jobs.submit(saying("long")).await.unwrap();
    let sound = jobs.submit(order(None)).await.unwrap();
    // Whatever is damaged cannot be set aside either.
    outbox.append("no order".into()).await.unwrap();
    store.offline.store(true, Ordering::Relaxed);
    assert_eq!(jobs.drain().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!((jobs.pending().await.unwrap(), kitchen.depth().await.ready), (2, 1));
    store.offline.store(false, Ordering::Relaxed);
    assert_eq!(jobs.drain().await.unwrap(), 0);
    assert_eq!(jobs.pending().await.unwrap(), 0);
    assert!(jobs.status(&TenantId::single(), long).await.unwrap().unwrap().end.is_some());
    assert!(ended(&kitchen, &jobs, sound).await);
}

#[tokio::test]
async fn what_stays_on_the_list_delays_nothing_that_comes_after_it() {
    let (kitchen, outbox) = (Kitchen::new(5), Arc::<MemoryOutbox>::default());
    let jobs = picky(&kitchen, &outbox, &Faults::none());
    // An order of a later version, and one that the queue may take some day.
    outbox.append(r#"{"format":"hybrid.job/99"}"#.into()).await.unwrap();
    jobs.submit(saying("locked")).await.unwrap();
    let cancel = Cancellation::new();
    let running = tokio::spawn({
        let (jobs, cancel) = (jobs.clone(), cancel.clone());
        async move { jobs.run(cancel, Duration::from_secs(900)).await }
    });
    // Long enough for the waits to have grown.
    kitchen.advance(3600).await;
    assert_eq!(jobs.pending().await.unwrap(), 2);
    jobs.submit(order(None)).await.unwrap();
    settle().await;
    assert_eq!((jobs.pending().await.unwrap(), kitchen.depth().await.ready), (2, 1));
    let error = jobs.drain().await.unwrap_err();
    assert_eq!((error.kind(), error.context("record")), (ErrorKind::Unsupported, Some("1")));
    cancel.cancel();
    running.await.unwrap();
}
