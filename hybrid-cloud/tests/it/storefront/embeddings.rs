//! Embedding with a provider's models, as a storefront's clients see it.

use std::sync::Arc;

use axum::Router;
use hybrid_cloud::{
    bedrock::ModelOptions,
    storefront::{Budget, TenantQuota},
    testkit::bedrock::{BedrockServer, Reply},
};
use hybrid_core::{Currency, Money, Price, SeededIds, WriterId, memory::MemoryStore};
use serde_json::{Value, json};

use super::rig::{Answer, builder, call, noon, post};
use crate::bedrock::rig;

fn usd(decimal: &str) -> Money {
    Money::new(Currency::USD, decimal).unwrap()
}

/// A shop with one model of the provider's, at a dollar for a million tokens, and 0.003 dollars a day.
fn shop(server: &BedrockServer, model: &str) -> Router {
    let (input, output) = (usd("1"), usd("0"));
    let price = Price { input, output, cache_read: None, cache_write: None, audio_second: None, image: None };
    let model = ModelOptions { price: Some(price), ..ModelOptions::new(model) };
    let backend = rig::connect(server, rig::options()).embed(model).unwrap();
    let (clock, writer) = (noon(), WriterId::new("shop-1").unwrap());
    let store = Arc::new(MemoryStore::default());
    let budget = Budget::new(store, writer, Arc::new(clock.clone()), Arc::new(SeededIds::new(7)));
    builder(&clock)
        .embed("vectors", Arc::new(backend))
        .quotas(|_| TenantQuota { money_per_day: Some(usd("0.003")), ..TenantQuota::default() })
        .budget(Arc::new(budget))
        .build()
        .unwrap()
        .router()
}

async fn ask(router: &Router, body: Value) -> Answer {
    call(router, post("/v1/embeddings", body.to_string())).await
}

#[tokio::test]
async fn texts_beside_one_that_is_refused_are_paid_for() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|request| match request.body["inputText"].as_str() {
        Some("bad") => Reply::error(400, "ValidationException", "too many tokens"),
        _ => Reply::json(json!({ "embedding": [1.0], "inputTextTokenCount": 100 })),
    });
    for (input, free) in [(json!(["bad"]), true), (json!(["good", "good", "good", "bad"]), false)] {
        let router = shop(&server, "amazon.titan-embed-text-v2:0");
        let mut codes = Vec::new();
        for _ in 0..20 {
            codes.push(ask(&router, json!({ "input": input })).await.error("code").to_owned());
        }
        assert_eq!(codes[0], "invalid_request", "{input}");
        assert_eq!(codes.last().unwrap() == "insufficient_quota", !free, "{input}: {codes:?}");
    }
}

#[tokio::test]
async fn what_vectors_are_for_reaches_a_model_that_must_know() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| {
        let vectors = json!({ "embeddings": { "float": [[1.0, 0.0]] } });
        Reply::json(vectors).with_header("x-amzn-bedrock-input-token-count", "1")
    });
    let router = shop(&server, "cohere.embed-v4:0");
    for (asked, told) in [
        ("search_query", "search_query"),
        ("query", "search_query"),
        ("search_document", "search_document"),
        ("document", "search_document"),
        ("passage", "search_document"),
        ("classification", "classification"),
        ("clustering", "clustering"),
    ] {
        let answer = ask(&router, json!({ "input": "rye", "input_type": asked })).await;
        assert_eq!(answer.status, 200, "{asked}: {answer:?}");
        assert_eq!(server.requests().last().unwrap().body["input_type"], told);
    }
    let asked = server.calls();
    for body in [json!({ "input": "rye" }), json!({ "input": "rye", "input_type": "image" })] {
        let refused = ask(&router, body).await;
        assert_eq!((refused.status, refused.error("param")), (400, "input_type"), "{refused:?}");
        assert!(refused.error("message").starts_with("input_type "), "{refused:?}");
    }
    assert_eq!(server.calls(), asked);
    // A backend's words about its inputs are said of the body's.
    let router = shop(&server, "cohere.embed-multilingual-v3");
    let long = json!({ "input": ["rye", "x".repeat(2049)], "input_type": "query" });
    let refused = ask(&router, long).await;
    assert_eq!((refused.status, refused.error("param")), (413, "input[1]"), "{refused:?}");
}
