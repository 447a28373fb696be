use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{body::Body, http::HeaderValue};
use hybrid_cloud::storefront::StorefrontLimits;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, Event, InferenceBackend, Reply, Result, TenantId,
    memory::ScriptedBackend,
    task::{Classify, ClassifyRequest},
};
use serde_json::json;

use super::rig::{Gate, app, asleep, builder, call, classify, get, labelled, noon, orders, post};

#[tokio::test]
async fn a_valid_request_id_comes_back_and_any_other_is_replaced() {
    let router = app(orders());
    let send = async |ids: &[&[u8]]| {
        let mut request = get("/nowhere");
        for id in ids {
            request.headers_mut().append("x-request-id", HeaderValue::from_bytes(id).unwrap());
        }
        let answer = call(&router, request).await;
        assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
        answer.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(send(&[b"Shop_1.a-b"]).await, "Shop_1.a-b");
    let long = "x".repeat(129);
    let bad: [&[&[u8]]; 8] =
        [&[], &[b""], &[b"a b"], &[b"<script>"], &[b"../x"], &[b"\xc3\xa4"], &[long.as_bytes()], &[b"a", b"b"]];
    for bad in bad {
        let id = send(bad).await;
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "{id}");
    }
}

#[tokio::test]
async fn every_answer_carries_the_request_id() {
    let router = app(Arc::new(ScriptedBackend::new("scripted", [])));
    for (request, status) in [
        (get("/healthz"), 200),
        (get("/nowhere"), 404),
        (get("/v1/classify"), 405),
        (post("/v1/classify", "{"), 400),
        (classify(&json!({ "input": "a" })), 503),
    ] {
        let mut request = request;
        request.headers_mut().insert("x-request-id", HeaderValue::from_static("r-1"));
        let answer = call(&router, request).await;
        assert_eq!((answer.status, answer.headers["x-request-id"].as_bytes()), (status, &b"r-1"[..]));
    }
}

#[tokio::test]
async fn a_server_error_says_the_request_id_and_nothing_of_the_cause() {
    let secret =
        || Error::internal("load", "cannot read /srv/keys").with("key", "sk-123").with_source("permission denied");
    let busy = Error::new(hybrid_core::ErrorKind::RateLimited, "infer", "the account is out of tokens");
    let router = app(Arc::new(ScriptedBackend::new(
        "scripted",
        [Err(secret()), Err(busy.with_retry_after(Duration::from_millis(1500)))],
    )));
    let mut request = classify(&json!({ "input": "a" }));
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("r-1"));
    let failed = call(&router, request).await;
    assert_eq!((failed.status, failed.error("type")), (500, "server_error"));
    assert_eq!(failed.error("message"), "the storefront failed; nothing is wrong with the request (request id: r-1)");
    let limited = call(&router, classify(&json!({ "input": "a" }))).await;
    assert_eq!(
        (limited.status, limited.error("type"), &limited.headers["retry-after"]),
        (503, "server_error", &"2".parse().unwrap())
    );
    assert!(!limited.body.to_string().contains("account"), "{limited:?}");
}

#[derive(Debug)]
struct Panics;

#[async_trait]
impl InferenceBackend<Classify> for Panics {
    fn profile(&self) -> Arc<BackendProfile> {
        orders().profile()
    }

    async fn infer(&self, _: &CallContext, _: ClassifyRequest) -> Result<Reply<Classify>> {
        panic!("a defect at /srv/secret")
    }

    async fn stream(&self, _: &CallContext, _: ClassifyRequest) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        panic!("a defect at /srv/secret")
    }
}

#[tokio::test]
async fn a_panic_is_one_failed_request_in_the_usual_shape() {
    let limits = StorefrontLimits { requests: 1, ..StorefrontLimits::default() };
    let builder = builder(&noon()).classify("good", orders()).classify("bad", Arc::new(Panics)).limits(limits);
    let router = builder.build().unwrap().router();
    for _ in 0..2 {
        let failed = call(&router, classify(&json!({ "input": "a", "model": "bad" }))).await;
        assert_eq!((failed.status, failed.error("code")), (500, "internal_error"));
        assert!(!failed.body.to_string().contains("secret"), "{failed:?}");
    }
    assert_eq!(call(&router, classify(&json!({ "input": "a" }))).await.status, 200);
}

#[tokio::test]
async fn more_requests_than_places_are_told_to_come_back() {
    let gate = Gate::closed();
    let limits = StorefrontLimits { requests: 1, ..StorefrontLimits::default() };
    let router = builder(&noon()).classify("messages", gate.clone()).limits(limits).build().unwrap().router();
    let first = tokio::spawn({
        let router = router.clone();
        async move { call(&router, classify(&json!({ "input": "a" }))).await }
    });
    gate.entered().await;
    let second = call(&router, classify(&json!({ "input": "a" }))).await;
    assert_eq!(
        (second.status, second.error("code"), &second.headers["retry-after"]),
        (503, "overloaded", &"1".parse().unwrap())
    );
    assert_eq!(call(&router, get("/healthz")).await.status, 200);
    gate.open();
    assert_eq!(first.await.unwrap().status, 200);
    gate.open();
    assert_eq!(call(&router, classify(&json!({ "input": "a" }))).await.status, 200);
}

#[tokio::test]
async fn a_backend_that_takes_too_long_is_cancelled_and_answered_for() {
    let (clock, gate) = (noon(), Gate::closed());
    let router = builder(&clock).classify("messages", gate.clone()).build().unwrap().router();
    let answer = tokio::spawn(async move { call(&router, classify(&json!({ "input": "a" }))).await });
    let cx = gate.entered().await;
    clock.advance(Duration::from_secs(29));
    tokio::task::yield_now().await;
    assert!(!answer.is_finished() && !cx.cancel.is_cancelled());
    clock.advance(Duration::from_secs(1));
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.error("code")), (504, "timeout"));
    assert!(cx.cancel.is_cancelled());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_the_senders_fault() {
    let clock = noon();
    let router = builder(&clock).classify("messages", orders()).build().unwrap().router();
    let never = Body::from_stream(futures_util::stream::pending::<io::Result<Vec<u8>>>());
    let answer = tokio::spawn(async move { call(&router, post("/v1/classify", never)).await });
    asleep(&clock, 1).await;
    clock.advance(Duration::from_secs(30));
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status, answer.error("code"), &answer.headers["connection"]),
        (408, "body_timeout", &"close".parse().unwrap())
    );
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_request_is_one_span_that_tells_nothing_a_customer_wrote() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For the whole process: what a thread-local subscriber hears depends on the tests that run beside it.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    tracing::callsite::rebuild_interest_cache();

    let script = [Ok(labelled("order")), Err(Error::internal("load", "cannot read").with("path", "/srv/model"))];
    let backend = Arc::new(ScriptedBackend::<Classify>::new("scripted", script));
    let builder = builder(&noon()).classify("messages", backend).tenant(TenantId::new("bakery").unwrap());
    let router = builder.build().unwrap().router();
    for mut request in [
        post("/v1/classify", r#"{"input":"SECRET loaf"}"#),
        post("/v1/classify", r#"{"input":"SECRET roll"}"#),
        post("/v1/classify", r#"{"input":"a","SECRET":1}"#),
        post("/v1/classify", r#"{"input":"a","model":"SECRET"}"#),
        get("/v1/models/SECRET"),
        get("/SECRET"),
    ] {
        request.headers_mut().insert("x-request-id", HeaderValue::from_static("spanned"));
        call(&router, request).await;
    }

    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> = log.lines().filter(|line| line.contains("request_id=spanned")).collect();
    let find =
        |text: &str| *ours.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text}: {ours:#?}"));
    let served =
        r#"request{method=POST route="/v1/classify" request_id=spanned tenant=bakery status=200 latency_ms=0.0}"#;
    assert!(find(served).contains("request answered"));
    let failed = find("request failed");
    assert!(failed.contains("ERROR") && failed.contains("/srv/model"), "{failed}");
    find(r#"route="/v1/models/{*id}""#);
    find(r#"route="none""#);
    assert!(!log.contains("SECRET"), "{ours:#?}");
}
