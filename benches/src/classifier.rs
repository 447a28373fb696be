//! The text classifier of `hybrid-local`, trained on the bakery's judgments.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use hybrid_core::{
    ArtifactStore, Cancellation, CandidateOutput, Clock, DatasetName, DatasetRef, Digest, Document, InferenceBackend,
    Judgment, JudgmentId, Manifest, ModelLoader, NoProgress, Segment, SystemClock, SystemIds, Task, TenantId,
    Timestamp, TrainPlan, TrainRun, Trainer, WriterId, memory::MemoryStore, segment_key, task::Classify,
};
use hybrid_local::{Device, TextClassifierLoader, TextClassifierTrainer};
use serde::Deserialize;
use serde_json::json;

use crate::{
    must,
    registry::{lineage, model, verdict},
};

const JUDGMENTS: &str = include_str!("../../examples/data/bakery/more.jsonl");

#[derive(Deserialize)]
struct Line {
    text: String,
    label: String,
}

/// The messages that the classifier learns, in the order of the file.
pub fn messages() -> Vec<String> {
    lines().into_iter().map(|line| line.text).collect()
}

/// Trains with the default settings, but without cross-validation, which changes the time and not the model's size, and loads the result.
pub async fn train(scratch: &Path) -> Arc<dyn InferenceBackend<Classify>> {
    let store: Arc<dyn ArtifactStore> = Arc::new(MemoryStore::default());
    let plan = TrainPlan {
        model: model(),
        method: "hashed-text".to_owned(),
        base: None,
        dataset: capture(&*store).await,
        hyperparameters: BTreeMap::from([("folds".to_owned(), json!(1)), ("epochs".to_owned(), json!(5))]),
        seed: 1,
    };
    let run = TrainRun {
        store,
        scratch: scratch.to_owned(),
        progress: Arc::new(NoProgress),
        cancel: Cancellation::new(),
        clock: Arc::new(SystemClock),
    };
    let candidate = must(TextClassifierTrainer::new(Device::cpu()).train(&plan, &run).await);
    let manifest = Manifest {
        model: plan.model.clone(),
        version: 1,
        task: candidate.task,
        architecture: candidate.architecture,
        created: SystemClock.now(),
        files: Vec::new(),
        requirements: candidate.requirements,
        lineage: lineage(plan),
        verdict: Some(verdict()),
        metadata: BTreeMap::new(),
    };
    let CandidateOutput::Files(files) = candidate.output else { panic!("the trainer wrote no files") };
    let folder = must(files[0].path.parent().ok_or("the trainer's files have no folder"));
    let digest = Digest::of(&must(manifest.encode()));
    must(TextClassifierLoader::new(Device::cpu()).load(&manifest, digest, folder).await)
}

fn lines() -> Vec<Line> {
    JUDGMENTS.lines().map(|line| must(serde_json::from_str(line))).collect()
}

async fn capture(store: &dyn ArtifactStore) -> DatasetRef {
    let ids = SystemIds::default();
    let judgment = |Line { text, label }| {
        Judgment::new(
            JudgmentId::next(&ids),
            Classify::NAME,
            json!({ "text": text }),
            json!({ "label": label }),
            Timestamp::UNIX_EPOCH,
        )
    };
    let segment = Segment { judgments: lines().into_iter().map(judgment).collect() };
    let (tenant, name) = (TenantId::single(), must(DatasetName::new("bakery")));
    let writer = must(WriterId::new("bench"));
    let key = must(segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &writer, 1));
    must(store.create(&key, must(segment.encode())).await);
    must(DatasetRef::fix(store, &tenant, &name).await)
}
