//! Documents in, nearest out, deletes that delete, and all of it for one tenant.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request};
use hybrid_cloud::storefront::{Offer, Principal, Scope, StorefrontBuilder};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Event, InferenceBackend, Limits, Locality, Reply, ReplyMeta, Result,
    ServedModel, Usage, VectorSchema,
    memory::MemoryVectorIndex,
    task::{Embed, EmbedInput, EmbedRequest, EmbedResponse},
    vector::{FieldKind, Metric},
};
use serde_json::{Value, json};

use super::rig::{Answer, Tokens, builder, call, from, get, noon, post, tenant};

/// Embeds a text by how often it has each letter, and counts what it was asked.
#[derive(Debug)]
struct Letters {
    dimension: usize,
    asked: AtomicUsize,
}

impl Letters {
    fn new(dimension: usize) -> Arc<Self> {
        Arc::new(Self { dimension, asked: AtomicUsize::new(0) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn embed(&self, input: &EmbedInput) -> Vec<f32> {
        let EmbedInput::Text(text) = input else { panic!("{input:?}") };
        let mut vector = vec![0.01; self.dimension];
        for letter in text.to_lowercase().bytes().filter(u8::is_ascii_lowercase) {
            vector[usize::from(letter - b'a') % self.dimension] += 1.0;
        }
        vector
    }
}

#[async_trait]
impl InferenceBackend<Embed> for Letters {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::new(BackendProfile {
            name: "letters".to_owned(),
            model: ServedModel::named("letters"),
            locality: Locality::Device,
            limits: Limits::default(),
            price: None,
        })
    }

    async fn infer(&self, _: &CallContext, request: EmbedRequest) -> Result<Reply<Embed>> {
        self.asked.fetch_add(request.inputs.len(), Ordering::Relaxed);
        let embeddings = request.inputs.iter().map(|input| self.embed(input)).collect();
        let usage = Usage { input_tokens: 5, ..Usage::default() };
        let meta = ReplyMeta::of(&self.profile(), Duration::ZERO, usage)?;
        Ok(Reply { response: EmbedResponse { embeddings }, meta })
    }

    async fn stream(&self, _: &CallContext, _: EmbedRequest) -> Result<BoxStream<'static, Result<Event<Embed>>>> {
        unreachable!("nobody streams vectors")
    }
}

const LETTERS: usize = 26;

fn index(dimension: usize) -> Arc<MemoryVectorIndex> {
    let schema = VectorSchema::new(dimension, Metric::Cosine).unwrap();
    let schema = schema.with_field("language", FieldKind::Text).unwrap().with_field("year", FieldKind::Number).unwrap();
    Arc::new(MemoryVectorIndex::new(schema.with_field("text", FieldKind::Stored).unwrap()))
}

fn keyed() -> StorefrontBuilder {
    let clerk = Principal::new(tenant("a"), "clerk").with_scopes([Scope::Vectors]);
    builder(&noon()).authenticator(Tokens::new([
        ("a", Principal::new(tenant("a"), "anna").with_scopes(Scope::ALL)),
        ("b", Principal::new(tenant("b"), "bert").with_scopes(Scope::ALL)),
        ("usual", Principal::new(tenant("a"), "ursula")),
        ("clerk", clerk),
    ]))
}

fn shop() -> (Router, Arc<Letters>) {
    let letters = Letters::new(LETTERS);
    let shop = keyed().embed("letters", letters.clone()).vectors(index(LETTERS), Some("letters"));
    (shop.build().unwrap().router(), letters)
}

fn send(who: &str, path: &str, body: &Value) -> Request<Body> {
    from(who, post(path, body.to_string()))
}

fn remove(who: &str, path: &str) -> Request<Body> {
    from(who, Request::delete(path).body(Body::empty()).unwrap())
}

fn ids(answer: &Answer) -> Vec<&str> {
    answer.body["data"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer:?}"))
        .iter()
        .map(|d| d["id"].as_str().unwrap())
        .collect()
}

async fn stock(router: &Router, who: &str) {
    let documents = json!({ "documents": [
        { "id": "faq/hours", "text": "We open at six.", "metadata": { "language": "en", "year": 2024 } },
        { "id": "faq/rye", "text": "Rye bread has rye.", "metadata": { "language": "en", "year": 2026 } },
        { "id": "faq/öffnung", "text": "Wir öffnen um sechs.", "metadata": { "language": "de", "year": 2026 } },
    ]});
    let answer = call(router, send(who, "/v1/vectors", &documents)).await;
    assert_eq!((answer.status, ids(&answer)), (200, vec!["faq/hours", "faq/rye", "faq/öffnung"]), "{answer:?}");
    assert_eq!(answer.body["usage"]["total_tokens"], 5);
}

#[tokio::test]
async fn documents_go_in_the_nearest_come_out_and_deletes_delete() {
    let (router, _) = shop();
    stock(&router, "a").await;
    let nearest = async |query: Value| call(&router, send("a", "/v1/vectors/query", &query)).await;

    let found = nearest(json!({ "text": "rye bread", "k": 2 })).await;
    assert_eq!(ids(&found)[0], "faq/rye", "{found:?}");
    let first = &found.body["data"][0];
    assert_eq!(first["metadata"], json!({ "language": "en", "year": 2026, "text": "Rye bread has rye." }));
    assert!(first["distance"].as_f64() < found.body["data"][1]["distance"].as_f64());
    assert_eq!(found.body["usage"]["prompt_tokens"], 5);

    let german = nearest(json!({ "text": "rye bread", "filter": { "language": "de" } })).await;
    assert_eq!(ids(&german), ["faq/öffnung"]);
    let recent =
        nearest(json!({ "text": "six", "filter": { "year": { "$gte": 2025 }, "language": { "$ne": "de" } } })).await;
    assert_eq!(ids(&recent), ["faq/rye"]);

    // One that is replaced is replaced whole, with a vector of the sender's own.
    let mut vector = vec![0.0; LETTERS];
    vector[25] = 1.0;
    let anew = json!({ "documents": [{ "id": "faq/rye", "embedding": vector }] });
    assert_eq!(call(&router, send("a", "/v1/vectors", &anew)).await.status, 200);
    let by_vector = nearest(json!({ "embedding": vector, "k": 1 })).await;
    assert_eq!((ids(&by_vector)[0], &by_vector.body["data"][0]["metadata"]), ("faq/rye", &json!({})));
    assert!(by_vector.body.get("usage").is_none(), "nothing was embedded");

    let gone = call(&router, send("a", "/v1/vectors/delete", &json!({ "ids": ["faq/rye", "never/was"] }))).await;
    assert_eq!((gone.status, ids(&gone)), (200, vec!["faq/rye", "never/was"]));
    let left = nearest(json!({ "text": "rye bread" })).await;
    assert!(!ids(&left).contains(&"faq/rye"), "{left:?}");
    let read = call(&router, send("a", "/v1/vectors/get", &json!({ "ids": ["faq/rye", "faq/hours"] }))).await;
    assert_eq!((&read.body["data"][0], &read.body["data"][1]["metadata"]["year"]), (&Value::Null, &json!(2024)));
    assert_eq!(read.body["data"][1]["embedding"].as_array().unwrap().len(), LETTERS);

    let told = call(&router, from("a", get("/v1/vectors"))).await;
    assert_eq!((&told.body["dimension"], &told.body["metric"]), (&json!(LETTERS), &json!("cosine")));
    assert_eq!((&told.body["model"], &told.body["fields"]["text"]), (&json!("letters"), &json!("stored")));
}

#[tokio::test]
async fn another_tenants_documents_are_exactly_as_unknown_as_those_that_do_not_exist() {
    let (router, _) = shop();
    stock(&router, "a").await;
    let ask = json!({ "text": "rye bread", "k": 10 });
    let before = call(&router, send("b", "/v1/vectors/query", &ask)).await;
    assert!(ids(&before).is_empty(), "{before:?}");
    let get = async |id: &str| call(&router, send("b", "/v1/vectors/get", &json!({ "ids": [id] }))).await;
    assert_eq!(get("faq/rye").await.body, get("never/was").await.body);

    // Of one id each tenant has its own, and removes its own alone, also all of them at once.
    let own = json!({ "documents": [{ "id": "faq/rye", "text": "ours" }] });
    assert_eq!(call(&router, send("b", "/v1/vectors", &own)).await.status, 200);
    assert_eq!(ids(&call(&router, send("b", "/v1/vectors/query", &ask)).await), ["faq/rye"]);
    assert_eq!(
        call(&router, send("b", "/v1/vectors/delete", &json!({ "ids": ["faq/rye", "faq/hours"] }))).await.status,
        200
    );
    assert_eq!(
        call(&router, remove("b", "/v1/vectors")).await.body,
        json!({ "object": "vector.index", "deleted": true })
    );
    let left = call(&router, send("a", "/v1/vectors/query", &ask)).await;
    assert_eq!(left.body["data"].as_array().unwrap().len(), 3);

    for who in ["clerk", "usual"] {
        assert_eq!(call(&router, remove(who, "/v1/vectors")).await.error("code"), "missing_scope");
    }
    assert_eq!(call(&router, remove("a", "/v1/vectors")).await.status, 200);
    assert!(ids(&call(&router, send("a", "/v1/vectors/query", &ask)).await).is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_its_place_before_anything_is_embedded_or_written() {
    let (router, letters) = shop();
    let good = json!({ "id": "good", "text": "six" });
    let twice = |document: Value| json!({ "documents": [good, document] });
    for (body, place) in [
        (json!({ "documents": [] }), "documents must hold"),
        (twice(json!({ "id": "", "text": "x" })), "documents[1].id expected"),
        (twice(json!({ "id": "x" })), "documents[1] needs"),
        (twice(json!({ "id": "x", "embedding": [1.0] })), "dimension"),
        (twice(json!({ "id": "x", "embedding": vec![0.0; LETTERS] })), "vector"),
        (twice(json!({ "id": "x", "text": "x", "metadata": { "colour": "red" } })), "colour"),
        (twice(json!({ "id": "x", "text": "x", "metadata": { "year": "2026" } })), "year"),
        (twice(json!({ "id": "x", "text": "x", "metadata": { "text": "y" } })), "documents[1].metadata.text"),
        (twice(json!({ "id": "good", "text": "x" })), "comes twice"),
        (twice(json!({ "id": "x", "text": " " })), "documents[1].text must"),
        (twice(json!({ "id": "x", "texts": "x" })), "texts"),
    ] {
        let answer = call(&router, send("a", "/v1/vectors", &body)).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.error("message").contains(place), "{place}: {answer:?}");
    }
    for (body, place) in [
        (json!({ "k": 3 }), "text"),
        (json!({ "text": "\n" }), "text must"),
        (json!({ "text": "x", "embedding": vec![1.0; LETTERS] }), "one of them alone"),
        (json!({ "embedding": [1.0] }), "dimension"),
        (json!({ "text": "x", "k": 0 }), "k is not"),
        (json!({ "text": "x", "k": 1_000_000 }), "k is not"),
        (json!({ "text": "x", "filter": { "colour": "red" } }), "colour"),
        (json!({ "text": "x", "filter": { "text": "red" } }), "text"),
        (json!({ "text": "x", "filter": { "year": { "$in": vec![1; 1000] } } }), "limit: 1000"),
        (json!({ "text": "x", "filter": { "year": { "$near": 1 } } }), "filter.year.$near"),
    ] {
        let answer = call(&router, send("a", "/v1/vectors/query", &body)).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.error("message").contains(place), "{place}: {answer:?}");
    }
    assert_eq!(letters.asked(), 0);
    assert!(ids(&call(&router, send("a", "/v1/vectors/query", &json!({ "text": "six" }))).await).is_empty());
    let many: Vec<_> = (0..257).map(|i| i.to_string()).collect();
    let answer = call(&router, send("a", "/v1/vectors/delete", &json!({ "ids": many }))).await;
    assert_eq!((answer.status, answer.error("code")), (413, "too_large"));
}

#[tokio::test]
async fn vectors_of_the_wrong_model_are_the_storefronts_fault_and_are_not_written() {
    let shop = keyed().embed("letters", Letters::new(7)).vectors(index(LETTERS), Some("letters"));
    let router = shop.build().unwrap().router();
    let answer = call(&router, send("a", "/v1/vectors", &json!({ "documents": [{ "id": "x", "text": "x" }] }))).await;
    assert_eq!((answer.status, answer.error("code")), (500, "internal_error"));
    let read = call(&router, send("a", "/v1/vectors/get", &json!({ "ids": ["x"] }))).await;
    assert_eq!(read.body["data"], json!([null]));
}

#[tokio::test]
async fn a_tenant_that_may_not_use_the_model_brings_its_own_vectors() {
    let letters = Offer::new("letters").only_for([tenant("a")]);
    let shop = keyed().embed(letters, Letters::new(LETTERS)).vectors(index(LETTERS), Some("letters"));
    let router = shop.build().unwrap().router();
    let answer = call(&router, send("b", "/v1/vectors", &json!({ "documents": [{ "id": "x", "text": "x" }] }))).await;
    assert_eq!((answer.status, answer.error("code")), (400, "unsupported"));
    assert!(!answer.body.to_string().contains("letters"), "{answer:?}");
    let own = json!({ "documents": [{ "id": "x", "text": "x", "embedding": vec![1.0; LETTERS] }] });
    assert_eq!(call(&router, send("b", "/v1/vectors", &own)).await.status, 200);
    assert_eq!(call(&router, from("b", get("/v1/vectors"))).await.body["model"], Value::Null);
}
