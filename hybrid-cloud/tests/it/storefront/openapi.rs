//! The document says what is served, and what is served is in the document.

use std::{collections::BTreeSet, sync::Arc};

use axum::{body::Body, http::Request};
use hybrid_cloud::storefront::Storefront;
use hybrid_core::{Files, JobKind, memory::MemoryStore};
use serde_json::{Value, json};

use super::{
    media::{ears, painter, says, vectors},
    rig::{Desk, Links, Sink, builder, call, dataset, get, kept, noon, orders},
};

fn everything() -> Storefront {
    let builder = builder(&noon()).chat("c", says("a")).embed("e", vectors()).transcribe("t", ears());
    let builder = builder.images("i", painter()).classify("m", orders());
    let builder = builder.jobs(Arc::new(Desk::default()), [JobKind::new("enrich").unwrap()]);
    let files = Files::new(Arc::new(MemoryStore::default()), Arc::new(noon())).with_links(Arc::new(Links));
    let builder = builder.files(files);
    let builder = kept(builder, Some("e"));
    builder.judgments(Sink::failing([]), dataset()).build().unwrap()
}

async fn document(storefront: &Storefront) -> Value {
    let answer = call(&storefront.router(), get("/openapi.json")).await;
    assert_eq!(answer.status, 200);
    answer.body
}

fn described(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let methods = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(methods).collect()
}

#[tokio::test]
async fn every_route_and_method_is_in_the_document_and_nothing_else() {
    let storefront = everything();
    let served: BTreeSet<_> = storefront
        .routes()
        .into_iter()
        .map(|route| (route.method.to_string(), route.path.replace("{*", "{")))
        .collect();
    let described = described(&document(&storefront).await);
    assert_eq!(described, served);
    // The router knows each of them, and answers another method with 405.
    let router = storefront.router();
    for (method, path) in &described {
        let path = ["{id}", "{collection}", "{key}"].iter().fold(path.clone(), |path, name| path.replace(name, "c"));
        let ask =
            |method: &str| call(&router, Request::builder().method(method).uri(&path).body(Body::empty()).unwrap());
        let answer = ask(method).await;
        let unknown = matches!(answer.body["error"]["code"].as_str(), Some("not_found" | "method_not_allowed"));
        assert!(!unknown, "{method} {path}: {answer:?}");
        assert_eq!(ask("PATCH").await.status, 405, "{path}");
    }
}

#[tokio::test]
async fn a_storefront_describes_only_what_it_offers() {
    let small = builder(&noon()).embed("e", vectors()).build().unwrap();
    let paths: Vec<_> = described(&document(&small).await).into_iter().map(|(_, path)| path).collect();
    assert!(paths.contains(&"/v1/embeddings".to_owned()) && !paths.contains(&"/v1/chat/completions".to_owned()));
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_route_says_who_may_use_it() {
    let storefront = everything();
    let document = document(&storefront).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut pending = vec![&document];
    let mut references = 0;
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                    references += 1;
                }
                pending.extend(fields.values());
            }
            Value::Array(items) => pending.extend(items),
            _ => {}
        }
    }
    assert!(references > 20, "{references}");
    for route in storefront.routes() {
        let path = route.path.replace("{*", "{");
        let operation = &document["paths"][&path][route.method.as_str().to_lowercase()];
        let of_path = |parameter: &&Value| parameter["in"] == "path";
        let parameters = operation["parameters"].as_array().into_iter().flatten().filter(of_path).count();
        assert_eq!(parameters, path.matches('{').count(), "{path}");
        assert_eq!(operation["security"].as_array().unwrap().is_empty(), route.scope.is_none(), "{path}");
        assert!(operation["responses"]["default"].is_object() && operation["summary"].is_string(), "{path}");
    }
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let judge = &document["paths"]["/v1/judgments"]["post"];
    for (content, one, list) in [
        (&judge["requestBody"]["content"], "JudgmentRequest", "JudgmentListRequest"),
        (&judge["responses"]["201"]["content"], "Judgment", "JudgmentList"),
    ] {
        assert_eq!(content["application/json"]["schema"], json!({ "oneOf": [schema(one), schema(list)] }));
    }
    let chat = &document["components"]["schemas"]["CompletionRequest"];
    assert!(chat["properties"]["messages"].is_object() && chat["properties"]["stream"].is_object(), "{chat}");
}
