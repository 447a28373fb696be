//! `Chat` over `/chat/completions`.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, Event, InferenceBackend, Monotonic, Note, Reply, ReplyMeta, Result,
    Task, Usage,
    task::{Chat, ChatDelta, ChatRequest, ResponseDetails},
};
use reqwest::{
    Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use serde_json::{Map, Value};

use super::{
    MaxTokensField, OpenAiCompatible, OpenAiConfig,
    failure::broken_off,
    http::{stalled, transport},
    sse::SseParser,
};
use crate::wire::chat::{AnswerReader, Chunk, CompletionRequest, WireOptions, write_request};

const CHAT: &str = "chat";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

#[async_trait]
impl InferenceBackend<Chat> for OpenAiCompatible {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.inner.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        let started = cx.clock.monotonic();
        let asked = self.asked(cx, request, false)?;
        let response = self.send(cx, &asked).await?;
        let body = self.inner.http.body(cx, CHAT, response).await?;
        let mut reader = asked.reader(cx);
        let mut deltas = asked.read(&mut reader, &body)?;
        let usage = reader.finish()?;
        deltas.retain(|delta| !matches!(delta, ChatDelta::BlockStop { .. }));
        let response = Chat::fold(deltas)?;
        Ok(Reply { response, meta: self.meta(cx, started, usage, asked.notes)? })
    }

    async fn stream(&self, cx: &CallContext, request: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let started = cx.clock.monotonic();
        let asked = self.asked(cx, request, true)?;
        let response = self.send(cx, &asked).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !media_type.to_ascii_lowercase().starts_with("text/event-stream") {
            let error = Error::corrupt(CHAT, "the server was asked for a stream and answered with none");
            return Err(error.with("content_type", media_type));
        }
        let OpenAiConfig { stall_timeout, answer_bytes, .. } = self.inner.config;
        let streaming = Streaming {
            backend: self.clone(),
            reader: asked.reader(cx),
            asked,
            cx: cx.clone(),
            started,
            bytes: Box::pin(response.bytes_stream().map(|chunk| chunk.map_err(|error| transport(CHAT, error)))),
            parser: SseParser::new(answer_bytes),
            events: VecDeque::new(),
            deltas: VecDeque::new(),
            stall_timeout,
        };
        Ok(stream::unfold(Some(Box::new(streaming)), Streaming::next).boxed())
    }
}

/// A request as it goes out, and what is kept of it for the answer.
struct Asked {
    body: Vec<u8>,
    notes: Vec<Note>,
    pointers: Vec<String>,
    audio_type: Option<String>,
}

impl Asked {
    fn reader(&self, cx: &CallContext) -> AnswerReader {
        AnswerReader::new(cx.request.as_str(), self.audio_type.as_deref())
    }

    /// The deltas of one JSON text, a whole answer or a chunk of one.
    fn read(&self, reader: &mut AnswerReader, json: &[u8]) -> Result<Vec<ChatDelta>> {
        let unfit =
            |error| Error::corrupt(CHAT, "the server's answer is not in the API's form").with_quoted_source(error);
        let mut chunk: Chunk = serde_json::from_slice(json).map_err(unfit)?;
        if let Some(error) = chunk.error.take().filter(|error| !error.is_null()) {
            return Err(broken_off(CHAT, &error));
        }
        let mut deltas = reader.read(chunk)?;
        if !self.pointers.is_empty() {
            let value: Value = serde_json::from_slice(json).map_err(unfit)?;
            let found =
                self.pointers.iter().filter_map(|pointer| Some((pointer.clone(), value.pointer(pointer)?.clone())));
            let extra: Map<_, _> = found.collect();
            if !extra.is_empty() {
                deltas.push(ChatDelta::Details(ResponseDetails { extra, ..ResponseDetails::default() }));
            }
        }
        Ok(deltas)
    }
}

impl OpenAiCompatible {
    /// Checks a request and writes it.
    fn asked(&self, cx: &CallContext, request: ChatRequest, stream: bool) -> Result<Asked> {
        Chat::validate(&request)?;
        let OpenAiConfig { model, stream_usage, send_reasoning, max_tokens_field, locality, .. } = &self.inner.config;
        cx.admit(CHAT, locality)?;
        let options = WireOptions {
            model,
            stream,
            include_usage: *stream_usage,
            send_reasoning: *send_reasoning,
            older_max_tokens: *max_tokens_field == MaxTokensField::MaxTokens,
        };
        let (extra, pointers) = (request.extra.clone(), request.extra_response_fields.clone());
        let audio_type = request.audio.as_ref().map(|audio| audio.media_type.clone());
        let (wire, notes) = write_request(request, options)?;
        Ok(Asked { body: with_extra(&wire, extra)?, notes, pointers, audio_type })
    }

    async fn send(&self, cx: &CallContext, asked: &Asked) -> Result<Response> {
        let fill = |request: reqwest::RequestBuilder| {
            Ok(request
                .header(CONTENT_TYPE, JSON)
                .header(ACCEPT, "application/json, text/event-stream")
                .body(asked.body.clone()))
        };
        self.inner.http.post(cx, CHAT, "chat/completions", fill).await
    }

    /// The meta of a reply. Where the server does not say what it used, the reply says so: zero would look like a measurement.
    pub(super) fn meta(
        &self,
        cx: &CallContext,
        started: Monotonic,
        usage: Option<Usage>,
        notes: Vec<Note>,
    ) -> Result<ReplyMeta> {
        let unmetered = usage.is_none();
        let elapsed = cx.clock.monotonic().since(started);
        let mut meta = ReplyMeta::of(&self.inner.profile, elapsed, usage.unwrap_or_default())?;
        meta.notes = notes;
        if unmetered {
            let detail = "the server did not say what the call used".to_owned();
            meta.notes.push(Note { code: "unmetered".into(), detail });
        }
        Ok(meta)
    }
}

/// The request with the provider's own fields beside the API's.
fn with_extra(wire: &CompletionRequest, extra: Map<String, Value>) -> Result<Vec<u8>> {
    let cannot = |error| Error::internal(CHAT, "the request cannot be written").with_source(error);
    if extra.is_empty() {
        return serde_json::to_vec(wire).map_err(cannot);
    }
    let mut value = serde_json::to_value(wire).map_err(cannot)?;
    if let Value::Object(fields) = &mut value {
        for (name, extra) in extra {
            if fields.contains_key(&name) {
                let error = Error::invalid(CHAT, "is a field of the request already; set it there");
                return Err(error.with("field", format_args!("extra.{name}")));
            }
            fields.insert(name, extra);
        }
    }
    serde_json::to_vec(&value).map_err(cannot)
}

/// A stream on its way.
struct Streaming {
    backend: OpenAiCompatible,
    asked: Asked,
    cx: CallContext,
    started: Monotonic,
    bytes: BoxStream<'static, Result<bytes::Bytes>>,
    parser: SseParser,
    events: VecDeque<String>,
    deltas: VecDeque<ChatDelta>,
    reader: AnswerReader,
    stall_timeout: Duration,
}

impl Streaming {
    /// The next event. Only an event that is no end gives the state back.
    async fn next(streaming: Option<Box<Self>>) -> Option<(Result<Event<Chat>>, Option<Box<Self>>)> {
        let mut streaming = streaming?;
        loop {
            if let Err(error) = streaming.cx.check(CHAT) {
                return Some((Err(error), None));
            }
            if let Some(delta) = streaming.deltas.pop_front() {
                return Some((Ok(Event::Delta(delta)), Some(streaming)));
            }
            match streaming.advance().await {
                Ok(false) => {}
                Ok(true) => return Some((streaming.done().map(Event::Done), None)),
                Err(error) => return Some((Err(error), None)),
            }
        }
    }

    /// Reads one more event, or one more piece of the body; says whether the stream has come to its end.
    async fn advance(&mut self) -> Result<bool> {
        if let Some(event) = self.events.pop_front() {
            if event.trim() == "[DONE]" {
                return Ok(true);
            }
            // An empty event is a sign of life.
            if !event.trim().is_empty() {
                self.deltas.extend(self.asked.read(&mut self.reader, event.as_bytes())?);
            }
            return Ok(false);
        }
        match self.read().await? {
            Some(bytes) => self.parser.push(&bytes, &mut self.events).map(|()| false),
            None => {
                // Nothing can be missing where only the empty line after the end is.
                let rest = std::mem::replace(&mut self.parser, SseParser::new(0)).finish();
                match rest {
                    Ok(Some(rest)) if rest.trim() == "[DONE]" => Ok(true),
                    _ => Err(Error::unavailable(CHAT, "the stream broke off before its end").in_doubt()),
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Option<bytes::Bytes>> {
        let (bytes, stall) = (&mut self.bytes, self.stall_timeout);
        let end = self.cx.clock.sleep(stall);
        let read = async {
            match select(pin!(bytes.next()), end).await {
                Either::Left((chunk, _)) => chunk.transpose(),
                Either::Right(_) => Err(stalled(CHAT, "the stream stalled", stall)),
            }
        };
        self.cx.run(CHAT, read).await
    }

    fn done(self: Box<Self>) -> Result<ReplyMeta> {
        let Self { backend, asked, cx, started, reader, .. } = *self;
        let usage = reader.finish()?;
        backend.meta(&cx, started, usage, asked.notes)
    }
}
