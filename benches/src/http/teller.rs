//! A model that says always the same words, as fast as others let it.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Event, InferenceBackend, Limits, Locality, Reply, ReplyMeta, Result,
    ServedModel, Usage,
    inference::collect_reply,
    task::{Chat, ChatDelta, ChatRequest, ContentPart, Role, StopReason},
};

use super::TOKENS;

/// The model behind the port.
#[derive(Debug)]
pub(super) struct Teller {
    profile: Arc<BackendProfile>,
}

impl Default for Teller {
    fn default() -> Self {
        let profile = BackendProfile {
            name: "teller".to_owned(),
            model: ServedModel::named("teller"),
            locality: Locality::Device,
            limits: Limits::default(),
            price: None,
        };
        Self { profile: Arc::new(profile) }
    }
}

/// One answer of [`TOKENS`] words. Before each of them the model waits for its next turn, as one does whose words come from elsewhere.
pub(super) fn deltas() -> impl Stream<Item = ChatDelta> + Send + 'static {
    let begin = [
        ChatDelta::Start { choice: 0, role: Role::Assistant, name: None },
        ChatDelta::BlockStart { choice: 0, block: 0, part: ContentPart::Text(String::new()) },
    ];
    let end = [
        ChatDelta::BlockStop { choice: 0, block: 0 },
        ChatDelta::Stop { choice: 0, reason: StopReason::EndTurn, sequence: None },
    ];
    let words = (0..TOKENS).map(|_| ChatDelta::text(0, " sourdough"));
    stream::iter(begin.into_iter().chain(words).chain(end)).then(async |delta| {
        tokio::task::yield_now().await;
        delta
    })
}

#[async_trait]
impl InferenceBackend<Chat> for Teller {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        collect_reply(self.stream(cx, request).await?).await
    }

    async fn stream(&self, cx: &CallContext, _: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        cx.admit("chat", &self.profile.locality)?;
        let usage = Usage { input_tokens: 10, output_tokens: TOKENS as u64, ..Usage::default() };
        let done = ReplyMeta::of(&self.profile, std::time::Duration::ZERO, usage).map(Event::Done);
        Ok(deltas().map(|delta| Ok(Event::Delta(delta))).chain(stream::iter([done])).boxed())
    }
}
