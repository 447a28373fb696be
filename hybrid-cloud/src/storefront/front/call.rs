//! One call on its way: what it holds while it runs, and what happens when it ends however it ends.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{
    BoxFuture, BoxStream, CallContext, Cancellation, Error, ErrorKind, Event, Locality, Monotonic, ReplyMeta,
    RequestId, Result,
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

/// How long an error waits for its entry, at most: the call's own time may be over, and a disk that hangs must not hold the call's place for ever.
pub(in crate::storefront) const ENTRY_WAIT: Duration = Duration::from_secs(5);

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
        // Nobody waits for this entry: it is seen to in a task of its own.
        drop(self.queue_end(Outcome::Cut));
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
    /// that came too late or broke off. Waits until that is kept; where it cannot be, that is counted, and hides no error.
    pub(super) async fn fail(&mut self, error: &Error, begun: bool) {
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
        // What still runs under it has nobody left to run for.
        self.cx.cancel.cancel();
        if let Some(keeping) = self.queue_end(Outcome::Failed(format!("{:?}", error.kind()))) {
            keeping.before_an_error().await;
        }
    }

    /// Queues the entry of a call that has ended without what it was for.
    fn queue_end(&mut self, outcome: Outcome) -> Option<Keeping<'_>> {
        let mut entry = self.entry.take()?;
        (entry.outcome, entry.at) = (outcome, self.cx.clock.now());
        Keeping::queue(&self.front, &self.cx.request, entry)
    }

    /// `events` with this call held until they end, and ended with [`Timeout`](ErrorKind::Timeout) where they have not begun by `begin`, or the
    /// call's own deadline passes.
    pub(super) fn watch<T: Served>(
        self,
        events: BoxStream<'static, Result<Event<T>>>,
        begin: Monotonic,
    ) -> BoxStream<'static, Result<Event<T>>> {
        let timer = self.cx.clock.sleep(begin.since(self.cx.clock.monotonic()));
        let deltas = self.front.keeps_content().then(Vec::new);
        stream::unfold(Some(Watched { call: self, events, timer, begun: false, deltas }), Watched::next).boxed()
    }
}

/// An entry on its way to be kept. Dropped before it is known how that ends, as when the client disconnects, it leaves a task behind that sees to it.
struct Keeping<'a> {
    front: &'a Arc<Front>,
    request: &'a RequestId,
    /// Until it has ended, or somebody has counted it.
    durable: Option<BoxFuture<'static, Result<()>>>,
}

impl<'a> Keeping<'a> {
    /// Queues `entry` at once; nothing where there is no audit.
    fn queue(front: &'a Arc<Front>, request: &'a RequestId, entry: AuditEntry) -> Option<Self> {
        let durable = front.ports.audit.as_ref()?.sink.append(entry);
        Some(Self { front, request, durable: Some(durable) })
    }

    /// Waits until it is kept; where it is not, that is counted.
    async fn before_an_error(mut self) {
        let (front, request) = (self.front, self.request);
        let late = async { front.ports.clock.sleep(ENTRY_WAIT).await };
        let kept = match select(&mut self, pin!(late)).await {
            Either::Left((kept, _)) => kept,
            Either::Right(_) => Err(Error::timeout("keep audit entry", "the entry was not kept in time")),
        };
        // Counted here, once.
        self.durable = None;
        if let Err(error) = kept {
            unheard(front, request, &error);
        }
    }
}

impl Future for Keeping<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(durable) = &mut self.durable else { return Poll::Pending };
        let kept = ready!(durable.poll_unpin(cx));
        self.durable = None;
        Poll::Ready(kept)
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        let Some(mut durable) = self.durable.take() else { return };
        // Mostly it is there already, and needs no task.
        match ((&mut durable).now_or_never(), tokio::runtime::Handle::try_current()) {
            (Some(Ok(())), _) => {}
            (Some(Err(error)), _) => unheard(self.front, self.request, &error),
            (None, Ok(runtime)) => {
                let (front, request) = (Arc::clone(self.front), self.request.clone());
                runtime.spawn(async move {
                    if let Err(error) = durable.await {
                        unheard(&front, &request, &error);
                    }
                });
            }
            // Outside of a runtime the sink alone can say what becomes of it.
            (None, Err(_)) => {}
        }
    }
}

/// Counts an entry that could not be kept of a call to whose caller nothing can be said any more, or an error is said anyway.
fn unheard(front: &Front, request: &RequestId, error: &Error) {
    front.count_unaudited();
    tracing::error!(name: "unaudited", %error, request_id = %request, "the end of a call could not be audited");
}

/// Makes `entry` durable, or does what the options say where that fails.
async fn keep(front: &Arc<Front>, cx: &CallContext, entry: AuditEntry) -> Result<()> {
    let (Some(audit), Some(mut keeping)) = (&front.ports.audit, Keeping::queue(front, &cx.request, entry)) else {
        return Ok(());
    };
    let kept = cx.run("keep audit entry", &mut keeping).await;
    // One that comes too late for its answer is counted here, once.
    keeping.durable = None;
    let Err(error) = kept else { return Ok(()) };
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
    /// Ends when the answer should have begun; once it has, when it should have ended.
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
            None => {
                let late = if watched.begun { "the answer took too long" } else { "the answer did not begin in time" };
                Error::timeout("stream", late).with("request", &watched.call.cx.request)
            }
        };
        watched.call.fail(&error, watched.begun).await;
        Some((Err(error), None))
    }

    async fn take_note(&mut self, event: &Event<T>) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            let cx = &self.call.cx;
            self.call.told.first(cx);
            self.timer = match cx.deadline {
                Some(deadline) => cx.clock.sleep(deadline.since(cx.clock.monotonic())),
                None => Box::pin(std::future::pending()),
            };
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
