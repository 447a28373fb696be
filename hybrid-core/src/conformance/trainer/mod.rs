//! The suite of [`Trainer`].
//!
//! Alone in this crate it uses the file system: what a trainer promises is about files.

mod cases;
mod lab;

use std::{fmt::Debug, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::Report;
use crate::{ArtifactStore, Result, TrainPlan, Trainer};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait TrainerHarness: Debug + Send + Sync {
    /// The trainer under test.
    fn trainer(&self) -> Arc<dyn Trainer>;

    /// Writes a small dataset of at least two segments to an empty store and makes a plan that learns from it.
    ///
    /// Every run is repeated some thirty times, so it should take a second or so, report progress at least ten times and make at least
    /// three checkpoints, the first before half of its progress events. The same is written and answered each time.
    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan>;

    /// Plans that the trainer must refuse, such as one with a hyperparameter out of range. The suite itself tries an unknown method and an unknown hyperparameter.
    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan>;

    /// A plan on the same dataset with another result: by default the same with another seed.
    fn other(&self, valid: &TrainPlan) -> TrainPlan {
        TrainPlan { seed: valid.seed.wrapping_add(1), ..valid.clone() }
    }

    /// A new, empty, existing folder, different at each call.
    fn folder(&self) -> PathBuf;
}

/// How long a case may take: training takes its time.
const CASE_LIMIT: Duration = Duration::from_secs(1_800);

/// Runs all cases against an adapter, each with a store and scratch folders of its own.
///
/// What [`Trainer::profile`] declares is tested; what it does not declare is not asked for.
pub async fn run(harness: &dyn TrainerHarness) -> Report {
    let mut report = Report::new("trainer");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        cases::a_valid_plan_gives_a_candidate => "a plan goes in, a candidate comes out that says what it is, what it learnt from and where",
        cases::plans_that_cannot_succeed_are_refused => "`check` refuses an unknown method and an unknown or impossible hyperparameter; `train` refuses with the same error before any work",
        cases::only_the_plans_dataset_is_read => "`train` reads the dataset that the plan names, and nothing newer",
        cases::changed_data_is_refused => "`train` reads the dataset verified: changed bytes are `Corrupt`, missing ones `NotFound`",
        cases::a_dataset_with_nothing_is_refused => "a dataset with nothing to learn from is `InvalidInput`",
        cases::files_stay_below_scratch => "files are written below `TrainRun::scratch` alone, and the store is not written to",
        cases::progress_moves_forward_to_the_end => "progress only moves forward, and its last event says that everything is done",
        cases::a_cancelled_run_ends_before_it_begins => "a raised `TrainRun::cancel` ends the run with `Cancelled`",
        cases::a_run_can_be_cancelled_on_its_way => "a `TrainRun::cancel` raised on the way ends the run soon with `Cancelled` and leaves at most checkpoints",
        cases::the_same_plan_gives_the_same_files => "with `reproducible`, the same plan gives the same files, byte for byte",
        cases::an_interrupted_run_ends_in_the_same_place => "with `resumable`, an interrupted run goes on from its last checkpoint and ends with the same files, byte for byte",
        cases::a_finished_run_can_be_repeated => "with `resumable`, a run that is repeated in the scratch folder of one that ended goes on from its last checkpoint and gives the same files",
        cases::checkpoints_of_another_plan_are_ignored => "checkpoints of another plan are ignored",
        cases::checkpoints_of_another_dataset_are_ignored => "checkpoints of a plan with another dataset are ignored",
    ]);
    report
}
