//! One call on its way: what it holds while it runs, and what happens when it ends however it ends.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{
    BoxFuture, BoxStream, CallContext, Cancellation, Error, ErrorKind, Event, Locality, ReplyMeta, Result,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span};

use super::{Admitted, Front, Served, told::Told};
use crate::storefront::{
    audit::{AuditEntry, AuditFailure, AuditedModel, Outcome},
    error::ApiError,
    quota::{Estimate, Holding},
    traceparent,
};

/// A call that has a place. Dropping it, as happens when the client disconnects, cancels what runs under it, keeps what was held for it as used,
/// and leaves an audit entry that says so.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) cx: CallContext,
    front: Arc<Front>,
    holding: Option<Holding>,
    /// What is to be kept of this call, until it has ended.
    entry: Option<AuditEntry>,
    told: Told,
    slot: Arc<OwnedSemaphorePermit>,
}

/// What a call is for.
#[derive(Debug)]
pub(super) struct Purpose {
    pub(super) action: &'static str,
    pub(super) model: Option<AuditedModel>,
    pub(super) estimate: Estimate,
    pub(super) streamed: bool,
    /// Where what is asked goes.
    pub(super) locality: Option<Locality>,
    /// What is asked, where it is kept.
    pub(super) asked: Option<Value>,
}

impl Purpose {
    /// Something that asks no model and costs nothing.
    pub(super) fn without_model(action: &'static str, asked: Option<Value>) -> Self {
        Self { action, model: None, estimate: Estimate::default(), streamed: false, locality: None, asked }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.cx.cancel.cancel();
        self.end_unheard(Outcome::Cut);
    }
}

impl Call {
    /// Lets a call begin whose body has arrived, unless too many are at work already or the tenant has used what it may.
    pub(super) async fn begin(admitted: &Admitted, purpose: Purpose) -> Result<Self, ApiError> {
        let slot = Arc::clone(&admitted.front.slots).try_acquire_owned().map_err(|_| ApiError::overloaded())?;
        Self::on(Arc::new(slot), admitted, purpose).await
    }

    /// Lets a call begin that is part of this one, and shares its place.
    pub(super) async fn part(&self, admitted: &Admitted, purpose: Purpose) -> Result<Self, ApiError> {
        Self::on(Arc::clone(&self.slot), admitted, purpose).await
    }

    async fn on(slot: Arc<OwnedSemaphorePermit>, admitted: &Admitted, purpose: Purpose) -> Result<Self, ApiError> {
        let Admitted { front, principal, edge } = admitted;
        let mut cx = CallContext {
            tenant: principal.tenant.clone(),
            request: edge.request.clone(),
            policy: front.ports.policy.clone().and(&principal.policy),
            deadline: Some(edge.deadline),
            cancel: Cancellation::new(),
            trace: edge.trace.clone(),
            clock: Arc::clone(&front.ports.clock),
        };
        let holding = match &front.ports.quotas {
            Some(quotas) => {
                let holding = quotas.hold(&principal.tenant, &purpose.estimate, purpose.streamed);
                Some(cx.run("hold quota", async { Ok(holding.await) }).await??)
            }
            None => None,
        };
        let told = Told::of(&purpose, cx.clock.monotonic());
        cx.trace = traceparent(told.span()).or(cx.trace);
        let Purpose { action, model, asked, .. } = purpose;
        if let (Some(asked), true) = (&asked, front.ports.trace_content) {
            told.asked(asked);
        }
        let asked = asked.filter(|_| front.audits_content());
        let entry = front.ports.audit.as_ref().map(|_| AuditEntry {
            at: front.ports.clock.now(),
            tenant: principal.tenant.clone(),
            subject: principal.subject.clone(),
            credential: principal.credential.clone(),
            request: edge.request.clone(),
            action: action.to_owned(),
            model,
            outcome: Outcome::Begun,
            usage: None,
            cost: None,
            notes: Vec::new(),
            content: asked.map(|asked| json!({ "request": asked })),
        });
        Ok(Self { cx, front: Arc::clone(front), holding, entry, told, slot })
    }

    /// The span in which the call's work is done.
    pub(super) fn span(&self) -> Span {
        self.told.span().clone()
    }

    /// A streamed answer begins: kept before a byte of it leaves.
    pub(super) async fn begun(&mut self) -> Result<()> {
        match &self.entry {
            Some(entry) => keep(&self.front, &self.cx, entry.clone()).await,
            None => Ok(()),
        }
    }

    /// The call has ended with a reply, or with its work done where `meta` is absent. Waits until that is kept.
    pub(super) async fn done(&mut self, meta: Option<&ReplyMeta>, answered: Option<Value>) -> Result<()> {
        if let Some(holding) = self.holding.take() {
            match meta {
                Some(meta) => holding.settle(&meta.usage, meta.cost),
                None => holding.release(),
            }
        }
        self.told.done(meta);
        if let (Some(answered), true) = (&answered, self.front.ports.trace_content) {
            self.told.answered(answered);
        }
        let Some(mut entry) = self.entry.take() else { return Ok(()) };
        entry.outcome = Outcome::Done;
        entry.at = self.cx.clock.now();
        if let Some(meta) = meta {
            entry.usage = Some(meta.usage.clone());
            entry.cost = meta.cost;
            entry.notes.clone_from(&meta.notes);
            if let Some(model) = &mut entry.model {
                (model.backend, model.served) = (meta.backend.clone(), meta.model.clone());
            }
        }
        if let (Some(content), Some(answered)) = (&mut entry.content, answered) {
            content["response"] = answered;
        }
        keep(&self.front, &self.cx, entry).await
    }

    /// The call has ended with an error. What is held comes back where it is certain that nothing was done for it; a provider charges for an answer
    /// that came too late or broke off.
    pub(super) fn fail(&mut self, error: &Error, begun: bool) {
        self.told.failed(error.kind());
        let for_nothing = matches!(
            error.kind(),
            ErrorKind::InvalidInput
                | ErrorKind::TooLarge
                | ErrorKind::Unsupported
                | ErrorKind::NotFound
                | ErrorKind::PolicyDenied
                | ErrorKind::PermissionDenied
                | ErrorKind::RateLimited
                | ErrorKind::ResourceExhausted
                | ErrorKind::Unavailable
        );
        if let Some(holding) = self.holding.take_if(|_| for_nothing && !begun && !error.is_in_doubt()) {
            holding.release();
        }
        self.end_unheard(Outcome::Failed(format!("{:?}", error.kind())));
    }

    /// Queues the entry of a call to whose caller nothing can be said any more, or an error is said anyway.
    fn end_unheard(&mut self, outcome: Outcome) {
        let (Some(mut entry), Some(audit)) = (self.entry.take(), &self.front.ports.audit) else { return };
        (entry.outcome, entry.at) = (outcome, self.cx.clock.now());
        // A sink that refuses it at once is noticed here; one that fails later says so itself.
        if let Some(Err(error)) = audit.sink.append(entry).now_or_never() {
            self.front.count_unaudited();
            tracing::error!(name: "unaudited", %error, request_id = %self.cx.request, "the end of a call could not be audited");
        }
    }

    /// `events` with this call held until they end, and ended with [`Timeout`](ErrorKind::Timeout) when `late` has passed.
    pub(super) fn watch<T: Served>(
        self,
        events: BoxStream<'static, Result<Event<T>>>,
        late: Duration,
    ) -> BoxStream<'static, Result<Event<T>>> {
        let timer = self.cx.clock.sleep(late);
        let deltas = self.front.keeps_content().then(Vec::new);
        stream::unfold(Some(Watched { call: self, events, timer, begun: false, deltas }), Watched::next).boxed()
    }
}

/// Makes `entry` durable, or does what the options say where that fails.
async fn keep(front: &Front, cx: &CallContext, entry: AuditEntry) -> Result<()> {
    let Some(audit) = &front.ports.audit else { return Ok(()) };
    let Err(error) = cx.run("keep audit entry", audit.sink.append(entry)).await else { return Ok(()) };
    front.count_unaudited();
    match audit.options.on_failure {
        AuditFailure::Continue => {
            tracing::warn!(name: "unaudited", %error, request_id = %cx.request, "a call goes on without its audit entry");
            Ok(())
        }
        AuditFailure::Refuse => {
            // The answer's own error is logged with its cause.
            tracing::debug!(name: "unaudited", request_id = %cx.request, "a call ends because it could not be audited");
            Err(Error::unavailable("keep audit entry", "the call could not be audited").with_source(error))
        }
    }
}

/// A value as it is kept in an entry.
pub(super) fn kept(value: &impl Serialize) -> Option<Value> {
    // What is no JSON cannot be kept; requests and responses are.
    serde_json::to_value(value).ok()
}

struct Watched<T: Served> {
    call: Call,
    events: BoxStream<'static, Result<Event<T>>>,
    timer: BoxFuture<'static, ()>,
    /// Whether anything of the answer has come.
    begun: bool,
    /// What has come, where the answer is kept.
    deltas: Option<Vec<T::Delta>>,
}

impl<T: Served> Watched<T> {
    async fn next(watched: Option<Self>) -> Option<(Result<Event<T>>, Option<Self>)> {
        let mut watched = watched?;
        let next = watched.events.next().instrument(watched.call.span());
        let come = match select(next, &mut watched.timer).await {
            Either::Left((event, _)) => Some(event),
            Either::Right(_) => None,
        };
        let error = match come {
            Some(None) => return None,
            Some(Some(Ok(event))) => match watched.take_note(&event).await {
                Ok(()) => return Some((Ok(event), Some(watched))),
                Err(error) => error,
            },
            Some(Some(Err(error))) => error,
            None => Error::timeout("stream", "the answer took too long").with("request", &watched.call.cx.request),
        };
        watched.call.fail(&error, watched.begun);
        Some((Err(error), None))
    }

    async fn take_note(&mut self, event: &Event<T>) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            self.call.told.first(&self.call.cx);
        }
        match event {
            Event::Delta(delta) => {
                if let Some(deltas) = &mut self.deltas {
                    deltas.push(delta.clone());
                }
                Ok(())
            }
            Event::Done(meta) => {
                let answer = self.deltas.take().and_then(|deltas| T::fold(deltas).ok());
                self.call.done(Some(meta), answer.and_then(|answer| kept(&answer))).await
            }
        }
    }
}
