use hybrid_core::conformance::trainer;

use crate::{conformance::Trainers, toy::Toy};

/// What [`Toy`] can do wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TrainerFault {
    NamesNoMajor,
    AcceptsTheUnknown,
    ReadsWhatIsNewest,
    ReadsUnverified,
    LearnsFromNothing,
    WritesBeside,
    WritesTheEndFirst,
    CountsDown,
    IgnoresCancellation,
    IgnoresTheSeed,
    BeginsAnew,
    ForgetsItsChance,
    AddsToTheEnd,
    ForgetsInTheEnd,
    ResumesAnyPlan,
    ResumesAnyDataset,
}

use TrainerFault::*;

const PLANTED: &[super::Planted<TrainerFault>] = &[
    (NamesNoMajor, &["a_valid_plan_gives_a_candidate"]),
    (AcceptsTheUnknown, &["plans_that_cannot_succeed_are_refused"]),
    (ReadsWhatIsNewest, &["only_the_plans_dataset_is_read"]),
    (ReadsUnverified, &["changed_data_is_refused"]),
    (LearnsFromNothing, &["a_dataset_with_nothing_is_refused"]),
    (WritesBeside, &["files_stay_below_scratch"]),
    (WritesTheEndFirst, &["a_run_can_be_cancelled_on_its_way"]),
    (CountsDown, &["progress_moves_forward_to_the_end"]),
    (IgnoresCancellation, &["a_cancelled_run_ends_before_it_begins", "a_run_can_be_cancelled_on_its_way"]),
    (IgnoresTheSeed, &["the_same_plan_gives_the_same_files"]),
    (BeginsAnew, &["an_interrupted_run_ends_in_the_same_place"]),
    (ForgetsItsChance, &["an_interrupted_run_ends_in_the_same_place"]),
    (AddsToTheEnd, &["a_finished_run_can_be_repeated"]),
    (ForgetsInTheEnd, &["a_finished_run_can_be_repeated"]),
    (ResumesAnyPlan, &["checkpoints_of_another_plan_are_ignored"]),
    (ResumesAnyDataset, &["checkpoints_of_another_dataset_are_ignored"]),
];

#[tokio::test]
async fn the_suite_notices_broken_trainers() {
    super::check(PLANTED, |fault| async move { trainer::run(&Trainers::new(Toy::broken(fault))).await }).await;
}
