//! One customization job: found by its name, created by its token, followed to its end.

use aws_sdk_bedrock::{
    operation::get_model_customization_job::GetModelCustomizationJobOutput as Job,
    types::{
        CustomizationType, JobStatusDetails, ModelCustomizationJobStatus as Status, OutputDataConfig, StatusDetails,
        TrainingDataConfig, ValidationDataConfig, Validator,
    },
};
use hybrid_core::{CallContext, Digest, Error, ErrorKind, Key, ModelName, Progress, ProgressEvent, Result};

use super::{
    super::control::{found, name, tags},
    BedrockTrainer, OPERATION, TRAIN_FILE, VALID_FILE,
    settings::Settings,
};

const CREATE: &str = "create customization job";
const LOOK: &str = "look at customization job";
const STOP: &str = "stop customization job";

/// A job as it is known by what was ordered.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Of the job, the model and its deployment.
    pub(super) name: String,
    /// What tells Bedrock that two requests are one.
    pub(super) token: String,
    /// Where the examples are staged.
    pub(super) input: Key,
    /// Where Bedrock writes its reports.
    pub(super) output: Key,
}

impl Order {
    pub(super) fn new(model: &ModelName, order: Digest, folder: &Key) -> Result<Self> {
        let name = name(model, order);
        let below = |part: &str| Key::new(format!("{folder}/{name}/{part}"));
        Ok(Self { input: below("input")?, output: below("output")?, token: order.to_string(), name })
    }
}

impl BedrockTrainer {
    /// The job as it is now, if it was ever created.
    pub(super) async fn find(&self, cx: &CallContext, order: &Order) -> Result<Option<Job>> {
        let get = || self.control.client.get_model_customization_job().job_identifier(&order.name).send();
        found(self.control.call(cx, LOOK, get).await)
    }

    pub(super) async fn create(
        &self,
        cx: &CallContext,
        order: &Order,
        settings: &Settings,
        validates: bool,
    ) -> Result<()> {
        let (input, output) = (self.staging.location(&order.input), self.staging.location(&order.output));
        let whole = |error| Error::internal(CREATE, "the order is not whole").with_source(error);
        let validator = Validator::builder().s3_uri(format!("{input}{VALID_FILE}")).build().map_err(whole)?;
        let validation = ValidationDataConfig::builder().validators(validator).build().map_err(whole)?;
        let output = OutputDataConfig::builder().s3_uri(output).build().map_err(whole)?;
        let tags = tags(&self.options.tags)?;
        let create = self
            .control
            .client
            .create_model_customization_job()
            .job_name(&order.name)
            .custom_model_name(&order.name)
            .client_request_token(&order.token)
            .role_arn(&self.options.role)
            .base_model_identifier(&settings.base)
            .customization_type(CustomizationType::FineTuning)
            .set_hyper_parameters((!settings.hyperparameters.is_empty()).then(|| settings.hyperparameters.clone()))
            .training_data_config(TrainingDataConfig::builder().s3_uri(format!("{input}{TRAIN_FILE}")).build())
            .set_validation_data_config(validates.then_some(validation))
            .output_data_config(output)
            .set_custom_model_kms_key_id(self.options.kms_key.clone())
            .set_job_tags(tags.clone())
            .set_custom_model_tags(tags);
        match self.control.call(cx, CREATE, || create.clone().send()).await {
            // Somebody else has created it meanwhile, or an attempt whose answer was lost.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.find(cx, order).await? {
                Some(_) => Ok(()),
                None => Err(error),
            },
            other => other.map(drop),
        }
    }

    /// Looks at the job until it has ended, and tells each time how it stands.
    pub(super) async fn follow(&self, cx: &CallContext, order: &Order, progress: &dyn Progress) -> Result<Job> {
        let get = || self.control.client.get_model_customization_job().job_identifier(&order.name).send();
        let mut phases = Phases { progress, done: 0 };
        let judge = |job: Job| {
            phases.report(&job);
            match job.status() {
                Some(Status::Completed) => Ok(Some(job)),
                Some(Status::Failed) => Err(ended(&job, "the customization job failed")),
                Some(Status::Stopped) => Err(ended(&job, "the customization job was stopped")),
                // It runs, or stands as only a later version knows.
                _ => Ok(None),
            }
        };
        self.control.follow(cx, LOOK, get, judge).await
    }

    /// Stops the job, if there is one that runs. What was `ordered` is there, whether or not it is seen yet.
    pub(super) async fn stop(&self, cx: &CallContext, order: &Order, ordered: bool) -> Result<()> {
        let stop = || self.control.client.stop_model_customization_job().job_identifier(&order.name).send();
        let (mut wait, mut refusals) = (self.control.poll.first, 0);
        loop {
            let refused = match self.control.call(cx, STOP, stop).await {
                Ok(_) => return Ok(()),
                Err(error) if may_be_over(&error) => error,
                Err(error) => return Err(error),
            };
            // A job just made may not be seen yet, and one that does not train yet may refuse to be stopped.
            let is_over = match self.find(cx, order).await? {
                Some(job) => job.status() != Some(&Status::InProgress),
                None => !ordered,
            };
            if is_over {
                return Ok(());
            }
            refusals += 1;
            if refusals > self.control.poll.patience {
                return Err(refused.with("refusals_in_a_row", refusals));
            }
            self.control.pause(cx, STOP, &mut wait).await?;
        }
    }
}

/// Whether a stop may have been refused because there is nothing that runs.
fn may_be_over(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::InvalidInput)
}

fn ended(job: &Job, message: &'static str) -> Error {
    let message = format!("{message}; when its cause is mended, train with another seed, which is another job");
    let error = Error::invalid(OPERATION, message).with("job", job.job_arn());
    match job.failure_message() {
        Some(said) => error.with_source(said.trim_end_matches('.').to_owned()),
        None => error,
    }
}

/// Reports how many of Bedrock's three phases are over.
struct Phases<'a> {
    progress: &'a dyn Progress,
    done: u64,
}

const PHASES: u64 = 3;

impl Phases<'_> {
    fn report(&mut self, job: &Job) {
        let details = job.status_details();
        let phases = [
            ("checking the data", details.and_then(StatusDetails::validation_details).and_then(|d| d.status())),
            ("reading the data", details.and_then(StatusDetails::data_processing_details).and_then(|d| d.status())),
            ("training", details.and_then(StatusDetails::training_details).and_then(|d| d.status())),
        ];
        let completed = job.status() == Some(&Status::Completed);
        let over = phases.iter().filter(|(_, status)| *status == Some(&JobStatusDetails::Completed)).count() as u64;
        self.done = self.done.max(if completed { PHASES } else { over });
        let now = phases.iter().find(|(_, status)| *status == Some(&JobStatusDetails::InProgress));
        let message = match (completed, now) {
            (true, _) => "completed",
            (_, Some((phase, _))) => phase,
            _ => job.status().map_or("waiting", Status::as_str),
        };
        self.progress.report(ProgressEvent::new("train", self.done, PHASES, "phases").with_message(message));
    }
}
