//! What all backends of Bedrock do alike: admit, meter, try again.

use std::{sync::Arc, time::Duration};

use aws_sdk_bedrockruntime::Client;
use hybrid_core::{BackendProfile, CallContext, Note, ReplyMeta, Result, Usage};

use super::{BedrockOptions, failure::Failure, model_id::ModelId, retry::Retrier};

/// One model as it is called.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) client: Client,
    pub(super) id: ModelId,
    pub(super) profile: Arc<BackendProfile>,
    pub(super) options: Arc<BedrockOptions>,
    retrier: Retrier,
}

impl Caller {
    pub(super) fn new(client: Client, id: ModelId, profile: BackendProfile, options: Arc<BedrockOptions>) -> Self {
        let retrier = Retrier::new(options.retry.clone(), &*options.ids);
        Self { client, id, profile: Arc::new(profile), options, retrier }
    }

    /// Makes a call, again and again as the policy has it, each time for at most `limit`. The gate is before it: nothing leaves that may not.
    pub(super) async fn call<R, F>(
        &self,
        cx: &CallContext,
        operation: &'static str,
        limit: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<R>
    where
        F: Future<Output = std::result::Result<R, Failure>>,
    {
        cx.admit(operation, &self.profile.locality)?;
        let outcome = self.retrier.run(cx, operation, || within(cx, limit, attempt())).await;
        outcome.map_err(|error| error.with("model", self.id.as_str()))
    }

    /// The meta of a reply, priced by the profile.
    pub(super) fn meta(&self, elapsed: Duration, usage: Usage, notes: Vec<Note>) -> Result<ReplyMeta> {
        let mut meta = ReplyMeta::of(&self.profile, elapsed, usage)?;
        meta.notes = notes;
        Ok(meta)
    }
}

/// Runs `work` for at most `limit` on the caller's clock.
pub(super) async fn within<R>(
    cx: &CallContext,
    limit: Duration,
    work: impl Future<Output = std::result::Result<R, Failure>>,
) -> std::result::Result<R, Failure> {
    use futures_util::future::{Either, select};
    match select(std::pin::pin!(work), cx.clock.sleep(limit)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(Failure::stalled("nothing came", limit)),
    }
}

pub(super) fn note(code: &str, detail: impl Into<String>) -> Note {
    Note { code: code.to_owned(), detail: detail.into() }
}
