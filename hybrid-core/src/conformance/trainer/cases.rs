//! The cases.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::json;

use super::{
    TrainerHarness,
    lab::{Asked, Cancel, Files, Lab, Run, files_below},
};
use crate::{
    ArtifactStore, BaseModel, DatasetRef, Digest, Document, ErrorKind, Key, ProgressEvent, ReadOptions, Segment,
    SegmentRef, TrainPlan,
    conformance::case::{CaseResult, equal, fail, refused, skip},
};

type Harness<'a> = &'a dyn TrainerHarness;

pub(super) async fn a_valid_plan_gives_a_candidate(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let profile = lab.trainer.profile();
    ensure!(
        profile.methods.contains(&lab.plan.method),
        "the methods {:?} do not name the plan's {:?}",
        profile.methods,
        lab.plan.method
    );
    lab.trainer.check(&lab.plan)?;
    let (candidate, _) = lab.train(&lab.plan, &lab.scratch()?).await?;
    ensure!(!candidate.task.is_empty(), "the candidate names no task");
    let architecture = candidate.architecture.rsplit_once('/').filter(|(name, _)| !name.is_empty());
    ensure!(
        architecture.is_some_and(|(_, major)| major.parse::<u32>().is_ok()),
        "the architecture {:?} is not <name>/<major>",
        candidate.architecture
    );
    ensure!(!candidate.device.is_empty(), "the candidate names no device");
    let judgments = lab.plan.dataset.read(&lab.store).await?.len() as u64;
    ensure!(
        (1..=judgments).contains(&candidate.examples),
        "it learnt from {} of {judgments} judgments",
        candidate.examples
    );
    let odd: Vec<_> = candidate.metrics.iter().filter(|(_, value)| !value.is_finite()).collect();
    ensure!(odd.is_empty(), "these metrics are no numbers: {odd:?}");
    Ok(())
}

pub(super) async fn plans_that_cannot_succeed_are_refused(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let unknown_method = TrainPlan { method: "conformance-no-such-method".to_owned(), ..lab.plan.clone() };
    let mut unknown_setting = lab.plan.clone();
    unknown_setting.hyperparameters.insert("conformance-no-such-setting".to_owned(), json!(1));
    for plan in harness.invalid(&lab.plan).into_iter().chain([unknown_method, unknown_setting]) {
        let what = format!("method {:?} with {:?}", plan.method, plan.hyperparameters);
        let Err(checked) = lab.trainer.check(&plan) else {
            return fail(format!("{what}: `check` accepted it"));
        };
        ensure!(!checked.is_temporary(), "{what}: the error says that a retry may help: {checked:?}");
        let scratch = lab.scratch()?;
        let Run { outcome, events, asked } = lab.run(&plan, &scratch, Cancel::Never).await?;
        let Err(trained) = outcome else {
            return fail(format!("{what}: `train` accepted what `check` refused with {checked:?}"));
        };
        equal(&format!("{what}: the error of `train`"), &format!("{trained:?}"), &format!("{checked:?}"))?;
        equal(&format!("{what}: objects read before the refusal"), &asked.read, &vec![])?;
        equal(&format!("{what}: progress before the refusal"), &events, &vec![])?;
        equal(&format!("{what}: files written before the refusal"), &files_below(&scratch)?, &vec![])?;
    }
    Ok(())
}

pub(super) async fn only_the_plans_dataset_is_read(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let before = lab.train_afresh(&lab.plan).await?.0;
    // A newer segment right behind the ones named: the last one's judgments once more, under the next key.
    let Some(last) = lab.plan.dataset.segments.last() else { return skip("the dataset has no segments") };
    let newer = Key::new(format!("{}0", last.key))?;
    lab.store.create(&newer, lab.store.read(&last.key, ReadOptions::default()).await?).await?;

    let named: BTreeSet<_> = lab.plan.dataset.segments.iter().map(|segment| &segment.key).collect();
    let scratch = lab.scratch()?;
    let Run { outcome, asked: Asked { read, .. }, .. } = lab.run(&lab.plan, &scratch, Cancel::Never).await?;
    let candidate = outcome?;
    // A base model in the registry is read from the same store.
    let from_registry = matches!(lab.plan.base, Some(BaseModel::Version(_)));
    let others: Vec<_> = read.iter().filter(|key| !named.contains(key) && (!from_registry || **key == newer)).collect();
    ensure!(others.is_empty(), "it read {others:?}, which the plan does not name");
    let unread: Vec<_> = named.iter().filter(|key| !read.contains(key)).collect();
    ensure!(unread.is_empty(), "it did not read {unread:?}, which the plan names");
    if lab.trainer.profile().reproducible {
        Files::of(&candidate, &scratch)?.check_same("with and without a newer segment", &before)?;
    }
    Ok(())
}

pub(super) async fn changed_data_is_refused(harness: Harness<'_>) -> CaseResult {
    for i in 0..Lab::open(harness).await?.plan.dataset.segments.len() {
        let lab = Lab::open(harness).await?;
        let key = &lab.plan.dataset.segments[i].key;
        // Still a segment, but not the one that the plan names.
        lab.store.corrupt(key, Segment { judgments: vec![] }.encode()?);
        let outcome = lab.run(&lab.plan, &lab.scratch()?, Cancel::Never).await?.outcome;
        refused(&format!("training with the changed segment {key}"), ErrorKind::Corrupt, outcome)?;
        lab.store.delete(key).await?;
        let outcome = lab.run(&lab.plan, &lab.scratch()?, Cancel::Never).await?.outcome;
        refused(&format!("training without the segment {key}"), ErrorKind::NotFound, outcome)?;
    }
    Ok(())
}

pub(super) async fn a_dataset_with_nothing_is_refused(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let name = lab.plan.dataset.name.clone();
    let (key, bytes): (Key, Bytes) = (Key::new("conformance/empty-segment")?, Segment { judgments: vec![] }.encode()?);
    let segment = SegmentRef { key: key.clone(), digest: Digest::of(&bytes) };
    lab.store.create(&key, bytes).await?;
    for segments in [vec![], vec![segment]] {
        let what = format!("training on {} segments without judgments", segments.len());
        let plan = TrainPlan { dataset: DatasetRef { name: name.clone(), segments }, ..lab.plan.clone() };
        refused(&what, ErrorKind::InvalidInput, lab.run(&plan, &lab.scratch()?, Cancel::Never).await?.outcome)?;
    }
    Ok(())
}

pub(super) async fn files_stay_below_scratch(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let scratch = lab.scratch()?;
    let Run { outcome, asked, .. } = lab.run(&lab.plan, &scratch, Cancel::Never).await?;
    equal("what was written to the store", &asked.written, &vec![])?;
    if let Some(folder) = scratch.parent() {
        let beside: Vec<_> = files_below(folder)?.into_iter().filter(|path| !path.starts_with("scratch")).collect();
        ensure!(beside.is_empty(), "files were written beside the scratch folder: {beside:?}");
    }
    Files::of(&outcome?, &scratch).map(drop)
}

pub(super) async fn progress_moves_forward_to_the_end(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let (_, events) = lab.train(&lab.plan, &lab.scratch()?).await?;
    check_forward(&events)?;
    ensure!(
        events.len() >= 10,
        "the run reported {} times; the suite needs a plan that reports ten times",
        events.len()
    );
    match events.last() {
        Some(last) if last.total == Some(last.done) => Ok(()),
        last => fail(format!("the last event does not say that everything is done: {last:?}")),
    }
}

fn check_forward(events: &[ProgressEvent]) -> CaseResult {
    let mut stages: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        ensure!(event.total.is_none_or(|total| event.done <= total), "more is done than there is: {event:?}");
        let before = stages.insert(&event.stage, event.done);
        ensure!(before.is_none_or(|before| before <= event.done), "progress moved back from {before:?} to {event:?}");
    }
    Ok(())
}

pub(super) async fn a_cancelled_run_ends_before_it_begins(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let outcome = lab.run(&lab.plan, &lab.scratch()?, Cancel::Before).await?.outcome;
    refused("a run that was cancelled before it began", ErrorKind::Cancelled, outcome)
}

/// The stage with the most events: the training proper.
fn main_stage(events: &[ProgressEvent]) -> CaseResult<Vec<&ProgressEvent>> {
    let mut stages: BTreeMap<&str, Vec<&ProgressEvent>> = BTreeMap::new();
    for event in events {
        stages.entry(&event.stage).or_default().push(event);
    }
    let main = stages.into_values().max_by_key(Vec::len).unwrap_or_default();
    ensure!(
        main.len() >= 8,
        "the longest stage has {} events; the suite needs a plan with more to interrupt it at",
        main.len()
    );
    Ok(main)
}

/// A point on the way, as so many quarters of the main stage.
fn quarter(main: &[&ProgressEvent], quarters: usize) -> Cancel {
    let event = main[(main.len() - 1) * quarters / 4];
    Cancel::At { stage: event.stage.clone(), done: event.done }
}

pub(super) async fn a_run_can_be_cancelled_on_its_way(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let whole = lab.scratch()?;
    let (candidate, events) = lab.train(&lab.plan, &whole).await?;
    let main = main_stage(&events)?;
    let files = Files::of(&candidate, &whole);
    for quarters in 0..=3 {
        let scratch = lab.scratch()?;
        let outcome = lab.run(&lab.plan, &scratch, quarter(&main, quarters)).await?.outcome;
        refused(&format!("a run that was cancelled after {quarters} quarters"), ErrorKind::Cancelled, outcome)?;
        let left = files_below(&scratch)?;
        for (name, (path, _)) in files.iter().flat_map(|files| &files.0) {
            ensure!(!left.contains(path), "the cancelled run left the candidate's file {name} at {}", path.display());
        }
    }
    Ok(())
}

pub(super) async fn the_same_plan_gives_the_same_files(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    lab.check_reproducible()?;
    let first = lab.train_afresh(&lab.plan).await?.0;
    lab.train_afresh(&lab.plan).await?.0.check_same("two runs of one plan", &first)?;
    // Nor does it matter what was trained in between, or that all was read anew.
    let again = Lab::open(harness).await?;
    again.train_afresh(&harness.other(&again.plan)).await?;
    again.train_afresh(&again.plan).await?.0.check_same("a run after one of another plan", &first)
}

pub(super) async fn an_interrupted_run_ends_in_the_same_place(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    lab.check_resumable()?;
    let (whole, events) = lab.train_afresh(&lab.plan).await?;
    let main = main_stage(&events)?;

    // Interrupted again and again in one scratch folder, each time later.
    let scratch = lab.scratch()?;
    for quarters in 1..=3 {
        let Run { outcome, events, .. } = lab.run(&lab.plan, &scratch, quarter(&main, quarters)).await?;
        refused(&format!("a run that was interrupted after {quarters} quarters"), ErrorKind::Cancelled, outcome)?;
        check_forward(&events)?;
    }
    let (candidate, resumed) = lab.train(&lab.plan, &scratch).await?;
    Files::of(&candidate, &scratch)?.check_same("a run interrupted three times and one never interrupted", &whole)?;
    check_forward(&resumed)?;

    went_on("a resumed run", &events, &resumed)
}

/// A run went on from a checkpoint and did not begin anew.
fn went_on(what: &str, events: &[ProgressEvent], resumed: &[ProgressEvent]) -> CaseResult {
    let stage = &main_stage(events)?[0].stage;
    let first_work = |events: &[ProgressEvent]| {
        events.iter().filter(|event| event.stage == *stage && event.done > 0).map(|event| event.done).min()
    };
    let (began, went_on) = (first_work(events), first_work(resumed));
    ensure!(
        went_on.is_none_or(|went_on| began < Some(went_on)),
        "{what} began {stage:?} anew, at {went_on:?} as the first one at {began:?}"
    );
    Ok(())
}

pub(super) async fn a_finished_run_can_be_repeated(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    lab.check_resumable()?;
    let scratch = lab.scratch()?;
    let (candidate, events) = lab.train(&lab.plan, &scratch).await?;
    let first = Files::of(&candidate, &scratch)?;
    let (candidate, repeated) = lab.train(&lab.plan, &scratch).await?;
    Files::of(&candidate, &scratch)?.check_same("a run repeated in the same folder", &first)?;
    went_on("a repeated run", &events, &repeated)
}

/// Trains `plan` in a folder in which a run of the lab's own plan was interrupted, and compares with a folder that is new.
async fn check_ignored(lab: &Lab<'_>, plan: &TrainPlan) -> CaseResult {
    lab.check_resumable()?;
    lab.check_reproducible()?;
    let expected = lab.train_afresh(plan).await?.0;
    let (_, events) = lab.train(&lab.plan, &lab.scratch()?).await?;
    let scratch = lab.scratch()?;
    let outcome = lab.run(&lab.plan, &scratch, quarter(&main_stage(&events)?, 3)).await?.outcome;
    refused("the run that was to leave checkpoints", ErrorKind::Cancelled, outcome)?;
    let candidate = lab.train(plan, &scratch).await?.0;
    Files::of(&candidate, &scratch)?
        .check_same("a run beside another plan's checkpoints and one in a new folder", &expected)
}

pub(super) async fn checkpoints_of_another_plan_are_ignored(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let other = harness.other(&lab.plan);
    ensure!(other != lab.plan, "the harness's other plan is the same plan");
    check_ignored(&lab, &other).await
}

pub(super) async fn checkpoints_of_another_dataset_are_ignored(harness: Harness<'_>) -> CaseResult {
    let lab = Lab::open(harness).await?;
    let mut other = lab.plan.clone();
    other.dataset.segments.pop();
    ensure!(!other.dataset.segments.is_empty(), "the harness's dataset has one segment; the suite needs two");
    check_ignored(&lab, &other).await
}
