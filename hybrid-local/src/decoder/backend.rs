//! Serving a decoder.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Digest, Error, Event, InferenceBackend, Limits, Locality, Reply, Result,
    ServedModel, Task,
    inference::collect_reply,
    task::{Chat, ChatRequest},
};
use tokio::sync::mpsc::unbounded_channel;

use super::{
    codec::{Codec, Prepared},
    engine::{Engine, Job, Numbered},
};
use crate::{Device, blocking::blocking};

const OPERATION: &str = "chat";

/// The backend of one model, or of one adapter on it.
#[derive(Debug)]
pub(super) struct DecoderBackend {
    codec: Arc<Codec>,
    engine: Arc<Engine>,
    adapter: Option<Arc<Numbered>>,
    profile: Arc<BackendProfile>,
}

impl DecoderBackend {
    pub(super) fn new(
        codec: Arc<Codec>,
        engine: Arc<Engine>,
        adapter: Option<Arc<Numbered>>,
        model: ServedModel,
        device: &Device,
    ) -> Self {
        let tokens = Some(codec.context() as u64);
        let profile = BackendProfile {
            name: format!("decoder on {device}"),
            model,
            locality: Locality::Device,
            limits: Limits { input_tokens: tokens, output_tokens: tokens, batch: None },
            price: None,
        };
        Self { codec, engine, adapter, profile: Arc::new(profile) }
    }

    async fn prepare(&self, cx: &CallContext, request: ChatRequest) -> Result<Prepared> {
        let (codec, now) = (Arc::clone(&self.codec), cx.clock.now());
        blocking(OPERATION, move || codec.prepare(request, now)).await
    }
}

/// The seed of a call that asks for none: another for each call, the same for a call that is made again under its id.
fn seed_of(cx: &CallContext) -> u64 {
    let digest = Digest::of(cx.request.to_string().as_bytes());
    digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[async_trait]
impl InferenceBackend<Chat> for DecoderBackend {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        collect_reply(self.stream(cx, request).await?).await
    }

    async fn stream(&self, cx: &CallContext, request: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let started = cx.clock.monotonic();
        Chat::validate(&request)?;
        cx.admit(OPERATION, &self.profile.locality)?;
        let seed = request.sampling.seed.unwrap_or_else(|| seed_of(cx));
        let prepared = cx.run(OPERATION, self.prepare(cx, request)).await?;
        let (events, receiver) = unbounded_channel();
        let (context, profile, adapter) = (cx.clone(), self.profile(), self.adapter.clone());
        self.engine.submit(Job { prepared: Arc::new(prepared), seed, adapter, context, profile, started, events })?;
        let events = stream::unfold(Some((receiver, cx.clone())), |state| async move {
            let (mut receiver, cx) = state?;
            let early = || Error::internal(OPERATION, "the answer ended early; the model's thread failed");
            let next = async { receiver.recv().await.unwrap_or_else(|| Err(early())) };
            let event = cx.run(OPERATION, next).await;
            let goes_on = matches!(event, Ok(Event::Delta(_)));
            Some((event, goes_on.then_some((receiver, cx))))
        });
        Ok(events.boxed())
    }
}
