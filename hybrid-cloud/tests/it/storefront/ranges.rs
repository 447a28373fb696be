//! Some bytes of a file.

use std::sync::Arc;

use axum::{Router, body::Bytes, http::HeaderMap};
use http_body_util::BodyExt;
use hybrid_core::{FILE_PART_BYTES, Files, memory::MemoryStore};
use tower::ServiceExt;

use super::{
    media::form,
    rig::{builder, call, get, noon, soon},
};

const PART: usize = FILE_PART_BYTES;

/// A shop with a file, and the file's content.
async fn shop() -> (Router, String, Vec<u8>) {
    let files = Files::new(Arc::new(MemoryStore::default()), Arc::new(noon()));
    let router = builder(&noon()).files(files).build().unwrap().router();
    let bytes: Vec<u8> = (0..2 * PART + 1_000).map(|i| (i * 31 / 7 % 251) as u8).collect();
    let stored = call(&router, form("/v1/files", &[("purpose", "batch")], Some(("a", &bytes)))).await;
    let path = format!("/v1/files/{}/content", stored.body["id"].as_str().unwrap());
    (router, path, bytes)
}

async fn ask(router: &Router, path: &str, headers: &[(&'static str, &str)]) -> (u16, HeaderMap, Bytes) {
    let mut request = get(path);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (parts, body) = soon(router.clone().oneshot(request)).await.unwrap().into_parts();
    (parts.status.as_u16(), parts.headers, soon(body.collect()).await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_range_is_those_bytes_wherever_the_parts_end() {
    let (router, path, bytes) = shop().await;
    let length = bytes.len();
    for (range, start, end) in [
        ("bytes=0-0".to_owned(), 0, 1),
        (format!("bytes={}-{}", PART - 1, PART), PART - 1, PART + 1),
        (format!("bytes={PART}-{}", 2 * PART - 1), PART, 2 * PART),
        (format!("bytes=10-{}", 2 * PART + 10), 10, 2 * PART + 11),
        (format!("bytes={}-", 2 * PART), 2 * PART, length),
        ("bytes=-7".to_owned(), length - 7, length),
        (format!("bytes=0-{length}"), 0, length),
    ] {
        let (status, headers, found) = ask(&router, &path, &[("range", &range)]).await;
        assert_eq!((status, found.len()), (206, end - start), "{range}");
        assert!(found == bytes[start..end], "{range}");
        assert_eq!(headers["content-range"], format!("bytes {start}-{}/{length}", end - 1));
        assert_eq!(headers["content-length"], (end - start).to_string());
    }
}

#[tokio::test]
async fn an_interrupted_download_is_resumed_only_if_it_is_the_same_file() {
    let (router, path, bytes) = shop().await;
    let (status, headers, whole) = ask(&router, &path, &[]).await;
    assert_eq!((status, headers["accept-ranges"].as_bytes()), (200, b"bytes".as_slice()));
    assert!(whole == bytes && !headers.contains_key("content-range"));
    let tag = headers["etag"].to_str().unwrap();
    let (status, _, rest) = ask(&router, &path, &[("range", "bytes=100-"), ("if-range", tag)]).await;
    assert!(status == 206 && rest == bytes[100..]);
    let (status, _, all) = ask(&router, &path, &[("range", "bytes=100-"), ("if-range", "\"another\"")]).await;
    assert!(status == 200 && all == bytes);
}

#[tokio::test]
async fn what_lies_beyond_the_end_is_refused_with_the_files_size() {
    let (router, path, bytes) = shop().await;
    let range = format!("bytes={}-", bytes.len());
    let (status, headers, body) = ask(&router, &path, &[("range", &range)]).await;
    assert_eq!((status, headers["content-range"].to_str().unwrap()), (416, &*format!("bytes */{}", bytes.len())));
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["code"], "range_not_satisfiable");
}
