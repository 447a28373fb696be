//! The trainer port: from judgments to an adapter or a model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use hybrid_core::{
    BaseModel, Cancellation, Candidate, CandidateOutput, Digest, Document, Error, Hasher, Judgment, Requirements,
    Result, Task, TrainPlan, TrainRun, Trainer, TrainerProfile, task::Chat,
};

use super::{
    base::{Trainable, digests},
    batches::{split, steps},
    course::{Course, Figures, finished},
    learner::{Learner, initial},
    lessons::{Lessons, Writer},
    memory::{Demand, needed},
    settings::{METHODS, TrainSettings},
};
use crate::{
    Device, HubModel, ModelResolver, ModelSource,
    blocking::blocking,
    decoder::{
        ADAPTER_ARCHITECTURE, ARCHITECTURE,
        adapter::{self, BaseDigests, Matrices},
        config::DecoderConfig,
        files::{ModelFiles, Weights},
        network::Network,
        template::Templates,
        tokens::Tokens,
    },
    files::check_memory,
    learning::{candidate::write_candidate, checkpoint::Checkpoint, unless_cancelled},
    tensors::Tensors,
};

const OPERATION: &str = "train";
const NAME: &str = concat!("hybrid-local/", env!("CARGO_PKG_VERSION"));

/// Trains decoders from judgments: answers that experts gave or corrected.
///
/// # Methods
/// | method | what it trains | base |
/// |---|---|---|
/// | `decoder-lora` | low-rank matrices beside the layers; the base stays as it is and may be quantized (QLoRA) | folder or GGUF file |
/// | `decoder-full` | all weights | folder |
/// | `decoder-dpo` | low-rank matrices that prefer the expert's answer to the model's own, with the base alone as the reference | folder or GGUF file |
///
/// A base may also be a model of the hub or a version of a registry: see [`with_models`](DecoderTrainer::with_models). By default the hub's cache is
/// read alone.
///
/// # Judgments
/// Of the task `chat`: the input is a [`ChatRequest`](hybrid_core::task::ChatRequest), the decision `{"answers": ["…"]}`, of which the first is
/// learnt, or `{"message": …}` with calls of tools. Of the task `classify`: the text is asked and the label answered. Of the task `text`:
/// `{"text": "…"}` is learnt whole. `decoder-dpo` learns from judgments whose `answer`, what the model had said, differs from the decision.
/// [`judgments_from_jsonl`](crate::judgments_from_jsonl) makes judgments of the files that mlx-lm, TRL and the like read.
///
/// # Hyperparameters
/// | name | range | default | what it is |
/// |---|---|---|---|
/// | `epochs` | 1 to 1,000 | 3, `decoder-dpo` 1 | passes over the lessons |
/// | `max_steps` | 0 to 10^8 | 0 | at most so many steps, if not 0 |
/// | `batch_size` | 1 to 1,024 | 4 | texts, or pairs, that are in memory together |
/// | `accumulate` | 1 to 1,024 | 1 | batches of one step |
/// | `packing` | `true`, `false` | `false` | whether a batch is filled with short texts up to `batch_size * max_tokens` tokens; no text sees another |
/// | `max_tokens` | 8 to 2^20 | 2,048 | of a text, at most the base's context |
/// | `long` | `refuse`, `cut`, `skip` | `refuse` | what becomes of a longer text |
/// | `learn` | `last`, `answers`, `all` | `last` | which tokens of a conversation are learnt: the last answer's, all answers', or the prompt's too |
/// | `learning_rate` | 1e-9 to 1 | 2e-4, `decoder-full` 2e-5, `decoder-dpo` 5e-5 | of AdamW |
/// | `schedule` | `cosine`, `linear`, `constant` | `cosine` | how the rate falls to zero after the warm-up |
/// | `warm_up` | 0 to 0.9 | 0.05 | share of the steps over which the rate rises |
/// | `weight_decay` | 0 to 1 | 0, `decoder-full` 0.01 | share of a matrix that a step of rate 1 takes away |
/// | `clip_norm` | 1e-4 to 1e6 | 1 | length that all gradients together are cut to |
/// | `hold_out` | 0 to 0.5 | 0.1 | share of the lessons that validate |
/// | `evaluate_steps` | 0 to 10^6 | 0 | steps between two validations; 0 for an epoch |
/// | `patience` | 0 to 1,000 | 3 | validations without a better loss after which the run ends; 0 for none. The best weights are kept |
/// | `checkpoint_steps` | 1 to 10^6 | 100 | steps between two checkpoints |
/// | `recompute` | `true`, `false` | `false` | whether layers are worked out anew on the way back: a third more work for a fraction of the memory |
/// | `lora_rank` | 1 to 1,024 | 8 | rank of the matrices |
/// | `lora_alpha` | 1e-3 to 1e5 | 16 | the matrices' product counts `lora_alpha / lora_rank` times |
/// | `lora_rank_stabilized` | `true`, `false` | `false` | whether it is `lora_alpha / √lora_rank` instead |
/// | `lora_dropout` | 0 to 0.9 | 0 | share of a layer's input that the matrices do not see in a step |
/// | `lora_targets` | list of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj` | all | layers that have matrices |
/// | `beta` | 1e-3 to 10 | 0.1 | how closely `decoder-dpo` stays with the base |
/// | `output` | `adapter`, `merged` | `adapter` | whether the candidate is an adapter, which is served with its base, or a model with the adapter worked in |
///
/// # Candidates
/// An adapter is `decoder-adapter/1`: a folder as PEFT reads it (`adapter_config.json`, `adapter_model.safetensors`) with `base.json`, the
/// digests of the base's files, which a loader checks. Of the Phi 3 family, whose files have several layers in one matrix, other tools do not
/// read an adapter; they read a model. A model is `decoder/1`, a folder in Hugging Face layout whose numbers have the base's precision.
///
/// # Behavior
/// - Declares itself resumable and reproducible, and is: files depend on plan, base and device alone, byte for byte.
/// - A judgment that cannot be learnt is refused by its id. Texts are never cut in silence.
/// - The first step's gradients are looked at: a parameter that the loss does not reach is an error that names it (of the matrices `A`, whose
///   gradient is zero while `B` is, after the second). Every step's loss and gradients have to be finite.
/// - What the run will take of memory is estimated before it begins, and refused with [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted) if
///   it is not free. Free memory is known on Linux alone; elsewhere set a limit.
/// - Metrics: `train_loss` (last epoch), `valid_loss` and, of preferences, `valid_accuracy` (of the weights kept), `kept_step`, `steps`,
///   `learnt_tokens`, `cut`, `skipped`, `unpaired`, `seconds` (this attempt).
/// - Progress has one stage, `train`, in steps, with loss, tokens a second and the time left.
/// - Needs a tokio runtime: computing runs on its blocking threads. Dropping the future of `train` stops the run.
#[derive(Clone, Debug)]
pub struct DecoderTrainer {
    device: Device,
    memory_limit: Option<u64>,
    models: ModelResolver,
}

impl DecoderTrainer {
    /// A trainer that computes on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, memory_limit: None, models: ModelResolver::local() }
    }

    /// The same, with base models from wherever `models` finds them.
    #[must_use]
    pub fn with_models(mut self, models: ModelResolver) -> Self {
        self.models = models;
        self
    }

    /// The same, for runs that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    fn settings(plan: &TrainPlan) -> Result<(TrainSettings, ModelSource)> {
        if !METHODS.contains(&&*plan.method) {
            return Err(Error::invalid("check plan", "the trainer does not know this method")
                .with("method", &plan.method)
                .with("known", METHODS.join(", ")));
        }
        let settings = TrainSettings::read(plan)?;
        match &plan.base {
            Some(base) => {
                let source = ModelSource::try_from(base).map_err(|error| error.with("method", &plan.method))?;
                Ok((settings, source))
            }
            None => Err(Error::invalid(
                "check plan",
                "the method starts from a base model; name its folder or GGUF file, or a model of the hub",
            )
            .with("method", &plan.method)),
        }
    }

    /// Trains on a blocking thread.
    fn run(&self, settings: &TrainSettings, base: &Path, work: &Work) -> Result<Candidate> {
        let Work { plan, run, judgments, dropped } = work;
        let files = ModelFiles::open(base)?;
        // What is trained itself has steps that are lost in sixteen bits.
        let files = if settings.lora.is_some() { files.narrow_on(&self.device) } else { files };
        let ModelFiles { config, weights, tokenizer, templates, defaults } = files;
        if settings.lora.is_none() || settings.merged {
            adapter::check_rewritable(base).map_err(|error| error.with("method", &plan.method))?;
        }
        let digests = digests(base)?;
        let mut hasher = Hasher::new();
        hasher.update(&plan.encode()?);
        digests.values().for_each(|digest| hasher.update(digest.as_bytes()));
        hasher.update(format!("{NAME} on {}", self.device).as_bytes());
        let checkpoint = Checkpoint::new(&run.scratch, hasher.finish());

        let tokens = Tokens::new(tokenizer, config.vocabulary)?;
        let templates = templates.default.is_some().then(|| Templates::compile(templates)).transpose()?;
        let max_tokens = settings.max_tokens.min(config.context);
        let ends = &defaults.ends;
        let writer = Writer { tokens: &tokens, templates: templates.as_ref(), ends, settings, max_tokens };
        let lessons = writer.lessons(judgments)?;
        let (learnt, held_out) = split(lessons.all.len(), settings);
        let steps = steps(&lessons.all, &learnt, settings);

        let batch = |batch: &Vec<usize>| batch.iter().map(|lesson| lessons.all[*lesson].tokens()).sum::<usize>() as u64;
        let longest =
            lessons.all.iter().flat_map(|lesson| &lesson.sequences).map(|sequence| sequence.tokens.len() as u64);
        let lora = settings.lora.as_ref().map(|lora| initial(lora, &config, settings.seed));
        let base_bytes = Network::bytes(&config, &*weights);
        let demand = Demand {
            base: base_bytes,
            unpacked: Network::unpacked_bytes(&config, &*weights, self.device.tensors()),
            trained: lora.as_ref().map_or(base_bytes / 4, Matrices::numbers),
            rows: steps.iter().flatten().map(batch).max().unwrap_or_default(),
            longest: longest.max().unwrap_or_default(),
            taped: Network::is_taped(&config, self.device.tensors()),
        };
        check_memory(OPERATION, needed(&config, settings, demand), self.memory_limit)
            .map_err(|error| error.with("way out", "a smaller batch_size or max_tokens, or recompute"))?;

        let tokens_of = |batches: &[Vec<usize>]| {
            let sequences = batches.iter().flatten().flat_map(|lesson| &lessons.all[*lesson].sequences);
            sequences.map(|sequence| sequence.tokens.len() as u64).sum()
        };
        let course = Course::new(settings, run, dropped, &checkpoint, &steps, &held_out, &tokens_of);
        let trained = match &lora {
            Some(start) => {
                let network = Network::read(config.clone(), &*weights, self.device.tensors())?;
                let mut learner = Learner::of_matrices(&network, &config, settings, &lessons.all, start)?;
                let figures = course.train(&mut learner)?;
                (figures, learner.values()?)
            }
            None => self.whole(settings, &config, weights, &lessons, &course)?,
        };
        let (figures, values) = trained;
        let (architecture, own_bytes) = match &lora {
            Some(matrices) if !settings.merged => (ADAPTER_ARCHITECTURE, 4 * matrices.numbers()),
            _ => (ARCHITECTURE, 0),
        };
        let output = Output { plan, base, config: &config, digests };
        let files = write_candidate(&run.scratch, |folder| output.write(settings, values, folder))?;
        run.progress.report(finished(steps.len() as u64));
        Ok(Candidate {
            task: Chat::NAME.to_owned(),
            architecture: architecture.to_owned(),
            output: CandidateOutput::Files(files),
            requirements: Requirements { memory_bytes: base_bytes + own_bytes },
            metrics: metrics(&figures, &lessons),
            examples: lessons.all.len() as u64,
            device: self.device.to_string(),
        })
    }

    fn whole(
        &self,
        settings: &TrainSettings,
        config: &DecoderConfig,
        weights: Box<dyn Weights>,
        lessons: &Lessons,
        course: &Course<'_>,
    ) -> Result<(Figures, Tensors)> {
        let weights = Trainable::new(weights);
        let network = Network::read(config.clone(), &weights, self.device.tensors())?;
        let mut learner = Learner::of_network(&network, config, settings, &lessons.all, weights.variables())?;
        let figures = course.train(&mut learner)?;
        Ok((figures, learner.values()?))
    }
}

/// What a blocking thread is given.
struct Work {
    plan: TrainPlan,
    run: TrainRun,
    judgments: Vec<Judgment>,
    /// Raised when nobody waits for the result any more.
    dropped: Cancellation,
}

#[async_trait]
impl Trainer for DecoderTrainer {
    fn profile(&self) -> TrainerProfile {
        TrainerProfile {
            name: format!("{NAME} decoder"),
            methods: METHODS.map(str::to_owned).into(),
            resumable: true,
            reproducible: true,
        }
    }

    fn check(&self, plan: &TrainPlan) -> Result<()> {
        Self::settings(plan).map(drop)
    }

    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate> {
        let (settings, source) = Self::settings(plan)?;
        let judgments = unless_cancelled(&run.cancel, plan.dataset.read(&*run.store)).await?;
        let base = unless_cancelled(&run.cancel, self.models.resolve(&source)).await?;
        let dropped = Cancellation::new();
        let guard = dropped.clone().drop_guard();
        let work = Work { plan: plan.clone(), run: run.clone(), judgments, dropped };
        let this = self.clone();
        let training = move || {
            this.run(&settings, base.path(), &work).map_err(|error| error.with("dataset", &work.plan.dataset.name))
        };
        let candidate = blocking(OPERATION, training).await;
        guard.disarm();
        candidate
    }
}

/// What a candidate is of.
struct Output<'a> {
    plan: &'a TrainPlan,
    base: &'a Path,
    config: &'a DecoderConfig,
    digests: BTreeMap<String, Digest>,
}

impl Output<'_> {
    /// Writes the files into an empty folder; gives their paths.
    fn write(self, settings: &TrainSettings, mut values: Tensors, folder: &Path) -> Result<Vec<PathBuf>> {
        let Self { plan, base, config, digests } = self;
        let Some(lora) = &settings.lora else { return adapter::replace(base, config, folder, values) };
        let matrices = Learner::matrices(&mut values, lora, config)?;
        if settings.merged {
            return adapter::merge(&matrices, config, base, folder);
        }
        let name = match &plan.base {
            Some(BaseModel::Folder(folder)) => Some(folder.display().to_string()),
            // As other tools look for it.
            Some(BaseModel::Hub(model)) => Some(model.parse::<HubModel>()?.name().to_owned()),
            _ => None,
        };
        let mut paths = matrices.write_peft(folder, name.as_deref())?;
        paths.push(BaseDigests { files: digests }.write(folder)?);
        Ok(paths)
    }
}

fn metrics(figures: &Figures, lessons: &Lessons) -> BTreeMap<String, f64> {
    let Figures { train_loss, valid, kept_step, steps, learnt_tokens, seconds } = *figures;
    let mut metrics: BTreeMap<&str, f64> = [
        ("train_loss", train_loss),
        ("kept_step", kept_step as f64),
        ("steps", steps as f64),
        ("learnt_tokens", learnt_tokens as f64),
        ("cut", lessons.cut as f64),
        ("skipped", lessons.skipped as f64),
        ("unpaired", lessons.unpaired as f64),
        ("seconds", seconds),
    ]
    .into();
    if let Some(valid) = valid {
        metrics.insert("valid_loss", valid.mean());
        if lessons.all.iter().any(|lesson| lesson.sequences.len() == 2) {
            metrics.insert("valid_accuracy", valid.preferred / valid.count.max(1.0));
        }
    }
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
