//! From InvokeModelWithResponseStream's chunks to [`ChatDelta`]s.

use std::collections::VecDeque;

use aws_sdk_bedrockruntime::{
    primitives::event_stream::EventReceiver,
    types::{ResponseStream, error::ResponseStreamError},
};
use hybrid_core::{CallContext, Monotonic, Note, ReplyMeta, Result, task::ChatDelta};

use super::{
    super::{call::Caller, failure::Failure, streaming::Pieces},
    Answer, STREAM, meta,
};

/// The chunks of one answer.
#[derive(Debug)]
pub(super) struct Chunks {
    receiver: EventReceiver<ResponseStream, ResponseStreamError>,
    answer: Answer,
    ended: bool,
}

impl Chunks {
    pub(super) fn new(receiver: EventReceiver<ResponseStream, ResponseStreamError>, answer: Answer) -> Self {
        Self { receiver, answer, ended: false }
    }
}

impl Pieces for Chunks {
    const OPERATION: &'static str = STREAM;

    async fn advance(&mut self, ready: &mut VecDeque<ChatDelta>) -> std::result::Result<(), Failure> {
        match self.receiver.recv().await {
            Ok(Some(ResponseStream::Chunk(part))) => {
                let bytes = part.bytes.ok_or_else(|| Failure::corrupt("a chunk of the stream is empty"))?;
                let json = serde_json::from_slice(bytes.as_ref());
                let json =
                    json.map_err(|error| Failure::corrupt("a chunk of the stream is not JSON").caused_by(error))?;
                let read = self.answer.read(json);
                ready.extend(read.map_err(|error| Failure::corrupt(error.message().to_owned()).caused_by(error))?);
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

    fn is_done(&self) -> bool {
        self.ended
    }

    /// What would have come is its count of tokens.
    fn is_whole_without(&mut self, _silence: &Failure) -> bool {
        self.answer.stopped
    }

    fn finish(self, caller: &Caller, cx: &CallContext, start: Monotonic, notes: Vec<Note>) -> Result<ReplyMeta> {
        meta(caller, cx, start, self.answer.finish()?, notes)
    }
}
