//! Serving a router on a listener, with limits on connections and a graceful end.

use std::{io::ErrorKind as IoErrorKind, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use futures_util::future::select;
use hybrid_core::{Cancellation, Clock};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tower::ServiceExt;

use super::{Storefront, alarm::ClockTimer};

/// How long to wait after the system could not accept a connection, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because they did not finish within the grace.
    pub cut: usize,
}

impl Storefront {
    /// Serves `router`, usually [`router`](Storefront::router), over HTTP/1.1 on `listener` until `shutdown` ends.
    ///
    /// # Behavior
    /// - When `shutdown` ends the storefront [drains](Storefront::drain) and stops accepting; connections without a request are closed; requests in
    ///   flight have `grace` to finish, are answered, and their connections closed. What remains is cut, and its
    ///   [`CallContext`](hybrid_core::CallContext) cancelled.
    /// - A head that does not arrive in time ends its connection without an answer. So does what is not HTTP, after a bare 400.
    /// - A connection that fails touches no other. Running out of file descriptors is logged and waited out.
    ///
    /// # Cancel safety
    /// Dropping the future stops accepting and cuts all connections.
    pub async fn serve(
        &self,
        listener: TcpListener,
        router: Router,
        shutdown: impl Future<Output = ()> + Send,
        grace: Duration,
    ) -> Drained {
        let (clock, limits) = (self.front.clock(), self.front.limits());
        let mut http = http1::Builder::new();
        http.header_read_timeout(limits.header_read_timeout);
        http.max_buf_size(limits.head_bytes);
        let slots = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        let stopping = Cancellation::new();
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                (stream, slot) = accept(&listener, &slots, &**clock) => {
                    let mut http = http.clone();
                    http.timer(ClockTimer::new(clock));
                    connections.spawn(connection(http, stream, router.clone(), stopping.clone(), slot));
                }
            }
        }
        self.drain();
        drop(listener);
        stopping.cancel();
        let finish = async { while connections.join_next().await.is_some() {} };
        select(pin!(finish), clock.sleep(grace)).await;
        while connections.try_join_next().is_some() {}
        let cut = connections.len();
        connections.shutdown().await;
        if cut > 0 {
            tracing::warn!(cut, ?grace, "connections did not finish within the grace and were cut");
        }
        Drained { cut }
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    clock: &dyn Clock,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            // The client went away between its knock and our answer.
            Err(error)
                if matches!(
                    error.kind(),
                    IoErrorKind::ConnectionAborted | IoErrorKind::ConnectionReset | IoErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                tracing::error!(%error, "a connection could not be accepted");
                clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    http: http1::Builder,
    stream: TcpStream,
    router: Router,
    stopping: Cancellation,
    slot: Option<OwnedSemaphorePermit>,
) {
    // Answers are small and written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    let service = service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopping.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    drop(slot);
}
