//! What the audit says of calls that ask no model, and of those that ask one on their way.

use std::sync::Arc;

use axum::{body::Body, http::Request};
use hybrid_cloud::storefront::{AuditOptions, StorefrontLimits};
use hybrid_core::{Files, memory::MemoryStore};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    audit::{entries, open},
    rig::{builder, call, kept, noon, post},
};

fn files() -> Files {
    Files::new(Arc::new(MemoryStore::default()), Arc::new(noon()))
}

#[tokio::test]
async fn what_was_read_and_deleted_is_named_where_content_is_kept() {
    for content in [true, false] {
        let folder = TempDir::new().unwrap();
        let options = AuditOptions { content, ..AuditOptions::default() };
        let shop = kept(builder(&noon()), None).files(files()).audit(Arc::new(open(folder.path())), options);
        let router = shop.build().unwrap().router();
        let send = |method: &str, path: &str, body: Value| {
            let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
            request.body(Body::from(body.to_string())).unwrap()
        };
        let file = "file-01890000-0000-7000-8000-000000000000";
        let place = json!({ "collection": "reviews", "key": "42/a" });
        let page = json!({ "collection": "reviews", "prefix": "4", "after": null, "before": null, "limit": 100 });
        for (method, path, body, asked) in [
            ("GET", "/v1/records/reviews/42/a", json!({}), &place),
            ("DELETE", "/v1/records/reviews/42/a", json!({}), &place),
            ("GET", "/v1/records/reviews?prefix=4", json!({}), &page),
            ("POST", "/v1/vectors/get", json!({ "ids": ["faq/1"] }), &json!({ "ids": ["faq/1"] })),
            ("POST", "/v1/vectors/delete", json!({ "ids": ["faq/2"] }), &json!({ "ids": ["faq/2"] })),
            ("POST", "/v1/vectors/query", json!({ "embedding": [1, 0] }), &json!({ "k": 10, "filter": null })),
            ("GET", &format!("/v1/files/{file}"), json!({}), &json!({ "id": &file[5..] })),
            ("GET", &format!("/v1/files/{file}/content"), json!({}), &json!({ "id": &file[5..] })),
            ("DELETE", &format!("/v1/files/{file}"), json!({}), &json!({ "id": &file[5..] })),
        ] {
            call(&router, send(method, path, body)).await;
            let last = entries(folder.path()).pop().unwrap();
            let expected = if content { asked } else { &Value::Null };
            assert_eq!(&last["content"]["request"], expected, "{method} {path}: {last}");
        }
    }
}

#[tokio::test]
async fn documents_are_let_in_once_for_the_embedding_of_their_texts_and_their_writing() {
    let folder = TempDir::new().unwrap();
    // One place, and both calls have it.
    let limits = StorefrontLimits { requests: 1, ..StorefrontLimits::default() };
    let log = Arc::new(open(folder.path()));
    let shop = kept(builder(&noon()).embed("letters", super::media::vectors()), Some("letters")).limits(limits);
    let router = shop.audit(log.clone(), AuditOptions::default()).build().unwrap().router();
    let write = async |texts: &[&str]| {
        let documents: Vec<_> =
            texts.iter().enumerate().map(|(i, text)| json!({ "id": i.to_string(), "text": text })).collect();
        call(&router, post("/v1/vectors", json!({ "documents": documents }).to_string())).await.status
    };
    assert_eq!(write(&["two loaves"]).await, 200);
    assert_eq!(write(&["two loaves", "three"]).await, 500, "one vector for two texts is not believed");
    log.seal().await.unwrap();
    let entries = entries(folder.path());
    let ended: Vec<_> = entries.iter().map(|entry| (entry["action"].as_str().unwrap(), &entry["outcome"])).collect();
    let (done, failed) = (json!("done"), json!({ "failed": "Corrupt" }));
    let expected = [("embed", &done), ("vectors.write", &done), ("embed", &done), ("vectors.write", &failed)];
    assert_eq!(ended, expected);
}
