//! Adapters that break their contract in one place each. The suites must notice every one; and every case must be worth its name, so each fails
//! for at least one of them.

mod backend;
mod outbox;
mod queue;
mod records;
mod staging;
mod store;
mod trainer;
mod vectors;

use std::{collections::BTreeSet, fmt::Debug};

use hybrid_core::conformance::{Outcome, Report};

pub(crate) use backend::{BackendFault, BrokenBackend};
pub(crate) use outbox::{BrokenOutbox, OutboxFault};
pub(crate) use queue::{BrokenDeadLetters, BrokenQueue, QueueFault};
pub(crate) use records::{BrokenRecordStore, RecordFault};
pub(crate) use store::{BrokenStore, StoreFault};
pub(crate) use trainer::TrainerFault;
pub(crate) use vectors::{BrokenVectorIndex, VectorFault};

/// A fault with the cases that are to notice it.
type Planted<F> = (F, &'static [&'static str]);

/// Runs a suite for each fault, side by side, and checks that each is noticed where it should be and that no case sleeps through all of them.
async fn check<F, R>(planted: &[Planted<F>], run: impl Fn(F) -> R)
where
    F: Copy + Debug,
    R: Future<Output = Report> + Send + 'static,
{
    let runs: Vec<_> = planted.iter().map(|(fault, _)| tokio::spawn(run(*fault))).collect();
    let (mut cases, mut awake) = (BTreeSet::new(), BTreeSet::new());
    for ((fault, expected), run) in planted.iter().zip(runs) {
        let report = run.await.unwrap();
        let failures: BTreeSet<_> = report.failures().map(|case| case.name).collect();
        assert!(!expected.is_empty(), "{fault:?} names no case; it fails {failures:?}");
        for case in *expected {
            assert!(failures.contains(case), "{fault:?} passes {case:?}; it fails {failures:?}");
        }
        cases.extend(report.cases().iter().map(|case| case.name));
        awake.extend(failures);
    }
    let asleep: Vec<_> = cases.difference(&awake).collect();
    assert!(asleep.is_empty(), "no broken adapter fails these cases: {asleep:?}");
}

#[tokio::test]
async fn a_panic_of_the_adapter_is_a_failure_like_any_other() {
    let report = outbox::run(OutboxFault::Panics).await;
    assert_eq!(report.failures().count(), report.cases().len(), "{report}");
    for case in report.failures() {
        assert_eq!(case.outcome, Outcome::Failed("the adapter panicked: out of paper".to_owned()), "{}", case.name);
    }
}

#[tokio::test]
async fn a_report_asserts_with_every_failure() {
    let report = outbox::run(OutboxFault::NewestFirst).await;
    let panic = std::panic::catch_unwind(|| report.assert()).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(report.failures().count() > 1, "{report}");
    for case in report.failures() {
        assert!(message.contains(case.name) && message.contains(case.clause), "{message}");
    }
    assert!(message.starts_with("outbox conformance: "), "{message}");
}
