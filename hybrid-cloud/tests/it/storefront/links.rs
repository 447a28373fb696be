//! Files that go to and from a real bucket past the storefront.

use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use hybrid_cloud::{s3::S3Store, storefront::Principal};
use hybrid_core::{ArtifactStoreExt, Digest, FILE_PART_BYTES, Files, SystemClock};
use serde_json::{Value, json};

use super::rig::{Answer, Tokens, builder, call, from, get, noon, post, tenant};
use crate::s3::{Server, noise};

/// A server that checks signatures.
async fn shop() -> (Router, S3Store) {
    let store = Server::Seaweed.store(&Server::Seaweed.bucket().await).await;
    let files = Files::new(Arc::new(store.clone()), Arc::new(SystemClock)).with_links(Arc::new(store.clone()));
    let tokens = Tokens::new([("a", Principal::new(tenant("a"), "anna")), ("b", Principal::new(tenant("b"), "bert"))]);
    (builder(&noon()).authenticator(tokens).files(files).build().unwrap().router(), store)
}

async fn send(router: &Router, token: &str, path: &str, body: &Value) -> Answer {
    call(router, from(token, post(path, body.to_string()))).await
}

/// A file's description, as both ends of an upload take it.
fn described(bytes: &Bytes) -> Value {
    let parts: Vec<_> = bytes.chunks(FILE_PART_BYTES).collect();
    let parts = parts.iter().map(|part| json!({ "sha256": Digest::of(part).to_string(), "bytes": part.len() }));
    json!({ "filename": "orders.jsonl", "purpose": "batch", "parts": parts.collect::<Vec<_>>() })
}

/// Follows a link; answers with the status and the body.
async fn follow(link: &Value, body: Bytes) -> (u16, Bytes) {
    let mut request = reqwest::Client::new()
        .request(link["method"].as_str().unwrap().parse().unwrap(), link["url"].as_str().unwrap());
    for (name, value) in link["headers"].as_object().unwrap() {
        request = request.header(name, value.as_str().unwrap());
    }
    let answer = request.body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap())
}

#[tokio::test]
async fn a_file_goes_to_the_bucket_and_back_by_links_and_is_a_file_like_any_other() {
    let (router, _store) = shop().await;
    let bytes = noise(FILE_PART_BYTES + 1_000, 1);
    let body = described(&bytes);
    let begun = send(&router, "a", "/v1/files/links", &body).await;
    assert_eq!(begun.status, 200, "{begun:?}");
    let id = begun.body["id"].as_str().unwrap().to_owned();
    let links = begun.body["links"].as_array().unwrap();
    assert_eq!(links.len(), 2);
    let complete = format!("/v1/files/{id}/complete");

    // Until all of it is there it is no file.
    assert_eq!(follow(&links[0], bytes.slice(..FILE_PART_BYTES)).await.0, 200);
    let early = send(&router, "a", &complete, &body).await;
    assert_eq!((early.status, early.error("code")), (400, "invalid_request"));
    assert_eq!(call(&router, from("a", get(&format!("/v1/files/{id}")))).await.status, 404);
    // Other bytes are not taken, nor the same twice.
    let (status, _) = follow(&links[1], noise(1_000, 2)).await;
    assert!((400..500).contains(&status), "{status}");
    let rest = bytes.slice(FILE_PART_BYTES..);
    assert_eq!(follow(&links[1], rest.clone()).await.0, 200);
    assert_eq!(follow(&links[1], rest).await.0, 412);

    let file = send(&router, "a", &complete, &body).await;
    assert_eq!((file.status, &file.body["id"], &file.body["bytes"]), (200, &json!(id), &json!(bytes.len())));
    assert_eq!(send(&router, "a", &complete, &body).await.body, file.body, "the same again is the same file");
    let listed = call(&router, from("a", get("/v1/files"))).await;
    assert_eq!(listed.body["data"][0]["filename"], "orders.jsonl");

    let links = call(&router, from("a", get(&format!("/v1/files/{id}/links")))).await;
    let mut found = Vec::new();
    for link in links.body["links"].as_array().unwrap() {
        let (status, part) = follow(link, Bytes::new()).await;
        assert_eq!((status, link["sha256"].as_str().unwrap()), (200, Digest::of(&part).to_string().as_str()));
        found.extend_from_slice(&part);
    }
    assert!(found == bytes);
}

#[tokio::test]
async fn anothers_file_cannot_be_linked_or_made() {
    let (router, store) = shop().await;
    let bytes = noise(100, 1);
    let body = described(&bytes);
    let begun = send(&router, "a", "/v1/files/links", &body).await;
    let id = begun.body["id"].as_str().unwrap();
    assert_eq!(follow(&begun.body["links"][0], bytes.clone()).await.0, 200);
    // What another has uploaded is not there for anybody else.
    let theirs = send(&router, "b", &format!("/v1/files/{id}/complete"), &body).await;
    assert_eq!((theirs.status, theirs.error("code")), (400, "invalid_request"));
    assert_eq!(send(&router, "a", &format!("/v1/files/{id}/complete"), &body).await.status, 200);
    let links = call(&router, from("b", get(&format!("/v1/files/{id}/links")))).await;
    assert_eq!((links.status, links.error("code")), (404, "file_not_found"));
    assert!(store.list_all("t/b/").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_could_not_be_kept_gets_no_links() {
    let (router, _) = shop().await;
    let good = described(&noise(100, 1));
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    let sha256 = "0".repeat(64);
    let part = |bytes: u64| json!({ "sha256": sha256, "bytes": bytes });
    for (body, status, code) in [
        (with("filename", json!("")), 400, "invalid_request"),
        (with("purpose", json!("leisure")), 400, "invalid_request"),
        (with("parts", json!([part(0)])), 400, "invalid_request"),
        (with("parts", json!([part(5), part(5)])), 400, "invalid_request"),
        (with("parts", json!([part(FILE_PART_BYTES as u64 + 1)])), 400, "invalid_request"),
        (with("parts", json!([part(u64::MAX), part(1)])), 413, "body_too_large"),
        (with("parts", json!([{ "sha256": "../../x", "bytes": 1 }])), 400, "invalid_body"),
        (with("expires_after", json!({ "anchor": "created_at", "seconds": 5 })), 400, "invalid_request"),
        (with("path", json!("/etc")), 400, "invalid_body"),
    ] {
        let answer = send(&router, "a", "/v1/files/links", &body).await;
        assert_eq!((answer.status, answer.error("code")), (status, code), "{body}");
    }
}
