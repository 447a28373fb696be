//! Serving a router on a listener, with limits on connections and a graceful end.

use std::{
    io::{self, ErrorKind as IoErrorKind, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use futures_util::future::select;
use hybrid_core::{Cancellation, Clock, Monotonic};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tower::ServiceExt;

use super::{
    Storefront,
    alarm::{Alarm, ClockTimer},
};

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
    /// - A client that takes nothing of what is sent to it for [`stream_stall`](super::StorefrontLimits::stream_stall) is cut off, whatever it asked for.
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
                    let stream = WriteTimeout::new(stream, clock, limits.stream_stall);
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
    stream: WriteTimeout<TcpStream>,
    router: Router,
    stopping: Cancellation,
    slot: Option<OwnedSemaphorePermit>,
) {
    // Answers are small and written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.inner.set_nodelay(true) {
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

/// A stream whose writes fail once its peer has taken nothing for a while.
///
/// hyper watches no write: a peer that never reads would keep its connection for ever, and its leave would not be seen either.
struct WriteTimeout<S> {
    inner: S,
    clock: Arc<dyn Clock>,
    stall: Duration,
    alarm: Alarm,
    /// When the write that waits fails.
    deadline: Option<Monotonic>,
}

impl<S> WriteTimeout<S> {
    fn new(inner: S, clock: &Arc<dyn Clock>, stall: Duration) -> Self {
        Self { inner, clock: Arc::clone(clock), stall, alarm: Alarm::new(Arc::clone(clock)), deadline: None }
    }

    /// Passes on what came of a write; the clock is asked only where it has to wait.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let deadline = *self.deadline.get_or_insert_with(|| self.clock.monotonic().plus(self.stall));
        ready!(Pin::new(&mut self.alarm.until(deadline)).poll(cx));
        Poll::Ready(Err(io::Error::new(IoErrorKind::TimedOut, "the client takes nothing of what is sent to it")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use hybrid_core::ManualClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_peer_that_reads_slowly_is_waited_for_and_one_that_stops_is_not() {
        let clock = ManualClock::default();
        let (stream, mut peer) = duplex(1);
        let mut stream = WriteTimeout::new(stream, &(Arc::new(clock.clone()) as _), STALL);
        stream.write_all(b"a").await.unwrap();
        assert_eq!(clock.sleepers(), 0, "nothing waits yet");
        for _ in 0..3 {
            assert!(stream.write(b"b").now_or_never().is_none());
            clock.advance(STALL - Duration::from_millis(1));
            peer.read_u8().await.unwrap();
            stream.write_all(b"b").await.unwrap();
        }
        assert!(stream.write(b"c").now_or_never().is_none());
        clock.advance(STALL);
        let cut = stream.write(b"c").now_or_never().unwrap().unwrap_err();
        assert_eq!(cut.kind(), IoErrorKind::TimedOut);
    }
}
