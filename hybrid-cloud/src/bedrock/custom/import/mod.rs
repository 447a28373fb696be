//! Models trained elsewhere, imported into Bedrock.

mod architecture;
mod folder;
mod weights;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_sdk_bedrock::{
    operation::{
        get_imported_model::GetImportedModelOutput as Model, get_model_import_job::GetModelImportJobOutput as Job,
    },
    types::{ModelDataSource, ModelImportJobStatus as Status, S3DataSource},
};
use futures_util::TryStreamExt;
use hybrid_core::{
    CallContext, Cancellation, Clock, Digest, Error, ErrorKind, IdSource, Key, ModelName, NoProgress, Progress,
    ProgressEvent, Result, Staging, SystemClock, SystemIds,
};

use self::folder::ModelFolder;
use super::{
    super::retry::RetryPolicy,
    PollPolicy,
    control::{Control, check_access, found, name, order, tags},
};
use crate::aws::AwsConfig;

const OPERATION: &str = "import model";
const LOOK: &str = "look at imported model";
/// The regions that import models, 2026-11.
const REGIONS: [&str; 4] = ["eu-central-1", "us-east-1", "us-east-2", "us-west-2"];
/// How many imports of one version are passed over that have failed, or whose model was deleted.
const MAX_ATTEMPTS: u32 = 50;

/// Imports versions of models into Bedrock, by CreateModelImportJob.
///
/// # Behavior
/// - A version is a folder in Hugging Face layout: `config.json`, `tokenizer.json`, `tokenizer_config.json`, and weights in Safetensors, of one file or of shards with
///   `model.safetensors.index.json`.
/// - What Bedrock would refuse after hours of uploading is refused before any call, by the rules of its user guide: [`check`](Self::check) lists them.
/// - The files are put in the staging place, those that are there already not again; when the model is imported they are deleted. What cannot be deleted is left to
///   the bucket's lifecycle rule.
/// - The job has a name and a request token that follow from the version and these options. Whoever imports the version again finds the job, or the model that it made; an import that
///   failed, or whose model somebody has deleted, is made anew under the next number, when somebody asks for it.
/// - A raised [`ImportRun::cancel`] ends the run with [`Cancelled`](ErrorKind::Cancelled). An import at Bedrock cannot be stopped: it goes on, and the next run finds it.
/// - Progress has the stages `stage`, in bytes, and `import`, in models. Needs a tokio runtime.
///
/// # Permissions
/// `bedrock:CreateModelImportJob`, `bedrock:GetModelImportJob`, `bedrock:GetImportedModel`, `bedrock:TagResource` where there are tags, and `iam:PassRole` for the role, which itself reads
/// the staging place.
#[derive(Debug)]
pub struct ModelImport {
    control: Control,
    staging: Arc<dyn Staging>,
    options: ModelImportOptions,
}

/// How [`ModelImport`] orders.
#[derive(Clone, Debug)]
pub struct ModelImportOptions {
    /// The role that Bedrock takes to read the files.
    pub role: String,
    /// The folder of the staging place below which each version has one of its own.
    pub folder: Key,
    /// The regions that import models.
    pub regions: Vec<String>,
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

impl ModelImportOptions {
    /// With this role, below this folder; in the regions that imported models in November 2026.
    pub fn new(role: impl Into<String>, folder: Key) -> Self {
        Self {
            role: role.into(),
            folder,
            regions: REGIONS.map(str::to_owned).into(),
            kms_key: None,
            tags: BTreeMap::new(),
            poll: PollPolicy::default(),
            retry: RetryPolicy::default(),
            ids: Arc::new(SystemIds::default()),
        }
    }
}

/// What one import is given beside the version.
#[derive(Clone, Debug)]
pub struct ImportRun {
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// Raised to end the run.
    pub cancel: Cancellation,
    /// The clock of the waits.
    pub clock: Arc<dyn Clock>,
}

impl Default for ImportRun {
    /// Nobody watches, nobody cancels, on the machine's clock.
    fn default() -> Self {
        Self { progress: Arc::new(NoProgress), cancel: Cancellation::new(), clock: Arc::new(SystemClock) }
    }
}

/// A model that Bedrock has imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedModel {
    /// What it is called by: [`Bedrock::imported_chat`](super::super::Bedrock::imported_chat).
    pub arn: String,
    /// The architecture that Bedrock found.
    pub architecture: Option<String>,
    /// Whether Converse knows it, so that [`Bedrock::chat`](super::super::Bedrock::chat) calls it too.
    pub converse: bool,
    /// How many custom model units one copy takes; each is billed by the minute that it is awake.
    pub units_per_copy: Option<u32>,
}

impl ModelImport {
    /// Imports in the region of `config`, which has to be that of the staging place's bucket. Nothing is sent yet.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `config` has no region, the role is none, or Bedrock cannot read the staging place;
    /// [`Unsupported`](ErrorKind::Unsupported) if the region imports no models.
    pub fn new(config: &AwsConfig, staging: Arc<dyn Staging>, options: ModelImportOptions) -> Result<Self> {
        check_access(&options.role, &*staging, &options.folder)?;
        let control = Control::new(config, options.retry.clone(), options.poll.clone(), Arc::clone(&options.ids))?;
        if !options.regions.contains(&control.region) {
            return Err(Error::unsupported(OPERATION, "the region imports no models; use one that does")
                .with("region", &control.region)
                .with("known", options.regions.join(", ")));
        }
        Ok(Self { control, staging, options })
    }

    /// Checks a version's folder without a call.
    ///
    /// # Errors
    /// Each names the thing and the way out. [`NotFound`](ErrorKind::NotFound): a file is missing. [`Unsupported`](ErrorKind::Unsupported): an architecture, a tokenizer, a form of the
    /// weights, a quantization or a type of numbers that Bedrock does not import. [`TooLarge`](ErrorKind::TooLarge): weights of 200 GB and more (100 GB for models that see), a context of
    /// more than 128 Ki tokens. [`Corrupt`](ErrorKind::Corrupt): weights cut short, or a tensor that the index names and no file has.
    pub async fn check(&self, folder: &Path) -> Result<()> {
        self.read(folder).await.map(drop)
    }

    /// Imports the version with this digest, whose files lie in `folder`.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), of the staging place and of Bedrock; [`InvalidInput`](ErrorKind::InvalidInput) with Bedrock's words if the import failed.
    pub async fn import(
        &self,
        model: &ModelName,
        version: Digest,
        folder: &Path,
        run: &ImportRun,
    ) -> Result<ImportedModel> {
        let files = self.read(folder).await?;
        let cx = self.control.context(&run.clock, &run.cancel);
        cx.check(OPERATION)?;
        let ModelImportOptions { role, folder: staged, kms_key, .. } = &self.options;
        let order = order(version.as_bytes(), role, kms_key.as_deref(), &self.staging.location(staged));
        let order = Order::new(model, order, staged)?;
        let imported = self.carry_out(&cx, order, &files, run).await;
        imported.map_err(|error| error.with("model", model).with("version", version))
    }

    async fn read(&self, folder: &Path) -> Result<ModelFolder> {
        let (folder, region) = (folder.to_owned(), self.control.region.clone());
        let read = tokio::task::spawn_blocking(move || ModelFolder::read(&folder, &region)).await;
        read.map_err(|error| Error::internal(OPERATION, "the check of the folder ended early").with_source(error))?
    }

    async fn carry_out(
        &self,
        cx: &CallContext,
        mut order: Order,
        files: &ModelFolder,
        run: &ImportRun,
    ) -> Result<ImportedModel> {
        let (arn, model) = loop {
            let job = self.find(cx, &order).await?;
            let status = job.as_ref().and_then(Job::status).cloned();
            let again = order.attempt < MAX_ATTEMPTS;
            if status == Some(Status::Failed) && again {
                order.attempt += 1;
                continue;
            }
            if job.is_none() {
                self.stage(cx, &order, files, &*run.progress).await?;
                self.create(cx, &order).await?;
            }
            let arn = self.follow(cx, &order, &*run.progress).await?;
            match self.model(cx, &arn, status != Some(Status::Completed)).await? {
                Some(model) => break (arn, model),
                // Somebody has deleted it since.
                None if again => order.attempt += 1,
                None => {
                    let message =
                        "the version was imported and deleted too often; import it under another model's name";
                    return Err(Error::invalid(OPERATION, message).with("attempts", order.attempt));
                }
            }
        };
        self.clear(&order).await;
        let units = model.custom_model_units().and_then(|units| units.custom_model_units_per_model_copy());
        Ok(ImportedModel {
            architecture: model.model_architecture().map(str::to_owned),
            converse: model.instruct_supported().unwrap_or(false),
            units_per_copy: units.and_then(|units| u32::try_from(units).ok()),
            arn,
        })
    }

    /// Puts those files in the staging place that are not there yet.
    async fn stage(&self, cx: &CallContext, order: &Order, files: &ModelFolder, progress: &dyn Progress) -> Result<()> {
        let there: Vec<_> = self.staging.list(&order.folder).try_collect().await?;
        let total: u64 = files.files.iter().map(|file| file.size).sum();
        let mut done = 0;
        progress.report(ProgressEvent::new("stage", done, total, "bytes"));
        for file in &files.files {
            // A version's files never change, so the size tells whether one came whole; small ones are put again.
            let is_there = there.iter().any(|there| there.name == file.name && there.size == file.size);
            if !(is_there && file.is_weights) {
                let path: PathBuf = file.path.clone();
                cx.run(OPERATION, self.staging.put_file(&order.folder, &file.name, &path)).await?;
            }
            done += file.size;
            progress.report(ProgressEvent::new("stage", done, total, "bytes").with_message(file.name.as_str()));
        }
        Ok(())
    }

    async fn find(&self, cx: &CallContext, order: &Order) -> Result<Option<Job>> {
        let name = order.name();
        let get = || self.control.client.get_model_import_job().job_identifier(&name).send();
        found(self.control.call(cx, "look at import job", get).await)
    }

    async fn create(&self, cx: &CallContext, order: &Order) -> Result<()> {
        let whole = |error| Error::internal(OPERATION, "the order is not whole").with_source(error);
        let source = S3DataSource::builder().s3_uri(self.staging.location(&order.folder)).build().map_err(whole)?;
        let (name, tags) = (order.name(), tags(&self.options.tags)?);
        let create = self
            .control
            .client
            .create_model_import_job()
            .job_name(&name)
            .imported_model_name(&name)
            .client_request_token(format!("{}-{}", order.token, order.attempt))
            .role_arn(&self.options.role)
            .model_data_source(ModelDataSource::S3DataSource(source))
            .set_imported_model_kms_key_id(self.options.kms_key.clone())
            .set_job_tags(tags.clone())
            .set_imported_model_tags(tags);
        match self.control.call(cx, "create import job", || create.clone().send()).await {
            // Somebody else has created it meanwhile, or an attempt whose answer was lost.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.find(cx, order).await? {
                Some(_) => Ok(()),
                None => Err(error),
            },
            other => other.map(drop),
        }
    }

    /// The model's ARN, once it is imported.
    async fn follow(&self, cx: &CallContext, order: &Order, progress: &dyn Progress) -> Result<String> {
        let name = order.name();
        let report = |done| progress.report(ProgressEvent::new("import", done, 1, "models"));
        let get = || self.control.client.get_model_import_job().job_identifier(&name).send();
        let judge = |job: Job| match job.status() {
            Some(Status::Completed) => {
                let arn = job.imported_model_arn().ok_or_else(|| {
                    Error::corrupt(OPERATION, "the import is completed and names no model").with("job", &name)
                })?;
                report(1);
                Ok(Some(arn.to_owned()))
            }
            Some(Status::Failed) => {
                let said = job.failure_message().unwrap_or("Bedrock does not say why").trim_end_matches('.');
                Err(Error::invalid(OPERATION, "the import failed; mend its cause and import again")
                    .with("job", job.job_arn().unwrap_or(&name))
                    .with_source(said.to_owned()))
            }
            _ => {
                report(0);
                Ok(None)
            }
        };
        self.control.follow(cx, OPERATION, get, judge).await
    }

    /// The model that an import has made; one that ended a moment ago may not be seen everywhere yet, and is waited for.
    async fn model(&self, cx: &CallContext, arn: &str, is_new: bool) -> Result<Option<Model>> {
        let get = || self.control.client.get_imported_model().model_identifier(arn).send();
        if is_new {
            return self.control.follow(cx, LOOK, get, |model| Ok(Some(model))).await.map(Some);
        }
        found(self.control.call(cx, LOOK, get).await)
    }

    /// Deletes what was staged: Bedrock has it now.
    async fn clear(&self, order: &Order) {
        let Ok(files) = self.staging.list(&order.folder).try_collect::<Vec<_>>().await else { return };
        for file in files {
            let _ = self.staging.delete(&order.folder, &file.name).await;
        }
    }
}

/// An import as it is known by what was ordered.
#[derive(Debug)]
struct Order {
    base: String,
    token: String,
    folder: Key,
    attempt: u32,
}

impl Order {
    fn new(model: &ModelName, order: Digest, folder: &Key) -> Result<Self> {
        let base = name(model, order);
        Ok(Self { folder: Key::new(format!("{folder}/{base}"))?, base, token: order.to_string(), attempt: 1 })
    }

    /// Of the job and the model.
    fn name(&self) -> String {
        format!("{}-{}", self.base, self.attempt)
    }
}
