//! The job between the halves: train a candidate, judge it against the version in service, publish and release it if it is better.
//!
//! Every step is keyed by the job, so that a kitchen that dies at any moment goes on where it was and ends in the same place.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, CallContext, Candidate, CandidateFile, CandidateOutput, ChannelName, DatasetRef,
    Digest, Document, Error, ErrorKind, Hasher, Key, Lineage, Manifest, ModelLoader, ModelName, ReadOptions, RequestId,
    Result, TenantId, TrainPlan, TrainRun, Trainer, Verdict, VerdictRecord,
};
use hybrid_local::{
    Device, DeviceChoice, TextClassifierLoader, TextClassifierTrainer,
    evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet, Report},
};
use hybrid_sync::{
    job::{JobResult, Outcome, read_result},
    registry::{Draft, FileSigner, Namespace, PublishOptions, Registry, Release, Trust, hold_versions, prune_cache},
    worker::{JobContext, JobHandler, Resource},
};
use serde::{Deserialize, Serialize};

use crate::{
    quickstart::summary::VersionRow,
    serving::Serving,
    site::{Site, io, make_folder},
};

/// How long a release stays valid unless it is renewed.
pub const VALID_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// What a training job asks for. Everything that decides its outcome is fixed in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// What to train on what.
    pub plan: TrainPlan,
    /// The number that the version gets.
    pub version: u64,
    /// The channel that names it if it is promoted.
    pub channel: ChannelName,
    /// The golden set that it is judged on.
    pub golden: GoldenRef,
}

impl TrainJob {
    /// A job that trains the default classifier on `dataset` for the channel `stable`.
    pub fn new(model: ModelName, version: u64, dataset: DatasetRef, golden: GoldenRef) -> Self {
        let plan = TrainPlan {
            model,
            method: "hashed-text".to_owned(),
            base: None,
            dataset,
            hyperparameters: BTreeMap::new(),
            seed: 1,
        };
        Self { plan, version, channel: ChannelName::stable(), golden }
    }
}

/// A golden set in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenRef {
    /// The object.
    pub key: Key,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// Puts a golden set into the bucket under its digest, once.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) that names file and line if it is no golden set; those of the store.
pub async fn store_golden(store: &dyn ArtifactStore, tenant: &TenantId, file: &Path) -> Result<GoldenRef> {
    let bytes = Bytes::from(std::fs::read(file).map_err(|error| io("read golden set", file, error))?);
    let digest = GoldenSet::from_jsonl(file.display().to_string(), &bytes)?.digest();
    let key = Key::new(format!("t/{tenant}/golden/{digest}.jsonl"))?;
    store.create_same(&key, bytes).await?;
    Ok(GoldenRef { key, digest })
}

/// What came of a training job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOutcome {
    /// The model.
    pub model: ModelName,
    /// The version's number.
    pub version: u64,
    /// The verdict with its figures.
    pub verdict: VerdictRecord,
    /// The version's manifest, if it was published.
    pub manifest: Option<Digest>,
    /// A digest over the candidate's files: the same data and plan give the same.
    pub weights: Digest,
    /// How long training took in the attempt that finished it, in seconds.
    pub train_seconds: f64,
    /// Bytes that publishing moved in the attempt that finished it.
    pub bytes_moved: u64,
    /// If it was refused: what it had learnt from beyond the version in service, for a person to look at.
    pub set_aside: BTreeSet<Key>,
}

impl TrainOutcome {
    /// The row of the quickstart's table.
    pub fn row(&self) -> VersionRow {
        let record = &self.verdict;
        VersionRow {
            version: self.version,
            verdict: match record.verdict {
                Verdict::Promote => "promote",
                Verdict::Refuse(_) => "refuse",
                _ => "hold",
            }
            .to_owned(),
            accuracy: record.candidate.value,
            low: record.candidate.low,
            high: record.candidate.high,
            fixes: record.fixes,
            regressions: record.regressions,
            p: record.p,
            ece: record.ece.unwrap_or_default(),
            train_seconds: self.train_seconds,
            bytes_moved: self.bytes_moved,
            swap_ms: None,
        }
    }
}

/// The segments that taught a refused version of a model and are not to be learnt from again: what the results of its training jobs say.
///
/// # Errors
/// Those of the store.
pub async fn set_aside(store: &dyn ArtifactStore, tenant: &TenantId, model: &ModelName) -> Result<BTreeSet<Key>> {
    let mut set_aside = BTreeSet::new();
    for meta in store.list_all(&format!("t/{tenant}/jobs/")).await? {
        if !meta.key.as_str().ends_with("/result") {
            continue;
        }
        let result = JobResult::decode(&store.get(&meta.key).await?).map_err(|error| error.with("key", &meta.key))?;
        let (TrainHandler::KIND, Outcome::Success(value)) = (result.kind.as_str(), result.outcome) else { continue };
        let outcome: TrainOutcome = serde_json::from_value(value).map_err(|error| {
            Error::corrupt("read history", "a training job's result has another shape")
                .with("key", &meta.key)
                .with_source(error)
        })?;
        if outcome.model == *model {
            set_aside.extend(outcome.set_aside);
        }
    }
    Ok(set_aside)
}

/// Carries out training jobs.
#[derive(Debug)]
pub struct TrainHandler {
    registry: Registry,
    trainer: TextClassifierTrainer,
    loader: TextClassifierLoader,
    evaluator: Evaluator<hybrid_local::evaluation::LabelScorer>,
    builder: FileSigner,
    release: FileSigner,
    trust: Trust,
    cache: PathBuf,
    scratch: PathBuf,
}

impl TrainHandler {
    /// A handler with the keys, folders and bucket of a site.
    ///
    /// # Errors
    /// A device that is not there, a key that cannot be read or made, a folder that cannot be made.
    pub fn open(site: &Site, device: DeviceChoice) -> Result<Self> {
        let device = Device::open(device)?;
        let (builder, release) = site.signers()?;
        let trust = site.trust()?;
        let (cache, scratch) = (site.kitchen().join("models"), site.kitchen().join("scratch"));
        make_folder(&cache)?;
        make_folder(&scratch)?;
        Ok(Self {
            registry: Registry::new(site.store(), Namespace::root()),
            trainer: TextClassifierTrainer::new(device.clone()),
            loader: TextClassifierLoader::new(device),
            evaluator: Evaluator::classify(EvaluatorOptions::default())?,
            builder,
            release,
            trust,
            cache,
            scratch,
        })
    }

    /// The version that an earlier attempt of this job has released, if it has come so far.
    async fn released(&self, cx: &JobContext, job: &TrainJob) -> Result<Option<Manifest>> {
        let channel = self.registry.channel(&job.plan.model, &job.channel);
        let nonce = cx.job.id.to_string();
        let history = channel.history(&self.trust.releases).await?;
        match history.iter().rev().find(|head| head.statement.nonce == nonce) {
            Some(head) => self.registry.manifest(head.statement.manifest).await.map(Some),
            None => Ok(None),
        }
    }

    async fn incumbent(&self, cx: &JobContext, job: &TrainJob) -> Result<Option<Serving>> {
        let serving = (&job.plan.model, &job.channel);
        let serving = Serving::load(cx, &self.registry, serving, &self.trust, &self.cache, &self.loader).await?;
        if let Some(serving) = &serving {
            // The kitchen needs no version but the one in service: the cache keeps that and lets the others go.
            hold_versions(&self.cache, "kitchen", &[serving.digest]).await?;
            prune_cache(&self.cache).await?;
        }
        Ok(serving)
    }

    /// Judges a candidate before it has a manifest of its own.
    async fn judge(
        &self,
        cx: &JobContext,
        job: &TrainJob,
        candidate: &Candidate,
        incumbent: Option<&Serving>,
    ) -> Result<Report> {
        let bytes = cx.store.read(&job.golden.key, ReadOptions::verified(job.golden.digest)).await?;
        let golden = GoldenSet::from_jsonl(job.golden.key.as_str(), &bytes)?;
        let provisional = Manifest {
            model: job.plan.model.clone(),
            version: job.version,
            task: candidate.task.clone(),
            architecture: candidate.architecture.clone(),
            created: cx.job.submitted,
            files: Vec::new(),
            requirements: candidate.requirements.clone(),
            lineage: self.lineage(job, candidate),
            verdict: None,
            metadata: BTreeMap::new(),
        };
        let digest = Digest::of(&provisional.encode()?);
        let backend = self.loader.load(&provisional, digest, &folder_of(files_of(candidate)?)?).await?;
        let mut call = CallContext::new(cx.job.tenant.clone(), request_of(cx)?);
        call.cancel = cx.cancel.clone();
        call.clock = Arc::clone(&cx.clock);
        let contender = Contender { backend: &*backend, requirements: candidate.requirements.clone() };
        let incumbent = incumbent.map(|incumbent| (incumbent.digest, &*incumbent.backend));
        self.evaluator.evaluate(&call, &golden, contender, incumbent, &*cx.progress).await
    }

    fn lineage(&self, job: &TrainJob, candidate: &Candidate) -> Lineage {
        Lineage {
            plan: job.plan.clone(),
            dataset: job.plan.dataset.digest(),
            examples: candidate.examples,
            trainer: self.trainer.profile().name,
            device: candidate.device.clone(),
        }
    }

    /// Removes what jobs have left here that have their results.
    async fn sweep(&self, cx: &JobContext) -> Result<()> {
        let entries = std::fs::read_dir(&self.scratch).map_err(|error| io("sweep scratch", &self.scratch, error))?;
        for entry in entries.flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
            if read_result(&*cx.store, &cx.job.tenant, id).await?.is_some() {
                std::fs::remove_dir_all(entry.path()).map_err(|error| io("sweep scratch", &entry.path(), error))?;
            }
        }
        Ok(())
    }

    async fn report(&self, cx: &JobContext, report: &Report) -> Result<()> {
        for (name, bytes) in [("report.json", report.encode()?), ("report.md", report.to_markdown().into())] {
            match cx.store.create(&cx.effect_key(name)?, bytes).await {
                // An earlier attempt has written it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Publishes the candidate and puts it in service.
    async fn release(
        &self,
        cx: &JobContext,
        job: &TrainJob,
        candidate: &Candidate,
        verdict: VerdictRecord,
        incumbent: Option<Digest>,
    ) -> Result<(Digest, u64)> {
        let why = format!("version {}: {}", job.version, verdict.verdict);
        let draft = Draft {
            model: job.plan.model.clone(),
            version: job.version,
            task: candidate.task.clone(),
            architecture: candidate.architecture.clone(),
            files: files_of(candidate)?.to_vec(),
            requirements: candidate.requirements.clone(),
            lineage: self.lineage(job, candidate),
            verdict,
            // No timings: a retry must end with the same manifest.
            metadata: BTreeMap::from([("job".to_owned(), cx.job.id.to_string())]),
            base: incumbent,
        };
        let options = PublishOptions {
            progress: Arc::clone(&cx.progress),
            cancel: cx.cancel.clone(),
            ..PublishOptions::new(cx.job.id.to_string(), cx.job.submitted)
        };
        let published = self.registry.publish(draft, &self.builder, options).await?;
        let release = Release { manifest: published.manifest, incumbent, why, nonce: cx.job.id.to_string() };
        let channel = self.registry.channel(&job.plan.model, &job.channel);
        channel.append(release, &self.release, cx.clock.now(), VALID_FOR).await?;
        Ok((published.manifest, published.bytes_moved))
    }
}

#[async_trait]
impl JobHandler for TrainHandler {
    const KIND: &'static str = "train";
    type Payload = TrainJob;
    type Output = TrainOutcome;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: TrainJob) -> Result<TrainOutcome> {
        self.sweep(cx).await?;
        let done = self.released(cx, &job).await?;
        let scratch = self.scratch.join(cx.job.id.to_string());
        make_folder(&scratch)?;
        let run = TrainRun {
            store: Arc::clone(&cx.store),
            scratch: scratch.clone(),
            progress: Arc::clone(&cx.progress),
            cancel: cx.cancel.clone(),
            clock: Arc::clone(&cx.clock),
        };
        let start = cx.clock.monotonic();
        let candidate = self.trainer.train(&job.plan, &run).await?;
        let train_seconds = cx.clock.monotonic().since(start).as_secs_f64();
        let weights = weights_digest(&candidate)?;
        let outcome = |verdict, manifest, bytes_moved, set_aside| TrainOutcome {
            model: job.plan.model.clone(),
            version: job.version,
            verdict,
            manifest,
            weights,
            train_seconds,
            bytes_moved,
            set_aside,
        };
        if let Some(manifest) = done {
            let digest = Digest::of(&manifest.encode()?);
            let verdict =
                manifest.verdict.ok_or_else(|| Error::corrupt("read version", "a released version has no verdict"))?;
            return Ok(outcome(verdict, Some(digest), 0, BTreeSet::new()));
        }

        // Judged against what is in service now; if that changes before the release, the release is refused and the job judges again.
        let incumbent = self.incumbent(cx, &job).await?;
        let report = self.judge(cx, &job, &candidate, incumbent.as_ref()).await?;
        self.report(cx, &report).await?;
        let verdict = report.record();
        let done = match verdict.verdict {
            Verdict::Promote => {
                let base = incumbent.as_ref().map(|incumbent| incumbent.digest);
                let (manifest, bytes_moved) = self.release(cx, &job, &candidate, verdict.clone(), base).await?;
                outcome(verdict, Some(manifest), bytes_moved, BTreeSet::new())
            }
            Verdict::Refuse(_) => {
                let learnt: BTreeSet<Key> =
                    job.plan.dataset.segments.iter().map(|segment| segment.key.clone()).collect();
                let known = incumbent.iter().flat_map(|incumbent| &incumbent.manifest.lineage.plan.dataset.segments);
                let known: BTreeSet<Key> = known.map(|segment| segment.key.clone()).collect();
                outcome(verdict, None, 0, &learnt - &known)
            }
            _ => outcome(verdict, None, 0, BTreeSet::new()),
        };
        Ok(done)
    }
}

fn files_of(candidate: &Candidate) -> Result<&[CandidateFile]> {
    match &candidate.output {
        CandidateOutput::Files(files) => Ok(files),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "publish candidate",
            "only candidates made of files can be published",
        )),
    }
}

/// The folder below which the candidate's files have their names.
fn folder_of(files: &[CandidateFile]) -> Result<PathBuf> {
    let folder = files.first().and_then(|file| file.path.ancestors().nth(file.name.as_str().split('/').count()));
    folder.map(Path::to_owned).ok_or_else(|| Error::internal("load candidate", "the candidate has no files"))
}

fn weights_digest(candidate: &Candidate) -> Result<Digest> {
    let mut hasher = Hasher::new();
    for file in files_of(candidate)? {
        let bytes = std::fs::read(&file.path).map_err(|error| io("digest candidate", &file.path, error))?;
        hasher.update(file.name.as_str().as_bytes());
        hasher.update(Digest::of(&bytes).as_bytes());
    }
    Ok(hasher.finish())
}

fn request_of(cx: &JobContext) -> Result<RequestId> {
    match &cx.job.request {
        Some(request) => Ok(request.clone()),
        None => cx.job.id.to_string().parse(),
    }
}
