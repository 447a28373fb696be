//! From a model's files to a backend.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use hybrid_core::{Digest, Error, InferenceBackend, Manifest, ModelLoader, Result, ServedModel, task::Chat};

use super::{
    ADAPTER_ARCHITECTURE, ARCHITECTURE,
    adapter::{AdapterFormat, BaseDigests, LoraAdapter},
    codec::Codec,
    engine::Engine,
    files::ModelFiles,
    model::{DecoderModel, check_manifest},
    network::Network,
    template::Templates,
    tokens::Tokens,
};
use crate::{Device, LocalModel, ModelResolver, ModelSource, blocking::blocking, files};

pub(super) const OPERATION: &str = "load decoder";
const DEFAULT_CONTEXT: usize = 4_096;

/// Loads chat models that run on this machine: decoders of the Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3 and Phi 3 families.
///
/// # Behavior
/// - Reads a folder as Hugging Face's tools leave it (`config.json`, `tokenizer.json`, Safetensors in one file or several), or one GGUF file
///   with its own tokenizer (F32, F16, BF16, Q4_0 to Q8_1, Q2_K to Q8_K). As a [`ModelLoader`] it knows the architecture `decoder/1`: a
///   version whose files are such a folder, or one that holds one GGUF file; and `decoder-adapter/1`: an adapter as PEFT has it, with the
///   base that its plan names, which has to be the one that it was made for, digest by digest. See [`with_models`](Self::with_models).
/// - What is malformed, cut or of another shape than the configuration says is [`Corrupt`](hybrid_core::ErrorKind::Corrupt), what is not known
///   [`Unsupported`](hybrid_core::ErrorKind::Unsupported), each by its name.
/// - Of models that see pictures too (Gemma 3) the part that reads text is loaded. Where a model turns its positions in one way up to the
///   context that it was first trained on and in another beyond (Phi 3's LongRoPE), the context set here decides for all texts, as in vLLM
///   and llama.cpp; the reference implementation decides anew for each text.
/// - Weights, and the keys and values of as many full contexts as there are [streams](Self::with_streams), have to fit into the memory that
///   is free and into the limit set, else it is [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted), before the weights are read. Free
///   memory is known on Linux alone; elsewhere set a limit. Weights in half precision are widened to single; but on
///   an accelerator that multiplies bfloat16, matrices in bfloat16 stay so, and what they are multiplied with is rounded to it.
/// - The backend refuses a conversation that fills the context with [`TooLarge`](hybrid_core::ErrorKind::TooLarge), which names both lengths; what a request asks
///   for and the model cannot do with `Unsupported`, which names the field. What changes nothing of the answer is left out with the note
///   `ignored`.
/// - Where a request leaves open how tokens are drawn, the model's `generation_config.json` says it; without one the likeliest token is
///   taken. The same seed draws alike on the same device. A request without a seed has one made of its id.
/// - Requests are answered side by side: each pass over the weights reads a token of every answer and some of the prompts that have come, so
///   that a long prompt does not keep the other answers waiting. What an answer says does not depend on what is beside it, but for the last
///   bits of sums that are taken in another order. One that is cancelled, late or not read any more ends between two passes; a backend that
///   is dropped ends what was asked of it.
/// - Answers keep to a [`ResponseFormat`](hybrid_core::task::ResponseFormat) and required calls of tools to their schemas, token by token,
///   thoughts apart. A schema that cannot be kept to (such as one with `not`, `if` or `uniqueItems`) is refused with the reason.
/// - A prompt that begins as an earlier conversation of the same tenant did is read from there on, as long as there was memory to keep it;
///   [`Usage::cache_read_tokens`](hybrid_core::Usage::cache_read_tokens) says how much was spared.
/// - Needs a tokio runtime: models and prompts are read on its blocking threads. Computing has a thread of its own.
///
/// ```no_run
/// # async fn chat(cx: &hybrid_core::CallContext) -> hybrid_core::Result<()> {
/// use hybrid_core::{ServedModel, task::ChatRequest};
/// use hybrid_local::{DecoderLoader, Device};
///
/// let loader = DecoderLoader::new(Device::cpu()).with_context(8_192);
/// let backend = loader.open("models/qwen3-0.6b-q4_k_m.gguf".as_ref(), ServedModel::named("qwen3")).await?;
/// let reply = backend.infer(cx, ChatRequest::user("What is in a sourdough starter?")).await?;
/// println!("{}", reply.response.text());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DecoderLoader {
    device: Device,
    memory_limit: Option<u64>,
    context: usize,
    streams: usize,
    models: ModelResolver,
}

impl DecoderLoader {
    /// A loader of models that compute on `device`, with a context of at most 4,096 tokens and memory for one answer that fills it.
    pub fn new(device: Device) -> Self {
        let models = ModelResolver::local();
        Self { device, memory_limit: None, context: DEFAULT_CONTEXT, streams: 1, models }
    }

    /// The same, for models that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// The same, for conversations of at most `tokens` tokens with their answer, if the model has as many positions.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = tokens;
        self
    }

    /// The same, with memory for `streams` conversations that fill the context, at least one.
    ///
    /// Requests share it: one that says in [`max_tokens`](hybrid_core::task::Sampling::max_tokens) how long its answer may be takes only
    /// what it may need, so that many more short ones are answered side by side. Those that do not fit wait, tenants taking turns; what is
    /// free keeps conversations for their next turns.
    #[must_use]
    pub fn with_streams(mut self, streams: usize) -> Self {
        self.streams = streams.max(1);
        self
    }

    /// The same, with the bases of adapters from wherever `models` finds them.
    #[must_use]
    pub fn with_models(mut self, models: ModelResolver) -> Self {
        self.models = models;
        self
    }

    /// Loads the model that lies at `path`, a folder or a GGUF file, as `model`.
    ///
    /// # Errors
    /// As in the type's behavior; [`NotFound`](hybrid_core::ErrorKind::NotFound) that names what is missing.
    pub async fn open(&self, path: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Ok(self.open_model(path).await?.backend(model))
    }

    /// Loads the model that lies at `path`, a folder or a GGUF file, to be served as itself and with adapters.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_model(&self, path: &Path) -> Result<DecoderModel> {
        let (this, path) = (self.clone(), path.to_owned());
        blocking(OPERATION, move || this.read(&path)).await
    }

    /// The folder of a version's whole model, for who serves no adapters: its own, or for an adapter `to`, which is made, with the adapter
    /// worked into the base that it was made for.
    ///
    /// # Errors
    /// As in the type's behavior; [`Unsupported`](hybrid_core::ErrorKind::Unsupported) if the base is a GGUF file.
    pub async fn whole(&self, manifest: &Manifest, folder: &Path, to: &Path) -> Result<PathBuf> {
        if manifest.architecture != ADAPTER_ARCHITECTURE {
            return Ok(folder.to_owned());
        }
        let base = self.base_of(manifest, folder).await?;
        let (folder, to) = (folder.to_owned(), to.to_owned());
        blocking("merge adapter", move || {
            LoraAdapter::open(&folder)?.export(base.path(), AdapterFormat::Merged, &to)?;
            Ok(to)
        })
        .await
    }

    /// The base that the adapter in `folder` was made for.
    async fn base_of(&self, manifest: &Manifest, folder: &Path) -> Result<LocalModel> {
        let base = manifest.lineage.plan.base.as_ref();
        let base = base.ok_or_else(|| Error::corrupt(OPERATION, "the adapter's plan names no base"))?;
        let source = ModelSource::try_from(base).map_err(|error| {
            let message =
                "the adapter's base is not one of this machine; load it beside its base, or work it into a model";
            Error::unsupported(OPERATION, message).with("base", format_args!("{base:?}")).with_source(error)
        })?;
        let base = self.models.resolve(&source).await?;
        let (at, beside) = (base.clone(), folder.to_owned());
        blocking(OPERATION, move || BaseDigests::read(&beside)?.check(at.path())).await?;
        Ok(base)
    }

    fn read(&self, path: &Path) -> Result<DecoderModel> {
        let named = |error: Error| error.with("path", path.display());
        let ModelFiles { mut config, weights, tokenizer, templates, defaults } =
            ModelFiles::open(path)?.narrow_on(&self.device);
        let templates = Templates::compile(templates).map_err(named)?;
        let tokens = Tokens::new(tokenizer, config.vocabulary).map_err(named)?;
        let context = self.context.min(config.context);
        // Models of two lengths turn their positions by the one that is used.
        config.context = context;
        let capacity = context.saturating_mul(self.streams);
        let token = Network::cache_bytes_per_token(&config, &*weights, self.device.tensors());
        let caches = token.saturating_mul(capacity as u64);
        let needed = Network::bytes(&config, &*weights).saturating_add(caches);
        files::check_memory(OPERATION, needed, self.memory_limit).map_err(named)?;
        let network = Network::read(config.clone(), &*weights, self.device.tensors()).map_err(named)?;
        let codec = Arc::new(Codec::new(tokens, templates, defaults, context));
        let engine = Engine::start(network, Arc::clone(&codec), capacity)?;
        Ok(DecoderModel::new(config, codec, engine, self.device.clone()))
    }
}

#[async_trait]
impl ModelLoader<Chat> for DecoderLoader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        let loaded = if manifest.architecture == ADAPTER_ARCHITECTURE {
            let model = check_manifest(manifest, digest, ADAPTER_ARCHITECTURE)?;
            let base = self.base_of(manifest, folder).await?;
            self.open_model(base.path()).await?.adapter(folder, model).await
        } else {
            self.open(folder, check_manifest(manifest, digest, ARCHITECTURE)?).await
        };
        loaded.map_err(|error| error.with("manifest", digest))
    }
}
