//! A trainer small enough to see that it keeps the contract, and to break it in one place: its model is a number that every step mixes with a
//! judgment and with chance.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, Candidate, CandidateFile, CandidateOutput, DatasetName, DatasetRef, Digest, Document, Error,
    FileName, Judgment, JudgmentId, ListOptions, ModelName, ProgressEvent, ReadOptions, Requirements, Result,
    SeededIds, Segment, TenantId, Timestamp, TrainPlan, TrainRun, Trainer, TrainerProfile, WriterId, segment_key,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::broken::TrainerFault;

const STEPS: u64 = 24;
const STEPS_PER_CHECKPOINT: u64 = 3;

#[derive(Clone, Debug, Default)]
pub(crate) struct Toy {
    pub(crate) fault: Option<TrainerFault>,
    /// Chance from elsewhere than the plan, for the trainer that ignores the seed.
    other_chance: Arc<AtomicU64>,
}

impl Toy {
    pub(crate) fn broken(fault: TrainerFault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }

    fn has(&self, fault: TrainerFault) -> bool {
        self.fault == Some(fault)
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct State {
    step: u64,
    chance: u64,
    model: u64,
}

pub(crate) async fn plan(store: &dyn ArtifactStore) -> Result<TrainPlan> {
    let (tenant, name, ids) = (TenantId::single(), DatasetName::new("toy")?, SeededIds::default());
    for sequence in 0..3 {
        let judgment = |i: u64| {
            Judgment::new(
                JudgmentId::next(&ids),
                "classify",
                json!({ "text": format!("message {sequence}.{i}") }),
                json!({ "label": if i.is_multiple_of(2) { "order" } else { "complaint" } }),
                Timestamp::UNIX_EPOCH,
            )
        };
        let segment = Segment { judgments: (0..4).map(judgment).collect() };
        let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("toy")?, sequence)?;
        store.create(&key, segment.encode()?).await?;
    }
    Ok(TrainPlan {
        model: ModelName::new("toy")?,
        method: "toy".to_owned(),
        base: None,
        dataset: DatasetRef::fix(store, &tenant, &name).await?,
        hyperparameters: BTreeMap::from([("steps".to_owned(), json!(STEPS))]),
        seed: 7,
    })
}

fn io_error(error: std::io::Error) -> Error {
    Error::internal("train toy", "the scratch folder refused").with_source(error)
}

/// Written whole or not at all, as anyone must who may be interrupted.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path)).map_err(io_error)
}

#[async_trait]
impl Trainer for Toy {
    fn profile(&self) -> TrainerProfile {
        TrainerProfile {
            name: "toy/1".to_owned(),
            methods: vec!["toy".to_owned()],
            resumable: true,
            reproducible: true,
        }
    }

    fn check(&self, plan: &TrainPlan) -> Result<()> {
        if self.has(TrainerFault::AcceptsTheUnknown) {
            return Ok(());
        }
        if plan.method != "toy" {
            return Err(Error::invalid("check plan", "an unknown method").with("method", &plan.method));
        }
        for (name, value) in &plan.hyperparameters {
            match (name.as_str(), value.as_u64()) {
                ("steps", Some(1..)) => {}
                _ => {
                    return Err(Error::invalid("check plan", "an unknown or impossible hyperparameter")
                        .with("name", name)
                        .with("value", value));
                }
            }
        }
        Ok(())
    }

    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate> {
        self.check(plan)?;
        let checkpoint = run.scratch.join(self.checkpoint_name(plan)?);
        let output = run.scratch.join("model.json");
        if self.has(TrainerFault::WritesTheEndFirst) {
            write(&output, b"0")?;
        }
        let judgments = self.read(plan, run).await?;
        let mut state = State { step: 0, chance: plan.seed, model: 0 };
        if self.has(TrainerFault::IgnoresTheSeed) {
            state.chance = self.other_chance.fetch_add(1, Ordering::Relaxed);
        }
        if let Ok(bytes) = fs::read(&checkpoint)
            && !self.has(TrainerFault::BeginsAnew)
        {
            let State { step, chance, model } = serde_json::from_slice(&bytes)
                .map_err(|error| Error::corrupt("read checkpoint", "not JSON").with_source(error))?;
            state = State {
                step,
                model,
                chance: if self.has(TrainerFault::ForgetsItsChance) { plan.seed } else { chance },
            };
        }
        let steps = plan.hyperparameters.get("steps").and_then(serde_json::Value::as_u64).unwrap_or(STEPS);
        while state.step < steps {
            if run.cancel.is_cancelled() && !self.has(TrainerFault::IgnoresCancellation) {
                return Err(Error::cancelled("train toy", "the run was cancelled"));
            }
            self.step(&mut state, &judgments);
            if state.step.is_multiple_of(STEPS_PER_CHECKPOINT) {
                write(&checkpoint, &serde_json::to_vec(&state).unwrap())?;
            }
            let shown = if self.has(TrainerFault::CountsDown) { steps - state.step } else { state.step };
            run.progress.report(ProgressEvent::new("train", shown, steps, "steps"));
            tokio::task::yield_now().await;
        }
        if self.has(TrainerFault::WritesBeside) {
            fs::write(run.scratch.with_extension("log"), "done").map_err(io_error)?;
        }
        if self.has(TrainerFault::AddsToTheEnd) && output.exists() {
            state.model += 1;
        }
        write(&output, state.model.to_string().as_bytes())?;
        if self.has(TrainerFault::ForgetsInTheEnd) {
            fs::remove_file(&checkpoint).map_err(io_error)?;
        }
        Ok(Candidate {
            task: "classify".to_owned(),
            architecture: if self.has(TrainerFault::NamesNoMajor) { "toy".to_owned() } else { "toy/1".to_owned() },
            output: CandidateOutput::Files(vec![CandidateFile { name: FileName::new("model.json")?, path: output }]),
            requirements: Requirements::default(),
            metrics: BTreeMap::from([("train_loss".to_owned(), 0.5)]),
            examples: judgments.len() as u64,
            device: "cpu".to_owned(),
        })
    }
}

impl Toy {
    /// A plan finds its own checkpoint by a digest of all that it says.
    fn checkpoint_name(&self, plan: &TrainPlan) -> Result<String> {
        let mut plan = plan.clone();
        if self.has(TrainerFault::ResumesAnyPlan) {
            plan.seed = 0;
        }
        if self.has(TrainerFault::ResumesAnyDataset) {
            plan.dataset.segments.clear();
        }
        Ok(format!("checkpoint-{}.json", Digest::of(&plan.encode()?)))
    }

    async fn read(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Vec<Judgment>> {
        let judgments = if self.has(TrainerFault::ReadsWhatIsNewest) {
            let metas: Vec<_> = run.store.list("t/", ListOptions::default()).try_collect().await?;
            let mut judgments = Vec::new();
            for meta in metas {
                judgments.extend(Segment::decode(&run.store.read(&meta.key, ReadOptions::default()).await?)?.judgments);
            }
            judgments
        } else if self.has(TrainerFault::ReadsUnverified) {
            let mut judgments = Vec::new();
            for segment in &plan.dataset.segments {
                judgments
                    .extend(Segment::decode(&run.store.read(&segment.key, ReadOptions::default()).await?)?.judgments);
            }
            judgments
        } else {
            plan.dataset.read(&*run.store).await?
        };
        if judgments.is_empty() && !self.has(TrainerFault::LearnsFromNothing) {
            return Err(
                Error::invalid("train toy", "there is nothing to learn from").with("dataset", &plan.dataset.name)
            );
        }
        Ok(judgments)
    }

    fn step(&self, state: &mut State, judgments: &[Judgment]) {
        // Knuth's MMIX generator; the digest stands for learning.
        state.chance = state.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = (state.chance >> 33) as usize % judgments.len().max(1);
        let text = judgments.get(index).map(|judgment| judgment.input.to_string()).unwrap_or_default();
        let digest = Digest::of(format!("{} {} {text}", state.model, state.chance).as_bytes());
        state.model = digest.as_bytes().iter().take(6).fold(0, |model, byte| model << 8 | u64::from(*byte));
        state.step += 1;
    }
}
