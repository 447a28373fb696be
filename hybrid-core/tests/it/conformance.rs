//! The adapters of this crate pass the suites. The same harnesses put a fault before an adapter; see `broken`.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, BackendProfile, Clock, Currency, DeadLetters, InferenceBackend, JobQueue, Key, Limits, Locality,
    ManualClock, Money, Outbox, Price, RecordStore, Result, ServedModel, Timestamp, TrainPlan, Trainer, VectorIndex,
    VectorSchema,
    conformance::{
        Outcome, Report,
        artifacts::{self, ArtifactHarness},
        inference::{self, InferenceHarness},
        outbox::{self, OutboxHarness},
        queue::{self, QueueHarness, QueueUnderTest},
        records::{self, RecordHarness},
        trainer::{self, TrainerHarness},
        vectors::{self, VectorHarness},
    },
    memory::{
        MemoryOutbox, MemoryQueue, MemoryQueueOptions, MemoryRecordStore, MemoryStore, MemoryVectorIndex,
        ScriptedBackend,
    },
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    broken::{
        BackendFault, BrokenBackend, BrokenDeadLetters, BrokenOutbox, BrokenQueue, BrokenRecordStore, BrokenStore,
        BrokenVectorIndex, OutboxFault, QueueFault, RecordFault, StoreFault, VectorFault,
    },
    toy::{self, Toy},
};

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let report = artifacts::run(&Stores::default()).await;
    report.assert();
    assert_eq!(skipped(&report), [""; 0]);
}

#[tokio::test]
async fn the_memory_queue_keeps_the_contract() {
    let report = queue::run(&Queues::default()).await;
    report.assert();
    assert!(skipped(&report).iter().all(|case| case.starts_with("ordered_")), "{report}");

    let report = queue::run(&Queues { ordered: true, ..Queues::default() }).await;
    report.assert();
    assert_eq!(skipped(&report), [""; 0]);
}

#[tokio::test]
async fn the_scripted_backend_keeps_the_contract() {
    let region = || "eu-central-1".to_owned();
    let places = [
        Locality::Device,
        Locality::Site,
        Locality::Region(region()),
        Locality::Regions(vec![region(), "eu-west-1".to_owned()]),
        Locality::Regions(vec![]),
    ];
    for locality in places {
        inference::run(&Backends::new(locality, None)).await.assert();
    }
}

#[tokio::test]
async fn the_memory_outbox_keeps_the_contract() {
    let report = outbox::run(&Outboxes::default()).await;
    report.assert();
    assert_eq!(skipped(&report), ["a_restart_keeps_records_and_numbers"]);
}

#[tokio::test]
async fn a_small_trainer_keeps_the_contract() {
    let report = trainer::run(&Trainers::new(Toy::default())).await;
    report.assert();
    assert_eq!(skipped(&report), [""; 0]);
}

#[tokio::test]
async fn the_memory_vector_index_keeps_the_contract() {
    let report = vectors::run(&VectorIndexes::default()).await;
    report.assert();
    assert_eq!(skipped(&report), ["a_restart_keeps_records"]);
}

#[tokio::test]
async fn the_memory_record_store_keeps_the_contract() {
    let report = records::run(&RecordStores::default()).await;
    report.assert();
    assert_eq!(skipped(&report), ["a_restart_keeps_records", "nothing_is_left_of_an_erased_tenant"]);
}

fn skipped(report: &Report) -> Vec<&'static str> {
    report.cases().iter().filter(|case| matches!(case.outcome, Outcome::Skipped(_))).map(|case| case.name).collect()
}

#[derive(Debug, Default)]
pub(crate) struct Stores {
    pub(crate) fault: Option<StoreFault>,
    memory: MemoryStore,
}

impl Stores {
    pub(crate) fn broken(fault: StoreFault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }
}

#[async_trait]
impl ArtifactHarness for Stores {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        let memory = self.memory.clone();
        match self.fault {
            None => Arc::new(memory),
            Some(fault) => Arc::new(BrokenStore { memory, fault }),
        }
    }

    async fn corrupt(&self, key: &Key) -> bool {
        self.memory.corrupt(key, "rotten".into());
        true
    }
}

/// Queues on one clock.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) fault: Option<QueueFault>,
    pub(crate) ordered: bool,
    clock: ManualClock,
}

impl Queues {
    pub(crate) fn broken(fault: QueueFault) -> Self {
        Self { fault: Some(fault), ordered: true, ..Self::default() }
    }
}

#[async_trait]
impl QueueHarness for Queues {
    async fn queue(&self, max_deliveries: u32) -> Result<QueueUnderTest> {
        let options = match self.fault {
            Some(QueueFault::NeverDies) => MemoryQueueOptions { max_deliveries: 1_000, ordered: self.ordered },
            Some(QueueFault::IgnoresOrder) => MemoryQueueOptions { max_deliveries, ordered: false },
            _ => MemoryQueueOptions { max_deliveries, ordered: self.ordered },
        };
        let memory = MemoryQueue::new(options, Arc::new(self.clock.clone()));
        let (queue, dead_letters): (Arc<dyn JobQueue>, Arc<dyn DeadLetters>) = match self.fault {
            None => (Arc::new(memory.clone()), Arc::new(memory)),
            Some(fault) => {
                let dead_letters = BrokenDeadLetters { memory: memory.clone(), fault };
                (Arc::new(BrokenQueue::new(memory, fault, self.clock.clone())), Arc::new(dead_letters))
            }
        };
        Ok(QueueUnderTest { queue, dead_letters: Some(dead_letters) })
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

/// A classifier that says `order` to everything, for a price.
#[derive(Debug)]
pub(crate) struct Backends {
    locality: Locality,
    fault: Option<BackendFault>,
    made: Mutex<Vec<Arc<ScriptedBackend<Classify>>>>,
}

impl Backends {
    pub(crate) fn new(locality: Locality, fault: Option<BackendFault>) -> Self {
        Self { locality, fault, made: Mutex::default() }
    }
}

#[async_trait]
impl InferenceHarness<Classify> for Backends {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let price = Price {
            input: Money::new(Currency::EUR, "0.2")?,
            output: Money::new(Currency::EUR, "0.8")?,
            cache_read: None,
            cache_write: None,
            audio_second: None,
            image: None,
        };
        let profile = BackendProfile {
            name: "scripted".to_owned(),
            model: ServedModel::named("orders"),
            locality: self.locality.clone(),
            limits: Limits::default(),
            price: Some(price),
        };
        let scores = vec![LabelScore::new("order", 0.75), LabelScore::new("complaint", 0.25)];
        let response = ClassifyResponse { results: vec![Classification::ranked(scores, None)?] };
        let scripted = Arc::new(ScriptedBackend::with_profile(profile, std::iter::repeat_n(response, 200).map(Ok)));
        self.made.lock().unwrap().push(Arc::clone(&scripted));
        Ok(match self.fault {
            None => scripted,
            Some(fault) => Arc::new(BrokenBackend::new(scripted, fault)),
        })
    }

    fn requests(&self) -> Vec<ClassifyRequest> {
        vec![ClassifyRequest::one("Two rye loaves for Saturday, please"), ClassifyRequest::one("Das Brot war hart")]
    }

    fn invalid(&self) -> ClassifyRequest {
        ClassifyRequest::default()
    }

    fn reached(&self) -> Option<u64> {
        Some(self.made.lock().unwrap().iter().map(|scripted| scripted.asked().len() as u64).sum())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outboxes {
    pub(crate) fault: Option<OutboxFault>,
}

#[async_trait]
impl OutboxHarness for Outboxes {
    async fn outbox(&self) -> Result<Arc<dyn Outbox>> {
        Ok(match self.fault {
            None => Arc::new(MemoryOutbox::default()),
            Some(fault) => Arc::new(BrokenOutbox::new(fault)),
        })
    }

    async fn restart(&self, _outbox: Arc<dyn Outbox>) -> Result<Option<Arc<dyn Outbox>>> {
        match self.fault {
            None => Ok(None),
            // What is in memory is gone.
            Some(_) => self.outbox().await.map(Some),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct VectorIndexes {
    pub(crate) fault: Option<VectorFault>,
}

#[async_trait]
impl VectorHarness for VectorIndexes {
    async fn index(&self, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
        let memory = MemoryVectorIndex::new(schema);
        Ok(match self.fault {
            None => Arc::new(memory),
            Some(fault) => BrokenVectorIndex::new(memory, fault),
        })
    }

    async fn restart(&self, index: Arc<dyn VectorIndex>) -> Result<Option<Arc<dyn VectorIndex>>> {
        match self.fault {
            None => Ok(None),
            // What is in memory is gone.
            Some(VectorFault::ForgetsOnRestart) => self.index(index.profile().schema.clone()).await.map(Some),
            Some(_) => Ok(Some(index)),
        }
    }
}

/// Record stores on one clock.
#[derive(Debug, Default)]
pub(crate) struct RecordStores {
    fault: Option<RecordFault>,
    clock: ManualClock,
    broken: Mutex<Option<Arc<BrokenRecordStore>>>,
}

impl RecordStores {
    pub(crate) fn broken(fault: RecordFault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }
}

#[async_trait]
impl RecordHarness for RecordStores {
    async fn store(&self) -> Result<Arc<dyn RecordStore>> {
        Ok(match self.fault {
            None => Arc::new(MemoryRecordStore::new(Arc::new(self.clock.clone()))),
            Some(fault) => {
                let broken = Arc::new(BrokenRecordStore::new(self.clock.clone(), fault));
                *self.broken.lock().unwrap() = Some(Arc::clone(&broken));
                broken
            }
        })
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn restart(&self, store: Arc<dyn RecordStore>) -> Result<Option<Arc<dyn RecordStore>>> {
        match self.fault {
            None => Ok(None),
            // What is in memory is gone.
            Some(RecordFault::ForgetsOnRestart) => self.store().await.map(Some),
            Some(_) => Ok(Some(store)),
        }
    }

    async fn holds(&self, bytes: &[u8]) -> Option<bool> {
        let broken = self.broken.lock().unwrap();
        let disk = broken.as_ref()?.disk.lock().unwrap();
        let text = |((tenant, _, key), value): (&(_, _, _), &bytes::Bytes)| {
            let (tenant, key): (&hybrid_core::TenantId, &hybrid_core::RecordKey) = (tenant, key);
            [tenant.as_str().as_bytes(), key.as_str().as_bytes(), value].join(&b' ')
        };
        Some(disk.iter().map(text).any(|row| row.windows(bytes.len()).any(|window| window == bytes)))
    }
}

#[derive(Debug)]
pub(crate) struct Trainers {
    toy: Toy,
    folder: TempDir,
    folders: std::sync::atomic::AtomicU32,
}

impl Trainers {
    pub(crate) fn new(toy: Toy) -> Self {
        Self { toy, folder: tempfile::tempdir().unwrap(), folders: 0.into() }
    }
}

#[async_trait]
impl TrainerHarness for Trainers {
    fn trainer(&self) -> Arc<dyn Trainer> {
        Arc::new(self.toy.clone())
    }

    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan> {
        toy::plan(store).await
    }

    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan> {
        let mut no_steps = valid.clone();
        no_steps.hyperparameters.insert("steps".to_owned(), json!(0));
        vec![no_steps]
    }

    fn folder(&self) -> PathBuf {
        let number = self.folders.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = self.folder.path().join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        folder
    }
}
