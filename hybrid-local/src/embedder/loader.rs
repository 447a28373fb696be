//! From a model's folder to a backend.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    Digest, Error, InferenceBackend, Manifest, ModelLoader, Result, ServedModel, Task,
    task::{Embed, EmbedKind},
};

use super::{
    ARCHITECTURE,
    backend::{Embedder, EmbedderBackend},
    body::Body,
    inputs::Prompts,
    modern::{self, Modern},
    settings::Settings,
};
use crate::{
    Device,
    blocking::blocking,
    decoder::States,
    encoder::{Base, Encoder, EncoderConfig, Marks, Tokens, model_type, on_device},
    files::CONFIG,
    ops::Operators,
};

const OPERATION: &str = "load embedder";
const DEFAULT_MAX_TOKENS: usize = 8_192;

/// Loads models that turn texts into vectors on this machine: encoders of the BERT family (BERT, MiniLM, BGE, E5, RoBERTa, XLM-RoBERTa,
/// DistilBERT), ModernBERT, and decoders (such as Qwen 3's embedders).
///
/// # Behavior
/// - Reads a folder as sentence-transformers or Hugging Face's tools leave it: `config.json`, `tokenizer.json`, Safetensors; `modules.json` and
///   the files that it names say how rows become a vector (the first row, the mean, or the last), whether vectors have length 1, how
///   many tokens are read and which prompts there are. Without `modules.json` the mean is taken as it is, as sentence-transformers does. As
///   a [`ModelLoader`] it knows the architecture `embedder/1`: a version whose files are such a folder.
/// - What is malformed, cut or of another shape than the configuration says is [`Corrupt`](hybrid_core::ErrorKind::Corrupt), what is not known
///   [`Unsupported`](hybrid_core::ErrorKind::Unsupported), each by its name. What does not fit into the memory that is free, or into the limit set, is
///   [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted), before the weights are read.
/// - A request's `kind` chooses the model's prompt for it, or [the one set here](Self::with_prompt); a model that has none reads the text as it
///   is. Without a kind the model's default prompt is read, if it has one.
/// - `dimensions` keeps the first columns, for models that were trained to bear it; vectors that had length 1 are given it again. More than the
///   model has is [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput).
/// - An input with more tokens than the model reads is [`TooLarge`](hybrid_core::ErrorKind::TooLarge), which names both lengths, unless the request asks for it
///   to be cut; then the reply has the note `truncated`. The prompt and the tokenizer's marks are never cut off.
/// - Inputs may be tokens of the model's own vocabulary, without the marks, which are put around them. Pictures are `Unsupported`.
/// - Needs a tokio runtime: reading and computing run on its blocking threads.
///
/// ```no_run
/// # async fn embed(cx: &hybrid_core::CallContext) -> hybrid_core::Result<()> {
/// use hybrid_core::{ServedModel, task::EmbedRequest};
/// use hybrid_local::{Device, EmbedderLoader};
///
/// let loader = EmbedderLoader::new(Device::cpu());
/// let backend = loader.open("models/all-MiniLM-L6-v2".as_ref(), ServedModel::named("minilm")).await?;
/// let reply = backend.infer(cx, EmbedRequest::documents(["rye bread", "wheat rolls"])).await?;
/// assert_eq!(reply.response.embeddings.len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EmbedderLoader {
    device: Device,
    memory_limit: Option<u64>,
    max_tokens: Option<usize>,
    prompts: Vec<(EmbedKind, String)>,
}

impl EmbedderLoader {
    /// A loader of models that compute on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, memory_limit: None, max_tokens: None, prompts: Vec::new() }
    }

    /// The same, for models that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// The same, for texts of at most `tokens` tokens with their marks and prompt, if the model has as many positions. By default as many as
    /// the model's files say, and at most 8,192.
    #[must_use]
    pub fn with_max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// The same, with `prompt` before texts of this kind, for models whose files do not say theirs (E5: `query: ` and `passage: `).
    #[must_use]
    pub fn with_prompt(mut self, kind: EmbedKind, prompt: impl Into<String>) -> Self {
        self.prompts.push((kind, prompt.into()));
        self
    }

    /// Loads the model in the folder `path` as `model`.
    ///
    /// # Errors
    /// As in the type's behavior; [`NotFound`](hybrid_core::ErrorKind::NotFound) that names what is missing.
    pub async fn open(&self, path: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        let (this, path) = (self.clone(), path.to_owned());
        blocking(OPERATION, move || this.read(&path, model)).await
    }

    fn read(&self, path: &Path, model: ServedModel) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        let settings = Settings::read(path)?;
        let folder = &settings.network;
        if !folder.join(CONFIG).is_file() {
            return Err(Error::not_found(OPERATION, "the folder has no config.json").with("folder", folder.display()));
        }
        let kind = model_type(folder)?;
        let (body, tokens) = match kind.as_str() {
            modern::FAMILY => self.modern(folder, settings.max_tokens)?,
            kind if EncoderConfig::knows(kind) => self.encoder(folder, settings.max_tokens)?,
            _ => self.decoder(folder, settings.max_tokens)?,
        };
        let embedder = Embedder {
            body,
            tokens,
            prompts: Prompts::new(&settings, &self.prompts),
            pooling: settings.pooling,
            normalize: settings.normalize,
            lower_case: settings.lower_case,
        };
        // Networks use all cores for one text already.
        Ok(Arc::new(EmbedderBackend::new(embedder, model, &self.device, 1)))
    }

    fn encoder(&self, folder: &Path, own: Option<usize>) -> Result<(Body, Tokens)> {
        let base = Base::read(folder, self.memory_limit)?;
        let limit = self.limit(own, base.config.max_tokens());
        let named = |error: Error| error.with("folder", folder.display());
        let tokens = Tokens::read(&base.tokenizer, base.config.vocabulary, limit, Marks::Needed).map_err(named)?;
        let operators = Operators::of(self.device.tensors());
        let tensor = |name: &str| on_device(&base.tensors, name, &self.device);
        let encoder =
            Encoder::of(&base.config, None, operators, tensor).and_then(Encoder::for_reading).map_err(named)?;
        let first_position = base.config.first_position;
        Ok((Body::Encoder { encoder: Box::new(encoder), first_position, device: self.device.clone() }, tokens))
    }

    fn modern(&self, folder: &Path, own: Option<usize>) -> Result<(Body, Tokens)> {
        let (network, tokenizer) = Modern::read(folder, &self.device, self.memory_limit)?;
        let limit = self.limit(own, network.max_tokens());
        let tokens = Tokens::read(&tokenizer, network.vocabulary(), limit, Marks::Needed);
        Ok((Body::Modern(Box::new(network)), tokens.map_err(|error| error.with("folder", folder.display()))?))
    }

    fn decoder(&self, folder: &Path, own: Option<usize>) -> Result<(Body, Tokens)> {
        let limit = |positions: usize| self.limit(own, positions);
        let (states, tokenizer) = States::open(folder, &self.device, self.memory_limit, limit)?;
        let tokens = Tokens::new(tokenizer, states.vocabulary(), states.context(), Marks::IfAny);
        Ok((Body::Decoder(Box::new(states)), tokens.map_err(|error| error.with("folder", folder.display()))?))
    }

    /// The tokens of a text that are read.
    fn limit(&self, own: Option<usize>, positions: usize) -> usize {
        self.max_tokens.unwrap_or(own.unwrap_or(usize::MAX).min(DEFAULT_MAX_TOKENS)).min(positions)
    }
}

#[async_trait]
impl ModelLoader<Embed> for EmbedderLoader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        let unsupported = |message: &'static str| Error::unsupported(OPERATION, message).with("manifest", digest);
        if manifest.task != Embed::NAME {
            return Err(unsupported("the version is of another task").with("task", &manifest.task));
        }
        if manifest.architecture != ARCHITECTURE {
            let error = unsupported("the architecture is unknown; an upgrade may know it");
            return Err(error.with("architecture", &manifest.architecture));
        }
        let model =
            ServedModel { name: manifest.model.to_string(), version: Some(manifest.version), manifest: Some(digest) };
        self.open(folder, model).await.map_err(|error| error.with("manifest", digest))
    }
}
