//! The trainer port: plan in, candidate out.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ArtifactStore, Cancellation, Clock, DatasetRef, Digest, FileName, ModelName, Requirements, Result,
    document::document, progress::Progress,
};

/// Carries out training plans.
///
/// # Behavior
/// - [`check`](Self::check) refuses a plan that can never succeed, without reading data: an unknown method, a hyperparameter out of range or unknown.
///   [`train`](Self::train) refuses the same plans with the same error before any work.
/// - `train` reads the dataset that the plan names, verified, and nothing newer. A dataset with nothing to learn from is
///   [`InvalidInput`](crate::ErrorKind::InvalidInput).
/// - Files are written below [`TrainRun::scratch`] alone. A run that fails or is cancelled leaves there at most its checkpoints.
/// - A raised [`TrainRun::cancel`] ends the run soon with [`Cancelled`](crate::ErrorKind::Cancelled).
/// - With `resumable`, a run in a scratch folder that holds checkpoints of the same plan goes on from the last one and ends with the
///   same files, byte for byte, as one that was never interrupted. Checkpoints of another plan are ignored. So does one that is repeated after its end:
///   its last checkpoint stays, since whoever called may die before it has noted the candidate. It removes the scratch folder once it needs it no more.
/// - With `reproducible`, the same plan gives the same files, byte for byte, on the same device.
/// - Progress only moves forward, and its last event says that everything is done.
#[async_trait]
pub trait Trainer: fmt::Debug + Send + Sync + 'static {
    /// What this trainer declares.
    fn profile(&self) -> TrainerProfile;
    /// Checks a plan without reading data.
    fn check(&self, plan: &TrainPlan) -> Result<()>;
    /// Trains a candidate.
    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate>;
}

/// What a trainer declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainerProfile {
    /// The trainer, with its version.
    pub name: String,
    /// The methods it knows.
    pub methods: Vec<String>,
    /// An interrupted run goes on and ends in the same place.
    pub resumable: bool,
    /// The same plan gives the same weights on the same device.
    pub reproducible: bool,
}

/// What to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// The model that the candidate is a version of.
    pub model: ModelName,
    /// The method, such as `hashed-text`.
    pub method: String,
    /// What training starts from.
    #[serde(default)]
    pub base: Option<BaseModel>,
    /// The dataset, fixed.
    pub dataset: DatasetRef,
    /// The method's settings; what is absent has the method's default, what is unknown is refused.
    #[serde(default)]
    pub hyperparameters: BTreeMap<String, Value>,
    /// Where all randomness comes from.
    pub seed: u64,
}
document!(TrainPlan, "hybrid.plan", 1);

/// What training starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BaseModel {
    /// A folder in Hugging Face layout on the trainer's machine.
    Folder(PathBuf),
    /// A model of the Hugging Face hub, as `owner/name`, with `@revision` behind it if need be, and `#file` for one file of several.
    Hub(String),
    /// A version in the registry.
    Version(Digest),
    /// A provider's model id.
    Provider(String),
}

/// What a run is given beside its plan.
#[derive(Clone, Debug)]
pub struct TrainRun {
    /// Where the dataset is read from.
    pub store: Arc<dyn ArtifactStore>,
    /// An existing folder for checkpoints and the candidate's files, kept across attempts of one run.
    pub scratch: PathBuf,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// Raised to stop the run.
    pub cancel: Cancellation,
    /// The clock of progress and timings.
    pub clock: Arc<dyn Clock>,
}

/// What training made.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The task, as [`Task::NAME`](crate::Task::NAME).
    pub task: String,
    /// What kind of loader reads it, as `<name>/<major>`.
    pub architecture: String,
    /// The model itself.
    pub output: CandidateOutput,
    /// What a machine needs to load it.
    pub requirements: Requirements,
    /// Figures of the run, such as `train_loss`, `valid_accuracy`, `temperature`, `seconds`.
    pub metrics: BTreeMap<String, f64>,
    /// How many judgments were learnt from.
    pub examples: u64,
    /// The device it was trained on.
    pub device: String,
}

/// Where a candidate's model is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CandidateOutput {
    /// Files below the scratch folder.
    Files(Vec<CandidateFile>),
    /// With a provider, under an id: there are no weights to take home.
    Hosted {
        /// The provider.
        provider: String,
        /// The id under which it is called.
        id: String,
    },
}

/// One file of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandidateFile {
    /// The name it has in a version.
    pub name: FileName,
    /// Where it lies now.
    pub path: PathBuf,
}
