//! Fine-tuning by Bedrock.

mod deployment;
mod examples;
mod job;
mod metrics;
mod settings;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use hybrid_core::{
    CallContext, Cancellation, Candidate, CandidateOutput, Document, Error, ErrorKind, FileName, IdSource, Key,
    Requirements, Result, Staging, SystemIds, Task, TrainPlan, TrainRun, Trainer, TrainerProfile, task::Chat,
};

use self::{examples::Examples, job::Order, settings::Settings};
use super::{
    super::retry::RetryPolicy,
    PollPolicy,
    control::{Control, check_access, order},
};
use crate::aws::AwsConfig;

const OPERATION: &str = "train on Bedrock";
const METHOD: &str = "bedrock-fine-tuning";
const NAME: &str = concat!("hybrid-cloud/", env!("CARGO_PKG_VERSION"), " bedrock");
const ARCHITECTURE: &str = "bedrock-custom-model/1";
const TRAIN_FILE: &str = "train.jsonl";
const VALID_FILE: &str = "valid.jsonl";
/// The base models whose custom models can be called on demand, and the regions where, 2026-11.
const ON_DEMAND: [&str; 4] = ["amazon.nova-2-lite", "amazon.nova-lite", "amazon.nova-micro", "amazon.nova-pro"];
const ON_DEMAND_REGIONS: [&str; 2] = ["us-east-1", "us-west-2"];

/// Fine-tunes a base model of Bedrock's on judged conversations, by CreateModelCustomizationJob.
///
/// # Method
/// `bedrock-fine-tuning`, from a base that is [`BaseModel::Provider`](hybrid_core::BaseModel::Provider): the id of a model that Bedrock customizes, such as
/// `amazon.nova-micro-v1:0:128k`.
///
/// # What it learns from
/// Judgments of the task `chat`. The input is a [`ChatRequest`](hybrid_core::task::ChatRequest) of texts in which user and assistant take turns and the user has the last word; the
/// decision is `{"answers": ["…"]}`, as in golden sets, and the first answer is learnt. A judgment of which Bedrock's format can say less (images, tools) is refused by its id.
///
/// # Hyperparameters
/// What is absent has Bedrock's default. The ranges are those of the Bedrock user guide.
///
/// | name | Nova | Llama | Claude 3 | others |
/// |---|---|---|---|---|
/// | `epochs` | 1 to 5 | 1 to 10 | 1 to 10 | 1 to 1,000 |
/// | `batch_size` | | 1 | 4 to 256 | 1 to 65,536 |
/// | `learning_rate` | 1e-6 to 1e-4 | 5e-6 to 0.1 | | 0 to 1 |
/// | `learning_rate_multiplier` | | | 0.1 to 2 | |
/// | `warm_up_steps` | 0 to 100 | | | 0 to 1,000,000 |
/// | `early_stopping_threshold` | | | 0 to 0.1 | |
/// | `early_stopping_patience` | | | 1 to 10 | |
///
/// And for every base `format`: `conversation` (Converse's messages; the default of all but Claude 3), `prompt_completion` (one turn, for bases that know no conversation) or `messages`
/// (the Messages API's, for Claude 3, which takes no other); and `hold_out`, the share of the judgments that validates, 0 to 0.5 (default 0: some bases take no validation data).
///
/// # Behavior
/// - The examples are written to the staging place, and the job is created under a name and a request token that follow from the plan, its dataset and these options. Whoever trains
///   the same plan again finds the job and goes on with it, whatever became of the process and the machine that ordered it; it is never paid for twice. A plan whose job has failed or was
///   stopped says so each time; the same with another seed is another job.
/// - A raised [`TrainRun::cancel`] leaves the job to go on or stops it, by [`OnCancel`]. A job that is left is found by the next attempt: with [`OnCancel::Leave`] the trainer
///   declares itself resumable. It never declares itself reproducible: Bedrock takes no seed.
/// - The candidate is [`Hosted`](CandidateOutput::Hosted) by `bedrock`, under the ARN to call it by; see [`Serving`]. A plan whose model could not be made ready as these options say is
///   refused before anything is ordered.
/// - Progress has the stage `train`, in three phases (Bedrock checks the data, reads it, trains), reported at each look; then `deploy`.
/// - The metrics `train_loss`, `train_perplexity`, `steps`, `valid_loss` and `valid_perplexity` come from the tables that Bedrock writes beside the examples; `seconds` is how long
///   the job took there.
/// - Needs a tokio runtime. Below the scratch folder the examples lie for as long as it takes to stage them.
///
/// # Permissions
/// `bedrock:CreateModelCustomizationJob`, `bedrock:GetModelCustomizationJob`, `bedrock:StopModelCustomizationJob`, `bedrock:TagResource` where there are tags,
/// `bedrock:CreateCustomModelDeployment`, `bedrock:GetCustomModelDeployment`, and `iam:PassRole` for the role, which itself reads and writes the staging place.
#[derive(Debug)]
pub struct BedrockTrainer {
    control: Control,
    staging: Arc<dyn Staging>,
    options: BedrockTrainerOptions,
}

/// How [`BedrockTrainer`] orders.
#[derive(Clone, Debug)]
pub struct BedrockTrainerOptions {
    /// The role that Bedrock takes to read the examples and to write its reports.
    pub role: String,
    /// The folder of the staging place below which each job has one of its own.
    pub folder: Key,
    /// What becomes of the job when a run is cancelled.
    pub on_cancel: OnCancel,
    /// What a finished model is made ready for.
    pub serving: Serving,
    /// The base models, by a part of their ids, whose custom models can be called on demand, and in which regions: what [`Serving::OnDemand`] needs.
    pub on_demand: BTreeMap<String, Vec<String>>,
    /// The KMS key that encrypts the model; the provider's own where absent.
    pub kms_key: Option<String>,
    /// Tags of the job and the model.
    pub tags: BTreeMap<String, String>,
    /// How often the job is looked at.
    pub poll: PollPolicy,
    /// When and how often a failed call is made again.
    pub retry: RetryPolicy,
    /// Where the randomness of the retries' waits comes from.
    pub ids: Arc<dyn IdSource>,
}

/// What becomes of a job at Bedrock when the run that follows it is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCancel {
    /// It goes on, and the next attempt goes on with it. A worker raises the cancellation also when it drains or has lost its lease, and then another attempt comes.
    #[default]
    Leave,
    /// It is stopped for good, so that it costs no more.
    Stop,
}

/// What a finished model is made ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Serving {
    /// It is deployed for calls on demand, paid by the token, where [`BedrockTrainerOptions::on_demand`] has its base model and region. The candidate's id is the deployment's ARN, by which [`Bedrock::chat`](super::super::Bedrock::chat) calls it.
    #[default]
    OnDemand,
    /// Nothing: the candidate's id is the model's ARN, for provisioned throughput that somebody else buys.
    Nothing,
}

impl BedrockTrainer {
    /// The one method that it knows, as plans name it.
    pub const METHOD: &'static str = METHOD;
}

impl BedrockTrainerOptions {
    /// With this role, below this folder; models are deployed on demand, of the bases and in the regions that the user guide named in November 2026, and jobs are not stopped by a
    /// cancelled run.
    pub fn new(role: impl Into<String>, folder: Key) -> Self {
        Self {
            role: role.into(),
            folder,
            on_cancel: OnCancel::default(),
            serving: Serving::default(),
            on_demand: ON_DEMAND.map(|base| (base.to_owned(), ON_DEMAND_REGIONS.map(str::to_owned).into())).into(),
            kms_key: None,
            tags: BTreeMap::new(),
            poll: PollPolicy::default(),
            retry: RetryPolicy::default(),
            ids: Arc::new(SystemIds::default()),
        }
    }
}

impl BedrockTrainer {
    /// A trainer in the region of `config`, which has to be that of the staging place's bucket. Nothing is sent yet.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `config` has no region, the role is none, or Bedrock cannot read the staging place.
    pub fn new(config: &AwsConfig, staging: Arc<dyn Staging>, options: BedrockTrainerOptions) -> Result<Self> {
        check_access(&options.role, &*staging, &options.folder)?;
        let control = Control::new(config, options.retry.clone(), options.poll.clone(), Arc::clone(&options.ids))?;
        Ok(Self { control, staging, options })
    }

    /// Reads a plan, and checks that what comes of it can be made ready.
    fn read(&self, plan: &TrainPlan) -> Result<Settings> {
        let settings = Settings::read(plan)?;
        let BedrockTrainerOptions { serving, on_demand, .. } = &self.options;
        if *serving == Serving::OnDemand {
            let base = on_demand.iter().find(|(part, _)| settings.base.contains(part.as_str()));
            if !base.is_some_and(|(_, regions)| regions.contains(&self.control.region)) {
                let message = "custom models of this base cannot be called on demand in this region; train with Serving::Nothing and buy throughput, or use another base or region";
                let known = match base {
                    Some((_, regions)) => regions.join(", "),
                    None => on_demand.keys().cloned().collect::<Vec<_>>().join(", "),
                };
                return Err(Error::unsupported(OPERATION, message)
                    .with("base", &settings.base)
                    .with("region", &self.control.region)
                    .with("known", known));
            }
        }
        Ok(settings)
    }

    /// What identifies the job that a plan orders here.
    fn order(&self, plan: &TrainPlan) -> Result<Order> {
        let BedrockTrainerOptions { role, folder, kms_key, .. } = &self.options;
        let order = order(&plan.encode()?, role, kms_key.as_deref(), &self.staging.location(folder));
        Order::new(&plan.model, order, folder)
    }

    /// Finds the plan's job or orders it, follows it to its end, and makes its model ready. `ordered` tells whether there is a job, however this ends.
    async fn carry_out(
        &self,
        cx: &CallContext,
        order: &Order,
        settings: &Settings,
        examples: &Examples,
        run: &TrainRun,
        ordered: &AtomicBool,
    ) -> Result<(String, BTreeMap<String, f64>)> {
        let is_there = self.find(cx, order).await?.is_some();
        ordered.store(is_there, Ordering::Relaxed);
        if !is_there {
            self.stage(order, TRAIN_FILE, &examples.train, &run.scratch).await?;
            if !examples.valid.is_empty() {
                self.stage(order, VALID_FILE, &examples.valid, &run.scratch).await?;
            }
            cx.check(OPERATION)?;
            // Not to be broken off: a call that nobody waits for may order all the same, and then nothing would stop the job.
            let firm = CallContext { cancel: Cancellation::new(), ..cx.clone() };
            ordered.store(true, Ordering::Relaxed);
            self.create(&firm, order, settings, !examples.valid.is_empty()).await?;
        }
        let job = self.follow(cx, order, &*run.progress).await?;
        let model = job.output_model_arn().ok_or_else(|| {
            Error::corrupt(OPERATION, "the job is completed and names no model").with("job", job.job_arn())
        })?;
        let metrics = metrics::read(&*self.staging, &order.output, &job).await?;
        let id = match self.options.serving {
            Serving::Nothing => model.to_owned(),
            Serving::OnDemand => self.deploy(cx, order, model, &*run.progress).await?,
        };
        Ok((id, metrics))
    }

    /// Puts a file of lines where Bedrock reads it.
    async fn stage(&self, order: &Order, name: &str, lines: &str, scratch: &Path) -> Result<()> {
        let path = scratch.join(name);
        let failed = |error: std::io::Error| {
            Error::internal("write examples", "the file system refused").with("path", path.display()).with_source(error)
        };
        let written = tokio::fs::write(&path, lines).await.map_err(failed);
        let staged = match written {
            Ok(()) => self.staging.put_file(&order.input, &FileName::new(name)?, &path).await,
            Err(error) => Err(error),
        };
        // A run that fails leaves nothing here; what may be half written neither.
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => staged.and(Err(failed(error))),
            _ => staged,
        }
    }
}

#[async_trait]
impl Trainer for BedrockTrainer {
    fn profile(&self) -> TrainerProfile {
        TrainerProfile {
            name: NAME.to_owned(),
            methods: vec![METHOD.to_owned()],
            resumable: self.options.on_cancel == OnCancel::Leave,
            reproducible: false,
        }
    }

    fn check(&self, plan: &TrainPlan) -> Result<()> {
        self.read(plan).map(drop)
    }

    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate> {
        let settings = self.read(plan)?;
        if run.cancel.is_cancelled() {
            return Err(Error::cancelled(OPERATION, "the run was cancelled"));
        }
        let judgments = plan.dataset.read(&*run.store).await?;
        let examples = Examples::write(&judgments, settings.format, settings.hold_out, plan.seed)
            .map_err(|error| error.with("dataset", &plan.dataset.name))?;
        let order = self.order(plan)?;
        let cx = self.control.context(&run.clock, &run.cancel);
        let ordered = AtomicBool::new(false);
        let (id, metrics) = match self.carry_out(&cx, &order, &settings, &examples, run, &ordered).await {
            Err(error) if error.kind() == ErrorKind::Cancelled && self.options.on_cancel == OnCancel::Stop => {
                let firm = CallContext { cancel: Cancellation::new(), ..cx };
                return Err(match self.stop(&firm, &order, ordered.into_inner()).await {
                    Ok(()) => error.with("job", &order.name),
                    Err(failed) => Error::cancelled(
                        OPERATION,
                        "the run was cancelled, and its job could not be stopped; stop it by hand",
                    )
                    .with("job", &order.name)
                    .with_source(failed),
                });
            }
            other => other.map_err(|error| error.with("job_name", &order.name))?,
        };
        Ok(Candidate {
            task: Chat::NAME.to_owned(),
            architecture: ARCHITECTURE.to_owned(),
            output: CandidateOutput::Hosted { provider: "bedrock".to_owned(), id },
            requirements: Requirements::default(),
            metrics,
            examples: examples.count,
            device: format!("bedrock {}", self.control.region),
        })
    }
}
