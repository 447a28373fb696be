use std::sync::{Arc, atomic::Ordering};

use futures_util::future::join_all;
use hybrid_core::{
    ArtifactStore, Clock, DatasetName, DatasetRef, ErrorKind, Judgment, JudgmentId, JudgmentSink, ManualClock,
    SeededIds, TenantId, WriterId, memory::MemoryStore,
};
use hybrid_sync::capture::{CaptureOptions, WriteThrough};
use serde_json::json;

use crate::faults::{Faults, Faulty, Side};

struct Function {
    store: Arc<MemoryStore>,
    ids: SeededIds,
    clock: ManualClock,
    sink: WriteThrough,
}

impl Function {
    fn start(faults: &Arc<Faults>) -> Self {
        let clock = ManualClock::at("2026-03-06T12:00:00Z".parse().unwrap());
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        let faulty = Faulty { inner: store.clone() as Arc<dyn ArtifactStore>, faults: faults.clone() };
        let writer = WriterId::new("function-1").unwrap();
        let sink = WriteThrough::new(Arc::new(faulty), Arc::new(clock.clone()), writer, CaptureOptions::default());
        Self { store, ids: SeededIds::default(), clock, sink }
    }

    fn judgment(&self, text: &str) -> Judgment {
        Judgment::new(
            JudgmentId::next(&self.ids),
            "classify",
            json!({ "text": text }),
            json!({ "label": "order" }),
            self.clock.now(),
        )
    }

    async fn record(&self, judgment: &Judgment) -> hybrid_core::Result<()> {
        self.sink.record(&TenantId::single(), &dataset(), judgment.clone()).await
    }

    async fn dataset(&self) -> DatasetRef {
        DatasetRef::fix(&*self.store, &TenantId::single(), &dataset()).await.unwrap()
    }

    async fn stored(&self) -> Vec<Judgment> {
        self.dataset().await.read(&*self.store).await.unwrap()
    }
}

fn dataset() -> DatasetName {
    DatasetName::new("bakery").unwrap()
}

#[tokio::test]
async fn a_judgment_is_in_the_bucket_when_it_is_acknowledged() {
    let function = Function::start(&Faults::none());
    for number in 1..=3 {
        function.record(&function.judgment(&format!("message {number}"))).await.unwrap();
        assert_eq!(function.stored().await.len(), number);
    }
}

#[tokio::test]
async fn judgments_that_arrive_together_share_segments() {
    let faults = Faults::none();
    faults.slow.store(true, Ordering::Relaxed);
    let function = Function::start(&faults);
    let all: Vec<_> = (0..50).map(|number| function.judgment(&format!("message {number}"))).collect();
    let answers = join_all(all.iter().map(|judgment| function.record(judgment))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(function.stored().await, all);
    assert!(function.dataset().await.segments.len() < 10);
}

#[tokio::test]
async fn a_bucket_that_is_away_is_an_error_and_a_retry_counts_once() {
    let faults = Faults::none();
    let function = Function::start(&faults);
    faults.offline.store(true, Ordering::Relaxed);
    let judgment = function.judgment("two rolls");
    assert_eq!(function.record(&judgment).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(function.stored().await.is_empty());

    faults.offline.store(false, Ordering::Relaxed);
    function.record(&judgment).await.unwrap();
    assert_eq!(function.stored().await, [judgment]);
}

#[tokio::test]
async fn an_answer_that_is_lost_at_any_call_costs_nothing() {
    for side in [Side::Before, Side::After] {
        for call in 0..4 {
            let function = Function::start(&Faults::once(call, side));
            let judgment = function.judgment("two rolls");
            // The client does what clients do.
            if function.record(&judgment).await.is_err() {
                function.record(&judgment).await.unwrap();
            }
            assert_eq!(function.stored().await, [judgment], "{side:?} of call {call}");
        }
    }
}
