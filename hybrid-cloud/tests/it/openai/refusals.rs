//! Retries, refusals, and what is sent.

use std::time::Duration;

use hybrid_cloud::{
    openai::{OpenAiCompatible, OpenAiConfig, RetryPolicy},
    testkit::openai::{Answer, Fault, chat_completion, chat_stream},
};
use hybrid_core::{
    ErrorKind, InferenceBackend, Locality, Reply, Result,
    task::{
        CachePoint, Chat, ChatRequest, Embed, EmbedInput, EmbedRequest, Guardrail, ImagePart, Message, Reasoning,
        Sampling, SystemPart, Tool, Transcribe, TranscribeRequest,
    },
};
use serde_json::json;

use super::rig::{backend, config, context};
use crate::storefront::rig::{asleep_within, soon};

fn busy(status: u16) -> Answer {
    Answer::error(status, "busy", "come back")
}

fn hello() -> Answer {
    Answer::json(200, &chat_completion("loaf-1", "hello"))
}

async fn ask(backend: &OpenAiCompatible, request: ChatRequest) -> Result<Reply<Chat>> {
    InferenceBackend::<Chat>::infer(backend, &context().0, request).await
}

#[tokio::test]
async fn a_busy_server_is_asked_again_after_the_wait_it_asks_for() {
    let (server, backend) = backend().await;
    server.answer(busy(429).with_header("retry-after", "7"));
    server.answer(busy(503));
    server.answer(hello());
    let (cx, clock) = context();
    let call = tokio::spawn({
        let backend = backend.clone();
        async move { InferenceBackend::<Chat>::infer(&*backend, &cx, ChatRequest::user("hi")).await }
    });
    // While the refusal is read there is the limit of its standing still too.
    asleep_within(&clock, Duration::from_secs(7)).await;
    clock.advance(Duration::from_millis(6_999));
    tokio::task::yield_now().await;
    assert_eq!(server.requests().len(), 1);
    clock.advance(Duration::from_millis(1));
    soon(server.until_requests(2)).await;
    asleep_within(&clock, Duration::from_secs(1)).await;
    clock.advance(Duration::from_secs(1));
    assert_eq!(soon(call).await.unwrap().unwrap().response.text(), "hello");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn what_another_try_cannot_mend_is_not_tried_again() {
    for (answer, kind) in [
        (busy(400), ErrorKind::InvalidInput),
        (busy(401), ErrorKind::PermissionDenied),
        (busy(404), ErrorKind::NotFound),
        (Answer::error(429, "insufficient_quota", "pay"), ErrorKind::RateLimited),
        (busy(429).with_header("x-should-retry", "false"), ErrorKind::RateLimited),
        (busy(429).with_header("retry-after", "3600"), ErrorKind::RateLimited),
        (Answer::new(302, "text/plain", "").with_header("location", "http://127.0.0.1:9/"), ErrorKind::Unsupported),
    ] {
        let (server, backend) = backend().await;
        server.answer(answer);
        assert_eq!(soon(ask(&backend, ChatRequest::user("hi"))).await.unwrap_err().kind(), kind);
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_ends_the_call_with_the_wait() {
    let (server, backend) = backend().await;
    server.answer(busy(429).with_header("retry-after", "20"));
    let cx = context().0.with_timeout(Duration::from_secs(10));
    let error = soon(InferenceBackend::<Chat>::infer(&*backend, &cx, ChatRequest::user("hi"))).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, Some(Duration::from_secs(20))));
}

#[tokio::test]
async fn a_stream_that_has_begun_is_never_asked_for_again() {
    let (server, backend) = backend().await;
    let body = chat_stream("loaf-1", ["a"]);
    server.answer(Answer::sse(body.clone()).with_fault(body.len() / 2, Fault::Cut));
    let events = InferenceBackend::<Chat>::stream(&*backend, &context().0, ChatRequest::user("hi")).await.unwrap();
    assert!(hybrid_core::inference::collect_reply(events).await.is_err());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let mut config = config("http://127.0.0.1:9/v1".into());
    config.retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let error = ask(&OpenAiCompatible::new(config).unwrap(), ChatRequest::user("hi")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_request_carries_key_trace_id_and_the_names_that_the_server_knows() {
    let (server, _) = backend().await;
    server.answer(hello());
    let mut config = OpenAiConfig::new("a", server.base_url() + "/", "m", Locality::Site).with_api_key("sk-1");
    config.headers.insert("openai-project".into(), "p".into());
    let backend = OpenAiCompatible::new(config).unwrap();
    assert!(!format!("{backend:?}").contains("sk-1"));
    let mut cx = context().0;
    cx.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let sampling = Sampling { max_tokens: Some(5), ..Sampling::default() };
    let mut request = ChatRequest { sampling, ..ChatRequest::user("hi") };
    request.extra.insert("typical_p".into(), json!(0.5));
    InferenceBackend::<Chat>::infer(&backend, &cx, request.clone()).await.unwrap();
    let sent = &server.requests()[0];
    assert_eq!((sent.method.as_str(), sent.path.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(sent.header("authorization"), Some("Bearer sk-1"));
    assert_eq!((sent.header("traceparent"), sent.header("x-request-id")), (cx.trace.as_deref(), Some("r-1")));
    assert_eq!(sent.header("openai-project"), Some("p"));
    let body = sent.json();
    let expected =
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "typical_p": 0.5});
    assert_eq!(body, expected);
    // A provider's reasoning models refuse the older name.
    let far = OpenAiConfig::new("a", server.base_url(), "m", Locality::Region("us-east-1".into()));
    let far = OpenAiCompatible::new(far).unwrap();
    InferenceBackend::<Chat>::infer(&far, &cx, request.clone()).await.unwrap();
    assert_eq!(server.requests()[1].json()["max_completion_tokens"], 5);
    request.extra.insert("model".into(), json!("other"));
    let error = InferenceBackend::<Chat>::infer(&far, &cx, request).await.unwrap_err();
    assert_eq!((error.kind(), error.context("field")), (ErrorKind::InvalidInput, Some("extra.model")));
}

#[tokio::test]
async fn what_the_api_has_no_word_for_is_refused_or_noted_before_a_byte_leaves() {
    let (server, backend) = backend().await;
    server.answer(hello());
    for request in [
        ChatRequest { guardrail: Some(Guardrail::new("g", "1")), ..ChatRequest::user("hi") },
        ChatRequest { tools: vec![Tool::System("code_interpreter".into())], ..ChatRequest::user("hi") },
    ] {
        assert_eq!(ask(&backend, request).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    let image = EmbedRequest::one(EmbedInput::Image(ImagePart::new("image/png", vec![1])));
    let refused = InferenceBackend::<Embed>::infer(&*backend, &context().0, image).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let elsewhere = TranscribeRequest::new(hybrid_core::task::MediaSource::uri("s3://b/k"), "audio/wav");
    let refused = InferenceBackend::<Transcribe>::infer(&*backend, &context().0, elsewhere).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(server.requests().is_empty());

    let mut request = ChatRequest::user("hi").with_message(Message::assistant("a").with(Reasoning::text("hm")));
    request.system.push(SystemPart::CachePoint(CachePoint::default()));
    let notes = ask(&backend, request).await.unwrap().meta.notes;
    let details: Vec<_> = notes.iter().map(|note| note.detail.as_str()).collect();
    assert!(details.iter().any(|detail| detail.contains("cache points")), "{details:?}");
    assert!(details.iter().any(|detail| detail.contains("reasoning")), "{details:?}");
}

#[test]
fn a_server_that_cannot_be_called_is_refused_by_its_setting() {
    let field = |change: fn(&mut OpenAiConfig)| {
        let mut config = config("http://127.0.0.1:1234/v1".into());
        change(&mut config);
        OpenAiCompatible::new(config).map(drop).map_err(|error| error.context("field").map(str::to_owned))
    };
    assert_eq!(field(|_| {}), Ok(()));
    for (change, name) in [
        ((|config| config.base_url = "localhost:1234".into()) as fn(&mut OpenAiConfig), "base_url"),
        (|config| config.base_url = "https://u:p@host/v1".into(), "base_url"),
        (|config| config.base_url = "http://host/v1?key=1".into(), "base_url"),
        (|config| config.model = " ".into(), "model"),
        (|config| config.api_key = Some("a\nb".into()), "api_key"),
        (|config| drop(config.headers.insert("x".into(), "a\r\nevil: 1".into())), "x"),
        (|config| config.retry.attempts = 0, "retry.attempts"),
    ] {
        assert_eq!(field(change), Err(Some(name.to_owned())));
    }
}
