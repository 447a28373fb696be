//! Jobs whose deliveries are used up.

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStoreExt, Clock, DeadLetter, DeadLetters, Error, ErrorKind, JobId, JobStatus, Jobs, MessageId, Result,
};
use hybrid_sync::job::{DeadJobs, QueuedJobs, Told};

use super::{orders::order, *};
use crate::faults::{Faults, Faulty, Side};

fn dead(kitchen: &Kitchen, faults: &Arc<Faults>) -> DeadJobs {
    let store = Faulty { inner: kitchen.store.clone(), faults: faults.clone() };
    DeadJobs::new(Arc::new(kitchen.queue.clone()), Arc::new(store), Arc::new(kitchen.clock.clone()))
}

fn desk(kitchen: &Kitchen) -> QueuedJobs {
    let (queue, store) = (Arc::new(kitchen.queue.clone()), Arc::new(kitchen.store.clone()));
    QueuedJobs::new(queue, store, Arc::new(kitchen.clock.clone()), Arc::new(SeededIds::new(7)))
}

async fn status(desk: &QueuedJobs, id: JobId) -> JobStatus {
    desk.status(&TenantId::single(), id).await.unwrap().unwrap()
}

/// Fails until it is told to succeed.
fn failing(good: &Arc<AtomicUsize>) -> Script {
    let good = good.clone();
    Script::new(move |_| {
        let good = good.load(Ordering::Relaxed) > 0;
        async move { if good { Ok(Value::from("bread")) } else { Err(Error::unavailable("bake", "no gas")) } }
    })
}

async fn letters(dead: &DeadJobs) -> Vec<MessageId> {
    dead.list().await.unwrap().into_iter().map(|dead| dead.letter.id).collect()
}

#[tokio::test]
async fn a_used_up_job_is_told_to_stand_still_and_goes_on_after_a_redrive() {
    let (kitchen, good) = (Kitchen::new(2), Arc::new(AtomicUsize::new(0)));
    let (desk, faults) = (desk(&kitchen), Faults::none());
    let dead = dead(&kitchen, &faults);
    let id = desk.submit(order(None)).await.unwrap();
    let worker = kitchen.start_script(&failing(&good));
    kitchen.advance(2000).await;
    assert_eq!(kitchen.dead().await, 1);
    assert_eq!(status(&desk, id).await.stalled, None, "nobody has looked");

    assert_eq!(dead.tell().await.unwrap(), Told { dead: 1, done: 0 });
    let since = kitchen.clock.now();
    kitchen.advance(60).await;
    assert_eq!(dead.tell().await.unwrap(), Told::default());
    let told = status(&desk, id).await;
    assert_eq!((told.stalled, told.end), (Some(since), None));

    // Back, and dead a second time.
    assert_eq!(dead.redrive(&letters(&dead).await).await.unwrap(), 1);
    assert_eq!(status(&desk, id).await.stalled, None);
    kitchen.advance(2000).await;
    assert_eq!(dead.tell().await.unwrap(), Told { dead: 1, done: 0 });
    assert_eq!(status(&desk, id).await.stalled, Some(kitchen.clock.now()));

    good.store(1, Ordering::Relaxed);
    dead.redrive(&letters(&dead).await).await.unwrap();
    kitchen.advance(60).await;
    let ended = status(&desk, id).await;
    assert_eq!((ended.stalled, ended.end.unwrap().outcome), (None, Ok(Value::from("bread"))));
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_is_given_up_has_failed_for_good() {
    let (kitchen, good) = (Kitchen::new(1), Arc::new(AtomicUsize::new(0)));
    let desk = desk(&kitchen);
    let id = desk.submit(order(None)).await.unwrap();
    let worker = kitchen.start_script(&failing(&good));
    settle().await;
    let ids = letters(&dead(&kitchen, &Faults::none())).await;
    // Its first call is the result's.
    let dead = dead(&kitchen, &Faults::once(0, Side::Before));
    dead.give_up(&ids).await.unwrap_err();
    assert_eq!(letters(&dead).await, ids, "without a result it stays");
    assert_eq!(dead.give_up(&ids).await.unwrap(), 1);
    let failure = status(&desk, id).await.end.unwrap().outcome.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::ResourceExhausted);
    assert!(letters(&dead).await.is_empty());
    assert_eq!(dead.give_up(&ids).await.unwrap(), 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_letter_whose_job_has_its_result_is_purged_and_one_that_is_no_job_is_left() {
    let (kitchen, good) = (Kitchen::new(1), Arc::new(AtomicUsize::new(1)));
    let (desk, faults) = (desk(&kitchen), Faults::none());
    let dead = dead(&kitchen, &faults);
    kitchen.send_body("no job").await;
    // The worker dies after the result and before the ack.
    *kitchen.wire.ack.lock().unwrap() = wire::Line::LeaseLost;
    let id = desk.submit(order(None)).await.unwrap();
    let worker = kitchen.start_script(&failing(&good));
    kitchen.advance(120).await;
    assert_eq!(kitchen.dead().await, 2);
    assert_eq!(dead.tell().await.unwrap(), Told { dead: 0, done: 1 });
    assert_eq!(status(&desk, id).await.end.unwrap().outcome, Ok(Value::from("bread")));
    let left = dead.list().await.unwrap();
    assert_eq!((left.len(), left[0].job.is_none(), left[0].letter.body.as_str()), (1, true, "no job"));
    worker.stop().await;
}

#[tokio::test]
async fn two_that_tell_at_once_tell_one_thing_whatever_breaks() {
    let (kitchen, good) = (Kitchen::new(1), Arc::new(AtomicUsize::new(0)));
    let desk = desk(&kitchen);
    let id = desk.submit(order(None)).await.unwrap();
    let worker = kitchen.start_script(&failing(&good));
    settle().await;
    for call in 0..4 {
        let (once, none) = (Faults::once(call, Side::After), Faults::none());
        for faults in [&once, &none] {
            // Each call of one falls between two of the other.
            faults.slow.store(true, Ordering::Relaxed);
        }
        let (one, two) = (dead(&kitchen, &once), dead(&kitchen, &none));
        let (_, told) = tokio::join!(one.tell(), two.tell());
        told.unwrap();
    }
    let notes = kitchen.store.list_all(&format!("t/default/jobs/{id}/dead/")).await.unwrap();
    assert_eq!(notes.len(), 1);
    assert!(status(&desk, id).await.stalled.is_some());
    worker.stop().await;
}

/// Letters of which the first look sees none: another who looks has hidden them.
#[derive(Debug)]
struct Hidden {
    inner: hybrid_core::memory::MemoryQueue,
    looks: AtomicUsize,
}

#[async_trait]
impl DeadLetters for Hidden {
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>> {
        match self.looks.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(Vec::new()),
            _ => self.inner.list(max, after).await,
        }
    }

    async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        self.inner.redrive(ids).await
    }

    async fn purge(&self, ids: &[MessageId]) -> Result<u64> {
        self.inner.purge(ids).await
    }
}

#[tokio::test]
async fn a_letter_that_is_not_seen_is_neither_given_up_nor_sent_back() {
    let (kitchen, good) = (Kitchen::new(2), Arc::new(AtomicUsize::new(0)));
    let desk = desk(&kitchen);
    let id = desk.submit(order(None)).await.unwrap();
    let worker = kitchen.start_script(&failing(&good));
    kitchen.advance(2000).await;
    let all = letters(&dead(&kitchen, &Faults::none())).await;
    assert_eq!(all.len(), 1);
    let looked = || {
        let hidden = Hidden { inner: kitchen.queue.clone(), looks: AtomicUsize::new(0) };
        DeadJobs::new(Arc::new(hidden), Arc::new(kitchen.store.clone()), Arc::new(kitchen.clock.clone()))
    };
    assert_eq!(looked().give_up(&all).await.unwrap(), 0);
    assert_eq!(looked().redrive(&all).await.unwrap(), 0);
    assert_eq!((kitchen.dead().await, status(&desk, id).await.end), (1, None));
    let again = looked();
    assert_eq!(again.give_up(&all).await.unwrap(), 0);
    assert_eq!(again.give_up(&all).await.unwrap(), 1);
    assert!(status(&desk, id).await.end.is_some());
    worker.stop().await;
}
