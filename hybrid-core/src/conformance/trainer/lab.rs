//! The surroundings of a run: a store that records what is asked of it, scratch folders, and progress that can raise a cancellation.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{Either, select};

use super::TrainerHarness;
use crate::{
    ArtifactStore, BoxStream, Cancellation, Candidate, CandidateFile, CandidateOutput, Clock, Error, ErrorKind,
    FileName, Key, ListOptions, ObjectMeta, Progress, ProgressEvent, ReadOptions, Result, SystemClock, TrainPlan,
    TrainRun, Trainer,
    conformance::case::{CaseResult, Stop, fail, skip},
    memory::MemoryStore,
};

/// How long a run may go on after it was cancelled, in real time.
const SOON: Duration = Duration::from_secs(30);

pub(super) struct Lab<'a> {
    pub(super) harness: &'a dyn TrainerHarness,
    pub(super) trainer: Arc<dyn Trainer>,
    pub(super) store: MemoryStore,
    pub(super) plan: TrainPlan,
}

/// When a run is to be cancelled.
#[derive(Clone, Debug)]
pub(super) enum Cancel {
    Never,
    Before,
    /// From within the report of the first event of this stage with at least so many units done.
    At {
        stage: String,
        done: u64,
    },
}

/// One run, after it has ended.
pub(super) struct Run {
    pub(super) outcome: Result<Candidate>,
    pub(super) events: Vec<ProgressEvent>,
    /// What the run asked of the store.
    pub(super) asked: Asked,
}

impl<'a> Lab<'a> {
    pub(super) async fn open(harness: &'a dyn TrainerHarness) -> CaseResult<Self> {
        let store = MemoryStore::default();
        let plan = harness.plan(&store).await?;
        ensure!(!plan.dataset.segments.is_empty(), "the harness's plan has a dataset without segments");
        Ok(Self { harness, trainer: harness.trainer(), store, plan })
    }

    /// A new scratch folder, alone in a folder of its own, so that what is written beside it is noticed.
    pub(super) fn scratch(&self) -> CaseResult<PathBuf> {
        let scratch = self.harness.folder().join("scratch");
        fs::create_dir(&scratch).map_err(|error| file_error("create scratch folder", &scratch, error))?;
        Ok(scratch)
    }

    pub(super) async fn run(&self, plan: &TrainPlan, scratch: &Path, cancel: Cancel) -> CaseResult<Run> {
        let store = Recorder { inner: self.store.clone(), asked: Arc::default() };
        let cancellation = Cancellation::new();
        if matches!(cancel, Cancel::Before) {
            cancellation.cancel();
        }
        let sink = Arc::new(Sink { cancel, cancellation: cancellation.clone(), events: Mutex::default() });
        let run = TrainRun {
            store: Arc::new(store.clone()),
            scratch: scratch.to_owned(),
            progress: Arc::clone(&sink) as Arc<dyn Progress>,
            cancel: cancellation.clone(),
            clock: Arc::new(SystemClock),
        };
        let overdue = Box::pin(async {
            cancellation.cancelled().await;
            SystemClock.sleep(SOON).await;
        });
        let outcome = match select(self.trainer.train(plan, &run), overdue).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => return fail(format!("the run still went on {SOON:?} after it was cancelled")),
        };
        let asked = store.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let events = sink.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Run { outcome, events, asked })
    }

    /// A run that nobody disturbs.
    pub(super) async fn train(&self, plan: &TrainPlan, scratch: &Path) -> CaseResult<(Candidate, Vec<ProgressEvent>)> {
        let Run { outcome, events, .. } = self.run(plan, scratch, Cancel::Never).await?;
        Ok((outcome?, events))
    }

    /// A run in a scratch folder of its own, and the files it made.
    pub(super) async fn train_afresh(&self, plan: &TrainPlan) -> CaseResult<(Files, Vec<ProgressEvent>)> {
        let scratch = self.scratch()?;
        let (candidate, events) = self.train(plan, &scratch).await?;
        Ok((Files::of(&candidate, &scratch)?, events))
    }

    pub(super) fn check_resumable(&self) -> CaseResult {
        let profile = self.trainer.profile();
        if profile.resumable { Ok(()) } else { skip("the trainer does not declare that it resumes") }
    }

    pub(super) fn check_reproducible(&self) -> CaseResult {
        let profile = self.trainer.profile();
        if profile.reproducible { Ok(()) } else { skip("the trainer does not declare that it reproduces") }
    }
}

/// A candidate's files: where each lies below the scratch folder, and its bytes.
#[derive(PartialEq)]
pub(super) struct Files(pub(super) BTreeMap<FileName, (PathBuf, Vec<u8>)>);

impl Files {
    pub(super) fn of(candidate: &Candidate, scratch: &Path) -> CaseResult<Self> {
        let CandidateOutput::Files(files) = &candidate.output else {
            return skip("the candidate is hosted elsewhere and has no files");
        };
        ensure!(!files.is_empty(), "the candidate has no files");
        FileName::check_together(files.iter().map(|file| &file.name))?;
        let mut found = BTreeMap::new();
        for CandidateFile { name, path } in files {
            let canonical =
                |path: &Path| path.canonicalize().map_err(|error| file_error("find candidate file", path, error));
            let below = canonical(path)?.strip_prefix(canonical(scratch)?).map(Path::to_owned);
            let Ok(below) = below else {
                return fail(format!(
                    "the file {name} lies at {}, which is not below {}",
                    path.display(),
                    scratch.display()
                ));
            };
            let bytes = fs::read(path).map_err(|error| file_error("read candidate file", path, error))?;
            found.insert(name.clone(), (below, bytes));
        }
        Ok(Self(found))
    }

    /// Checks that both are the same, byte for byte.
    pub(super) fn check_same(&self, what: &str, other: &Self) -> CaseResult {
        let (ours, theirs): (Vec<_>, Vec<_>) = (self.0.keys().collect(), other.0.keys().collect());
        ensure!(ours == theirs, "{what}: the files {ours:?} and {theirs:?}");
        for ((name, (_, ours)), (_, theirs)) in self.0.iter().zip(other.0.values()) {
            let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
            ensure!(
                ours == theirs,
                "{what}: {name} of {} and of {} bytes, which differ at byte {first:?}",
                ours.len(),
                theirs.len()
            );
        }
        Ok(())
    }
}

/// All files below a folder, relative to it.
pub(super) fn files_below(folder: &Path) -> CaseResult<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = fs::read_dir(&next).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| file_error("list folder", &next, error))? {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).map_or_else(|_| path.clone(), Path::to_owned));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn file_error(operation: &'static str, path: &Path, error: io::Error) -> Stop {
    Error::new(ErrorKind::Internal, operation, "the file system refused")
        .with("path", path.display())
        .with_source(error)
        .into()
}

/// The keys that a run asked for, by what it asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) read: Vec<Key>,
    pub(super) written: Vec<Key>,
}

#[derive(Clone, Debug)]
struct Recorder {
    inner: MemoryStore,
    asked: Arc<Mutex<Asked>>,
}

impl Recorder {
    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ArtifactStore for Recorder {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.asked().written.push(key.clone());
        self.inner.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.asked().read.push(key.clone());
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.asked().written.push(key.clone());
        self.inner.delete(key).await
    }
}

#[derive(Debug)]
struct Sink {
    cancel: Cancel,
    cancellation: Cancellation,
    events: Mutex<Vec<ProgressEvent>>,
}

impl Progress for Sink {
    fn report(&self, event: ProgressEvent) {
        if let Cancel::At { stage, done } = &self.cancel
            && *stage == event.stage
            && event.done >= *done
        {
            self.cancellation.cancel();
        }
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}
