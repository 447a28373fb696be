//! Answers that come piece by piece, as server-sent events.

use std::{convert::Infallible, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{BoxStream, Clock, Error, Event, ReplyMeta, RequestId, Result, Task};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{
    alarm::Alarm,
    error::ApiError,
    front::{Admitted, ENTRY_WAIT},
};

/// How long nothing may be sent before a comment says that the server is still there: half of what proxies usually bear.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many pieces a slow reader may be behind.
const BEHIND: usize = 64;

type Events<T> = BoxStream<'static, Result<Event<T>>>;

/// Writes the events of one answer in the form of one route.
pub(super) trait Scribe: Send + 'static {
    type Task: Task;

    /// What comes before the first delta.
    fn begin(&mut self) -> String {
        String::new()
    }

    fn write(&mut self, delta: <Self::Task as Task>::Delta) -> String;

    fn finish(&mut self, meta: &ReplyMeta) -> Result<String>;

    /// What ends an answer that failed on its way.
    fn fail(&mut self, error: &ApiError, request: &RequestId) -> String;
}

/// Answers with a stream, once its first event is there: until then a failure has a status of its own.
///
/// The stream is read by a task of its own, which holds the call, and so its place among the requests at work, until the end of the answer, the
/// stall limit or the client's leave: a client that does not read cannot hold a call longer than the stall limit.
pub(super) async fn respond<S: Scribe>(
    admitted: &Admitted,
    mut events: Events<S::Task>,
    scribe: S,
) -> Result<Response, ApiError> {
    let (clock, limits) = (Arc::clone(admitted.front().clock()), admitted.front().limits());
    let told = admitted.front().traces_content();
    // The call itself ends in time, and keeps its entry before that is said. This is for one that waits for an entry too long.
    let late = clock.sleep(admitted.deadline().plus(ENTRY_WAIT).since(clock.monotonic()));
    let first = match select(events.next(), late).await {
        Either::Left((first, _)) => first,
        Either::Right(_) => return Err(Error::timeout("stream", "the answer did not begin in time").into()),
    };
    let first = first.unwrap_or_else(|| Err(Error::corrupt("stream", "the stream had no events")))?;
    let (out, chunks) = mpsc::channel(BEHIND);
    let pump = Pump {
        silence: Alarm::new(Arc::clone(&clock)),
        stalled: Alarm::new(Arc::clone(&clock)),
        clock,
        stall: limits.stream_stall,
        request: admitted.request().clone(),
        out: out.clone(),
        scribe,
    };
    tokio::spawn(
        async move {
            let mut pump = pump;
            let outcome = match AssertUnwindSafe(pump.run(first, events)).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(panic) => Err(Stop::Failed(ApiError::panicked(&*panic))),
            };
            match outcome {
                Ok(()) => tracing::debug!("stream ended"),
                Err(Stop::Left) => tracing::debug!("the client left the stream or does not read it"),
                Err(Stop::Failed(error)) => {
                    let code = error.code();
                    match error.told(told) {
                        Some(detail) => tracing::error!(code, detail, "stream failed"),
                        None => tracing::error!(code, "stream failed"),
                    }
                    let last = pump.scribe.fail(&error, &pump.request);
                    // A reader that is behind by all that it may be gets no more than the end of the connection.
                    let _ = pump.send(last).await;
                }
            }
        }
        .in_current_span(),
    );
    drop(out);
    let body = stream::unfold(chunks, async |mut chunks| Some((Ok::<_, Infallible>(chunks.recv().await?), chunks)));
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // Proxies that gather an answer before they pass it on would spoil it.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Why a stream ended early.
enum Stop {
    /// The client is gone, or does not read.
    Left,
    Failed(ApiError),
}

impl<E: Into<ApiError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Pump<S> {
    clock: Arc<dyn Clock>,
    /// Goes off when the client should hear something.
    silence: Alarm,
    /// Goes off when the model, or the client, has done nothing for too long.
    stalled: Alarm,
    stall: Duration,
    request: RequestId,
    out: mpsc::Sender<Bytes>,
    scribe: S,
}

impl<S: Scribe> Pump<S> {
    async fn run(&mut self, first: Event<S::Task>, mut events: Events<S::Task>) -> Result<(), Stop> {
        let begin = self.scribe.begin();
        self.send(begin).await?;
        let mut event = first;
        loop {
            match event {
                Event::Delta(delta) => {
                    let text = self.scribe.write(delta);
                    self.send(text).await?;
                }
                Event::Done(meta) => {
                    // The call ends before the answer does: who reads the end may ask again at once.
                    drop(events);
                    let text = self.scribe.finish(&meta)?;
                    return self.send(text).await;
                }
            }
            event = self.next(&mut events).await?;
        }
    }

    /// The next event, while the client is there and the stall limit has not passed; comments go out in the meantime.
    async fn next(&mut self, events: &mut Events<S::Task>) -> Result<Event<S::Task>, Stop> {
        let stalled = self.clock.monotonic().plus(self.stall);
        let out = self.out.clone();
        let mut gone = pin!(out.closed());
        loop {
            let silence = self.silence.until(self.clock.monotonic().plus(KEEP_ALIVE));
            let ended = select(&mut gone, self.stalled.until(stalled));
            match select(events.next(), select(ended, silence)).await {
                Either::Left((Some(event), _)) => return Ok(event?),
                Either::Left((None, _)) => {
                    return Err(Error::corrupt("stream", "the stream ended before the reply was done").into());
                }
                Either::Right((Either::Left((Either::Left(_), _)), _)) => return Err(Stop::Left),
                Either::Right((Either::Left((Either::Right(_), _)), _)) => {
                    return Err(Error::timeout("stream", "the model stalled").with("request", &self.request).into());
                }
                Either::Right((Either::Right(_), _)) => {}
            }
            self.send(": keep-alive\n\n".to_owned()).await?;
        }
    }

    async fn send(&mut self, text: String) -> Result<(), Stop> {
        if text.is_empty() {
            return Ok(());
        }
        let stalled = self.stalled.until(self.clock.monotonic().plus(self.stall));
        match select(pin!(self.out.send(text.into())), stalled).await {
            Either::Left((Ok(()), _)) => Ok(()),
            _ => Err(Stop::Left),
        }
    }
}

/// One event: its name, where it has one, and its data, which is on one line.
pub(super) fn event(name: Option<&str>, data: &impl serde::Serialize) -> String {
    // What is written here are plain structs, which always serialise; an event that did not would be missed by name.
    let data = serde_json::to_string(data).unwrap_or_else(|error| format!("{{\"error\":{{\"message\":\"{error}\"}}}}"));
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}
