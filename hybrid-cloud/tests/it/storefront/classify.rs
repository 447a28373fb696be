use std::{sync::Arc, time::Duration};

use hybrid_core::{
    BackendProfile, Clock, DataPolicy, Digest, Error, Limits, Locality, ServedModel, TenantId,
    memory::ScriptedBackend,
    task::{Classify, ClassifyRequest, ClassifyResponse},
};
use serde_json::json;

use super::rig::{Gate, app, builder, call, classify, get, labelled, noon, orders};

#[tokio::test]
async fn an_answer_says_which_model_and_version_made_it() {
    let manifest = Digest::of(b"manifest");
    let profile = BackendProfile {
        name: "kitchen-classifier".into(),
        model: ServedModel { name: "bakery".into(), version: Some(3), manifest: Some(manifest) },
        locality: Locality::Device,
        limits: Limits::default(),
        price: None,
    };
    let router = app(Arc::new(ScriptedBackend::with_profile(profile, [Ok(labelled("order"))])));
    let answer = call(&router, classify(&json!({ "model": "messages", "input": "two loaves, please" }))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        answer.body,
        json!({
            "object": "classification.list",
            "model": "messages",
            "version": 3,
            "manifest": manifest,
            "results": [{
                "label": "order",
                "confidence": 0.75,
                "scores": [{ "label": "order", "score": 0.75 }, { "label": "other", "score": 0.25 }],
            }],
        })
    );
}

#[tokio::test]
async fn one_text_and_several_reach_the_model_as_they_are() {
    let two = ClassifyResponse { results: [labelled("order").results, labelled("hours").results].concat() };
    let backend = Arc::new(ScriptedBackend::<Classify>::new("scripted", [Ok(labelled("order")), Ok(two)]));
    let router = app(backend.clone());
    assert_eq!(call(&router, classify(&json!({ "input": " Zwei Brötchen\u{0000}\n" }))).await.status, 200);
    let answer = call(&router, classify(&json!({ "input": ["a", "b"], "top_k": 1 }))).await;
    assert_eq!(answer.body["results"][1]["label"], "hours");
    let asked = [
        ClassifyRequest::one(" Zwei Brötchen\u{0000}\n"),
        ClassifyRequest { top_k: Some(1), ..ClassifyRequest::many(["a", "b"]) },
    ];
    assert_eq!(backend.asked(), asked);
}

#[tokio::test]
async fn the_first_model_answers_where_none_is_named_and_a_model_not_offered_is_an_error() {
    let (first, second) = (orders(), orders());
    let router =
        builder(&noon()).classify("first", first.clone()).classify("second", second.clone()).build().unwrap().router();
    assert_eq!(call(&router, classify(&json!({ "input": "a" }))).await.body["model"], "first");
    assert_eq!(call(&router, classify(&json!({ "input": "a", "model": "second" }))).await.body["model"], "second");
    let unknown = call(&router, classify(&json!({ "input": "a", "model": "third" }))).await;
    assert_eq!((unknown.status, unknown.error("code"), unknown.error("param")), (404, "model_not_found", "model"));
    assert!(unknown.error("message").contains("\"third\""), "{unknown:?}");
    assert_eq!((first.asked().len(), second.asked().len()), (1, 1));
}

#[tokio::test]
async fn a_call_carries_tenant_policy_request_deadline_and_trace() {
    let (clock, gate) = (noon(), Gate::closed());
    let builder = builder(&clock)
        .classify("messages", gate.clone())
        .tenant(TenantId::new("bakery").unwrap())
        .policy(DataPolicy::Device);
    let router = builder.build().unwrap().router();
    let mut request = classify(&json!({ "input": "a" }));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.headers_mut().insert("traceparent", trace.parse().unwrap());
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    gate.open();
    assert_eq!(call(&router, request).await.status, 200);
    let cx = gate.entered().await;
    assert_eq!((cx.tenant.as_str(), cx.request.as_str(), cx.trace.as_deref()), ("bakery", "r-1", Some(trace)));
    assert_eq!((cx.policy, cx.deadline), (DataPolicy::Device, Some(clock.monotonic().plus(Duration::from_secs(30)))));
}

#[tokio::test]
async fn a_backend_that_answers_another_number_of_texts_is_not_believed() {
    let answer = call(&app(orders()), classify(&json!({ "input": ["a", "b"] }))).await;
    assert_eq!((answer.status, answer.error("code")), (500, "internal_error"));
}

#[tokio::test]
async fn what_a_backend_refuses_is_told_by_field_and_limit() {
    let refusal = Error::too_large("infer", "has too many tokens")
        .with("field", "input[0]")
        .with("limit", 512)
        .with("path", "/srv/model");
    let answer =
        call(&app(Arc::new(ScriptedBackend::new("scripted", [Err(refusal)]))), classify(&json!({ "input": ["a"] })))
            .await;
    assert_eq!((answer.status, answer.error("param")), (413, "input[0]"));
    assert_eq!(answer.error("message"), "input[0] has too many tokens (limit: 512)");
}

#[tokio::test]
async fn models_are_listed_in_the_openai_shape_with_version_and_place() {
    let router = app(orders());
    let entry = json!({
        "id": "messages", "object": "model", "created": 1_772_366_400, "owned_by": "default",
        "task": "classify", "version": null, "manifest": null, "locality": "device",
    });
    assert_eq!(call(&router, get("/v1/models")).await.body, json!({ "object": "list", "data": [entry] }));
    assert_eq!(call(&router, get("/v1/models/messages")).await.body, entry);
    assert_eq!(call(&router, get("/v1/models/a/b")).await.error("code"), "model_not_found");
    assert_eq!(call(&router, get("/v1/models/%ff")).await.status, 400);
}
