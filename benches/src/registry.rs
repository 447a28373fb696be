//! Versions to publish and fetch, and what the machine needs at least to move a file safely.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hybrid_core::{
    ArtifactStore, CandidateFile, Clock, DatasetName, DatasetRef, Digest, FileName, Hasher, Interval, Lineage,
    ModelName, Requirements, SystemClock, Task, TrainPlan, Verdict, VerdictRecord, task::Classify,
};
use hybrid_sync::registry::{
    Draft, FetchOptions, Fetched, FileSigner, Namespace, PublishOptions, Published, Registry, Trust,
};
use safetensors::tensor::{Dtype, TensorView};

use crate::{must, noise, timed};

/// The tensors of the model file.
pub const TENSORS: u64 = 100;
/// How many of them another version changes.
pub const CHANGED: u64 = 5;
/// Bytes of a tensor of the large model, 128 MiB in all.
pub const TENSOR_BYTES: usize = (128 << 20) / TENSORS as usize / 4 * 4;

/// A registry over a store, with keys and a folder for files and caches.
#[derive(Debug)]
pub struct Site {
    /// The registry.
    pub registry: Registry,
    /// Signs versions.
    pub builder: FileSigner,
    /// Signs statements.
    pub release: FileSigner,
    /// Where files and caches go.
    pub folder: PathBuf,
}

impl Site {
    /// With new keys, over `store`.
    pub fn new(store: Arc<dyn ArtifactStore>, folder: &Path) -> Self {
        Self {
            registry: Registry::new(store, Namespace::root()),
            builder: must(FileSigner::generate(&folder.join("builder.pem"))),
            release: must(FileSigner::generate(&folder.join("release.pem"))),
            folder: folder.to_owned(),
        }
    }

    /// The keys to trust.
    pub fn trust(&self) -> Trust {
        Trust { builders: vec![self.builder.public_key().clone()], releases: vec![self.release.public_key().clone()] }
    }

    /// Publishes one file as a version.
    pub async fn publish(&self, version: u64, file: CandidateFile, base: Option<Digest>) -> Published {
        let options = PublishOptions::new(format!("bench-{version}"), SystemClock.now());
        must(self.registry.publish(draft(version, file, base), &self.builder, options).await)
    }

    /// Fetches a version into the site's cache.
    pub async fn fetch(&self, manifest: Digest) -> Fetched {
        must(self.registry.fetch(manifest, &self.trust(), &self.cache(), FetchOptions::default()).await)
    }

    /// The cache.
    pub fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }
}

/// The model's name.
pub fn model() -> ModelName {
    must(ModelName::new("bench"))
}

/// Writes a Safetensors file of [`TENSORS`] tensors in which the first `changed` differ from those of the file with none changed.
pub fn write_model(path: &Path, tensor_bytes: usize, changed: u64) -> CandidateFile {
    let tensors: Vec<_> = (0..TENSORS)
        .map(|i| (format!("layer.{i:03}.weight"), noise(tensor_bytes, i + if i < changed { TENSORS } else { 0 })))
        .collect();
    let views =
        tensors.iter().map(|(name, bytes)| (name, must(TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes))));
    must(safetensors::serialize_to_file(views, None, path));
    // What is measured later does not wait for this file to reach the disk.
    must(File::open(path).and_then(|file| file.sync_all()));
    CandidateFile { name: must(FileName::new("model.safetensors")), path: path.to_owned() }
}

/// The least that a machine does to move a file safely: SHA-256 of it, and a copy that is on the disk.
pub fn bound(from: &Path, to: &Path) -> Duration {
    let (elapsed, ()) = timed(|| {
        let (mut file, mut hasher, mut buffer) = (must(File::open(from)), Hasher::new(), vec![0; 1 << 20]);
        loop {
            match must(file.read(&mut buffer)) {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        std::hint::black_box(hasher.finish());
        must(fs::copy(from, to));
        must(File::open(to).and_then(|file| file.sync_all()));
    });
    elapsed
}

fn draft(version: u64, file: CandidateFile, base: Option<Digest>) -> Draft {
    let dataset = DatasetRef { name: must(DatasetName::new("judgments")), segments: Vec::new() };
    let plan = TrainPlan {
        model: model(),
        method: "none".to_owned(),
        base: None,
        dataset: dataset.clone(),
        hyperparameters: BTreeMap::new(),
        seed: 0,
    };
    Draft {
        model: model(),
        version,
        task: Classify::NAME.to_owned(),
        architecture: "linear/1".to_owned(),
        files: vec![file],
        requirements: Requirements::default(),
        lineage: lineage(plan),
        verdict: verdict(),
        metadata: BTreeMap::new(),
        base,
    }
}

/// The lineage of a version that `plan` made.
pub fn lineage(plan: TrainPlan) -> Lineage {
    Lineage {
        dataset: plan.dataset.digest(),
        plan,
        examples: 0,
        trainer: "benches".to_owned(),
        device: "cpu".to_owned(),
    }
}

/// A verdict without which nothing is published.
pub fn verdict() -> VerdictRecord {
    VerdictRecord {
        verdict: Verdict::Promote,
        golden: Digest::of(b"golden"),
        cases: 1,
        incumbent: None,
        metric: "accuracy".to_owned(),
        candidate: Interval { value: 1.0, low: 0.5, high: 1.0 },
        baseline: None,
        fixes: 0,
        regressions: 0,
        p: None,
        ece: None,
    }
}
