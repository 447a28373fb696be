//! The job between the halves: train a candidate, judge it against the version in service, publish and release it if it is better.
//!
//! It may be a set of plans: each is trained and judged, and the best is the candidate. The table of all lies beside the result, and the version names it.
//!
//! Every step is keyed by the job, so that a kitchen that dies at any moment goes on where it was and ends in the same place.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStoreExt, ChannelName, DatasetRef, Digest, Document, Error, Key, ModelName, Result, TrainPlan, TrainRun,
    Verdict, VerdictRecord,
};
use hybrid_local::{
    DeviceChoice,
    evaluation::Report,
    plan_set::{Judged, NamedPlan, PlanSet, PlanTable, PlanVariant, TrainedPlan, Trials},
};
use hybrid_sync::{
    job::read_result,
    registry::{Draft, FileSigner, PublishOptions, Release, Trust, hold_versions, prune_cache},
    worker::{JobContext, JobHandler, Resource},
};
use serde::{Deserialize, Serialize};

use crate::{
    aside::Aside,
    judging::{GoldenRef, Judging, keep_report, keep_table},
    models::Models,
    quickstart::summary::VersionRow,
    serving::{ChannelId, Channels, Serving, registry_of},
    site::{Site, io, make_folder},
};

/// How long a release stays valid unless it is renewed.
pub const VALID_FOR: Duration = Duration::from_secs(90 * 24 * 3600);
/// Under which a manifest's metadata name the report that its verdict is taken from, the digest over the candidate's files, and of a set the plan and the table.
const REPORT: &str = "report";
const WEIGHTS: &str = "weights";
const PLAN: &str = "plan";
const PLANS: &str = "plans";

/// What a training job asks for. Everything that decides its outcome is fixed in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// What to train on what.
    pub plan: TrainPlan,
    /// A set of plans to train in its place, on its dataset, of which the best is the candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<PlanVariant>,
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
        Self { plan, variants: Vec::new(), version, channel: ChannelName::stable(), golden }
    }

    /// All that is to be trained.
    fn plans(&self) -> Vec<NamedPlan> {
        match &self.variants[..] {
            [] => vec![NamedPlan { name: PLAN.to_owned(), plan: self.plan.clone() }],
            variants => variants.iter().map(|variant| variant.of(&self.plan)).collect(),
        }
    }
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
    /// Of a set: which plan was the best, and the table of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// How long training took, of a set all plans together, each in the attempt that finished it, in seconds; nothing where an earlier attempt had released or refused
    /// the version.
    pub train_seconds: f64,
    /// Bytes that publishing moved in the attempt that finished it.
    pub bytes_moved: u64,
    /// If it was refused: what it had learnt from beyond the version in service, for a person to look at.
    pub set_aside: BTreeSet<Key>,
}

/// The best of a set of plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its name.
    pub plan: String,
    /// The [`PlanTable`], as JSON; the same for people lies beside it, with `md` for `json`.
    pub table: Key,
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
    plans: PlanSet,
    models: Models,
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
        let models = Models::open(device)?;
        let (builder, release) = site.signers()?;
        let trust = site.trust()?;
        let (cache, scratch) = (site.kitchen().join("models"), site.kitchen().join("scratch"));
        make_folder(&cache)?;
        make_folder(&scratch)?;
        Ok(Self {
            channels: channels.clone(),
            plans: PlanSet::new(models.trainers()),
            models,
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
            let chosen = match job.variants.is_empty() {
                true => None,
                false => Some(Chosen { plan: said(PLAN)?, table: Key::new(said(PLANS)?)? }),
            };
            let verdict = manifest.verdict.ok_or_else(|| lacks("verdict"))?;
            return Ok(Some(TrainOutcome { manifest: Some(digest), ..kept(job, verdict, report, weights, chosen) }));
        }
        let Some(aside) = Aside::of(cx, &job.plan.model).await? else { return Ok(None) };
        let Aside { report, weights, chosen, segments } = aside;
        let refusal = Report::decode(&cx.store.get(&report).await?).map_err(|error| error.with("key", &report))?;
        Ok(Some(TrainOutcome { set_aside: segments, ..kept(job, refusal.record(), report, weights, chosen) }))
    }

    /// Judges what was trained against what is in service now, and does with the best what the verdict says. If another version comes into service before the release, the
    /// release is refused and the job judges again.
    async fn decide(&self, cx: &JobContext, job: &TrainJob, trials: &Trials) -> Result<TrainOutcome> {
        let incumbent = self.incumbent(cx, job).await?;
        // What a channel's readers load does one task.
        let served = incumbent.as_ref().map(|incumbent| &incumbent.manifest.task);
        let served = served.or(trials.trained.first().map(|first| &first.candidate.task)).cloned().unwrap_or_default();
        let mut reports = Vec::with_capacity(trials.trained.len());
        for trained in &trials.trained {
            let against = incumbent.as_ref().filter(|_| trained.candidate.task == served);
            reports.push(self.judge(cx, job, trained, against).await?);
        }
        let judged = trials.trained.iter().zip(&reports).map(|(trained, (_, report))| Judged {
            trained,
            report,
            barred: (trained.candidate.task != served)
                .then(|| format!("it does {}, and the channel serves {served}", trained.candidate.task)),
        });
        let judged: Vec<_> = judged.collect();
        let mut table = PlanTable::of(&judged, &trials.failed)?;
        let against = incumbent.as_ref().map(|incumbent| incumbent.digest);
        let key = match job.variants.is_empty() {
            true => None,
            false => Some(keep_table(cx, against, &mut table).await?),
        };
        let mut all = trials.trained.iter().zip(&reports);
        let best = table.best().and_then(|best| all.find(|(trained, _)| trained.name == best));
        let (candidate, (report, figures)) = best.ok_or_else(|| match table.best() {
            None => Error::invalid("choose plan", "no candidate does what the channel serves").with("served", &served),
            Some(best) => {
                let message = "the plan that an earlier attempt found best came to nothing in this one";
                Error::unavailable("choose plan", message).with("plan", best)
            }
        })?;
        let chosen = key.map(|table| Chosen { plan: candidate.name.clone(), table });
        let outcome = kept(job, figures.record(), report.clone(), candidate.weights, chosen);
        match outcome.verdict.verdict {
            Verdict::Promote => {
                let (manifest, bytes_moved) = self.release(cx, job, candidate, &outcome, against).await?;
                Ok(TrainOutcome { manifest: Some(manifest), bytes_moved, ..outcome })
            }
            Verdict::Refuse(_) => {
                let learnt: BTreeSet<Key> =
                    job.plan.dataset.segments.iter().map(|segment| segment.key.clone()).collect();
                let known = incumbent.iter().flat_map(|incumbent| &incumbent.manifest.lineage.plan.dataset.segments);
                let known: BTreeSet<Key> = known.map(|segment| segment.key.clone()).collect();
                let (report, chosen) = (outcome.report.clone(), outcome.chosen.clone());
                let aside = Aside { report, weights: candidate.weights, chosen, segments: &learnt - &known };
                aside.create(cx, &job.plan.model).await?;
                Ok(TrainOutcome { set_aside: aside.segments, ..outcome })
            }
            _ => Ok(outcome),
        }
    }

    async fn incumbent(&self, cx: &JobContext, job: &TrainJob) -> Result<Option<Serving>> {
        let Some(digest) = self.channels.in_service(&channel_of(job)).await? else { return Ok(None) };
        let serving = Serving::load(cx, digest, &self.trust, &self.cache, &self.models).await?;
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
        trained: &TrainedPlan,
        incumbent: Option<&Serving>,
    ) -> Result<(Key, Report)> {
        let against = incumbent.map(|incumbent| incumbent.digest);
        keep_report(cx, trained.weights, against, self.evaluate(cx, job, trained, incumbent)).await
    }

    /// Measures a candidate before it has a manifest of its own.
    async fn evaluate(
        &self,
        cx: &JobContext,
        job: &TrainJob,
        trained: &TrainedPlan,
        incumbent: Option<&Serving>,
    ) -> Result<Report> {
        let golden = job.golden.read(&*cx.store).await?;
        let candidate = self.models.candidate(trained, job.version, cx.job.submitted).await?;
        let judging = Judging {
            golden: &golden,
            candidate: &candidate,
            requirements: trained.candidate.requirements.clone(),
            incumbent: incumbent.map(|incumbent| (incumbent.digest, &incumbent.backend)),
            candidates: job.variants.len().max(1),
            plan: Some(&*trained.name).filter(|_| !job.variants.is_empty()),
        };
        judging.report(cx).await
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
        trained: &TrainedPlan,
        outcome: &TrainOutcome,
        incumbent: Option<Digest>,
    ) -> Result<(Digest, u64)> {
        let why = format!("version {}: {}", job.version, outcome.verdict.verdict);
        // No timings: a retry must end with the same manifest.
        let mut metadata = BTreeMap::from([
            ("job".to_owned(), cx.job.id.to_string()),
            (REPORT.to_owned(), outcome.report.to_string()),
            (WEIGHTS.to_owned(), outcome.weights.to_string()),
        ]);
        if let Some(Chosen { plan, table }) = &outcome.chosen {
            metadata.extend([(PLAN.to_owned(), plan.clone()), (PLANS.to_owned(), table.to_string())]);
        }
        let candidate = &trained.candidate;
        let draft = Draft {
            model: job.plan.model.clone(),
            version: job.version,
            task: candidate.task.clone(),
            architecture: candidate.architecture.clone(),
            files: trained.files()?.to_vec(),
            requirements: candidate.requirements.clone(),
            lineage: trained.lineage(),
            verdict: outcome.verdict.clone(),
            metadata,
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
        let trials = self.plans.train(&job.plans(), &run).await?;
        let train_seconds = trials.trained.iter().map(|trained| trained.seconds).sum();
        Ok(TrainOutcome { train_seconds, ..self.decide(cx, &job, &trials).await? })
    }
}

/// The outcome of a job by which nothing changes.
fn kept(job: &TrainJob, verdict: VerdictRecord, report: Key, weights: Digest, chosen: Option<Chosen>) -> TrainOutcome {
    TrainOutcome {
        model: job.plan.model.clone(),
        version: job.version,
        verdict,
        report,
        manifest: None,
        weights,
        chosen,
        train_seconds: 0.0,
        bytes_moved: 0,
        set_aside: BTreeSet::new(),
    }
}

fn channel_of(job: &TrainJob) -> ChannelId {
    (job.plan.model.clone(), job.channel.clone())
}
