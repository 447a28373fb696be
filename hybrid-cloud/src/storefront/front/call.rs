//! One call on its way: what it holds while it runs, and what happens when it ends however it ends.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{BoxFuture, BoxStream, CallContext, Cancellation, Error, Event, Result};
use tokio::sync::OwnedSemaphorePermit;

use super::{Admitted, Served};
use crate::storefront::error::ApiError;

/// A call that has a place. Dropping it, as happens when the client disconnects, cancels what runs under it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) cx: CallContext,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.cx.cancel.cancel();
    }
}

impl Call {
    /// Lets a call begin whose body has arrived, unless too many are at work already.
    pub(super) fn begin(admitted: &Admitted) -> Result<Self, ApiError> {
        let Admitted { front, principal, edge } = admitted;
        let slot = Arc::clone(&front.slots).try_acquire_owned().map_err(|_| ApiError::overloaded())?;
        let cx = CallContext {
            tenant: principal.tenant.clone(),
            request: edge.request.clone(),
            policy: front.ports.policy.clone().and(&principal.policy),
            deadline: Some(edge.deadline),
            cancel: Cancellation::new(),
            trace: edge.trace.clone(),
            clock: Arc::clone(&front.ports.clock),
        };
        Ok(Self { cx, _slot: slot })
    }

    /// `events` with this call held until they end, and ended with [`Timeout`](hybrid_core::ErrorKind::Timeout) when `late` has passed.
    pub(super) fn watch<T: Served>(
        self,
        events: BoxStream<'static, Result<Event<T>>>,
        late: Duration,
    ) -> BoxStream<'static, Result<Event<T>>> {
        let timer = self.cx.clock.sleep(late);
        stream::unfold(Some(Watched { call: self, events, timer }), Watched::next).boxed()
    }
}

struct Watched<T: Served> {
    call: Call,
    events: BoxStream<'static, Result<Event<T>>>,
    timer: BoxFuture<'static, ()>,
}

impl<T: Served> Watched<T> {
    async fn next(watched: Option<Self>) -> Option<(Result<Event<T>>, Option<Self>)> {
        let mut watched = watched?;
        match select(watched.events.next(), &mut watched.timer).await {
            Either::Left((Some(Ok(event)), _)) => Some((Ok(event), Some(watched))),
            Either::Left((Some(Err(error)), _)) => Some((Err(error), None)),
            Either::Left((None, _)) => None,
            Either::Right(_) => {
                let late =
                    Error::timeout("stream", "the answer took too long").with("request", &watched.call.cx.request);
                Some((Err(late), None))
            }
        }
    }
}
