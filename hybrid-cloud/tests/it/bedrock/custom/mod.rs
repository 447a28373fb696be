//! Models of one's own: trained by Bedrock, or imported into it. The scripted server is Bedrock, an emulator is S3.

mod contract;
mod faults;
mod import;
mod refusals;
mod trainer;
mod wire;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_cloud::{
    bedrock::custom::{BedrockTrainer, BedrockTrainerOptions, ModelImport, ModelImportOptions},
    testkit::bedrock::{BedrockServer, ControlPlane, Reply, Request},
};
use hybrid_core::{
    ArtifactStore, BaseModel, BoxStream, Cancellation, DatasetRef, Digest, Document, FileName, Judgment, JudgmentId,
    Key, NoProgress, Progress, Result, SeededIds, Segment, SegmentRef, StagedFile, Staging, Task, Timestamp, TrainPlan,
    TrainRun,
    memory::MemoryStore,
    task::{Chat, ChatRequest},
};
use serde_json::json;

use super::rig::{self, Hasty};
use crate::s3::Server;

pub(super) const ROLE: &str = "arn:aws:iam::123456789012:role/bedrock-reads-bakery";
pub(super) const NOVA_MICRO: &str = "amazon.nova-micro-v1:0:128k";

/// Bedrock with a bucket, and what a run needs.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) server: BedrockServer,
    pub(super) control: ControlPlane,
    pub(super) staging: Arc<Watched>,
    pub(super) store: MemoryStore,
    pub(super) scratch: tempfile::TempDir,
    pub(super) clock: Hasty,
}

impl Bench {
    pub(super) async fn open() -> Self {
        let s3 = Server::Ministack;
        let staging = s3.store(&s3.bucket().await).await.staging();
        let bench = Self {
            server: BedrockServer::start().unwrap(),
            control: ControlPlane::default(),
            staging: Arc::new(Watched { inner: Arc::new(staging), location: None, puts: Mutex::default() }),
            store: MemoryStore::default(),
            scratch: tempfile::tempdir().unwrap(),
            clock: Hasty::default(),
        };
        bench.faults(|_| None);
        bench
    }

    /// Says what goes wrong with a request, once it was answered; what it does not name goes right.
    pub(super) fn faults(&self, mut fault: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        let control = self.control.clone();
        self.server.otherwise(move |request| match fault(request) {
            None => control.answer(request),
            Some(Fault::Before(reply)) => *reply,
            Some(Fault::LoseAnswer) => {
                control.answer(request).with_fault(hybrid_cloud::testkit::bedrock::Fault::CutAt(0))
            }
        });
    }

    pub(super) fn trainer(&self) -> BedrockTrainer {
        self.trainer_with(|_| {})
    }

    pub(super) fn trainer_with(&self, change: impl FnOnce(&mut BedrockTrainerOptions)) -> BedrockTrainer {
        let mut options = BedrockTrainerOptions::new(ROLE, key("bedrock/training"));
        options.ids = Arc::new(SeededIds::default());
        change(&mut options);
        BedrockTrainer::new(&rig::config(self.server.url()), Arc::clone(&self.staging) as _, options).unwrap()
    }

    pub(super) fn import(&self) -> ModelImport {
        let mut options = ModelImportOptions::new(ROLE, key("bedrock/import"));
        options.ids = Arc::new(SeededIds::default());
        ModelImport::new(&rig::config(self.server.url()), Arc::clone(&self.staging) as _, options).unwrap()
    }

    pub(super) async fn plan(&self, judgments: usize) -> TrainPlan {
        plan(&self.store, judgments).await
    }

    pub(super) fn run(&self) -> TrainRun {
        self.run_with(Arc::new(NoProgress), Cancellation::new())
    }

    pub(super) fn run_with(&self, progress: Arc<dyn Progress>, cancel: Cancellation) -> TrainRun {
        TrainRun {
            store: Arc::new(self.store.clone()),
            scratch: self.scratch.path().to_owned(),
            progress,
            cancel,
            clock: Arc::new(self.clock.clone()),
        }
    }

    /// The body of the first request to this path.
    pub(super) fn asked(&self, path: &str) -> serde_json::Value {
        let requests = self.server.requests();
        requests.iter().find(|request| request.method == "POST" && request.path == path).unwrap().body.clone()
    }

    pub(super) fn count(&self, method: &str, path: &str) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|request| request.method == method && request.path.starts_with(path)).count()
    }
}

/// What goes wrong with a request.
pub(super) enum Fault {
    /// This is answered, and nothing is done.
    Before(Box<Reply>),
    /// It is done, and nobody is told.
    LoseAnswer,
}

impl Fault {
    pub(super) fn before(reply: Reply) -> Self {
        Self::Before(Box::new(reply))
    }
}

pub(super) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// A plan on so many conversations, in two segments.
pub(super) async fn plan(store: &dyn ArtifactStore, judgments: usize) -> TrainPlan {
    let ids = SeededIds::default();
    let all: Vec<_> = (0..judgments)
        .map(|i| {
            Judgment::new(
                JudgmentId::next(&ids),
                Chat::NAME,
                serde_json::to_value(ChatRequest::user(format!("Question {i}, süß?")).with_system("Sell.")).unwrap(),
                json!({"answers": [format!("Answer {i}")]}),
                Timestamp::UNIX_EPOCH,
            )
        })
        .collect();
    let mut segments = Vec::new();
    for (i, judgments) in all.chunks(all.len().div_ceil(2).max(1)).enumerate() {
        let bytes = Segment { judgments: judgments.to_vec() }.encode().unwrap();
        let key = key(&format!("t/default/datasets/chats/2026-11-21/w/{i:020}"));
        segments.push(SegmentRef { key: key.clone(), digest: Digest::of(&bytes) });
        store.create(&key, bytes).await.unwrap();
    }
    TrainPlan {
        model: "bakery".parse().unwrap(),
        method: "bedrock-fine-tuning".to_owned(),
        base: Some(BaseModel::Provider(NOVA_MICRO.to_owned())),
        dataset: DatasetRef { name: "chats".parse().unwrap(), segments },
        hyperparameters: [("epochs".to_owned(), json!(3))].into(),
        seed: 1,
    }
}

/// A staging place that tells what was put in it.
#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<dyn Staging>,
    pub(super) location: Option<String>,
    puts: Mutex<Vec<String>>,
}

impl Watched {
    pub(super) fn at(inner: Arc<dyn Staging>, location: &str) -> Self {
        Self { inner, location: Some(location.to_owned()), puts: Mutex::default() }
    }

    pub(super) fn take_puts(&self) -> Vec<String> {
        std::mem::take(&mut *self.puts.lock().unwrap())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Staging for Watched {
    async fn put_file(&self, folder: &Key, name: &FileName, source: &Path) -> Result<()> {
        self.puts.lock().unwrap().push(name.to_string());
        self.inner.put_file(folder, name, source).await
    }

    async fn read_file(&self, folder: &Key, name: &FileName) -> Result<Bytes> {
        self.inner.read_file(folder, name).await
    }

    fn list(&self, folder: &Key) -> BoxStream<'static, Result<StagedFile>> {
        self.inner.list(folder)
    }

    async fn delete(&self, folder: &Key, name: &FileName) -> Result<()> {
        self.inner.delete(folder, name).await
    }

    fn location(&self, folder: &Key) -> String {
        self.location.clone().unwrap_or_else(|| self.inner.location(folder))
    }
}
