mod limits;

use std::{collections::BTreeSet, sync::Arc, sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxStream, Cancellation, DatasetName, DatasetRef, Document, Error, ErrorKind,
    IdSource, Judgment, JudgmentId, JudgmentSink, Key, ListOptions, ManualClock, ObjectMeta, Outbox, ReadOptions,
    Result, SeededIds, Segment, TenantId, Timestamp, WriterId, fold_judgments,
    memory::{MemoryOutbox, MemoryStore},
    segment_key,
};
use hybrid_sync::capture::{Capture, CaptureOptions, MAX_JUDGMENT_BYTES};
use proptest::prelude::*;
use serde_json::json;

use crate::{
    faults::{Faults, Faulty, Side},
    time::{advance, settle},
};

/// What outlives a process: the outbox on its disk, and the bucket.
#[derive(Clone)]
struct World {
    clock: ManualClock,
    outbox: Arc<MemoryOutbox>,
    store: Arc<MemoryStore>,
    ids: Arc<SeededIds>,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::at("2026-03-06T12:00:00Z".parse().unwrap());
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        Self { clock, outbox: Arc::default(), store, ids: Arc::default() }
    }

    fn start_with(&self, faults: &Arc<Faults>, options: CaptureOptions) -> Capture {
        let outbox = Faulty { inner: self.outbox.clone() as Arc<dyn Outbox>, faults: faults.clone() };
        let store = Faulty { inner: self.store.clone() as Arc<dyn ArtifactStore>, faults: faults.clone() };
        Capture::new(Arc::new(outbox), Arc::new(store), Arc::new(self.clock.clone()), writer(), options)
    }

    /// A process whose segments have at most four judgments.
    fn start(&self, faults: &Arc<Faults>) -> Capture {
        self.start_with(faults, CaptureOptions { segment_judgments: 4, ..CaptureOptions::default() })
    }

    fn judgment(&self, text: &str) -> Judgment {
        judgment(&*self.ids, text)
    }

    async fn folded(&self) -> Vec<Judgment> {
        self.dataset().await.read(&*self.store).await.unwrap()
    }

    async fn dataset(&self) -> DatasetRef {
        DatasetRef::fix(&*self.store, &TenantId::single(), &dataset()).await.unwrap()
    }

    /// How many judgments lie in all segments, duplicates counted.
    async fn stored(&self) -> usize {
        let mut count = 0;
        for segment in self.dataset().await.segments {
            count += Segment::decode(&self.store.get(&segment.key).await.unwrap()).unwrap().judgments.len();
        }
        count
    }
}

fn writer() -> WriterId {
    WriterId::new("storefront-1").unwrap()
}

fn dataset() -> DatasetName {
    DatasetName::new("bakery").unwrap()
}

fn judgment(ids: &dyn IdSource, text: &str) -> Judgment {
    Judgment {
        tags: [("language".to_owned(), "de".to_owned())].into(),
        ..Judgment::new(
            JudgmentId::next(ids),
            "classify",
            json!({ "text": text }),
            json!({ "label": "order" }),
            Timestamp::UNIX_EPOCH,
        )
    }
}

async fn record(capture: &Capture, judgment: &Judgment) -> Result<()> {
    capture.record(&TenantId::single(), &dataset(), judgment.clone()).await
}

async fn record_many(world: &World, capture: &Capture, count: usize) -> Vec<Judgment> {
    let mut all = Vec::new();
    for i in 0..count {
        let judgment = world.judgment(&format!("message {i}"));
        record(capture, &judgment).await.unwrap();
        all.push(judgment);
    }
    all
}

#[tokio::test]
async fn what_was_recorded_lies_in_the_dataset_of_its_tenant_and_day() {
    let world = World::new();
    let capture = world.start(&Faults::none());
    let other = TenantId::new("other").unwrap();
    let (mine, theirs) = (world.judgment("two rolls"), world.judgment("nuts in it?"));
    record(&capture, &mine).await.unwrap();
    capture.record(&other, &dataset(), theirs.clone()).await.unwrap();
    assert_eq!(capture.pending().await.unwrap(), 2);

    // Drained the day after, it still is of the day it was recorded.
    world.clock.advance(Duration::from_secs(86_400));
    let drained = capture.drain().await.unwrap();
    assert_eq!((drained.judgments, drained.segments, drained.quarantined), (2, 2, 0));
    assert_eq!(capture.pending().await.unwrap(), 0);
    let day = "2026-03-06T00:00:00Z".parse().unwrap();
    let mut bytes = 0;
    for (tenant, judgment) in [(TenantId::single(), mine), (other, theirs)] {
        let key = segment_key(&tenant, &dataset(), day, &writer(), 0).unwrap();
        let object = world.store.get(&key).await.unwrap();
        bytes += object.len() as u64;
        assert_eq!(Segment::decode(&object).unwrap().judgments, [judgment]);
    }
    assert_eq!(drained.bytes, bytes);
    assert_eq!(capture.drain().await.unwrap().segments, 0);
}

#[tokio::test]
async fn segments_keep_their_bounds_and_their_numbers_go_on_after_a_restart() {
    let world = World::new();
    let options = CaptureOptions { segment_bytes: 1, segment_judgments: 1000, ..CaptureOptions::default() };
    let capture = world.start_with(&Faults::none(), options.clone());
    let big = "x".repeat(400 * 1024);
    let mut all = Vec::new();
    for i in 0..7 {
        all.push(world.judgment(&format!("{i}{big}")));
        record(&capture, &all[i]).await.unwrap();
    }
    // The least bound is one whole judgment, so two of 400 KiB go together.
    assert_eq!(capture.drain().await.unwrap().segments, 4);
    let restarted = world.start_with(&Faults::none(), options);
    all.push(world.judgment("last"));
    record(&restarted, &all[7]).await.unwrap();
    restarted.drain().await.unwrap();
    let keys: Vec<_> = world.dataset().await.segments.into_iter().map(|segment| segment.key).collect();
    let expected: Vec<_> = (0..5)
        .map(|n| {
            segment_key(&TenantId::single(), &dataset(), "2026-03-06T00:00:00Z".parse().unwrap(), &writer(), n).unwrap()
        })
        .collect();
    assert_eq!(keys, expected);
    assert_eq!(world.folded().await, fold_judgments(all).unwrap());
}

#[tokio::test]
async fn a_crash_at_any_operation_loses_nothing_and_stores_nothing_twice() {
    let clean = Faults::none();
    let world = World::new();
    record_many(&world, &world.start(&Faults::none()), 10).await;
    world.start(&clean).drain().await.unwrap();
    assert!(clean.count() > 10, "{}", clean.count());

    for at in 0..clean.count() {
        for side in [Side::Before, Side::After] {
            let world = World::new();
            let mut all = record_many(&world, &world.start(&Faults::none()), 10).await;
            let crashed = world.start(&Faults::crash(at, side)).drain().await;
            assert!(crashed.is_err(), "{at} {side:?}");
            // More has come before the next process drains, days later, so its batches are cut elsewhere.
            world.clock.advance(Duration::from_secs(3 * 86_400));
            let restarted =
                world.start_with(&Faults::none(), CaptureOptions { segment_judgments: 7, ..CaptureOptions::default() });
            all.extend(record_many(&world, &restarted, 3).await);
            restarted.drain().await.unwrap();
            assert_eq!(restarted.pending().await.unwrap(), 0, "{at} {side:?}");
            assert_eq!(world.stored().await, all.len(), "{at} {side:?}");
            assert_eq!(world.folded().await, fold_judgments(all).unwrap(), "{at} {side:?}");
        }
    }
}

#[tokio::test]
async fn an_ambiguous_answer_at_any_operation_is_settled_by_the_next_drain() {
    for at in 0..24 {
        for side in [Side::Before, Side::After] {
            let world = World::new();
            let capture = world.start(&Faults::once(at, side));
            let mut all = Vec::new();
            for i in 0..10 {
                let judgment = world.judgment(&i.to_string());
                // A recording that failed is recorded again, as the port asks.
                if record(&capture, &judgment).await.is_err() {
                    record(&capture, &judgment).await.unwrap();
                }
                all.push(judgment);
            }
            if capture.drain().await.is_err() {
                all.extend(record_many(&world, &capture, 2).await);
                capture.drain().await.unwrap();
            }
            assert_eq!(world.folded().await, fold_judgments(all).unwrap(), "{at} {side:?}");
            assert_eq!(world.outbox.len().await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn two_processes_with_one_writer_id_lose_nothing() {
    let world = World::new();
    let second = World { outbox: Arc::default(), ..world.clone() };
    let (a, b) = (world.start(&Faults::none()), second.start(&Faults::none()));
    let mut all = Vec::new();
    // Both know the sequence after the first round; each later drain runs into the other's number.
    for _ in 0..4 {
        all.extend(record_many(&world, &a, 3).await);
        all.extend(record_many(&world, &b, 3).await);
        a.drain().await.unwrap();
        b.drain().await.unwrap();
    }
    assert_eq!(world.stored().await, all.len());
    assert_eq!(world.folded().await, fold_judgments(all).unwrap());
}

#[tokio::test]
async fn a_clock_that_jumps_back_a_day_is_harmless() {
    let world = World::new();
    let capture = world.start(&Faults::none());
    let mut all = Vec::new();
    for jump in [0, -86_400, 86_400, 0, -86_400] {
        world.clock.jump_wall(jump * 1_000_000);
        all.extend(record_many(&world, &capture, 2).await);
        capture.drain().await.unwrap();
    }
    assert_eq!(world.stored().await, all.len());
    assert_eq!(world.folded().await, fold_judgments(all).unwrap());
}

#[tokio::test]
async fn a_day_offline_keeps_ten_thousand_judgments_and_drains_them_all() {
    let world = World::new();
    let faults = Faults::none();
    let store = Faulty { inner: world.store.clone() as Arc<dyn ArtifactStore>, faults: faults.clone() };
    let capture = Arc::new(Capture::new(
        world.outbox.clone(),
        Arc::new(store),
        Arc::new(world.clock.clone()),
        writer(),
        CaptureOptions::default(),
    ));
    faults.offline.store(true, Ordering::Relaxed);
    let cancel = Cancellation::new();
    let (runner, token) = (capture.clone(), cancel.clone());
    let running = tokio::spawn(async move { runner.run(token, Duration::from_secs(10)).await });

    let all = record_many(&world, &capture, 10_000).await;
    advance(&world.clock, Duration::from_secs(86_400), Duration::from_secs(30)).await;
    assert_eq!(capture.pending().await.unwrap(), 10_000);
    // Between one try in 310 s, the longest wait, and one in 10 s, which would be no back-off at all.
    let tries = faults.count();
    assert!((86_400 / 310..86_400 / 60).contains(&tries), "{tries}");

    faults.offline.store(false, Ordering::Relaxed);
    advance(&world.clock, Duration::from_secs(330), Duration::from_secs(30)).await;
    assert_eq!(capture.pending().await.unwrap(), 0);
    assert_eq!(world.dataset().await.segments.len(), 10);
    assert_eq!(world.folded().await, fold_judgments(all).unwrap());

    // Back to its interval, and quiet while there is nothing.
    let quiet = faults.count();
    advance(&world.clock, Duration::from_secs(600), Duration::from_secs(10)).await;
    assert_eq!(faults.count(), quiet);
    record_many(&world, &capture, 1).await;
    advance(&world.clock, Duration::from_secs(10), Duration::from_secs(10)).await;
    assert_eq!(capture.pending().await.unwrap(), 0);
    cancel.cancel();
    settle().await;
    assert!(running.is_finished());
}

#[tokio::test]
async fn a_judgment_over_the_limit_is_refused_and_is_in_nobodys_way() {
    let world = World::new();
    let capture = world.start(&Faults::none());
    let error = record(&capture, &world.judgment(&"x".repeat(MAX_JUDGMENT_BYTES))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.context("judgment").is_some() && error.context("limit").is_some());
    record_many(&world, &capture, 1).await;
    assert_eq!(capture.drain().await.unwrap().judgments, 1);
}

#[tokio::test]
async fn a_damaged_record_goes_to_quarantine_and_one_of_a_newer_version_stays() {
    let world = World::new();
    let capture = world.start(&Faults::none());
    let all = record_many(&world, &capture, 1).await;
    let damaged = Bytes::from_static(b"\xff{half a rec");
    world.outbox.append(damaged.clone()).await.unwrap();
    let newer = Bytes::from_static(br#"{"format":"hybrid.captured/2","more":1}"#);
    world.outbox.append(newer.clone()).await.unwrap();
    let after = record_many(&world, &capture, 1).await;
    let error = capture.drain().await.unwrap_err();
    assert_eq!((error.kind(), error.context("record")), (ErrorKind::Unsupported, Some("3")));
    assert_eq!(world.outbox.pending(0, 9).await.unwrap(), [(3, newer)], "it holds up no other");
    assert_eq!(world.folded().await, fold_judgments([all, after].concat()).unwrap());
    let kept = world.store.list_all("t/default/quarantine/storefront-1/").await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(world.store.get(&kept[0].key).await.unwrap(), damaged);
}

/// A store that says of an object that it exists, and has none, a number of times.
#[derive(Debug)]
struct Liar(MemoryStore, std::sync::atomic::AtomicU32);

#[async_trait]
impl ArtifactStore for Liar {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let lies = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if lies.is_ok() {
            return Err(Error::already_exists("create object", "a conflict"));
        }
        self.0.create(key, bytes).await
    }
    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.0.read(key, options).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.0.head(key).await
    }
    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix, options)
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await
    }
}

#[tokio::test]
async fn a_conflict_with_nothing_stored_is_no_stored_segment() {
    for (lies, succeeds) in [(1, true), (1000, false)] {
        let world = World::new();
        let store = Arc::new(Liar((*world.store).clone(), lies.into()));
        let capture = Capture::new(
            world.outbox.clone(),
            store,
            Arc::new(world.clock.clone()),
            writer(),
            CaptureOptions::default(),
        );
        let all = record_many(&world, &capture, 2).await;
        match capture.drain().await {
            Ok(drained) => assert!(succeeds && drained.segments == 1),
            Err(error) => assert!(!succeeds && error.is_temporary(), "{error}"),
        }
        assert_eq!(world.folded().await.len(), if succeeds { all.len() } else { 0 });
        assert_eq!(capture.pending().await.unwrap(), if succeeds { 0 } else { 2 });
    }
}

#[tokio::test]
async fn strange_objects_among_the_segments_do_no_harm() {
    let world = World::new();
    let at = world.clock.clone();
    let key = |n| segment_key(&TenantId::single(), &dataset(), hybrid_core::Clock::now(&at), &writer(), n).unwrap();
    world.store.create(&key(3), "no segment".into()).await.unwrap();
    let capture = world.start(&Faults::none());
    record_many(&world, &capture, 1).await;
    capture.drain().await.unwrap();
    assert!(world.store.exists(&key(4)).await.unwrap());

    // Whoever takes the last number of all ends the sequence; it does not end the process.
    world.store.create(&key(u64::MAX), "no segment".into()).await.unwrap();
    let restarted = world.start(&Faults::none());
    record_many(&world, &restarted, 1).await;
    assert_eq!(restarted.drain().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(restarted.pending().await.unwrap(), 1);
}

#[derive(Clone, Debug)]
enum Act {
    Record(u8),
    RecordAgain,
    Drain,
    /// The drain dies at an operation; another process goes on.
    Crash(usize, bool),
    Jump(i8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u8..6).prop_map(Act::Record),
        1 => Just(Act::RecordAgain),
        2 => Just(Act::Drain),
        2 => (0usize..12, any::<bool>()).prop_map(|(at, after)| Act::Crash(at, after)),
        1 => (-2i8..=2).prop_map(Act::Jump),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn duplicates_crashes_order_and_clocks_do_not_change_the_dataset(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let mut capture = world.start(&Faults::none());
            let mut all: Vec<Judgment> = Vec::new();
            for act in acts {
                match act {
                    Act::Record(text) => {
                        all.push(world.judgment(&text.to_string()));
                        record(&capture, all.last().unwrap()).await.unwrap();
                    }
                    Act::RecordAgain => {
                        if let Some(judgment) = all.first() {
                            record(&capture, judgment).await.unwrap();
                        }
                    }
                    Act::Drain => drop(capture.drain().await.unwrap()),
                    Act::Crash(at, after) => {
                        let side = if after { Side::After } else { Side::Before };
                        let _ = world.start(&Faults::crash(at, side)).drain().await;
                        capture = world.start(&Faults::none());
                    }
                    Act::Jump(days) => world.clock.jump_wall(i64::from(days) * 86_400_000_000),
                }
            }
            capture.drain().await.unwrap();
            assert_eq!(world.folded().await, fold_judgments(all.clone()).unwrap());
            let ids: BTreeSet<_> = all.iter().map(|judgment| judgment.id).collect();
            assert!(world.stored().await >= ids.len());
            assert_eq!(capture.pending().await.unwrap(), 0);
        });
    }
}
