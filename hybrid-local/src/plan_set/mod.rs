//! Several plans for one model: trained one after the other, compared on one golden set, the best of them named.
//!
//! Three sizes of a base, three settings of a method, a classifier of n-grams beside a fine-tuned encoder: whatever trainers know by their
//! [methods](TrainerProfile::methods) can stand in one set. [`PlanSet`] trains, an [`Evaluator`](crate::evaluation::Evaluator) judges each
//! [`TrainedPlan`] as it would judge it alone, and [`PlanTable`] says who is best.
//!
//! The best of several is easily the luckiest: say in [`EvaluatorOptions::candidates`](crate::evaluation::EvaluatorOptions::candidates) how many there are.
//!
//! ```no_run
//! use std::sync::Arc;
//! use hybrid_core::{CallContext, Result, Timestamp, TrainRun, Trainer};
//! use hybrid_local::{
//!     Device, TextClassifierLoader, TextClassifierTrainer,
//!     evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet},
//!     plan_set::{Judged, NamedPlan, PlanSet, PlanTable},
//! };
//!
//! # async fn choose(plans: Vec<NamedPlan>, golden: GoldenSet, run: TrainRun, cx: CallContext) -> Result<()> {
//! let set = PlanSet::new([Arc::new(TextClassifierTrainer::new(Device::cpu())) as Arc<dyn Trainer>]);
//! let loader = TextClassifierLoader::new(Device::cpu());
//! let evaluator = Evaluator::classify(EvaluatorOptions { candidates: plans.len(), ..EvaluatorOptions::default() })?;
//!
//! // Killed at any moment, the same call goes on where it was.
//! let trials = set.train(&plans, &run).await?;
//! let mut reports = Vec::new();
//! for trained in &trials.trained {
//!     let backend = trained.load(&loader, 1, Timestamp::UNIX_EPOCH).await?;
//!     let contender = Contender { backend: &*backend, requirements: trained.candidate.requirements.clone() };
//!     reports.push(evaluator.evaluate(&cx, &golden, contender, None, &*run.progress).await?);
//! }
//! let judged = trials.trained.iter().zip(&reports).map(|(trained, report)| Judged { trained, report, barred: None });
//! let table = PlanTable::of(&judged.collect::<Vec<_>>(), &trials.failed)?;
//! println!("{}", table.to_markdown());
//! println!("the best is {:?}", table.best());
//! # Ok(())
//! # }
//! ```

mod finished;
mod table;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use hybrid_core::{
    BaseModel, Candidate, CandidateFile, CandidateOutput, Digest, Document, Error, ErrorKind, FileName,
    InferenceBackend, Lineage, Manifest, ModelLoader, Progress, ProgressEvent, Result, Task, Timestamp, TrainPlan,
    TrainRun, Trainer, TrainerProfile,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::io_error;
use finished::Finished;
pub use table::{Judged, PlanFigures, PlanOutcome, PlanRow, PlanTable};

const OPERATION: &str = "train plans";

/// A plan under the name by which it is compared: a name that a folder can have.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPlan {
    /// The name, such as `small`.
    pub name: String,
    /// The plan.
    pub plan: TrainPlan,
}

/// What one of several plans for the same model and dataset says for itself: how a set is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanVariant {
    /// The name, such as `small`.
    pub name: String,
    /// As [`TrainPlan::method`].
    pub method: String,
    /// As [`TrainPlan::base`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseModel>,
    /// As [`TrainPlan::hyperparameters`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hyperparameters: BTreeMap<String, Value>,
    /// As [`TrainPlan::seed`]; that of `plan` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl PlanVariant {
    /// The whole plan: model and dataset are those of `plan`.
    pub fn of(&self, plan: &TrainPlan) -> NamedPlan {
        let Self { name, method, base, hyperparameters, seed } = self.clone();
        let (model, dataset) = (plan.model.clone(), plan.dataset.clone());
        let plan = TrainPlan { model, method, base, dataset, hyperparameters, seed: seed.unwrap_or(plan.seed) };
        NamedPlan { name, plan }
    }
}

/// Trains several plans, each by the first of its trainers that knows the plan's method.
///
/// # Behavior
/// - One after the other: a machine's accelerator and memory are one plan's at a time.
/// - Each has a folder of its own below [`TrainRun::scratch`], with its own checkpoints: `plans/<name>/`. One that has finished is not trained again: a run that is
///   made again, after a crash or a cancellation, goes on with the plan that it was at, as far as that plan's trainer is
///   [resumable](TrainerProfile::resumable). Files that have changed since, another plan and another trainer's work are trained anew.
/// - What has finished stands for what its plan named then: a hub's branch that has moved since, a folder with other files in it and another device train nothing
///   anew. Name a commit, or begin in another scratch folder.
/// - A plan that cannot be carried out (its base is missing, it does not fit into memory, its loss leaves the finite) fails alone. What
///   concerns all (a store that is away, a full disk, a cancellation) ends the run.
/// - Progress is each trainer's own; with several plans a stage carries the plan's name and number, as `train small (1 of 3)`.
/// - Needs a tokio runtime: files are read on its blocking threads.
#[derive(Clone, Debug)]
pub struct PlanSet {
    trainers: Vec<Arc<dyn Trainer>>,
}

/// What became of a set of plans.
#[derive(Debug)]
pub struct Trials {
    /// The plans that have a candidate, in the set's order; at least one.
    pub trained: Vec<TrainedPlan>,
    /// Those that have none.
    pub failed: Vec<FailedPlan>,
}

/// A plan that was carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedPlan {
    /// The plan's name.
    pub name: String,
    /// The plan.
    pub plan: TrainPlan,
    /// The trainer, with its version.
    pub trainer: String,
    /// What it made.
    pub candidate: Candidate,
    /// A digest over the candidate's files and their names: the same data and plan give the same, where the trainer is reproducible.
    pub weights: Digest,
    /// The bytes of all files.
    pub bytes: u64,
    /// How long training took in the attempt that finished it, in seconds.
    pub seconds: f64,
}

/// A plan that came to nothing.
#[derive(Debug)]
pub struct FailedPlan {
    /// The plan's name.
    pub name: String,
    /// The plan.
    pub plan: TrainPlan,
    /// Why.
    pub error: Error,
}

impl PlanSet {
    /// A set that is trained by `trainers`.
    pub fn new(trainers: impl IntoIterator<Item = Arc<dyn Trainer>>) -> Self {
        Self { trainers: trainers.into_iter().collect() }
    }

    /// Checks plans without reading data.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for no plan at all, plans for different models, names that are equal or that no folder can have, and a method that no trainer
    /// knows; what its trainer says of a plan, with the plan's name.
    pub fn check(&self, plans: &[NamedPlan]) -> Result<()> {
        let Some(first) = plans.first() else {
            return Err(Error::invalid(OPERATION, "the set has no plan; name one at least"));
        };
        let mut names = Vec::with_capacity(plans.len());
        for NamedPlan { name, plan } in plans {
            let named = |error: Error| error.with("plan", name);
            if name.contains('/') {
                return Err(named(Error::invalid(OPERATION, "a plan's name has no slash")));
            }
            names.push(FileName::new(name.as_str()).map_err(named)?);
            if plan.model != first.plan.model {
                let error = Error::invalid(OPERATION, "the plans of a set are for one model");
                return Err(named(error.with("model", &plan.model).with("expected", &first.plan.model)));
            }
            self.trainer(plan).and_then(|(trainer, _)| trainer.check(plan)).map_err(named)?;
        }
        FileName::check_together(&names)
    }

    /// Trains what is not trained yet.
    ///
    /// # Errors
    /// As [`check`](Self::check), before any work; what ends the run for all plans; the first plan's failure if none came to anything.
    pub async fn train(&self, plans: &[NamedPlan], run: &TrainRun) -> Result<Trials> {
        self.check(plans)?;
        let mut trials = Trials { trained: Vec::new(), failed: Vec::new() };
        for (index, NamedPlan { name, plan }) in plans.iter().enumerate() {
            let place = Place { name: name.clone(), number: index + 1, of: plans.len() };
            match self.train_one(plan, place, run).await {
                Ok(trained) => trials.trained.push(trained),
                Err(error) if is_the_plans_own(error.kind()) => {
                    tracing::warn!(plan = name, %error, "a plan of several came to nothing");
                    trials.failed.push(FailedPlan { name: name.clone(), plan: plan.clone(), error });
                }
                Err(error) => return Err(error),
            }
        }
        if trials.trained.is_empty() {
            return Err(trials.failed.swap_remove(0).error);
        }
        Ok(trials)
    }

    async fn train_one(&self, plan: &TrainPlan, place: Place, run: &TrainRun) -> Result<TrainedPlan> {
        let (trainer, profile) = self.trainer(plan)?;
        let named = |error: Error| if place.of > 1 { error.with("plan", &place.name) } else { error };
        let folder = run.scratch.join("plans").join(&place.name);
        std::fs::create_dir_all(&folder).map_err(|error| io_error(OPERATION, &folder, error))?;
        if let Some(trained) = Finished::read(&folder, &place.name, plan, &profile.name).await? {
            let event = ProgressEvent::new(place.stage("train"), 1, 1, "plans");
            run.progress.report(event.with_message("was trained before"));
            return Ok(trained);
        }
        let progress = Arc::new(Placed { inner: Arc::clone(&run.progress), place: place.clone() });
        let own = TrainRun { scratch: folder.clone(), progress, ..run.clone() };
        let start = run.clock.monotonic();
        let candidate = trainer.train(plan, &own).await.map_err(named)?;
        let seconds = run.clock.monotonic().since(start).as_secs_f64();
        Finished::write(&folder, &place.name, plan, &profile.name, candidate, seconds).await
    }

    /// The trainer of a plan's method.
    fn trainer(&self, plan: &TrainPlan) -> Result<(&dyn Trainer, TrainerProfile)> {
        let mut known = Vec::new();
        for trainer in &self.trainers {
            let profile = trainer.profile();
            if profile.methods.contains(&plan.method) {
                return Ok((&**trainer, profile));
            }
            known.extend(profile.methods);
        }
        Err(Error::invalid("check plan", "no trainer here knows this method")
            .with("method", &plan.method)
            .with("known", known.join(", ")))
    }
}

impl TrainedPlan {
    /// The candidate's files.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a candidate that lies with a provider.
    pub fn files(&self) -> Result<&[CandidateFile]> {
        match &self.candidate.output {
            CandidateOutput::Files(files) => Ok(files),
            _ => Err(Error::unsupported("read candidate", "the candidate has no files; it lies with a provider")
                .with("plan", &self.name)),
        }
    }

    /// Where a version that is made of the candidate comes from.
    pub fn lineage(&self) -> Lineage {
        Lineage {
            plan: self.plan.clone(),
            dataset: self.plan.dataset.digest(),
            examples: self.candidate.examples,
            trainer: self.trainer.clone(),
            device: self.candidate.device.clone(),
        }
    }

    /// The candidate as a backend that can be asked before it is a version: under a manifest that is nowhere else.
    ///
    /// # Errors
    /// As [`files`](Self::files), and those of the loader.
    pub async fn load<T: Task>(
        &self,
        loader: &dyn ModelLoader<T>,
        version: u64,
        created: Timestamp,
    ) -> Result<Arc<dyn InferenceBackend<T>>> {
        let manifest = Manifest {
            model: self.plan.model.clone(),
            version,
            task: self.candidate.task.clone(),
            architecture: self.candidate.architecture.clone(),
            created,
            files: Vec::new(),
            requirements: self.candidate.requirements.clone(),
            lineage: self.lineage(),
            verdict: None,
            metadata: BTreeMap::new(),
        };
        let digest = Digest::of(&manifest.encode()?);
        loader.load(&manifest, digest, folder_of(self.files()?)?).await
    }
}

/// The folder below which files have their names.
fn folder_of(files: &[CandidateFile]) -> Result<&Path> {
    let folder = files.first().and_then(|file| file.path.ancestors().nth(file.name.as_str().split('/').count()));
    folder.ok_or_else(|| Error::internal("load candidate", "the candidate has no files"))
}

/// Whether another plan may well succeed.
fn is_the_plans_own(kind: ErrorKind) -> bool {
    use ErrorKind::*;
    matches!(
        kind,
        InvalidInput | TooLarge | NotFound | Corrupt | Unsupported | PermissionDenied | ResourceExhausted | Internal
    )
}

/// Which of how many plans.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    number: usize,
    of: usize,
}

impl Place {
    fn stage(&self, stage: &str) -> String {
        let Self { name, number, of } = self;
        if *of > 1 { format!("{stage} {name} ({number} of {of})") } else { stage.to_owned() }
    }
}

/// Says of which plan a trainer's progress is.
#[derive(Debug)]
struct Placed {
    inner: Arc<dyn Progress>,
    place: Place,
}

impl Progress for Placed {
    fn report(&self, event: ProgressEvent) {
        self.inner.report(ProgressEvent { stage: self.place.stage(&event.stage), ..event });
    }
}
