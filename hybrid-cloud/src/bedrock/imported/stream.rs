//! From InvokeModelWithResponseStream's chunks to [`ChatDelta`]s, with one end.

use std::{collections::VecDeque, sync::Arc};

use aws_sdk_bedrockruntime::{
    primitives::event_stream::EventReceiver,
    types::{ResponseStream, error::ResponseStreamError},
};
use futures_util::{StreamExt, stream};
use hybrid_core::{
    BoxStream, CallContext, ErrorKind, Event, Monotonic, Note, ReplyMeta, Result,
    task::{Chat, ChatDelta},
};

use super::{
    super::{
        call::{Caller, within},
        failure::Failure,
    },
    Answer, STREAM, meta,
};

type Receiver = EventReceiver<ResponseStream, ResponseStreamError>;

/// A stream of which nothing has reached the caller, though its first content has come: up to here a call may be made again.
#[derive(Debug)]
pub(super) struct Opened {
    receiver: Receiver,
    answer: Answer,
    ready: VecDeque<ChatDelta>,
    ended: bool,
}

impl Opened {
    pub(super) async fn begin(receiver: Receiver, answer: Answer) -> std::result::Result<Self, Failure> {
        let mut opened = Self { receiver, answer, ready: VecDeque::new(), ended: false };
        let is_content = |delta: &ChatDelta| !matches!(delta, ChatDelta::Start { .. } | ChatDelta::Details(_));
        while !opened.ended && !opened.ready.iter().any(is_content) {
            opened.advance().await?;
        }
        Ok(opened)
    }

    /// Reads one chunk.
    async fn advance(&mut self) -> std::result::Result<(), Failure> {
        match self.receiver.recv().await {
            Ok(Some(ResponseStream::Chunk(part))) => {
                let bytes = part.bytes.ok_or_else(|| Failure::corrupt("a chunk of the stream is empty"))?;
                let json = serde_json::from_slice(bytes.as_ref());
                let json =
                    json.map_err(|error| Failure::corrupt("a chunk of the stream is not JSON").caused_by(error))?;
                let read = self.answer.read(json);
                self.ready.extend(read.map_err(|error| Failure::corrupt(error.message().to_owned()).caused_by(error))?);
                Ok(())
            }
            // Kinds of events that later versions may have tell nothing of the answer.
            Ok(Some(_)) => Ok(()),
            Ok(None) if self.answer.stopped => {
                self.ended = true;
                Ok(())
            }
            Ok(None) => Err(Failure::cut("the stream ended before the answer did")),
            Err(error) => Err(Failure::in_stream(error)),
        }
    }
}

/// The stream that the caller gets.
pub(super) fn events(
    opened: Opened,
    caller: Arc<Caller>,
    cx: CallContext,
    start: Monotonic,
    notes: Vec<Note>,
) -> BoxStream<'static, Result<Event<Chat>>> {
    let reading = Reading { opened, caller, cx, start, notes };
    let next = |state: Option<Reading>| async {
        let mut reading = state?;
        match reading.next().await {
            Ok(Some(delta)) => Some((Ok(Event::Delta(delta)), Some(reading))),
            Ok(None) => Some((reading.done().map(Event::Done), None)),
            Err(error) => Some((Err(error), None)),
        }
    };
    stream::unfold(Some(reading), next).boxed()
}

struct Reading {
    opened: Opened,
    caller: Arc<Caller>,
    cx: CallContext,
    start: Monotonic,
    notes: Vec<Note>,
}

impl Reading {
    /// The next delta, or `None` once the stream has ended.
    async fn next(&mut self) -> Result<Option<ChatDelta>> {
        loop {
            self.cx.check(STREAM)?;
            if let Some(delta) = self.opened.ready.pop_front() {
                return Ok(Some(delta));
            }
            if self.opened.ended {
                return Ok(None);
            }
            let limit = self.caller.options.stall_after;
            let opened = &mut self.opened;
            let read = self.cx.run(STREAM, async { Ok(within(&self.cx, limit, opened.advance()).await) }).await?;
            match read {
                Ok(()) => {}
                // The answer is whole; what would have come is its count of tokens.
                Err(failure) if self.opened.answer.stopped && is_silence(&failure) => self.opened.ended = true,
                Err(failure) => return Err(failure.into_error(STREAM).with("model", self.caller.id.as_str())),
            }
        }
    }

    fn done(self) -> Result<ReplyMeta> {
        let usage = self.opened.answer.finish()?;
        meta(&self.caller, &self.cx, self.start, usage, self.notes)
    }
}

/// Whether a failure is that nothing came, rather than that something wrong did.
fn is_silence(failure: &Failure) -> bool {
    failure.code.is_none() && matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
}
