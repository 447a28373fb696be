//! Chat with imported models through InvokeModel, in the form of the OpenAI API.

mod stream;

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_bedrockruntime::operation::invoke_model_with_response_stream::InvokeModelWithResponseStreamOutput;
use aws_smithy_types::Blob;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, Event, InferenceBackend, Monotonic, Note, Reply, ReplyMeta, Result,
    Task, Usage,
    task::{Chat, ChatDelta, ChatRequest, ResponseDetails},
};
use serde_json::{Map, Value};

use super::{
    call::{Caller, note},
    failure::Failure,
    streaming::Opened,
};
use crate::wire::chat::{AnswerReader, Chunk, WireOptions, write_request};

const INFER: &str = "invoke imported model";
const STREAM: &str = "stream from imported model";
/// The most bytes that InvokeModel takes.
const MAX_BODY_BYTES: usize = 25_000_000;

/// An imported model on Bedrock that chats, whether or not Converse knows its architecture.
///
/// # Behavior
/// - Models imported since 11 November 2025 take the OpenAI API's chat completions as InvokeModel's body; this is what is sent, without the fields `model` and `stream`, which the
///   call itself says. What that form has no word for is refused or noted, never left out in silence.
/// - A model that nobody has called for a while must be loaded first: such a call is made again with long waits ([`RetryPolicy::cold_tries`](super::RetryPolicy::cold_tries)).
/// - A stream is `Done` once it has ended, after the answer has. One that breaks off between is whole, and noted `unmetered`.
/// - Imported models are billed by the minute that copies of them are awake, not by tokens: without [`ModelOptions::price`](super::ModelOptions::price) a reply has no cost.
/// - A body of more than 25 MB is refused with [`TooLarge`](hybrid_core::ErrorKind::TooLarge).
#[derive(Debug)]
pub struct BedrockImportedChat {
    caller: Arc<Caller>,
}

impl BedrockImportedChat {
    pub(super) fn new(caller: Caller) -> Self {
        Self { caller: Arc::new(caller) }
    }

    async fn open(&self, body: &Blob) -> std::result::Result<InvokeModelWithResponseStreamOutput, Failure> {
        let call = self.caller.client.invoke_model_with_response_stream().model_id(self.caller.id.as_str());
        let call = call.content_type("application/json").accept("application/json").body(body.clone());
        call.send().await.map_err(Failure::of)
    }
}

#[async_trait]
impl InferenceBackend<Chat> for BedrockImportedChat {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.caller.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        let start = cx.clock.monotonic();
        let asked = Asked::of(INFER, cx, &self.caller, request)?;
        let invoked = self.caller.invoke(cx, INFER, &asked.body).await?;
        let mut answer = Answer::new(cx, asked.pointers);
        let read = answer.read(invoked.body).and_then(|deltas| {
            let deltas = deltas.into_iter().filter(|delta| !matches!(delta, ChatDelta::BlockStop { .. }));
            Ok((Chat::fold(deltas)?, answer.finish()?))
        });
        let (response, usage) = read.map_err(|error| error.with("model", self.caller.id.as_str()))?;
        Ok(Reply { response, meta: meta(&self.caller, cx, start, usage, asked.notes)? })
    }

    async fn stream(&self, cx: &CallContext, request: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let start = cx.clock.monotonic();
        let Asked { body, notes, pointers } = Asked::of(STREAM, cx, &self.caller, request)?;
        let body = Blob::new(body.to_string());
        let limit = self.caller.options.stall_after;
        let opened = self
            .caller
            .call(cx, STREAM, limit, || async {
                let answer = self.open(&body).await?;
                Opened::begin(stream::Chunks::new(answer.body, Answer::new(cx, pointers.clone()))).await
            })
            .await?;
        Ok(opened.events(Arc::clone(&self.caller), cx.clone(), start, notes))
    }
}

/// A request as it goes out, and what is kept of it for the answer.
struct Asked {
    body: Value,
    notes: Vec<Note>,
    /// Fields of the answer that the caller wants, as JSON pointers.
    pointers: Vec<String>,
}

impl Asked {
    fn of(operation: &'static str, cx: &CallContext, caller: &Caller, request: ChatRequest) -> Result<Self> {
        Chat::validate(&request)?;
        cx.admit(operation, &caller.profile.locality)?;
        let (extra, pointers) = (request.extra.clone(), request.extra_response_fields.clone());
        let options = WireOptions {
            model: "",
            stream: false,
            include_usage: false,
            send_reasoning: false,
            older_max_tokens: true,
        };
        let (mut wire, notes) = write_request(request, options)?;
        wire.model = None;
        let cannot = |error| Error::internal(operation, "the request cannot be written").with_source(error);
        let mut body = serde_json::to_value(wire).map_err(cannot)?;
        for (name, value) in extra {
            if body.get(&name).is_some() {
                let error = Error::invalid(operation, "is a field of the request already; set it there");
                return Err(error.with("field", format_args!("extra.{name}")));
            }
            body[name] = value;
        }
        let size = body.to_string().len();
        if size > MAX_BODY_BYTES {
            return Err(Error::too_large(
                operation,
                "the request is over InvokeModel's limit; send fewer or smaller images",
            )
            .with("size", size)
            .with("limit", MAX_BODY_BYTES));
        }
        Ok(Self { body, notes, pointers })
    }
}

/// An answer on its way in, whole or piece by piece.
#[derive(Debug)]
struct Answer {
    reader: AnswerReader,
    pointers: Vec<String>,
    /// What Bedrock itself counted, for models that do not say.
    counted: Option<Usage>,
    stopped: bool,
}

impl Answer {
    fn new(cx: &CallContext, pointers: Vec<String>) -> Self {
        Self { reader: AnswerReader::new(cx.request.as_str(), None), pointers, counted: None, stopped: false }
    }

    fn read(&mut self, json: Value) -> Result<Vec<ChatDelta>> {
        self.counted = counted(&json).or(self.counted.take());
        let found = self.pointers.iter().filter_map(|pointer| Some((pointer.clone(), json.pointer(pointer)?.clone())));
        let extra: Map<_, _> = found.collect();
        let unfit =
            |error| Error::corrupt(INFER, "the model's answer is not in the API's form").with_quoted_source(error);
        let mut chunk: Chunk = serde_json::from_value(json).map_err(unfit)?;
        if let Some(error) = chunk.error.take().filter(|error| !error.is_null()) {
            return Err(Error::unavailable(INFER, "the model answered with an error").quote("error", error));
        }
        let mut deltas = self.reader.read(chunk)?;
        self.stopped |= deltas.iter().any(|delta| matches!(delta, ChatDelta::Stop { .. }));
        if !extra.is_empty() {
            deltas.push(ChatDelta::Details(ResponseDetails { extra, ..ResponseDetails::default() }));
        }
        Ok(deltas)
    }

    /// What was used, once the answer is whole.
    fn finish(self) -> Result<Option<Usage>> {
        Ok(self.reader.finish()?.or(self.counted))
    }
}

/// What Bedrock adds to the last piece of any model's stream.
fn counted(json: &Value) -> Option<Usage> {
    let metrics = json.get("amazon-bedrock-invocationMetrics")?;
    let count = |name: &str| metrics.get(name).and_then(Value::as_u64);
    Some(Usage {
        input_tokens: count("inputTokenCount")?,
        output_tokens: count("outputTokenCount")?,
        ..Usage::default()
    })
}

/// The meta of a reply. Where nobody says what was used, the reply says so: zero would look like a measurement.
fn meta(
    caller: &Caller,
    cx: &CallContext,
    start: Monotonic,
    usage: Option<Usage>,
    mut notes: Vec<Note>,
) -> Result<ReplyMeta> {
    let unmetered = usage.is_none();
    if unmetered {
        notes.push(note("unmetered", "neither the model nor the provider said what the call used"));
    }
    let mut meta = caller.meta(cx.clock.monotonic().since(start), usage.unwrap_or_default(), notes)?;
    if unmetered {
        meta.cost = None;
    }
    Ok(meta)
}
