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
    job::read_result,
    registry::{Draft, FileSigner, PublishOptions, Release, Trust, hold_versions, prune_cache},
    worker::{JobContext, JobHandler, Resource},
};
use serde::{Deserialize, Serialize};

use crate::{
    aside::Aside,
    quickstart::summary::VersionRow,
    serving::{ChannelId, Channels, Serving, registry_of},
    site::{Site, io, make_folder},
};

/// How long a release stays valid unless it is renewed.
pub const VALID_FOR: Duration = Duration::from_secs(90 * 24 * 3600);
/// Under which a manifest's metadata name the report that its verdict is taken from, and the digest over the candidate's files.
const REPORT: &str = "report";
const WEIGHTS: &str = "weights";

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
    /// The report that the verdict is taken from, as JSON; the same for people lies beside it, with `md` for `json`.
    pub report: Key,
    /// The version's manifest, if it was published.
    pub manifest: Option<Digest>,
    /// A digest over the candidate's files: the same data and plan give the same.
    pub weights: Digest,
    /// How long training took in the attempt that finished it, in seconds; nothing where an earlier one had released or refused the version.
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

/// Carries out training jobs.
#[derive(Debug)]
pub struct TrainHandler {
    channels: Channels,
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
    /// A handler with the keys and folders of a site, which judges against what its `channels` have in service.
    ///
    /// # Errors
    /// A device that is not there, a key that cannot be read or made, a folder that cannot be made.
    pub fn open(site: &Site, channels: &Channels, device: DeviceChoice) -> Result<Self> {
        let device = Device::open(device)?;
        let (builder, release) = site.signers()?;
        let trust = site.trust()?;
        let (cache, scratch) = (site.kitchen().join("models"), site.kitchen().join("scratch"));
        make_folder(&cache)?;
        make_folder(&scratch)?;
        Ok(Self {
            channels: channels.clone(),
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

    /// What an earlier attempt of this job has come to, if it has released its candidate or refused it. Either stands.
    async fn decided(&self, cx: &JobContext, job: &TrainJob) -> Result<Option<TrainOutcome>> {
        let registry = registry_of(cx);
        let channel = registry.channel(&job.plan.model, &job.channel);
        let nonce = cx.job.id.to_string();
        let history = channel.history(self.channels.releases()).await?;
        if let Some(head) = history.iter().rev().find(|head| head.statement.nonce == nonce) {
            let digest = head.statement.manifest;
            let mut manifest = registry.manifest(digest).await?;
            let lacks = |what: &'static str| {
                Error::corrupt("read version", "a released version lacks what a job says of it")
                    .with("manifest", digest)
                    .with("missing", what)
            };
            let mut said = |what: &'static str| manifest.metadata.remove(what).ok_or_else(|| lacks(what));
            let (report, weights) = (Key::new(said(REPORT)?)?, said(WEIGHTS)?.parse()?);
            let verdict = manifest.verdict.ok_or_else(|| lacks("verdict"))?;
            return Ok(Some(TrainOutcome { manifest: Some(digest), ..kept(job, verdict, report, weights) }));
        }
        let Some(Aside { report, weights, segments }) = Aside::of(cx, &job.plan.model).await? else { return Ok(None) };
        let refusal = Report::decode(&cx.store.get(&report).await?).map_err(|error| error.with("key", &report))?;
        Ok(Some(TrainOutcome { set_aside: segments, ..kept(job, refusal.record(), report, weights) }))
    }

    /// Judges the candidate against what is in service now, and does what the verdict says. If another version comes into service before the release, the release is
    /// refused and the job judges again.
    async fn decide(&self, cx: &JobContext, job: &TrainJob, candidate: &Candidate) -> Result<TrainOutcome> {
        let weights = weights_digest(candidate)?;
        let incumbent = self.incumbent(cx, job).await?;
        let (key, report) = self.judge(cx, job, candidate, weights, incumbent.as_ref()).await?;
        let outcome = kept(job, report.record(), key, weights);
        match outcome.verdict.verdict {
            Verdict::Promote => {
                let base = incumbent.as_ref().map(|incumbent| incumbent.digest);
                let (manifest, bytes_moved) = self.release(cx, job, candidate, &outcome, base).await?;
                Ok(TrainOutcome { manifest: Some(manifest), bytes_moved, ..outcome })
            }
            Verdict::Refuse(_) => {
                let learnt: BTreeSet<Key> =
                    job.plan.dataset.segments.iter().map(|segment| segment.key.clone()).collect();
                let known = incumbent.iter().flat_map(|incumbent| &incumbent.manifest.lineage.plan.dataset.segments);
                let known: BTreeSet<Key> = known.map(|segment| segment.key.clone()).collect();
                let aside = Aside { report: outcome.report.clone(), weights, segments: &learnt - &known };
                aside.create(cx, &job.plan.model).await?;
                Ok(TrainOutcome { set_aside: aside.segments, ..outcome })
            }
            _ => Ok(outcome),
        }
    }

    async fn incumbent(&self, cx: &JobContext, job: &TrainJob) -> Result<Option<Serving>> {
        let Some(digest) = self.channels.in_service(&channel_of(job)).await? else { return Ok(None) };
        let serving = Serving::load(cx, digest, &self.trust, &self.cache, &self.loader).await?;
        // The kitchen needs no version but the one in service: the cache keeps that and lets the others go.
        hold_versions(&self.cache, "kitchen", &[serving.digest]).await?;
        prune_cache(&self.cache).await?;
        Ok(Some(serving))
    }

    /// The report on this candidate against this incumbent, and its key. One that an earlier attempt has written is the one that counts.
    async fn judge(
        &self,
        cx: &JobContext,
        job: &TrainJob,
        candidate: &Candidate,
        weights: Digest,
        incumbent: Option<&Serving>,
    ) -> Result<(Key, Report)> {
        let against = incumbent.map_or_else(|| "nothing".to_owned(), |incumbent| incumbent.digest.to_string());
        let name = format!("reports/{weights}-against-{against}");
        let key = cx.effect_key(&format!("{name}.json"))?;
        let written = match cx.store.get(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let report = self.evaluate(cx, job, candidate, incumbent).await?.encode()?;
                match cx.store.create(&key, report.clone()).await {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => cx.store.get(&key).await?,
                    created => created.map(|()| report)?,
                }
            }
            found => found?,
        };
        let report = Report::decode(&written).map_err(|error| error.with("key", &key))?;
        match cx.store.create(&cx.effect_key(&format!("{name}.md"))?, report.to_markdown().into()).await {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok((key, report))
    }

    /// Measures a candidate before it has a manifest of its own.
    async fn evaluate(
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

    /// Publishes the candidate and puts it in service.
    async fn release(
        &self,
        cx: &JobContext,
        job: &TrainJob,
        candidate: &Candidate,
        outcome: &TrainOutcome,
        incumbent: Option<Digest>,
    ) -> Result<(Digest, u64)> {
        let why = format!("version {}: {}", job.version, outcome.verdict.verdict);
        let draft = Draft {
            model: job.plan.model.clone(),
            version: job.version,
            task: candidate.task.clone(),
            architecture: candidate.architecture.clone(),
            files: files_of(candidate)?.to_vec(),
            requirements: candidate.requirements.clone(),
            lineage: self.lineage(job, candidate),
            verdict: outcome.verdict.clone(),
            // No timings: a retry must end with the same manifest.
            metadata: BTreeMap::from([
                ("job".to_owned(), cx.job.id.to_string()),
                (REPORT.to_owned(), outcome.report.to_string()),
                (WEIGHTS.to_owned(), outcome.weights.to_string()),
            ]),
            base: incumbent,
        };
        let options = PublishOptions {
            progress: Arc::clone(&cx.progress),
            cancel: cx.cancel.clone(),
            ..PublishOptions::new(cx.job.id.to_string(), cx.job.submitted)
        };
        // Over the job's own store: whoever has lost the lease publishes nothing and releases nothing.
        let registry = registry_of(cx);
        let published = registry.publish(draft, &self.builder, options).await?;
        let release = Release { manifest: published.manifest, incumbent, why, nonce: cx.job.id.to_string() };
        let channel = registry.channel(&job.plan.model, &job.channel);
        channel.append(release, &self.release, cx.clock.now(), VALID_FOR).await?;
        // Accepted while it is fresh: a kitchen that was away until it had expired would not know its own release.
        self.channels.in_service(&channel_of(job)).await?;
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
        if let Some(outcome) = self.decided(cx, &job).await? {
            return Ok(outcome);
        }
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
        Ok(TrainOutcome { train_seconds, ..self.decide(cx, &job, &candidate).await? })
    }
}

/// The outcome of a job by which nothing changes.
fn kept(job: &TrainJob, verdict: VerdictRecord, report: Key, weights: Digest) -> TrainOutcome {
    TrainOutcome {
        model: job.plan.model.clone(),
        version: job.version,
        verdict,
        report,
        manifest: None,
        weights,
        train_seconds: 0.0,
        bytes_moved: 0,
        set_aside: BTreeSet::new(),
    }
}

fn channel_of(job: &TrainJob) -> ChannelId {
    (job.plan.model.clone(), job.channel.clone())
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
