//! Suites that prove that an adapter keeps its port's contract.
//!
//! Each clause of a port's `# Behavior` has a named case. A suite runs all its cases, each on fresh state, and answers with a [`Report`];
//! [`Report::assert`] turns what failed into one panic for a test. The suites need no particular runtime.
//!
//! | port | suite | what the adapter's author writes |
//! |---|---|---|
//! | [`ArtifactStore`](crate::ArtifactStore) | [`artifacts::run`] | [`artifacts::ArtifactHarness`] |
//! | [`JobQueue`](crate::JobQueue) | [`queue::run`] | [`queue::QueueHarness`] |
//! | [`InferenceBackend`](crate::InferenceBackend) | [`inference::run`] | [`inference::InferenceHarness`] |
//! | [`Trainer`](crate::Trainer) | [`trainer::run`] | [`trainer::TrainerHarness`] |
//! | [`Outbox`](crate::Outbox) | [`outbox::run`] | [`outbox::OutboxHarness`] |
//! | [`RecordStore`](crate::RecordStore) | [`records::run`] | [`records::RecordHarness`] |
//! | [`Staging`](crate::Staging) | [`staging::run`] | [`staging::StagingHarness`] |
//! | [`VectorIndex`](crate::VectorIndex) | [`vectors::run`] | [`vectors::VectorHarness`] |
//!
//! ```
//! use std::sync::Arc;
//! use hybrid_core::{ArtifactStore, conformance::artifacts::{self, ArtifactHarness}, memory::MemoryStore};
//!
//! #[derive(Debug, Default)]
//! struct Mine(MemoryStore);
//!
//! impl ArtifactHarness for Mine {
//!     fn store(&self) -> Arc<dyn ArtifactStore> {
//!         Arc::new(self.0.clone())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! artifacts::run(&Mine::default()).await.assert();
//! # });
//! ```

#[macro_use]
mod case;

pub mod artifacts;
pub mod inference;
pub mod outbox;
pub mod queue;
pub mod records;
pub mod staging;
pub mod trainer;
pub mod vectors;

use std::{fmt, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;

use case::{CaseResult, Stop, within};

/// What a suite found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a report that nobody reads proves nothing; call `assert`"]
pub struct Report {
    suite: &'static str,
    cases: Vec<Case>,
}

/// One case of a suite, after it has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The case's name.
    pub name: &'static str,
    /// The clause of the contract that it tests.
    pub clause: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The clause holds.
    Passed,
    /// The case does not apply to this adapter, for the reason given.
    Skipped(String),
    /// The clause does not hold; this is what was seen.
    Failed(String),
}

impl Report {
    /// All cases, in the order run.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| matches!(case.outcome, Outcome::Failed(_)))
    }

    /// Whether no case failed.
    pub fn is_ok(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Passes if no case failed.
    ///
    /// # Panics
    /// With the list of the cases that failed, the clause of each and what was seen.
    #[track_caller]
    pub fn assert(&self) {
        assert!(self.is_ok(), "{self}");
    }

    pub(crate) fn new(suite: &'static str) -> Self {
        Self { suite, cases: Vec::new() }
    }

    /// Runs one case. A panic of the adapter and a call that never ends are failures like any other.
    pub(crate) async fn run(
        &mut self,
        name: &'static str,
        clause: &'static str,
        limit: Duration,
        case: impl Future<Output = CaseResult> + Send,
    ) {
        let outcome = match within(limit, AssertUnwindSafe(case).catch_unwind()).await {
            Some(Ok(Ok(()))) => Outcome::Passed,
            Some(Ok(Err(Stop::Skipped(reason)))) => Outcome::Skipped(reason),
            Some(Ok(Err(Stop::Failed(seen)))) => Outcome::Failed(seen),
            Some(Err(panic)) => Outcome::Failed(format!("the adapter panicked: {}", panic_text(&*panic))),
            None => Outcome::Failed(format!("the case had not ended after {limit:?}")),
        };
        self.cases.push(Case { name, clause, outcome });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} conformance: {} of {} cases failed", self.suite, self.failures().count(), self.cases.len())?;
        for Case { name, clause, outcome } in &self.cases {
            match outcome {
                Outcome::Passed => {}
                Outcome::Skipped(reason) => write!(f, "\n  {name}: skipped, {reason}")?,
                Outcome::Failed(seen) => write!(f, "\n  {name}: FAILED\n    clause: {clause}\n    seen:   {seen}")?,
            }
        }
        Ok(())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
