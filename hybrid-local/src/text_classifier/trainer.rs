//! From judgments to a version's files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use hybrid_core::{
    Cancellation, Candidate, CandidateOutput, Digest, Document, Error, Hasher, Requirements, Result, Task, TrainPlan,
    TrainRun, Trainer, TrainerProfile, task::Classify,
};

#[cfg(feature = "decoder")]
use super::decoder::{self, HeadMethod, HeadSettings};
use super::{
    ADAPTER, BERT_ARCHITECTURE, CONFIG, HASHED_ARCHITECTURE, TOKENIZER, WEIGHTS,
    checkpoint::Checkpoint,
    encoder::{BertMethod, BertSettings, Mode, version_tensors},
    examples::Examples,
    files,
    hashed::{HashedMethod, HashedSettings},
    settings::Settings,
    tensors,
    training::{self, Figures, Trained},
};
#[cfg(feature = "decoder")]
use crate::decoder::headed::HeadBase;
use crate::{
    Device, LocalModel, ModelResolver, ModelSource,
    blocking::blocking,
    encoder::Base,
    learning::{candidate::write_candidate, unless_cancelled},
};

const OPERATION: &str = "train";
const NAME: &str = concat!("hybrid-local/", env!("CARGO_PKG_VERSION"));
const HASHED: &str = "hashed-text";
const BERT_FULL: &str = "bert-full";
const BERT_LORA: &str = "bert-lora";
const METHODS: &[&str] = &[
    HASHED,
    BERT_FULL,
    BERT_LORA,
    #[cfg(feature = "decoder")]
    decoder::FULL,
    #[cfg(feature = "decoder")]
    decoder::LORA,
];

/// Trains text classifiers from judgments.
///
/// # Methods
/// | method | what it trains | base |
/// |---|---|---|
/// | `hashed-text` | embeddings of hashed words and character n-grams with a linear layer; needs no downloaded weights | none |
/// | `bert-full` | an encoder of the BERT family, whole, with a head | folder or hub |
/// | `bert-lora` | low-rank matrices beside the weights of its attention, with a head; the encoder stays as it is | folder or hub |
/// | `decoder-head-full` | a chat model, whole, with a head over the state of a text's last token (feature `decoder`) | folder or hub |
/// | `decoder-head-lora` | low-rank matrices beside its layers, with such a head; the decoder stays as it is and may be quantized (feature `decoder`) | folder, GGUF file or hub |
///
/// # Bases
/// Of `decoder-…` the models that [`DecoderTrainer`](crate::DecoderTrainer) trains; of the others a model in Hugging Face layout:
/// `config.json`, `tokenizer.json`, `model.safetensors`, of the types `bert`, `roberta`, `xlm-roberta`, `camembert` and `distilbert`.
/// [`BaseModel::Folder`](hybrid_core::BaseModel::Folder) names its folder, [`BaseModel::Hub`](hybrid_core::BaseModel::Hub) a model of the
/// Hugging Face hub, [`BaseModel::Version`](hybrid_core::BaseModel::Version) a version of a registry. By default the hub's cache is read
/// alone, and what it lacks is [`NotFound`](hybrid_core::ErrorKind::NotFound) with the command that fetches it;
/// [`with_models`](Self::with_models) says where else models come from.
///
/// # Hyperparameters of `hashed-text`
/// | name | range | default | what it is |
/// |---|---|---|---|
/// | `epochs` | 1 to 1,000 | 30 | passes over the texts at most; early stopping takes the best number |
/// | `batch_size` | 1 to 4,096 | 32 | texts a step |
/// | `learning_rate` | 1e-6 to 1,000 | 10 | of plain gradient descent, falling to zero in a line |
/// | `dimension` | 1 to 1,024 | 32 | columns of the embeddings |
/// | `word_ngrams` | 1 to 3 | 1 | longest run of words that is one feature |
/// | `char_min`, `char_max` | 1 to 8 | 2, 5 | shortest and longest run of characters that is one feature |
/// | `buckets` | 2^10 to 2^24, a power of two | 2^20 | hash values of each kind; only those seen in training take room |
/// | `min_count` | 1 to 1,000 | 1 | texts that a feature must occur in |
/// | `label_smoothing` | 0 to 0.5 | 0.05 | share of each target that is spread over all labels |
/// | `ngram_dropout` | 0 to 0.9 | 0 | share of the features that a step leaves out |
/// | `folds` | 1 to 20 | 5 | models trained for validation, each without its share of the texts; 1 holds out `hold_out` once |
/// | `hold_out` | 0.05 to 0.5 | 0.15 | share held out where `folds` is 1 |
/// | `checkpoint_steps` | 1 to 1,000,000 | 250 | steps between two checkpoints |
///
/// # Hyperparameters of `bert-full` and `bert-lora`
/// | name | range | default | what it is |
/// |---|---|---|---|
/// | `epochs` | 1 to 1,000 | 5, `bert-lora` 10 | passes over the texts at most; early stopping takes the best number |
/// | `batch_size` | 1 to 1,024 | 16 | texts a step |
/// | `learning_rate` | 1e-8 to 1 | 5e-5, `bert-lora` 1e-3 | of AdamW, rising over the warm-up, then falling to zero in a line |
/// | `head_learning_rate` | 1e-8 to 1 | 1e-3 | the same for the head, which starts from nothing |
/// | `weight_decay` | 0 to 1 | 0.01 | share of a matrix that a step of learning rate 1 takes away |
/// | `warm_up` | 0 to 0.9 | 0.1 | share of the steps over which the learning rate rises |
/// | `clip_norm` | 1e-3 to 1e6 | 1 | length that all gradients together are cut to |
/// | `dropout` | 0 to 0.9 | 0.1 | share of each layer's results that a step leaves out; attention's shares are left whole |
/// | `label_smoothing` | 0 to 0.5 | 0.05 | share of each target that is spread over all labels |
/// | `max_tokens` | 8 to the base's positions | the base's positions | tokens of a text that are read, in training as in service |
/// | `pooling` | `cls`, `mean` | `cls` | what the head reads: the first token's row, or the mean of all |
/// | `lora_rank` | 1 to 256 | 8 | rank of the matrices (`bert-lora`) |
/// | `lora_alpha` | 1e-3 to 1e4 | 16 | the matrices' product counts `lora_alpha / lora_rank` times (`bert-lora`) |
/// | `lora_targets` | list of `query`, `key`, `value`, `output` | `query`, `value` | weights that have matrices beside them (`bert-lora`) |
/// | `folds` | 1 to 20 | 1 | as above |
/// | `hold_out`, `checkpoint_steps` | | | as above |
///
/// # Hyperparameters of `decoder-head-full` and `decoder-head-lora`
/// | name | range | default | what it is |
/// |---|---|---|---|
/// | `epochs` | 1 to 1,000 | 3, `decoder-head-lora` 5 | passes over the texts at most; early stopping takes the best number |
/// | `batch_size` | 1 to 1,024 | 8 | texts a step; some 2,000 tokens are in memory together |
/// | `learning_rate` | 1e-8 to 1 | 2e-5, `decoder-head-lora` 5e-4 | of AdamW, rising over the warm-up, then falling to zero in a line |
/// | `max_tokens` | 8 to 2^20 | 512 | tokens of a text that are read, at most the base's positions, in training as in service |
/// | `lora_rank`, `lora_alpha`, `lora_rank_stabilized`, `lora_dropout`, `lora_targets` | | | as of [`DecoderTrainer`](crate::DecoderTrainer) (`decoder-head-lora`) |
/// | `head_learning_rate`, `weight_decay`, `warm_up`, `clip_norm`, `label_smoothing`, `folds`, `hold_out`, `checkpoint_steps` | | | as above |
///
/// # Behavior
/// - Declares itself resumable and reproducible, and is: files depend on plan, base and device alone, byte for byte.
/// - A judgment of another task, without a text or label, or with a text above 64 KiB is refused by its id.
/// - The temperature, the number of epochs and the metrics `valid_accuracy`, `valid_loss`, `ece` and `ece_uncalibrated` (15 bins) come from
///   texts that the model asked had not seen. The other metrics: `train_loss` (last epoch), `temperature`, `epochs`, `steps`, `seconds` (this attempt),
///   and for encoders and decoders `truncated`: the texts of which only the first `max_tokens` tokens were learnt from.
/// - With an encoder or decoder, the first step's gradients are looked at: a parameter that the loss does not reach is an error that names it.
/// - Progress has one stage, `train`, in steps.
/// - Needs a tokio runtime: computing runs on its blocking threads. Dropping the future of `train` stops the run.
///
/// ```no_run
/// use std::{collections::BTreeMap, sync::Arc};
/// use hybrid_core::{
///     ArtifactStore, Cancellation, DatasetName, DatasetRef, NoProgress, Result, SystemClock, TenantId, TrainPlan, TrainRun, Trainer,
/// };
/// use hybrid_local::{Device, TextClassifierTrainer};
///
/// # async fn train(store: Arc<dyn ArtifactStore>) -> Result<()> {
/// let dataset = DatasetRef::fix(&*store, &TenantId::single(), &DatasetName::new("bakery")?).await?;
/// let plan = TrainPlan {
///     model: "bakery".parse()?,
///     method: "hashed-text".to_owned(),
///     base: None,
///     dataset,
///     hyperparameters: BTreeMap::new(),
///     seed: 1,
/// };
/// let run = TrainRun {
///     store,
///     scratch: "scratch".into(),
///     progress: Arc::new(NoProgress),
///     cancel: Cancellation::new(),
///     clock: Arc::new(SystemClock),
/// };
/// let candidate = TextClassifierTrainer::new(Device::cpu()).train(&plan, &run).await?;
/// println!("{:?}", candidate.metrics);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TextClassifierTrainer {
    device: Device,
    models: ModelResolver,
}

impl TextClassifierTrainer {
    /// A trainer that computes on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, models: ModelResolver::local() }
    }

    /// The same, with base models from wherever `models` finds them.
    #[must_use]
    pub fn with_models(mut self, models: ModelResolver) -> Self {
        self.models = models;
        self
    }

    fn method(plan: &TrainPlan) -> Result<Method> {
        let settings = Settings::new(&plan.hyperparameters);
        let method = match &*plan.method {
            HASHED => {
                if let Some(base) = &plan.base {
                    return Err(Error::invalid("check plan", "the method starts from nothing; leave the base out")
                        .with("method", &plan.method)
                        .with("base", format_args!("{base:?}")));
                }
                Method::Hashed(HashedSettings::read(&settings, plan.seed)?)
            }
            BERT_FULL | BERT_LORA => {
                let base = base_of(plan)?;
                let mode = if plan.method == BERT_FULL { Mode::Full } else { Mode::Lora };
                Method::Bert(base, BertSettings::read(&settings, mode, plan.seed)?)
            }
            #[cfg(feature = "decoder")]
            decoder::FULL | decoder::LORA => {
                let base = base_of(plan)?;
                let full = plan.method == decoder::FULL;
                Method::Decoder(base, HeadSettings::read(&settings, full, plan.seed)?)
            }
            _ => {
                return Err(Error::invalid("check plan", "the trainer does not know this method")
                    .with("method", &plan.method)
                    .with("known", METHODS.join(", ")));
            }
        };
        settings.finish()?;
        Ok(method)
    }

    /// What the result depends on beside the data, which the plan fixes.
    fn run_digest<'a>(&self, plan: &TrainPlan, base: impl IntoIterator<Item = &'a Digest>) -> Result<Digest> {
        let mut hasher = Hasher::new();
        hasher.update(&plan.encode()?);
        base.into_iter().for_each(|digest| hasher.update(digest.as_bytes()));
        hasher.update(format!("{NAME} on {}", self.device).as_bytes());
        Ok(hasher.finish())
    }

    fn train_hashed(&self, settings: HashedSettings, work: &Work) -> Result<Candidate> {
        let Work { plan, run, examples, dropped } = work;
        let checkpoint = Checkpoint::new(&run.scratch, self.run_digest(plan, [])?);
        let method = HashedMethod { examples, settings, device: &self.device };
        let trained = training::train(&&method, examples, &settings.schedule, &checkpoint, run, dropped)?;
        let model = trained.learner.into_model(trained.temperature)?;
        let config = model.config().encode()?;
        let weights = tensors::encode(&model.tensors()?, None)?;
        let memory = model.config().tensor_bytes() * 2;
        let files = [(CONFIG, config.as_ref()), (WEIGHTS, weights.as_slice())];
        let output = CandidateOutput::Files(write_candidate(&run.scratch, |folder| write_all(folder, &files))?);
        run.progress.report(training::finished(trained.steps));
        let metrics = metrics(trained.temperature, trained.figures);
        Ok(self.candidate(HASHED_ARCHITECTURE, output, memory, metrics, examples))
    }

    fn train_bert(&self, base: &LocalModel, settings: &BertSettings, work: &Work) -> Result<Candidate> {
        let Work { plan, run, examples, dropped } = work;
        let base = Base::read(base.path(), None)?;
        let checkpoint = Checkpoint::new(&run.scratch, self.run_digest(plan, base.digests.values())?);
        let method = BertMethod::new(examples, &base, settings, &self.device)?;
        let cut = method.cut();
        if cut > 0 {
            tracing::warn!(texts = cut, "texts have more tokens than are read; only their beginning is learnt from");
        }
        let Trained { learner, temperature, figures, steps } =
            training::train(&&method, examples, &settings.schedule, &checkpoint, run, dropped)?;
        let (config, tensors) = learner.finish(temperature)?;
        drop(method);
        let tokenizer = base.tokenizer.clone();
        let (model, adapter) = version_tensors(tensors, base, config.has_adapter());
        let memory = config.tensor_bytes() * 2;
        let (config, model) = (config.encode()?, tensors::encode(&model, None)?);
        let adapter = adapter.map(|adapter| tensors::encode(&adapter, None)).transpose()?;
        let mut files = vec![(CONFIG, config.as_ref()), (TOKENIZER, tokenizer.as_slice()), (WEIGHTS, model.as_slice())];
        files.extend(adapter.as_deref().map(|adapter| (ADAPTER, adapter)));
        let output = CandidateOutput::Files(write_candidate(&run.scratch, |folder| write_all(folder, &files))?);
        run.progress.report(training::finished(steps));
        let mut metrics = metrics(temperature, figures);
        metrics.insert("truncated".to_owned(), cut as f64);
        Ok(self.candidate(BERT_ARCHITECTURE, output, memory, metrics, examples))
    }

    #[cfg(feature = "decoder")]
    fn train_decoder(&self, base: &LocalModel, settings: &HeadSettings, work: &Work) -> Result<Candidate> {
        let Work { plan, run, examples, dropped } = work;
        let (base, tokenizer) = HeadBase::open(base.path(), settings.max_tokens())?;
        if settings.lora().is_none() {
            base.check_rewritable().map_err(|error| error.with("method", &plan.method))?;
        }
        let digests = base.digests()?;
        let checkpoint = Checkpoint::new(&run.scratch, self.run_digest(plan, digests.values())?);
        let method = HeadMethod::new(examples, &base, tokenizer, settings, &self.device)?;
        let cut = method.cut();
        if cut > 0 {
            tracing::warn!(texts = cut, "texts have more tokens than are read; only their beginning is learnt from");
        }
        let Trained { learner, temperature, figures, steps } =
            training::train(&&method, examples, &settings.schedule, &checkpoint, run, dropped)?;
        let (config, body, head) = learner.finish(temperature, digests)?;
        // All weights that were trained are in the base's place.
        let beside = settings.lora().map_or(0, |_| bytes_of(&body));
        let memory = base.bytes() + beside + bytes_of(&head);
        drop(learner);
        drop(method);
        let (config, head) = (config.encode()?, tensors::encode(&head, None)?);
        let own = [(decoder::CONFIG, config.as_ref()), (decoder::HEAD, head.as_slice())];
        let written = write_candidate(&run.scratch, |folder| {
            let mut paths = write_all(folder, &own)?;
            paths.extend(base.write(settings.lora(), body, folder)?);
            Ok(paths)
        })?;
        run.progress.report(training::finished(steps));
        let mut metrics = metrics(temperature, figures);
        metrics.insert("truncated".to_owned(), cut as f64);
        Ok(self.candidate(decoder::ARCHITECTURE, CandidateOutput::Files(written), memory, metrics, examples))
    }

    fn candidate(
        &self,
        architecture: &str,
        output: CandidateOutput,
        memory_bytes: u64,
        metrics: BTreeMap<String, f64>,
        examples: &Examples,
    ) -> Candidate {
        Candidate {
            task: Classify::NAME.to_owned(),
            architecture: architecture.to_owned(),
            output,
            requirements: Requirements { memory_bytes },
            metrics,
            examples: examples.len() as u64,
            device: self.device.to_string(),
        }
    }
}

enum Method {
    Hashed(HashedSettings),
    Bert(ModelSource, BertSettings),
    #[cfg(feature = "decoder")]
    Decoder(ModelSource, HeadSettings),
}

/// The base of a method that starts from one.
fn base_of(plan: &TrainPlan) -> Result<ModelSource> {
    let message = "the method starts from a base model; name a folder or a hub's";
    let base = plan.base.as_ref();
    let base = base.ok_or_else(|| Error::invalid("check plan", message).with("method", &plan.method))?;
    ModelSource::try_from(base).map_err(|error| error.with("method", &plan.method))
}

/// What a blocking thread is given.
struct Work {
    plan: TrainPlan,
    run: TrainRun,
    examples: Examples,
    /// Raised when nobody waits for the result any more.
    dropped: Cancellation,
}

#[async_trait]
impl Trainer for TextClassifierTrainer {
    fn profile(&self) -> TrainerProfile {
        TrainerProfile {
            name: format!("{NAME} text-classifier"),
            methods: METHODS.iter().map(|method| (*method).to_owned()).collect(),
            resumable: true,
            reproducible: true,
        }
    }

    fn check(&self, plan: &TrainPlan) -> Result<()> {
        Self::method(plan).map(drop)
    }

    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate> {
        let method = Self::method(plan)?;
        let judgments = unless_cancelled(&run.cancel, plan.dataset.read(&*run.store)).await?;
        let examples = Examples::read(&judgments).map_err(|error| error.with("dataset", &plan.dataset.name))?;
        let dropped = Cancellation::new();
        let guard = dropped.clone().drop_guard();
        let work = Work { plan: plan.clone(), run: run.clone(), examples, dropped };
        let base = match &method {
            Method::Hashed(_) => None,
            Method::Bert(base, _) => Some(unless_cancelled(&run.cancel, self.models.resolve(base)).await?),
            #[cfg(feature = "decoder")]
            Method::Decoder(base, _) => Some(unless_cancelled(&run.cancel, self.models.resolve(base)).await?),
        };
        let this = self.clone();
        let training = move || match (method, base) {
            (Method::Hashed(settings), _) => this.train_hashed(settings, &work),
            (Method::Bert(_, settings), Some(base)) => this.train_bert(&base, &settings, &work),
            #[cfg(feature = "decoder")]
            (Method::Decoder(_, settings), Some(base)) => this.train_decoder(&base, &settings, &work),
            (_, None) => Err(Error::internal(OPERATION, "the base was not looked for")),
        };
        let candidate = blocking(OPERATION, training).await;
        guard.disarm();
        candidate
    }
}

/// Writes files into a folder; gives their paths.
fn write_all(folder: &Path, contents: &[(&str, &[u8])]) -> Result<Vec<PathBuf>> {
    let write = |(name, bytes): &(&str, &[u8])| files::write(&folder.join(name), bytes).map(|()| folder.join(name));
    contents.iter().map(write).collect()
}

/// What tensors take in memory.
#[cfg(feature = "decoder")]
fn bytes_of(tensors: &tensors::Tensors) -> u64 {
    tensors.values().map(|array| 4 * array.shape.iter().product::<usize>() as u64).sum()
}

fn metrics(temperature: f64, figures: Figures) -> BTreeMap<String, f64> {
    let Figures { ece, ece_uncalibrated, valid_accuracy, valid_loss, train_loss, epochs, steps, seconds } = figures;
    [
        ("ece", ece),
        ("ece_uncalibrated", ece_uncalibrated),
        ("valid_accuracy", valid_accuracy),
        ("valid_loss", valid_loss),
        ("train_loss", train_loss),
        ("temperature", temperature),
        ("epochs", epochs as f64),
        ("steps", steps as f64),
        ("seconds", seconds),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
