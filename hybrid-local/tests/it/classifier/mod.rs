//! The text classifier: trained, written, loaded, asked.

mod bakery;
pub(crate) mod bert;
mod contracts;
mod hashed;
#[cfg(feature = "decoder")]
mod heads;
mod refusals;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hybrid_core::{
    ArtifactStore, CallContext, Cancellation, Candidate, CandidateOutput, DatasetRef, Digest, Document,
    InferenceBackend, Judgment, JudgmentId, Lineage, Manifest, ModelLoader, NoProgress, RequestId, Result, SeededIds,
    Segment, SystemClock, TenantId, Timestamp, TrainPlan, TrainRun, Trainer, WriterId,
    memory::MemoryStore,
    segment_key,
    task::{Classification, Classify, ClassifyRequest},
};
use hybrid_local::{Device, TextClassifierLoader, TextClassifierTrainer};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Short messages of three kinds; each has words of its own and words that all share.
pub(crate) fn messages(count: usize) -> Vec<(String, &'static str)> {
    const KINDS: [(&str, [&str; 4], [&str; 4]); 3] = [
        (
            "order",
            ["I would like", "please reserve", "ich möchte", "can I get"],
            ["ten rolls", "a rye loaf", "zwölf Brötchen", "a cake"],
        ),
        (
            "complaint",
            ["I am upset:", "never again,", "leider war", "you burnt"],
            ["the rolls", "my loaf", "das Brötchen", "the cake"],
        ),
        (
            "hours",
            ["when do you open", "are you closed", "wann öffnet ihr", "is there parking"],
            ["today?", "on Sunday?", "morgen?", "at noon?"],
        ),
    ];
    (0..count)
        .map(|i| {
            let (label, starts, ends) = KINDS[i % 3];
            (format!("{} {} ({i})", starts[i / 3 % 4], ends[i / 12 % 4]), label)
        })
        .collect()
}

pub(crate) fn judgments(messages: &[(String, &str)]) -> Vec<Judgment> {
    let ids = SeededIds::default();
    let judgment = |(text, label): &(String, &str)| {
        judgment(JudgmentId::next(&ids), json!({ "text": text }), json!({ "label": label }))
    };
    messages.iter().map(judgment).collect()
}

pub(crate) fn judgment(id: JudgmentId, input: Value, decision: Value) -> Judgment {
    Judgment::new(id, "classify", input, decision, Timestamp::UNIX_EPOCH)
}

/// Writes a dataset of two segments and fixes it.
pub(crate) async fn dataset(store: &dyn ArtifactStore, judgments: Vec<Judgment>) -> Result<DatasetRef> {
    let (tenant, name, writer) = (TenantId::single(), "messages".parse()?, WriterId::new("test")?);
    let (first, second) = judgments.split_at(judgments.len() / 2);
    for (sequence, part) in [first, second].into_iter().enumerate() {
        let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &writer, sequence as u64)?;
        store.create(&key, Segment { judgments: part.to_vec() }.encode()?).await?;
    }
    DatasetRef::fix(store, &tenant, &name).await
}

pub(crate) fn plan(method: &str, dataset: DatasetRef, settings: Value) -> TrainPlan {
    TrainPlan {
        model: "messages".parse().unwrap(),
        method: method.to_owned(),
        base: None,
        dataset,
        hyperparameters: serde_json::from_value(settings).unwrap(),
        seed: 1,
    }
}

/// A place to train in, with a dataset.
pub(crate) struct Site {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) dataset: DatasetRef,
    pub(crate) folder: TempDir,
}

impl Site {
    pub(crate) async fn with(judgments: Vec<Judgment>) -> Self {
        let store = Arc::new(MemoryStore::default());
        let dataset = dataset(&*store, judgments).await.unwrap();
        Self { store, dataset, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn train(&self, plan: &TrainPlan) -> Result<Candidate> {
        TextClassifierTrainer::new(Device::cpu()).train(plan, &self.run()).await
    }

    pub(crate) fn run(&self) -> TrainRun {
        TrainRun {
            store: Arc::clone(&self.store) as Arc<dyn ArtifactStore>,
            scratch: self.folder.path().to_owned(),
            progress: Arc::new(NoProgress),
            cancel: Cancellation::new(),
            clock: Arc::new(SystemClock),
        }
    }

    pub(crate) async fn load(
        &self,
        plan: &TrainPlan,
        candidate: &Candidate,
    ) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let (manifest, digest) = manifest(plan, candidate);
        TextClassifierLoader::new(Device::cpu()).load(&manifest, digest, &self.files()).await
    }

    /// The folder of the candidate's files.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.path().join("candidate")
    }
}

/// What a publisher would write of a candidate, without chunks: the loader reads the folder.
pub(crate) fn manifest(plan: &TrainPlan, candidate: &Candidate) -> (Manifest, Digest) {
    let manifest = Manifest {
        model: plan.model.clone(),
        version: 1,
        task: candidate.task.clone(),
        architecture: candidate.architecture.clone(),
        created: Timestamp::UNIX_EPOCH,
        files: vec![],
        requirements: candidate.requirements.clone(),
        lineage: Lineage {
            plan: plan.clone(),
            dataset: plan.dataset.digest(),
            examples: candidate.examples,
            trainer: "test".to_owned(),
            device: candidate.device.clone(),
        },
        verdict: None,
        metadata: Default::default(),
    };
    let digest = Digest::of(&manifest.encode().unwrap());
    (manifest, digest)
}

pub(crate) fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

pub(crate) async fn ask(backend: &dyn InferenceBackend<Classify>, texts: &[&str]) -> Vec<Classification> {
    backend.infer(&context(), ClassifyRequest::many(texts.iter().copied())).await.unwrap().response.results
}

/// The scores of a result by label, to compare two that may rank equal ones differently.
pub(crate) fn by_label(result: &Classification) -> Vec<(String, f32)> {
    let mut scores: Vec<_> = result.scores.iter().map(|score| (score.label.clone(), score.score)).collect();
    scores.sort_by(|a, b| a.0.cmp(&b.0));
    scores
}

pub(crate) fn assert_same_scores(ours: &Classification, theirs: &Classification, tolerance: f32) {
    for ((label, a), (other, b)) in by_label(ours).into_iter().zip(by_label(theirs)) {
        assert_eq!(label, other);
        assert!((a - b).abs() <= tolerance, "{label}: {a} and {b}");
    }
}

/// Names and bytes of a candidate's files.
pub(crate) fn contents(candidate: &Candidate) -> Vec<(String, Vec<u8>)> {
    let CandidateOutput::Files(files) = &candidate.output else { panic!("no files") };
    files.iter().map(|file| (file.name.to_string(), std::fs::read(&file.path).unwrap())).collect()
}

/// New folders below one that is removed in the end.
#[derive(Debug)]
pub(crate) struct Folders(TempDir, AtomicUsize);

impl Folders {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), AtomicUsize::new(0))
    }

    pub(crate) fn next(&self) -> PathBuf {
        let folder = self.path().join(self.1.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}
