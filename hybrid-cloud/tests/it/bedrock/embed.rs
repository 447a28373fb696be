use std::sync::Arc;

use async_trait::async_trait;
use hybrid_cloud::{
    bedrock::{BedrockEmbed, ModelOptions},
    testkit::bedrock::{BedrockServer, Reply, Request},
};
use hybrid_core::{
    ErrorKind, InferenceBackend, Result,
    conformance::inference::{self, InferenceHarness},
    task::{Embed, EmbedInput, EmbedKind, EmbedRequest, ImagePart, Truncate},
};
use serde_json::{Map, Value, json};

use super::rig;

const TITAN: &str = "amazon.titan-embed-text-v2:0";
const COHERE_3: &str = "cohere.embed-multilingual-v3";
const COHERE_4: &str = "cohere.embed-v4:0";

/// As the models answer: a vector that tells its text, and the tokens where each model tells them.
fn answer(request: &Request) -> Reply {
    let vector = |text: &Value| {
        let text = text.as_str().unwrap();
        json!([text.len() as f64, f64::from(text.bytes().map(u32::from).sum::<u32>()), 0.5])
    };
    if let Some(text) = request.body.get("inputText") {
        return Reply::json(json!({
            "embedding": vector(text), "inputTextTokenCount": 3, "embeddingsByType": {"float": vector(text)}
        }));
    }
    let texts = request.body["texts"].as_array().unwrap();
    let vectors: Vec<_> = texts.iter().map(vector).collect();
    let body =
        json!({"id": "x", "response_type": "embeddings_by_type", "embeddings": {"float": vectors}, "texts": texts});
    Reply::json(body).with_header("x-amzn-bedrock-input-token-count", &(texts.len() * 2).to_string())
}

fn server() -> BedrockServer {
    let server = BedrockServer::start().unwrap();
    server.otherwise(answer);
    server
}

fn embed(server: &BedrockServer, model: &str) -> BedrockEmbed {
    rig::connect(server, rig::options()).embed(ModelOptions::new(model)).unwrap()
}

#[derive(Debug)]
struct Harness {
    server: BedrockServer,
    backend: Arc<dyn InferenceBackend<Embed>>,
}

#[async_trait]
impl InferenceHarness<Embed> for Harness {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        Ok(Arc::clone(&self.backend))
    }

    fn requests(&self) -> Vec<EmbedRequest> {
        vec![EmbedRequest::query("flour"), EmbedRequest::documents(["water", "salt", "süß"])]
    }

    fn invalid(&self) -> EmbedRequest {
        EmbedRequest::default()
    }

    fn reached(&self) -> Option<u64> {
        Some(self.server.calls() as u64)
    }
}

#[tokio::test]
async fn each_model_keeps_the_contract() {
    for model in [TITAN, COHERE_3, COHERE_4] {
        let server = server();
        let backend = Arc::new(embed(&server, model));
        inference::run(&Harness { server, backend }).await.assert();
    }
}

#[tokio::test]
async fn a_long_list_is_cut_into_calls_and_comes_back_in_order() {
    let texts: Vec<_> = (0..200).map(|i| "x".repeat(i + 1)).collect();
    for (model, calls, tokens, cost) in
        [(TITAN, 200, 600, "0.000012 USD"), (COHERE_3, 3, 400, "0.00004 USD"), (COHERE_4, 3, 400, "0.000048 USD")]
    {
        let server = server();
        let reply = embed(&server, model).infer(&rig::context(), EmbedRequest::documents(texts.clone())).await.unwrap();
        let lengths: Vec<_> = reply.response.embeddings.iter().map(|vector| vector[0] as usize).collect();
        assert_eq!(lengths, (1..=200).collect::<Vec<_>>(), "{model}");
        assert_eq!((server.calls(), reply.meta.usage.input_tokens), (calls, tokens), "{model}");
        assert_eq!(reply.meta.cost.unwrap().to_string(), cost, "{model}");
    }
}

async fn body(model: &str, request: EmbedRequest) -> Value {
    let server = server();
    embed(&server, model).infer(&rig::context(), request).await.unwrap();
    let request = &server.requests()[0];
    assert_eq!((request.model(), request.operation()), (model, "invoke"));
    request.body.clone()
}

#[tokio::test]
async fn bodies_are_those_that_aws_documents() {
    let request = EmbedRequest {
        dimensions: Some(512),
        normalize: Some(false),
        extra: Map::from_iter([("embeddingTypes".into(), json!(["float"]))]),
        ..EmbedRequest::query("flour")
    };
    let expected = json!({"inputText": "flour", "dimensions": 512, "normalize": false, "embeddingTypes": ["float"]});
    assert_eq!(body(TITAN, request).await, expected);

    let mut expected =
        json!({"texts": ["flour"], "input_type": "search_query", "truncate": "NONE", "embedding_types": ["float"]});
    assert_eq!(body(COHERE_3, EmbedRequest::query("flour")).await, expected);
    expected["output_dimension"] = 1536.into();
    assert_eq!(body(COHERE_4, EmbedRequest { dimensions: Some(1536), ..EmbedRequest::query("flour") }).await, expected);

    for (kind, name) in [
        (EmbedKind::Document, "search_document"),
        (EmbedKind::Classification, "classification"),
        (EmbedKind::Clustering, "clustering"),
    ] {
        let request = EmbedRequest { kind: Some(kind), ..EmbedRequest::one("x") };
        assert_eq!(body(COHERE_4, request).await["input_type"], name);
    }
}

#[tokio::test]
async fn nothing_is_cut_unless_it_is_asked_for_and_said() {
    for (model, truncate, expected) in [
        (COHERE_3, Truncate::Start, "START"),
        (COHERE_3, Truncate::End, "END"),
        (COHERE_4, Truncate::Start, "LEFT"),
        (COHERE_4, Truncate::End, "RIGHT"),
    ] {
        let server = server();
        let request = EmbedRequest { truncate, ..EmbedRequest::query("flour") };
        let reply = embed(&server, model).infer(&rig::context(), request).await.unwrap();
        assert_eq!(server.requests()[0].body["truncate"], expected);
        assert_eq!(reply.meta.notes[0].code, "truncated");
    }
}

#[tokio::test]
async fn what_a_model_cannot_do_is_refused_before_a_call() {
    let server = server();
    let query = || EmbedRequest::query("x");
    for (model, field, kind, request) in [
        (TITAN, "truncate", ErrorKind::Unsupported, EmbedRequest { truncate: Truncate::End, ..query() }),
        (TITAN, "dimensions", ErrorKind::Unsupported, EmbedRequest { dimensions: Some(100), ..query() }),
        (TITAN, "inputs[0]", ErrorKind::Unsupported, EmbedRequest::one(EmbedInput::Tokens(vec![1]))),
        (
            TITAN,
            "extra.inputText",
            ErrorKind::InvalidInput,
            EmbedRequest { extra: Map::from_iter([("inputText".into(), json!("y"))]), ..query() },
        ),
        (COHERE_3, "kind", ErrorKind::InvalidInput, EmbedRequest::one("x")),
        (COHERE_3, "dimensions", ErrorKind::Unsupported, EmbedRequest { dimensions: Some(256), ..query() }),
        (COHERE_3, "inputs[0]", ErrorKind::TooLarge, EmbedRequest::query("ö".repeat(2049))),
        (COHERE_4, "dimensions", ErrorKind::Unsupported, EmbedRequest { dimensions: Some(2048), ..query() }),
        (
            COHERE_4,
            "inputs[1]",
            ErrorKind::Unsupported,
            EmbedRequest {
                kind: Some(EmbedKind::Query),
                ..EmbedRequest::many(["x".into(), EmbedInput::Image(ImagePart::new("image/png", vec![1]))])
            },
        ),
    ] {
        let error = embed(&server, model).infer(&rig::context(), request).await.unwrap_err();
        assert_eq!((error.kind(), error.context("field")), (kind, Some(field)), "{model}: {error}");
    }
    assert_eq!(server.calls(), 0);
    let unknown = rig::connect(&server, rig::options()).embed(ModelOptions::new("somebody.embed-v1")).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn vectors_have_length_one_where_that_is_asked() {
    let server = server();
    let request = EmbedRequest { normalize: Some(true), ..EmbedRequest::query("flour") };
    let reply = embed(&server, COHERE_4).infer(&rig::context(), request).await.unwrap();
    let length: f32 = reply.response.embeddings[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-6, "{length}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_corrupt_and_one_without_a_count_says_so() {
    for body in [
        json!({}),
        json!({"embeddings": {"float": []}}),
        json!({"embeddings": {"float": [[1.0], [2.0]]}}),
        json!({"embeddings": {"float": [["x"]]}}),
        json!({"embeddings": {"float": [[1e300]]}}),
    ] {
        let server = BedrockServer::start().unwrap();
        server.script([Reply::json(body.clone())]);
        let error = embed(&server, COHERE_4).infer(&rig::context(), EmbedRequest::query("x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{body}: {error}");
    }
    let server = BedrockServer::start().unwrap();
    server.script([Reply::json(json!({"embeddings": [[1.0]]}))]);
    let reply = embed(&server, COHERE_4).infer(&rig::context(), EmbedRequest::query("x")).await.unwrap();
    assert_eq!((reply.response.embeddings[0][0], reply.meta.cost), (1.0, None));
    assert_eq!(reply.meta.notes[0].code, "unmetered");
}

#[tokio::test]
async fn one_call_that_fails_fails_the_request() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|request| match request.body["inputText"].as_str() {
        Some("bad") => Reply::error(400, "ValidationException", "too many tokens"),
        _ => answer(request),
    });
    let texts = ["a", "bad", "c"];
    let error = embed(&server, TITAN).infer(&rig::context(), EmbedRequest::documents(texts)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
