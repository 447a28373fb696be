//! Serving a decoder.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Digest, Error, Event, InferenceBackend, Limits, Locality, Reply, ReplyMeta,
    Result, ServedModel, Task,
    inference::collect_reply,
    task::{Chat, ChatRequest},
};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{UnboundedSender, unbounded_channel},
};

use super::generation::{Decoder, Prepared};
use crate::Device;

const OPERATION: &str = "chat";

/// The backend of one model.
#[derive(Debug)]
pub(super) struct DecoderBackend {
    decoder: Arc<Decoder>,
    profile: Arc<BackendProfile>,
    /// As many answers side by side as there is memory set aside for.
    lanes: Arc<Semaphore>,
}

impl DecoderBackend {
    pub(super) fn new(decoder: Decoder, model: ServedModel, device: &Device, lanes: usize) -> Self {
        let tokens = Some(decoder.context() as u64);
        let profile = BackendProfile {
            name: format!("decoder on {device}"),
            model,
            locality: Locality::Device,
            limits: Limits { input_tokens: tokens, output_tokens: tokens, batch: None },
            price: None,
        };
        Self { decoder: Arc::new(decoder), profile: Arc::new(profile), lanes: Arc::new(Semaphore::new(lanes)) }
    }

    async fn prepare(&self, cx: &CallContext, request: ChatRequest) -> Result<(OwnedSemaphorePermit, Prepared)> {
        let permit = Arc::clone(&self.lanes).acquire_owned().await;
        let permit = permit.map_err(|error| Error::internal(OPERATION, "the backend is closed").with_source(error))?;
        let (decoder, now) = (Arc::clone(&self.decoder), cx.clock.now());
        let work = tokio::task::spawn_blocking(move || Ok((permit, decoder.prepare(request, now)?)));
        work.await.map_err(|error| Error::internal(OPERATION, "the prompt could not be written").with_source(error))?
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
        let (permit, prepared) = cx.run(OPERATION, self.prepare(cx, request)).await?;

        // An answer has an end, and so has what waits here for a slow reader; the lane is not kept waiting for it.
        let (sender, receiver) = unbounded_channel();
        let (decoder, profile, context) = (Arc::clone(&self.decoder), self.profile(), cx.clone());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // Much may be written before something is told, such as a call of a tool.
            let check = || if sender.is_closed() { Err(unread()) } else { context.check(OPERATION) };
            let mut emit = |delta| send(&sender, Ok(Event::Delta(delta)));
            let usage = decoder.generate(&prepared, seed, &check, &mut emit);
            let end = usage.and_then(|usage| {
                let mut meta = ReplyMeta::of(&profile, context.clock.monotonic().since(started), usage)?;
                meta.notes = prepared.notes;
                Ok(Event::Done(meta))
            });
            // Nobody may be there any more, which is as good an end as any.
            let _ = send(&sender, end);
        });
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

fn send(sender: &UnboundedSender<Result<Event<Chat>>>, event: Result<Event<Chat>>) -> Result<()> {
    sender.send(event).map_err(|_| unread())
}

fn unread() -> Error {
    Error::cancelled(OPERATION, "nobody reads the answer any more")
}
