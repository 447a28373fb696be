//! A registry over memory with keys, files and faults.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxFuture, BoxStream, CandidateFile, ChannelName, Clock, DatasetName, DatasetRef,
    Digest, Error, ErrorKind, FileName, Interval, Key, Lineage, ListOptions, ModelName, Monotonic, ObjectMeta,
    ReadOptions, Requirements, Result, SeededIds, Timestamp, TrainPlan, Verdict, VerdictRecord, memory::MemoryStore,
};
use hybrid_sync::registry::{
    Channel, Draft, FetchOptions, Fetched, FileSigner, Head, Namespace, PublishOptions, Published, Registry, Release,
    Trust,
};
use tempfile::TempDir;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn now() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

pub(crate) fn model() -> ModelName {
    ModelName::new("bakery").unwrap()
}

/// A store in memory, a registry over it, keys, and a folder for files and caches.
pub(crate) struct Site {
    pub(crate) store: MemoryStore,
    pub(crate) registry: Registry,
    pub(crate) builder: FileSigner,
    pub(crate) release: FileSigner,
    pub(crate) folder: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = MemoryStore::default();
        Self {
            registry: Registry::new(Arc::new(store.clone()), Namespace::root())
                .with_ids(Arc::new(SeededIds::default())),
            builder: FileSigner::generate(&folder.path().join("builder.pem")).unwrap(),
            release: FileSigner::generate(&folder.path().join("release.pem")).unwrap(),
            store,
            folder,
        }
    }

    /// The same keys and folder over an empty store.
    pub(crate) fn emptied(self) -> Self {
        let store = MemoryStore::default();
        Self { registry: Registry::new(Arc::new(store.clone()), Namespace::root()), store, ..self }
    }

    pub(crate) fn over(&self, store: Arc<dyn ArtifactStore>) -> Registry {
        Registry::new(store, Namespace::root()).with_clock(Arc::new(NoWait))
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust { builders: vec![self.builder.public_key().clone()], releases: vec![self.release.public_key().clone()] }
    }

    pub(crate) fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes files and drafts a version of them.
    pub(crate) fn draft(&self, version: u64, files: &[(&str, Vec<u8>)]) -> Draft {
        let files = files
            .iter()
            .map(|(name, bytes)| {
                let path = self.folder.path().join(format!("files-{version}")).join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, bytes).unwrap();
                CandidateFile { name: FileName::new(*name).unwrap(), path }
            })
            .collect();
        let dataset = DatasetRef { name: DatasetName::new("judgments").unwrap(), segments: Vec::new() };
        let lineage = Lineage {
            dataset: dataset.digest(),
            plan: TrainPlan {
                model: model(),
                method: "test".to_owned(),
                base: None,
                dataset,
                hyperparameters: BTreeMap::new(),
                seed: 1,
            },
            examples: 0,
            trainer: "test".to_owned(),
            device: "cpu".to_owned(),
        };
        let interval = Interval { value: 0.9, low: 0.8, high: 1.0 };
        let verdict = VerdictRecord {
            verdict: Verdict::Promote,
            golden: Digest::of(b"golden"),
            cases: 10,
            incumbent: None,
            metric: "accuracy".to_owned(),
            candidate: interval,
            baseline: None,
            fixes: 0,
            regressions: 0,
            p: None,
            ece: None,
        };
        Draft {
            model: model(),
            version,
            task: "classify".to_owned(),
            architecture: "test/1".to_owned(),
            files,
            requirements: Requirements::default(),
            lineage,
            verdict,
            metadata: BTreeMap::new(),
            base: None,
        }
    }

    pub(crate) async fn publish(&self, draft: Draft) -> Result<Published> {
        let id = format!("job-{}", draft.version);
        self.registry.publish(draft, &self.builder, PublishOptions::new(id, now())).await
    }

    /// Publishes a small version with one file and puts it in service.
    pub(crate) async fn release(&self, version: u64, incumbent: Option<Digest>) -> Digest {
        let files = [("label.txt", format!("label-{version}").into_bytes())];
        let published = self.publish(self.draft(version, &files)).await.unwrap();
        self.append(published.manifest, incumbent).await.unwrap();
        published.manifest
    }

    pub(crate) fn channel(&self) -> Channel {
        self.registry.channel(&model(), &ChannelName::stable())
    }

    pub(crate) async fn append(&self, manifest: Digest, incumbent: Option<Digest>) -> Result<Head> {
        let release =
            Release { manifest, incumbent, why: "test".to_owned(), nonce: format!("nonce-{manifest}-{incumbent:?}") };
        self.channel().append(release, &self.release, now(), 90 * DAY).await
    }

    pub(crate) async fn fetch(&self, manifest: Digest, cache: &str) -> Result<Fetched> {
        self.registry.fetch(manifest, &self.trust(), &self.cache(cache), FetchOptions::default()).await
    }

    pub(crate) async fn keys(&self) -> Vec<Key> {
        self.store.list_all("").await.unwrap().into_iter().map(|meta| meta.key).collect()
    }
}

/// A clock on which every wait is over at once.
#[derive(Debug)]
struct NoWait;

impl Clock for NoWait {
    fn now(&self) -> Timestamp {
        now()
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::default()
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Bytes without structure, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.by_ref().take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// A Safetensors file of so many chunks of 200,000 bytes.
pub(crate) fn chunks(count: u64, seed: u64) -> Vec<u8> {
    tensors(&(0..count).map(|i| (format!("t{i:02}"), noise(200_000, seed + i))).collect::<Vec<_>>())
}

/// A Safetensors file.
pub(crate) fn tensors(tensors: &[(String, Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![data.len()], data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// What goes wrong at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies before the operation: it and all later ones do nothing.
    DiesBefore,
    /// The process dies after the operation took effect, before it is answered.
    DiesAfter,
    /// A temporary error, and nothing happened.
    FailsOnce,
    /// A temporary error, and yet it happened.
    LandsUnheard,
    /// It happened, and is answered with `AlreadyExists`.
    LandsAsConflict,
    /// Nothing happened, and it is answered with `AlreadyExists`.
    FalseConflict,
    /// The same, from this operation on for ever.
    FalseConflicts,
}

/// A store whose operation number `at`, from 1, goes wrong.
#[derive(Debug)]
pub(crate) struct FailingStore {
    inner: Arc<dyn ArtifactStore>,
    at: usize,
    fault: Fault,
    operations: AtomicUsize,
}

impl FailingStore {
    pub(crate) fn new(inner: impl ArtifactStore, at: usize, fault: Fault) -> Arc<Self> {
        Arc::new(Self { inner: Arc::new(inner), at, fault, operations: AtomicUsize::new(0) })
    }

    /// A store that only counts.
    pub(crate) fn counting(inner: impl ArtifactStore) -> Arc<Self> {
        Self::new(inner, usize::MAX, Fault::FailsOnce)
    }

    /// A store that cannot be reached.
    pub(crate) fn away() -> Arc<Self> {
        Self::new(MemoryStore::default(), 1, Fault::DiesBefore)
    }

    pub(crate) fn operations(&self) -> usize {
        self.operations.load(Ordering::SeqCst)
    }

    async fn perform<R>(&self, is_create: bool, operation: impl Future<Output = Result<R>>) -> Result<R> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let died = || Error::new(ErrorKind::Internal, "test", "the process has died");
        let away = || Error::unavailable("test", "a 500 or a time-out");
        let conflict = || Error::already_exists("test", "a 409");
        match self.fault {
            Fault::DiesBefore if number >= self.at => Err(died()),
            Fault::DiesAfter if number > self.at => Err(died()),
            Fault::DiesAfter if number == self.at => operation.await.and(Err(died())),
            Fault::FailsOnce if number == self.at => Err(away()),
            Fault::LandsUnheard if number == self.at => operation.await.and(Err(away())),
            Fault::LandsAsConflict if number == self.at && is_create => operation.await.and(Err(conflict())),
            Fault::FalseConflict if number == self.at && is_create => Err(conflict()),
            Fault::FalseConflicts if number >= self.at && is_create => Err(conflict()),
            _ => operation.await,
        }
    }
}

#[async_trait]
impl ArtifactStore for FailingStore {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.perform(true, self.inner.create(key, bytes)).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.perform(false, self.inner.read(key, options)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.perform(false, self.inner.head(key)).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = self.inner.list(prefix, options);
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let dead = match self.fault {
            Fault::DiesBefore | Fault::DiesAfter => number >= self.at,
            _ => false,
        };
        if dead {
            stream::iter([Err(Error::new(ErrorKind::Internal, "test", "the process has died"))]).boxed()
        } else {
            listing
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.perform(false, self.inner.delete(key)).await
    }
}
