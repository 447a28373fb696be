//! Serving an embedder.

use std::sync::Arc;

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, Error, Event, InferenceBackend, Limits, Locality, Note,
    Reply, ReplyMeta, Result, ServedModel, Task, Usage,
    inference::stream_reply,
    task::{Embed, EmbedRequest, EmbedResponse},
};
use tokio::sync::Semaphore;

use super::{
    body::Body,
    inputs::{self, MAX_BATCH, Prepared, Prompts},
};
use crate::{
    Device,
    blocking::blocking,
    encoder::{Pooling, Tokens},
};

const OPERATION: &str = "embed";

/// A model that is ready to embed.
#[derive(Debug)]
pub(super) struct Embedder {
    pub(super) body: Body,
    pub(super) tokens: Tokens,
    pub(super) prompts: Prompts,
    pub(super) pooling: Pooling,
    pub(super) normalize: bool,
    pub(super) lower_case: bool,
}

/// The backend of one model.
#[derive(Debug)]
pub(super) struct EmbedderBackend {
    embedder: Arc<Embedder>,
    profile: Arc<BackendProfile>,
    /// As many computations side by side as there is memory set aside for.
    lanes: Arc<Semaphore>,
}

/// Vectors with what is to be told of them.
struct Embedded {
    embeddings: Vec<Vec<f32>>,
    notes: Vec<Note>,
    tokens: u64,
}

impl Embedder {
    fn embed(&self, request: EmbedRequest, check: &(dyn Fn() -> Result<()> + Sync)) -> Result<Embedded> {
        let prepared = inputs::prepare(request, &self.tokens, &self.prompts, self.lower_case)?;
        let Prepared { tokens, notes, dimensions, normalize } = prepared;
        let mut embeddings = self.body.vectors(&tokens, self.pooling, check)?;
        for (i, vector) in embeddings.iter_mut().enumerate() {
            vector.truncate(dimensions.unwrap_or(usize::MAX));
            let squares: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
            if !squares.is_finite() {
                return Err(Error::internal(OPERATION, "the network gave what is not a finite number").with("input", i));
            }
            if normalize.unwrap_or(self.normalize) {
                // As torch: what is all but zero stays so.
                let length = squares.sqrt().max(1e-12);
                vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        }
        Ok(Embedded { embeddings, notes, tokens: tokens.iter().map(|tokens| tokens.len() as u64).sum() })
    }
}

impl EmbedderBackend {
    pub(super) fn new(embedder: Embedder, model: ServedModel, device: &Device, lanes: usize) -> Self {
        let input_tokens = Some(embedder.tokens.max() as u64);
        let profile = BackendProfile {
            name: format!("embedder on {device}"),
            model,
            locality: Locality::Device,
            limits: Limits { input_tokens, output_tokens: None, batch: Some(MAX_BATCH) },
            price: None,
        };
        Self { embedder: Arc::new(embedder), profile: Arc::new(profile), lanes: Arc::new(Semaphore::new(lanes)) }
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let permit = Arc::clone(&self.lanes).acquire_owned().await;
        let permit = permit.map_err(|error| Error::internal(OPERATION, "the backend is closed").with_source(error))?;
        // Raised when the caller gives up and this future is dropped.
        let unwanted = Cancellation::new();
        let guard = unwanted.clone().drop_guard();
        let embedder = Arc::clone(&self.embedder);
        let work = move || {
            let _permit = permit;
            let check = || match unwanted.is_cancelled() {
                true => Err(Error::cancelled(OPERATION, "the caller gave up")),
                false => Ok(()),
            };
            embedder.embed(request, &check)
        };
        let embedded = blocking(OPERATION, work).await;
        guard.disarm();
        embedded
    }
}

#[async_trait]
impl InferenceBackend<Embed> for EmbedderBackend {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: EmbedRequest) -> Result<Reply<Embed>> {
        let started = cx.clock.monotonic();
        Embed::validate(&request)?;
        cx.admit(OPERATION, &self.profile.locality)?;
        inputs::check(&request, self.embedder.body.hidden())?;
        let Embedded { embeddings, notes, tokens } = cx.run(OPERATION, self.embed(request)).await?;
        let usage = Usage { input_tokens: tokens, ..Usage::default() };
        let mut meta = ReplyMeta::of(&self.profile, cx.clock.monotonic().since(started), usage)?;
        meta.notes = notes;
        Ok(Reply { response: EmbedResponse { embeddings }, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: EmbedRequest,
    ) -> Result<BoxStream<'static, Result<Event<Embed>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}
