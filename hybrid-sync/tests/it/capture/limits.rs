//! The edges of capture: what is full, late, damaged twice, or comes while a drain is at work.

use std::sync::{Mutex, atomic::AtomicUsize};

use super::*;

/// An outbox into which something comes with every removal, and which remembers how much was asked of it at once.
#[derive(Debug, Default)]
struct Busy {
    inner: MemoryOutbox,
    arrives: Option<Bytes>,
    removals: AtomicUsize,
    asked: Mutex<Vec<usize>>,
}

#[async_trait]
impl Outbox for Busy {
    async fn append(&self, record: Bytes) -> Result<u64> {
        self.inner.append(record).await
    }

    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        self.asked.lock().unwrap().push(max);
        self.inner.pending(after, max).await
    }

    async fn remove(&self, records: &[u64]) -> Result<()> {
        assert!(self.removals.fetch_add(1, Ordering::SeqCst) < 100, "the drain does not end");
        if let Some(record) = &self.arrives {
            self.inner.append(record.clone()).await?;
        }
        self.inner.remove(records).await
    }

    async fn len(&self) -> Result<u64> {
        self.inner.len().await
    }
}

fn capture_from(world: &World, outbox: &Arc<Busy>, options: CaptureOptions) -> Capture {
    Capture::new(outbox.clone(), world.store.clone(), Arc::new(world.clock.clone()), writer(), options)
}

#[tokio::test]
async fn a_small_judgment_behind_one_that_no_longer_fits_takes_nothing_with_it() {
    let world = World::new();
    let capture = world.start_with(&Faults::none(), CaptureOptions { segment_bytes: 1, ..CaptureOptions::default() });
    let mut all = Vec::new();
    for size in [700_000, 700_000, 10, 700_000, 10] {
        all.push(world.judgment(&format!("{}{}", all.len(), "x".repeat(size))));
        record(&capture, all.last().unwrap()).await.unwrap();
    }
    assert_eq!(capture.drain().await.unwrap().judgments, 5);
    assert_eq!(world.stored().await, 5);
    assert_eq!(world.folded().await, fold_judgments(all).unwrap());
}

#[tokio::test]
async fn a_drain_ends_though_more_keeps_coming() {
    let world = World::new();
    let first = Arc::new(Busy::default());
    record(&capture_from(&world, &first, CaptureOptions::default()), &world.judgment("again")).await.unwrap();
    let arrives = first.inner.pending(0, 1).await.unwrap().remove(0).1;
    let outbox = Arc::new(Busy { arrives: Some(arrives), ..Busy::default() });
    let capture = capture_from(&world, &outbox, CaptureOptions { segment_judgments: 4, ..CaptureOptions::default() });
    record_many(&world, &capture, 10).await;
    let drained = capture.drain().await.unwrap();
    assert!((10..=12).contains(&drained.judgments), "{drained:?}");
    assert_eq!(outbox.removals.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn large_records_are_taken_from_the_outbox_a_few_at_a_time_and_small_ones_together() {
    for (size, most, segments) in [(20_000, 128, 6), (10, 512, 1)] {
        let world = World::new();
        let outbox = Arc::new(Busy::default());
        let capture = capture_from(&world, &outbox, CaptureOptions { segment_bytes: 1, ..CaptureOptions::default() });
        for i in 0..300 {
            record(&capture, &world.judgment(&format!("{i}{}", "x".repeat(size)))).await.unwrap();
        }
        assert_eq!(capture.drain().await.unwrap().segments, segments, "{size}");
        assert_eq!(*outbox.asked.lock().unwrap().iter().max().unwrap(), most, "{size}");
    }
}

#[tokio::test]
async fn a_process_that_knows_its_sequence_lists_nothing_again() {
    let (world, faults) = (World::new(), Faults::none());
    let capture = world.start(&faults);
    for expected in [5, 4, 4] {
        record_many(&world, &capture, 1).await;
        let before = faults.count();
        capture.drain().await.unwrap();
        // How many, which, create, remove; the first time the listing as well.
        assert_eq!(faults.count() - before, expected);
    }
}

#[tokio::test]
async fn extreme_options_keep_to_what_an_object_can_hold() {
    let world = World::new();
    let least = world.start_with(&Faults::none(), CaptureOptions { segment_judgments: 0, ..CaptureOptions::default() });
    record_many(&world, &least, 2).await;
    assert_eq!(least.drain().await.unwrap().segments, 2);
    let most = CaptureOptions { segment_bytes: usize::MAX, segment_judgments: usize::MAX, ..CaptureOptions::default() };
    let most = world.start_with(&Faults::none(), most);
    for i in 0..20 {
        record(&most, &world.judgment(&format!("{i}{}", "x".repeat(900_000)))).await.unwrap();
    }
    assert_eq!(most.drain().await.unwrap().segments, 2);
    assert_eq!(world.stored().await, 22);
}

#[tokio::test]
async fn a_crash_after_a_damaged_record_was_set_aside_is_gone_on_from() {
    for (at, side) in [(2, Side::After), (3, Side::Before), (3, Side::After)] {
        let world = World::new();
        world.outbox.append("damaged".into()).await.unwrap();
        world.start(&Faults::crash(at, side)).drain().await.unwrap_err();
        let restarted = world.start(&Faults::none());
        record_many(&world, &restarted, 1).await;
        restarted.drain().await.unwrap();
        assert_eq!((restarted.pending().await.unwrap(), world.stored().await), (0, 1), "{at} {side:?}");
        assert_eq!(world.store.list_all("t/default/quarantine/").await.unwrap().len(), 1, "{at} {side:?}");
    }
}

#[tokio::test]
async fn the_same_event_with_an_earlier_time_is_not_taken_for_what_a_crash_stored() {
    let world = World::new();
    let later = Judgment { at: Timestamp::from_unix_micros(10), ..world.judgment("two rolls") };
    let earlier = Judgment { at: Timestamp::from_unix_micros(5), ..later.clone() };
    record(&world.start(&Faults::none()), &later).await.unwrap();
    // How many, which, list, create: it is stored, and its record stays.
    world.start(&Faults::crash(3, Side::After)).drain().await.unwrap_err();
    assert_eq!(world.stored().await, 1);
    let restarted = world.start(&Faults::none());
    record(&restarted, &earlier).await.unwrap();
    restarted.drain().await.unwrap();
    assert_eq!(world.folded().await, [earlier]);
}

#[tokio::test]
async fn the_loop_ends_at_once_in_the_middle_of_a_drain_and_keeps_what_it_has() {
    let (world, faults) = (World::new(), Faults::none());
    let store = Faulty { inner: world.store.clone() as Arc<dyn ArtifactStore>, faults: faults.clone() };
    let clock = Arc::new(world.clock.clone());
    let options = CaptureOptions::default();
    let capture = Arc::new(Capture::new(world.outbox.clone(), Arc::new(store), clock, writer(), options));
    record_many(&world, &capture, 3).await;
    faults.silent.store(true, Ordering::Relaxed);
    let cancel = Cancellation::new();
    let (runner, token) = (capture.clone(), cancel.clone());
    let running = tokio::spawn(async move { runner.run(token, Duration::from_secs(10)).await });
    settle().await;
    assert!(!running.is_finished());
    cancel.cancel();
    settle().await;
    assert!(running.is_finished());
    assert_eq!(capture.pending().await.unwrap(), 3);
}

/// A store that refuses some of what is created below one prefix.
#[derive(Debug)]
struct Refusing {
    inner: Arc<MemoryStore>,
    prefix: &'static str,
    /// Why the call of this number, from zero, is refused, if it is.
    why: fn(usize) -> Option<Error>,
    asked: AtomicUsize,
}

impl Refusing {
    fn new(world: &World, prefix: &'static str, why: fn(usize) -> Option<Error>) -> Arc<Self> {
        Arc::new(Self { inner: world.store.clone(), prefix, why, asked: AtomicUsize::new(0) })
    }

    /// How many objects it was asked to create below its prefix.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl ArtifactStore for Refusing {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        if key.as_str().starts_with(self.prefix)
            && let Some(error) = (self.why)(self.asked.fetch_add(1, Ordering::SeqCst))
        {
            return Err(error);
        }
        self.inner.create(key, bytes).await
    }
    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.inner.read(key, options).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }
    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix, options)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

#[tokio::test]
async fn a_store_that_asks_for_a_pause_gets_it() {
    let world = World::new();
    let store = Refusing::new(&world, "", |call| {
        let error = Error::new(ErrorKind::RateLimited, "create object", "slow down");
        (call == 0).then(|| error.with_retry_after(Duration::from_secs(1000)))
    });
    let clock = Arc::new(world.clock.clone());
    let capture =
        Arc::new(Capture::new(world.outbox.clone(), store.clone(), clock, writer(), CaptureOptions::default()));
    record_many(&world, &capture, 1).await;
    let (cancel, runner) = (Cancellation::new(), capture.clone());
    let token = cancel.clone();
    let running = tokio::spawn(async move { runner.run(token, Duration::from_secs(10)).await });
    advance(&world.clock, Duration::from_secs(1000), Duration::from_secs(5)).await;
    assert_eq!(store.asked(), 1);
    advance(&world.clock, Duration::from_secs(15), Duration::from_secs(5)).await;
    assert_eq!(store.asked(), 2);
    assert_eq!(capture.pending().await.unwrap(), 0);
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_was_stored_is_not_stored_again_when_its_records_could_not_be_removed() {
    // Three records, how many, which, list, create, remove.
    for (call, side) in [(7, Side::Before), (7, Side::After)] {
        let world = World::new();
        let capture = world.start(&Faults::once(call, side));
        record_many(&world, &capture, 3).await;
        assert_eq!(capture.drain().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(world.stored().await, 3);
        record_many(&world, &capture, 1).await;
        capture.drain().await.unwrap();
        assert_eq!((world.stored().await, capture.pending().await.unwrap()), (4, 0), "{side:?}");
    }
}

#[tokio::test]
async fn a_drain_that_was_dropped_before_its_records_were_removed_is_gone_on_from() {
    let (world, faults) = (World::new(), Faults::none());
    let outbox = Faulty { inner: world.outbox.clone() as Arc<dyn Outbox>, faults: faults.clone() };
    let clock = Arc::new(world.clock.clone());
    let capture = Capture::new(Arc::new(outbox), world.store.clone(), clock, writer(), CaptureOptions::default());
    record_many(&world, &capture, 3).await;
    faults.slow.store(true, Ordering::Relaxed);
    {
        let mut drain = std::pin::pin!(capture.drain());
        while world.stored().await == 0 {
            assert!(futures_util::poll!(&mut drain).is_pending());
        }
    }
    capture.drain().await.unwrap();
    assert_eq!((world.stored().await, capture.pending().await.unwrap()), (3, 0));
}

#[tokio::test]
async fn a_tenant_that_the_store_refuses_holds_up_no_other() {
    let world = World::new();
    let denied = |_| Some(Error::new(ErrorKind::PermissionDenied, "create object", "no"));
    let store = Refusing::new(&world, "t/locked/", denied);
    let options = CaptureOptions { segment_judgments: 4, ..CaptureOptions::default() };
    let clock = Arc::new(world.clock.clone());
    let capture = Capture::new(world.outbox.clone(), store.clone(), clock, writer(), options);
    let locked = TenantId::new("locked").unwrap();
    for i in 0..10 {
        capture.record(&locked, &dataset(), world.judgment(&i.to_string())).await.unwrap();
    }
    let all = record_many(&world, &capture, 6).await;
    let error = capture.drain().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(world.folded().await, all);
    assert_eq!(capture.pending().await.unwrap(), 10, "nothing of it is lost");
    assert_eq!(store.asked(), 1, "and it is not asked again and again");

    // Once the store lets them in they follow.
    drop(capture);
    world.start(&Faults::none()).drain().await.unwrap();
    let theirs = DatasetRef::fix(&*world.store, &locked, &dataset()).await.unwrap();
    assert_eq!(theirs.read(&*world.store).await.unwrap().len(), 10);
    assert_eq!(world.stored().await, 6);
}

#[tokio::test]
async fn a_store_that_is_away_is_not_asked_for_each_tenant() {
    let world = World::new();
    let store = Refusing::new(&world, "", |_| Some(Error::unavailable("create object", "away")));
    let clock = Arc::new(world.clock.clone());
    let capture = Capture::new(world.outbox.clone(), store.clone(), clock, writer(), CaptureOptions::default());
    for tenant in ["a", "b", "c"] {
        capture.record(&TenantId::new(tenant).unwrap(), &dataset(), world.judgment("hello")).await.unwrap();
    }
    assert_eq!(capture.drain().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!((store.asked(), capture.pending().await.unwrap()), (1, 3));
}
