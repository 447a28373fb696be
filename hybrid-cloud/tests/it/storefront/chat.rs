//! `POST /v1/chat/completions`, whole and streamed.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hybrid_cloud::storefront::{Drained, StorefrontLimits};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, ErrorKind, Event, InferenceBackend, ManualClock, Note, Reply,
    ReplyMeta, Result, Usage,
    memory::ScriptedBackend,
    task::{Chat, ChatDelta, ChatRequest, ChatResponse, Choice, Message, StopReason},
};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tower::ServiceExt;

use super::{
    media::says,
    rig::{Answer, asleep, builder, call, get, noon, post, read_all, serve, soon},
};

const PATH: &str = "/v1/chat/completions";

fn app(backend: Arc<dyn InferenceBackend<Chat>>) -> Router {
    builder(&noon()).chat("loaf-1", backend).build().unwrap().router()
}

fn ask(body: &Value) -> Request<Body> {
    let mut request = post(PATH, body.to_string());
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    request
}

fn hello(stream: bool) -> Value {
    json!({ "model": "loaf-1", "messages": [{ "role": "user", "content": "hi" }], "stream": stream })
}

/// The data of each event of a stream's text.
fn events(text: &str) -> Vec<Value> {
    let data = text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into())).collect()
}

async fn text(router: &Router, request: Request<Body>) -> (u16, String) {
    let response = soon(router.clone().oneshot(request)).await.unwrap();
    let status = response.status().as_u16();
    if status == 200 {
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A model whose stream is what a test sends it.
#[derive(Debug)]
struct Hose {
    profile: Arc<BackendProfile>,
    events: Mutex<Option<mpsc::UnboundedReceiver<Result<Event<Chat>>>>>,
    entered: mpsc::UnboundedSender<CallContext>,
}

struct Tap {
    events: mpsc::UnboundedSender<Result<Event<Chat>>>,
    entered: mpsc::UnboundedReceiver<CallContext>,
}

impl Hose {
    fn new() -> (Arc<Self>, Tap) {
        let ((events, out), (told, entered)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let profile = InferenceBackend::<Chat>::profile(&*says(""));
        (Arc::new(Self { profile, events: Mutex::new(Some(out)), entered: told }), Tap { events, entered })
    }
}

#[async_trait]
impl InferenceBackend<Chat> for Hose {
    fn profile(&self) -> Arc<BackendProfile> {
        self.profile.clone()
    }

    async fn infer(&self, cx: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        hybrid_core::inference::collect_reply(self.stream(cx, request).await?).await
    }

    async fn stream(&self, cx: &CallContext, _: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        self.entered.send(cx.clone()).unwrap();
        let out = self.events.lock().await.take();
        let out = out.ok_or_else(|| Error::unavailable("stream", "there was one stream only"))?;
        Ok(stream::unfold(out, async |mut out| Some((out.recv().await?, out))).boxed())
    }
}

impl Tap {
    fn text(&self, text: &str) {
        self.events.send(Ok(Event::Delta(ChatDelta::text(0, text)))).unwrap();
    }

    fn stop(&self) {
        let stop = ChatDelta::Stop { choice: 0, reason: StopReason::EndTurn, sequence: None };
        self.events.send(Ok(Event::Delta(stop))).unwrap();
    }

    fn done(&self, usage: Usage) {
        let profile = InferenceBackend::<Chat>::profile(&*says(""));
        let mut meta = ReplyMeta::of(&profile, Duration::ZERO, usage).unwrap();
        meta.notes.push(Note { code: "fallback".into(), detail: "the first model was away".into() });
        self.events.send(Ok(Event::Done(meta))).unwrap();
    }

    async fn entered(&mut self) -> CallContext {
        soon(self.entered.recv()).await.unwrap()
    }
}

/// The next piece of a body; `None` at its end.
async fn piece(body: &mut Body) -> Option<String> {
    let frame = soon(body.frame()).await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

async fn open(router: &Router, body: &Value) -> Body {
    let response = soon(router.clone().oneshot(ask(body))).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}

#[tokio::test]
async fn a_whole_answer_has_the_apis_exact_form() {
    let answer = call(&app(says("Two loaves.")), ask(&hello(false))).await;
    assert_eq!(
        answer.body,
        json!({
            "id": "chatcmpl-r-1",
            "object": "chat.completion",
            "created": 1_772_366_400,
            "model": "loaf-1",
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": "Two loaves.", "refusal": null, "annotations": [] },
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0,
                "prompt_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0 },
                "completion_tokens_details": { "reasoning_tokens": 0, "audio_tokens": 0 },
            },
            "system_fingerprint": null,
        })
    );
}

#[tokio::test]
async fn a_streamed_answer_is_chunks_of_one_id_then_usage_then_done() {
    let (hose, tap) = Hose::new();
    tap.text("Two ");
    tap.text("loaves.");
    tap.stop();
    tap.done(Usage { input_tokens: 5, cache_read_tokens: 4, output_tokens: 3, ..Usage::default() });
    let mut body = hello(true);
    body["stream_options"] = json!({ "include_usage": true });
    let (status, text) = text(&app(hose), ask(&body)).await;
    let events = events(&text);
    assert_eq!(status, 200);
    let head = |event: &Value| (event["id"].clone(), event["object"].clone(), event["created"].clone());
    for event in &events[..5] {
        assert_eq!(head(event), (json!("chatcmpl-r-1"), json!("chat.completion.chunk"), json!(1_772_366_400)));
    }
    let choice = |delta: Value, finish: Value| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    assert_eq!(events[0]["choices"], choice(json!({ "role": "assistant", "content": "" }), Value::Null));
    assert_eq!(events[1]["choices"], choice(json!({ "content": "Two " }), Value::Null));
    assert_eq!(events[2]["choices"], choice(json!({ "content": "loaves." }), Value::Null));
    assert_eq!(events[3]["choices"], choice(json!({}), json!("stop")));
    assert_eq!(events[3]["notes"], json!([{ "code": "fallback", "detail": "the first model was away" }]));
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(events[4]["usage"]["prompt_tokens"], 9);
    assert_eq!(events[4]["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    assert_eq!(events[5..], [json!("[DONE]")]);
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_failure_before_the_first_piece_has_its_status() {
    for (kind, status) in [(ErrorKind::RateLimited, 503), (ErrorKind::Unavailable, 503), (ErrorKind::TooLarge, 413)] {
        let (hose, tap) = Hose::new();
        tap.events.send(Err(Error::new(kind, "infer", "no"))).unwrap();
        let answer = call(&app(hose), ask(&hello(true))).await;
        assert_eq!((answer.status, &answer.headers["content-type"]), (status, &"application/json".parse().unwrap()));
    }
}

#[tokio::test]
async fn a_failure_on_the_way_is_an_error_event_and_no_end() {
    let (hose, tap) = Hose::new();
    tap.text("Two ");
    tap.stop();
    let secret = Error::unavailable("infer", "the server failed").with("path", "/srv/secret");
    tap.events.send(Err(secret)).unwrap();
    let (status, text) = text(&app(hose), ask(&hello(true))).await;
    let events = events(&text);
    assert_eq!(status, 200);
    let error = &events.last().unwrap()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("unavailable")));
    assert!(error["message"].as_str().unwrap().contains("request id: r-1"), "{text}");
    // The model had stopped, but what came after it failed: nothing says that the answer is whole.
    assert!(!text.contains("[DONE]") && !text.contains("\"stop\"") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_stream_that_just_ends_or_panics_is_a_failure_too() {
    let (hose, tap) = Hose::new();
    tap.text("Two ");
    drop(tap);
    assert!(text(&app(hose), ask(&hello(true))).await.1.contains("\"internal_error\""));

    #[derive(Debug)]
    struct Panics;
    #[async_trait]
    impl InferenceBackend<Chat> for Panics {
        fn profile(&self) -> Arc<BackendProfile> {
            InferenceBackend::<Chat>::profile(&*says(""))
        }
        async fn infer(&self, _: &CallContext, _: ChatRequest) -> Result<Reply<Chat>> {
            panic!("a defect at /srv/secret")
        }
        async fn stream(&self, _: &CallContext, _: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
            let first = stream::iter([Ok(Event::Delta(ChatDelta::text(0, "a")))]);
            Ok(first.chain(stream::once(async { panic!("a defect at /srv/secret") })).boxed())
        }
    }
    let text = text(&app(Arc::new(Panics)), ask(&hello(true))).await.1;
    assert!(text.contains("\"internal_error\"") && !text.contains("secret") && !text.contains("[DONE]"), "{text}");
}

fn streaming(clock: &ManualClock, limits: StorefrontLimits) -> (Router, Tap) {
    let (hose, tap) = Hose::new();
    (builder(clock).chat("loaf-1", hose).limits(limits).build().unwrap().router(), tap)
}

#[tokio::test]
async fn silence_is_filled_with_comments_until_the_stall_limit() {
    let clock = noon();
    let (router, mut tap) = streaming(&clock, StorefrontLimits::default());
    tap.text("Two ");
    let mut body = open(&router, &hello(true)).await;
    let cx = tap.entered().await;
    assert!(piece(&mut body).await.unwrap().contains("Two "));
    // The silence, the stall limit and the stream's whole time.
    asleep(&clock, 3).await;
    clock.advance(Duration::from_secs(15));
    assert_eq!(piece(&mut body).await.unwrap(), ": keep-alive\n\n");
    tap.text("loaves");
    assert!(piece(&mut body).await.unwrap().contains("loaves"));
    assert!(!cx.cancel.is_cancelled());
    let rest = soon(async {
        let mut rest = String::new();
        loop {
            match futures_util::FutureExt::now_or_never(body.frame()) {
                None => {
                    clock.advance(Duration::from_secs(1));
                    tokio::task::yield_now().await;
                }
                Some(None) => break rest,
                Some(Some(frame)) => rest += &String::from_utf8_lossy(&frame.unwrap().into_data().unwrap()),
            }
        }
    })
    .await;
    assert!(rest.contains("\"timeout\"") && !rest.contains("[DONE]"), "{rest}");
    soon(cx.cancel.cancelled()).await;
}

#[tokio::test]
async fn a_stream_that_does_not_begin_in_time_is_cancelled_and_answered_for() {
    let clock = noon();
    let (router, mut tap) = streaming(&clock, StorefrontLimits::default());
    let answer = tokio::spawn(async move { call(&router, ask(&hello(true))).await });
    let cx = tap.entered().await;
    while !answer.is_finished() {
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    let answer: Answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.error("code")), (504, "timeout"));
    assert!(cx.cancel.is_cancelled());
}

#[tokio::test]
async fn a_stream_holds_its_place_until_its_end() {
    let clock = noon();
    let (router, tap) = streaming(&clock, StorefrontLimits { requests: 1, ..StorefrontLimits::default() });
    tap.text("Two ");
    let mut body = open(&router, &hello(true)).await;
    assert_eq!(call(&router, ask(&hello(false))).await.error("code"), "overloaded");
    tap.stop();
    tap.done(Usage::default());
    while let Some(text) = piece(&mut body).await {
        if text.contains("[DONE]") {
            // Who reads the end may ask again at once; this model has no second stream, and says so.
            assert_eq!(call(&router, ask(&hello(false))).await.error("code"), "unavailable");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_its_call() {
    let clock = noon();
    let (hose, mut tap) = Hose::new();
    let served = serve(&builder(&clock).chat("loaf-1", hose).build().unwrap()).await;
    tap.text("Two ");
    let body = hello(true).to_string();
    let head =
        format!("POST {PATH} HTTP/1.1\nhost: shop\ncontent-type: application/json\ncontent-length: {}\n\n", body.len());
    let stream = served.send(&head, body.as_bytes()).await;
    let cx = tap.entered().await;
    soon(stream.readable()).await.unwrap();
    assert!(!cx.cancel.is_cancelled());
    drop(stream);
    soon(cx.cancel.cancelled()).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_gives_its_place_back() {
    let clock = noon();
    let (router, mut tap) = streaming(&clock, StorefrontLimits::default());
    for _ in 0..200 {
        tap.text("more than the storefront holds for a reader that does not read");
    }
    let body = open(&router, &hello(true)).await;
    let cx = tap.entered().await;
    soon(async {
        while !cx.cancel.is_cancelled() {
            clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(body);
}

#[tokio::test]
async fn a_shutdown_lets_streams_end() {
    let clock = noon();
    let (hose, mut tap) = Hose::new();
    let served = serve(&builder(&clock).chat("loaf-1", hose).build().unwrap()).await;
    tap.text("Two ");
    let body = hello(true).to_string();
    let head =
        format!("POST {PATH} HTTP/1.1\nhost: shop\ncontent-type: application/json\ncontent-length: {}\n\n", body.len());
    let mut stream = served.send(&head, body.as_bytes()).await;
    tap.entered().await;
    soon(stream.readable()).await.unwrap();
    served.stop.cancel();
    tap.text("loaves.");
    tap.stop();
    tap.done(Usage::default());
    let (head, body) = read_all(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("loaves.") && body.contains("[DONE]"), "{head} {body}");
    assert_eq!(soon(served.done).await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_fields_that_nobody_honours_are_refused_by_name() {
    let backend = says("yes");
    let router = app(backend.clone());
    let with = |field: &str, value: Value| {
        let mut body = hello(false);
        body[field] = value;
        body
    };
    for (field, value) in
        [("next_years_field", json!({ "deep": [1] })), ("prompt_cache_options", json!({})), ("functions", Value::Null)]
    {
        assert_eq!(call(&router, ask(&with(field, value))).await.status, 200, "{field}");
    }
    let asked = backend.asked().len();
    let part = |part: Value| json!([{ "role": "user", "content": [part] }]);
    for (body, param) in [
        (with("functions", json!([])), "functions"),
        (with("function_call", json!("auto")), "function_call"),
        (with("web_search_options", json!({})), "web_search_options"),
        (with("moderation", json!({})), "moderation"),
        (with("modalities", json!(["image"])), "modalities"),
        (with("tools", json!([{ "type": "web_search" }])), "tools[0].type"),
        (with("tools", json!([{ "type": "function" }])), "tools[0].function"),
        (
            with("tools", json!([{ "type": "function", "function": { "name": "f", "parameters": [] } }])),
            "tools[0].function.parameters",
        ),
        (with("tool_choice", json!("any")), "tool_choice"),
        (with("response_format", json!({ "type": "xml" })), "response_format.type"),
        (with("response_format", json!({ "type": "json_schema" })), "response_format.json_schema"),
        (with("temperature", json!(-1)), "temperature"),
        (with("max_completion_tokens", json!(0)), "max_completion_tokens"),
        (with("top_logprobs", json!(3)), "top_logprobs"),
        (with("stop", json!([""])), "stop[0]"),
        (with("messages", json!([])), "messages"),
        (with("messages", json!([{ "role": "wizard", "content": "a" }])), "messages[0].role"),
        (with("messages", json!([{ "role": "function", "content": "a" }])), "messages[0].role"),
        (with("messages", json!([{ "role": "tool", "content": "a" }])), "messages[0].tool_call_id"),
        (
            with("messages", json!([{ "role": "system", "content": "a" }, { "role": "user", "content": [] }])),
            "messages[1].content",
        ),
        (with("messages", part(json!({ "type": "video_url" }))), "messages[0].content[0].type"),
        (with("messages", part(json!({ "type": "image_url" }))), "messages[0].content[0].image_url"),
        (
            with("messages", part(json!({ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }))),
            "messages[0].content[0].image_url.url",
        ),
        (
            with("messages", part(json!({ "type": "input_audio", "input_audio": { "data": "~", "format": "wav" } }))),
            "messages[0].content[0].input_audio.data",
        ),
        (with("n", json!("two")), "n"),
        (with("messages", json!("hi")), "messages"),
    ] {
        let answer = call(&router, ask(&body)).await;
        assert_eq!((answer.status, answer.error("param")), (400, param), "{answer:?}");
        assert!(!answer.error("message").is_empty());
    }
    assert_eq!(backend.asked().len(), asked);
}

#[tokio::test]
async fn what_would_break_a_careless_reader_is_refused() {
    let router = app(says("yes"));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}}],"metadata":{deep}}}"#);
    assert_eq!(call(&router, post(PATH, body)).await.status, 400);
    let nested = format!(r#"{{"messages":[{{"role":"user","content":{deep}}}]}}"#);
    assert_eq!(call(&router, post(PATH, nested)).await.status, 400);
    let tool = format!(r#"{{"messages":[{{"role":"user","content":"a"}}],"functions":{deep}}}"#);
    assert_eq!(call(&router, post(PATH, tool)).await.status, 400);
    let large = vec![b' '; 10_000_000];
    assert_eq!(call(&router, post(PATH, large)).await.error("code"), "body_too_large");
    let form =
        Request::post(PATH).header("content-type", "multipart/form-data; boundary=x").body(Body::empty()).unwrap();
    assert_eq!(call(&router, form).await.error("code"), "unsupported_media_type");
    let injected = json!({ "messages": [{ "role": "user", "content": "a" }], "model": "m\r\nx-evil: 1" });
    let answer = call(&router, post(PATH, injected.to_string())).await;
    assert_eq!((answer.status, answer.headers.get("x-evil")), (404, None));
}

#[tokio::test]
async fn a_reason_that_the_api_cannot_say_is_never_a_whole_answer() {
    for (reason, finish) in [
        (StopReason::MaxTokens, Some("length")),
        (StopReason::ContextWindowExceeded, Some("length")),
        (StopReason::GuardrailIntervened, Some("content_filter")),
        (StopReason::ToolUse, Some("tool_calls")),
        (StopReason::PauseTurn, Some("pause_turn")),
        (StopReason::MalformedOutput, None),
    ] {
        let choice = Choice::new(Message::assistant("a"), reason.clone());
        let answer = ChatResponse { choices: vec![choice], ..ChatResponse::default() };
        let router = app(Arc::new(ScriptedBackend::new("scripted", [Ok(answer.clone()), Ok(answer)])));
        let whole = call(&router, ask(&hello(false))).await;
        let streamed = text(&router, ask(&hello(true))).await.1;
        match finish {
            Some(finish) => {
                assert_eq!(whole.body["choices"][0]["finish_reason"], finish);
                assert!(streamed.contains(&format!("\"finish_reason\":\"{finish}\"")), "{streamed}");
            }
            None => {
                assert_eq!(whole.status, 500);
                assert!(streamed.contains("\"error\"") && !streamed.contains("[DONE]"), "{streamed}");
            }
        }
    }
}

#[tokio::test]
async fn a_model_of_another_task_is_not_asked() {
    let router =
        builder(&noon()).chat("loaf-1", says("a")).classify("messages", super::rig::orders()).build().unwrap().router();
    let mut body = hello(false);
    body["model"] = "messages".into();
    let answer = call(&router, ask(&body)).await;
    assert_eq!((answer.status, answer.error("param")), (400, "model"));
    let listed = call(&router, get("/v1/models")).await;
    let tasks: Vec<_> = listed.body["data"].as_array().unwrap().iter().map(|model| model["task"].clone()).collect();
    assert_eq!(tasks, ["chat", "classify"]);
}
