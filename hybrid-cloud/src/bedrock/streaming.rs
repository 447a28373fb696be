//! An answer that streams: opened until its first content has come, then read to its one end.

use std::{collections::VecDeque, fmt, sync::Arc};

use futures_util::{StreamExt, stream};
use hybrid_core::{
    BoxStream, CallContext, ErrorKind, Event, Monotonic, Note, ReplyMeta, Result,
    task::{Chat, ChatDelta},
};

use super::{
    call::{Caller, within},
    failure::Failure,
};

/// One kind of stream, and what has been read of it.
pub(super) trait Pieces: fmt::Debug + Send + 'static {
    /// What its errors name.
    const OPERATION: &'static str;

    /// Reads one piece.
    fn advance(
        &mut self,
        ready: &mut VecDeque<ChatDelta>,
    ) -> impl Future<Output = std::result::Result<(), Failure>> + Send;

    /// Whether there is nothing more to read.
    fn is_done(&self) -> bool;

    /// Nothing comes any more. Whether the answer is whole all the same; then no more is read.
    fn is_whole_without(&mut self, silence: &Failure) -> bool;

    /// The meta of the whole answer; `notes` are those of the request.
    fn finish(self, caller: &Caller, cx: &CallContext, start: Monotonic, notes: Vec<Note>) -> Result<ReplyMeta>;
}

/// A stream of which nothing has reached the caller, though its first content has come: up to here a call may be made again.
#[derive(Debug)]
pub(super) struct Opened<P> {
    pieces: P,
    ready: VecDeque<ChatDelta>,
}

impl<P: Pieces> Opened<P> {
    pub(super) async fn begin(pieces: P) -> std::result::Result<Self, Failure> {
        let mut opened = Self { pieces, ready: VecDeque::new() };
        let is_content = |delta: &ChatDelta| !matches!(delta, ChatDelta::Start { .. } | ChatDelta::Details(_));
        while !opened.pieces.is_done() && !opened.ready.iter().any(is_content) {
            opened.pieces.advance(&mut opened.ready).await?;
        }
        Ok(opened)
    }

    /// The stream that the caller gets.
    pub(super) fn events(
        self,
        caller: Arc<Caller>,
        cx: CallContext,
        start: Monotonic,
        notes: Vec<Note>,
    ) -> BoxStream<'static, Result<Event<Chat>>> {
        let reading = Reading { opened: self, caller, cx, start, notes };
        let next = |state: Option<Reading<P>>| async {
            let mut reading = state?;
            match reading.next().await {
                Ok(Some(delta)) => Some((Ok(Event::Delta(delta)), Some(reading))),
                Ok(None) => Some((reading.done().map(Event::Done), None)),
                Err(error) => Some((Err(error), None)),
            }
        };
        stream::unfold(Some(reading), next).boxed()
    }
}

struct Reading<P> {
    opened: Opened<P>,
    caller: Arc<Caller>,
    cx: CallContext,
    start: Monotonic,
    notes: Vec<Note>,
}

impl<P: Pieces> Reading<P> {
    /// The next delta, or `None` once the answer is whole.
    async fn next(&mut self) -> Result<Option<ChatDelta>> {
        loop {
            self.cx.check(P::OPERATION)?;
            let Opened { pieces, ready } = &mut self.opened;
            if let Some(delta) = ready.pop_front() {
                return Ok(Some(delta));
            }
            if pieces.is_done() {
                return Ok(None);
            }
            let limit = self.caller.options.stall_after;
            let read =
                self.cx.run(P::OPERATION, async { Ok(within(&self.cx, limit, pieces.advance(ready)).await) }).await?;
            match read {
                Ok(()) => {}
                Err(failure) if is_silence(&failure) && pieces.is_whole_without(&failure) => return Ok(None),
                Err(failure) => return Err(failure.into_error(P::OPERATION).with("model", self.caller.id.as_str())),
            }
        }
    }

    fn done(self) -> Result<ReplyMeta> {
        self.opened.pieces.finish(&self.caller, &self.cx, self.start, self.notes)
    }
}

/// Whether a failure is that nothing came, rather than that something wrong did.
fn is_silence(failure: &Failure) -> bool {
    failure.code.is_none() && matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
}
