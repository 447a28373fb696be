//! Customers' files.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Request,
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hybrid_cloud::storefront::{Principal, StorefrontBuilder, StorefrontLimits};
use hybrid_core::{ArtifactStoreExt, FILE_PART_BYTES, Files, JobKind, ManualClock, memory::MemoryStore};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;

use super::{
    media::form,
    rig::{Answer, Desk, Tokens, asleep, builder, call, from, get, noon, post, serve, soon, tenant},
};

struct Shop {
    store: MemoryStore,
    clock: ManualClock,
    desk: Arc<Desk>,
    router: Router,
}

fn shop_with(limits: StorefrontLimits) -> Shop {
    let (store, clock, desk) = (MemoryStore::new(Arc::new(noon())), noon(), Arc::<Desk>::default());
    let router = files(&store, &clock).limits(limits).jobs(desk.clone(), [JobKind::new("enrich").unwrap()]);
    Shop { router: router.build().unwrap().router(), store, clock, desk }
}

fn shop() -> Shop {
    shop_with(StorefrontLimits::default())
}

fn files(store: &MemoryStore, clock: &ManualClock) -> StorefrontBuilder {
    let tokens = Tokens::new([("a", Principal::new(tenant("a"), "anna")), ("b", Principal::new(tenant("b"), "bert"))]);
    builder(clock).authenticator(tokens).files(Files::new(Arc::new(store.clone()), Arc::new(clock.clone())))
}

impl Shop {
    async fn send(&self, request: Request<Body>) -> Answer {
        call(&self.router, from("a", request)).await
    }

    /// Uploads, and answers with the file's id.
    async fn upload(&self, name: &str, bytes: &[u8]) -> String {
        let answer = self.send(form("/v1/files", &[("purpose", "batch")], Some((name, bytes)))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// The status, the announced length and what came of it.
    async fn content(&self, id: &str) -> (u16, Option<usize>, Vec<u8>, bool) {
        let request = from("a", get(&format!("/v1/files/{id}/content")));
        let response = soon(self.router.clone().oneshot(request)).await.unwrap();
        let length = response.headers().get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
        let status = response.status().as_u16();
        let (mut body, mut bytes, mut whole) = (response.into_body(), Vec::new(), true);
        while let Some(frame) = soon(body.frame()).await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                Err(_) => whole = false,
            }
        }
        (status, length, bytes, whole)
    }

    async fn objects(&self) -> usize {
        self.store.list_all("").await.unwrap().len()
    }

    /// Waits until nothing is left of an upload that broke off.
    async fn emptied(&self) {
        soon(async {
            while self.objects().await > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 / 7 % 251) as u8).collect()
}

#[tokio::test]
async fn a_file_goes_in_and_comes_out_to_the_byte_and_a_deleted_one_leaves_nothing() {
    let shop = shop();
    let bytes = noise(2 * FILE_PART_BYTES + 17);
    let id = shop.upload("orders.jsonl", &bytes).await;
    let file = shop.send(get(&format!("/v1/files/{id}"))).await;
    let expected = json!({
        "id": id, "object": "file", "bytes": bytes.len(), "created_at": 1_772_366_400, "filename": "orders.jsonl",
        "purpose": "batch", "status": "processed",
    });
    assert_eq!((file.status, &file.body), (200, &expected));
    assert!(shop.content(&id).await == (200, Some(bytes.len()), bytes, true));
    let list = shop.send(get("/v1/files")).await;
    let expected = json!({ "object": "list", "data": [expected], "first_id": id, "last_id": id, "has_more": false });
    assert_eq!(list.body, expected);

    let delete = || Request::delete(format!("/v1/files/{id}")).body(Body::empty()).unwrap();
    let deleted = shop.send(delete()).await;
    assert_eq!((deleted.status, deleted.body), (200, json!({ "id": id, "object": "file", "deleted": true })));
    assert_eq!(shop.objects().await, 0);
    for request in [delete(), get(&format!("/v1/files/{id}")), get(&format!("/v1/files/{id}/content"))] {
        let answer = shop.send(request).await;
        assert_eq!((answer.status, answer.error("code")), (404, "file_not_found"));
    }
}

#[tokio::test]
async fn anothers_file_is_exactly_as_unknown_as_one_that_does_not_exist() {
    let shop = shop();
    let id = shop.upload("orders.jsonl", b"two loaves").await;
    let before = shop.objects().await;
    let nobodys = "file-01890000-0000-7000-8000-00000000ffff";
    for id in [&*id, nobodys, "nonsense", "..%2F..%2Ft%2Fa", &id.to_uppercase(), &id[5..]] {
        let at = format!("/v1/files/{id}");
        let delete = Request::delete(&at).body(Body::empty()).unwrap();
        for request in [get(&at), get(&format!("{at}/content")), delete] {
            let answer = call(&shop.router, from("b", request)).await;
            let decoded = id.replace("%2F", "/");
            let expected = format!("there is no file {decoded:?}");
            assert_eq!(
                (answer.status, answer.error("code"), answer.error("message")),
                (404, "file_not_found", &*expected)
            );
        }
        let order = post("/v1/jobs", json!({ "kind": "enrich", "input_file_id": id }).to_string());
        let answer = call(&shop.router, from("b", order)).await;
        assert_eq!(
            (answer.status, answer.error("code"), answer.error("param")),
            (404, "file_not_found", "input_file_id")
        );
    }
    let list = call(&shop.router, from("b", get("/v1/files"))).await;
    assert_eq!((list.body["data"].as_array().unwrap().len(), &list.body["last_id"]), (0, &Value::Null));
    let after = call(&shop.router, from("b", get(&format!("/v1/files?after={id}")))).await;
    assert_eq!(after.body, list.body);
    assert!(shop.desk.orders().is_empty());
    assert_eq!(shop.objects().await, before);
}

#[tokio::test]
async fn a_job_names_its_file() {
    let shop = shop();
    let id = shop.upload("orders.jsonl", b"two loaves").await;
    let order = json!({ "kind": "enrich", "payload": { "rows": 3 }, "input_file_id": id });
    assert_eq!(shop.send(post("/v1/jobs", order.to_string())).await.status, 202);
    let order = shop.desk.orders().remove(0);
    assert_eq!((order.input.unwrap().to_string(), order.payload), (id[5..].to_owned(), json!({ "rows": 3 })));
}

#[tokio::test]
async fn a_form_that_is_none_is_refused_by_its_field_and_leaves_nothing() {
    let shop = shop();
    let file = Some(("a", &b"two loaves"[..]));
    let upload = |fields: &[(&str, &str)], file| form("/v1/files", fields, file);
    let seconds = |value| upload(&[("purpose", "batch"), ("expires_after[seconds]", value)], file);
    let twice = String::from_utf8(
        b"--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nx\r\n".repeat(2),
    );
    let raw = |body: String| {
        Request::post("/v1/files").header("content-type", "multipart/form-data; boundary=b").body(body.into()).unwrap()
    };
    let long_name = "x".repeat(513);
    for (request, param) in [
        (upload(&[("purpose", "batch")], None), Some("file")),
        (upload(&[], file), Some("purpose")),
        (upload(&[("purpose", "batch_output")], file), Some("purpose")),
        (upload(&[("purpose", &"x".repeat(5000))], file), Some("purpose")),
        (upload(&[("purpose", "batch")], Some((&*long_name, b"x"))), Some("file")),
        (upload(&[("purpose", "batch"), ("expires_after[anchor]", "now")], file), Some("expires_after[anchor]")),
        (
            upload(&[("purpose", "batch"), ("expires_after[anchor]", "created_at")], file),
            Some("expires_after[seconds]"),
        ),
        (seconds("3599"), Some("expires_after[seconds]")),
        (seconds("2592001"), Some("expires_after[seconds]")),
        (seconds("soon"), Some("expires_after[seconds]")),
        (raw(twice.unwrap() + "--b--\r\n"), Some("file")),
        (raw("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nhalf".into()), None),
        (raw("x".repeat(3_000_000)), None),
        (raw(format!("--b\r\nx-a: {}", "x".repeat(3_000_000))), None),
    ] {
        let answer = shop.send(request).await;
        let code = if param.is_some() { "invalid_request" } else { "invalid_form" };
        assert_eq!((answer.status, answer.error("code"), answer.body["error"]["param"].as_str()), (400, code, param));
        assert_eq!(shop.objects().await, 0, "{answer:?}");
    }
    let answer = shop.send(post("/v1/files", "{}")).await;
    assert_eq!((answer.status, answer.error("code")), (415, "unsupported_media_type"));
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_whether_or_not_it_says_so_and_leaves_nothing() {
    let limit = FILE_PART_BYTES + 10;
    let shop = shop_with(StorefrontLimits { file_bytes: limit as u64, ..StorefrontLimits::default() });
    shop.upload("a", &noise(limit)).await;
    let before = shop.objects().await;
    for (size, announced) in [(limit + 1, false), (limit + 1, true), (3 * limit, false), (3 * limit, true)] {
        let mut request = form("/v1/files", &[("purpose", "batch")], Some(("a", &noise(size))));
        if announced {
            let length = request.body().size_hint_exact();
            request.headers_mut().insert("content-length", length.to_string().parse().unwrap());
        }
        let answer = shop.send(request).await;
        assert_eq!((answer.status, answer.error("code")), (413, "body_too_large"), "{size} {announced}");
        assert!(answer.error("message").contains(&limit.to_string()), "{answer:?}");
        assert_eq!(shop.objects().await, before);
    }
}

/// The size of a body that is in memory.
trait Sized {
    fn size_hint_exact(&self) -> u64;
}

impl Sized for Body {
    fn size_hint_exact(&self) -> u64 {
        axum::body::HttpBody::size_hint(self).exact().unwrap()
    }
}

#[tokio::test]
async fn a_tenant_has_no_more_files_than_it_may() {
    let shop = shop_with(StorefrontLimits { files: 2, ..StorefrontLimits::default() });
    let first = shop.upload("a", b"1").await;
    shop.upload("b", b"2").await;
    let again = || form("/v1/files", &[("purpose", "batch")], Some(("c", b"3")));
    let refused = shop.send(again()).await;
    assert_eq!((refused.status, refused.error("code")), (400, "too_many_files"));
    assert_eq!(call(&shop.router, from("b", again())).await.status, 200);
    shop.send(Request::delete(format!("/v1/files/{first}")).body(Body::empty()).unwrap()).await;
    assert_eq!(shop.send(again()).await.status, 200);
}

#[tokio::test]
async fn an_expired_file_is_gone() {
    let shop = shop();
    let fields =
        [("purpose", "user_data"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600")];
    let file = shop.send(form("/v1/files", &fields, Some(("a", b"x")))).await.body;
    assert_eq!(file["expires_at"], 1_772_366_400 + 3600);
    let at = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(shop.send(get(&at)).await.status, 200);
    shop.clock.advance(Duration::from_secs(3600));
    assert_eq!(shop.send(get(&at)).await.status, 404);
    assert_eq!(shop.send(get(&format!("{at}/content"))).await.status, 404);
    assert_eq!(shop.send(get("/v1/files")).await.body["data"], json!([]));
}

#[tokio::test]
async fn a_name_is_text_and_never_a_path_or_a_header() {
    let shop = shop();
    for (sent, kept) in
        [("../../etc/passwd", "passwd"), ("C:\\keys\\a.txt", "a.txt"), ("", "file"), ("Brötchen.txt", "Brötchen.txt")]
    {
        let id = shop.upload(sent, b"x").await;
        assert_eq!(shop.send(get(&format!("/v1/files/{id}"))).await.body["filename"], kept);
        let request = from("a", get(&format!("/v1/files/{id}/content")));
        let response = shop.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-disposition"], "attachment");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }
    let keys: Vec<_> = shop.store.list_all("").await.unwrap().into_iter().map(|meta| meta.key.to_string()).collect();
    assert!(keys.iter().all(|key| key.starts_with("t/a/files/") && !key.contains("passwd")), "{keys:?}");
}

#[tokio::test]
async fn pages_hold_every_file_once_and_what_cannot_be_asked_is_named() {
    let shop = shop();
    let mut ids = Vec::new();
    for i in 0..5 {
        ids.push(shop.upload(&format!("{i}"), b"x").await);
    }
    let list = async |query: &str| {
        let answer = shop.send(get(&format!("/v1/files?{query}"))).await;
        let data = answer.body["data"].as_array().unwrap().iter().map(|file| file["id"].as_str().unwrap().to_owned());
        (data.collect::<Vec<_>>(), answer.body["has_more"].as_bool().unwrap())
    };
    let (first, more) = list("limit=3").await;
    assert!(more && first == [ids[4].clone(), ids[3].clone(), ids[2].clone()]);
    assert_eq!(list(&format!("limit=3&after={}", first[2])).await, (vec![ids[1].clone(), ids[0].clone()], false));
    assert_eq!(list("order=asc&limit=1").await, (vec![ids[0].clone()], true));
    assert_eq!(list("purpose=vision").await, (vec![], false));
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("after=x", "after"),
        ("order=up", "order"),
        ("purpose=all", "purpose"),
    ] {
        let answer = shop.send(get(&format!("/v1/files?{query}"))).await;
        assert_eq!((answer.status, answer.error("param")), (400, param));
    }
}

/// A form whose file comes in these pieces.
fn pieces(pieces: impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Request<Body> {
    let head = "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
                --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    let body =
        stream::iter([Ok(Bytes::from(head))]).chain(pieces).chain(stream::iter([Ok(Bytes::from("\r\n--b--\r\n"))]));
    let request = Request::post("/v1/files").header("content-type", "multipart/form-data; boundary=b");
    request.body(Body::from_stream(body)).unwrap()
}

#[tokio::test]
async fn an_upload_is_in_the_bucket_before_its_last_byte_has_come() {
    let shop = shop();
    let whole = Arc::new(Notify::new());
    let (first, last) = (noise(2 * FILE_PART_BYTES), noise(5));
    let wait = {
        let whole = Arc::clone(&whole);
        stream::once(async move {
            whole.notified().await;
            Ok(Bytes::from(last))
        })
    };
    let body = stream::iter([Ok(Bytes::from(first.clone()))]).chain(wait);
    let (router, request) = (shop.router.clone(), from("a", pieces(body)));
    let upload = tokio::spawn(async move { call(&router, request).await });
    soon(async {
        while shop.objects().await < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(shop.send(get("/v1/files")).await.body["data"], json!([]), "half a file is none");
    whole.notify_one();
    let file = upload.await.unwrap().body;
    assert_eq!(file["bytes"], first.len() + 5);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let shop = shop();
    let broken = stream::iter([Ok(noise(2 * FILE_PART_BYTES).into()), Err(io::Error::other("cut"))]);
    let answer = shop.send(pieces(broken)).await;
    assert_eq!((answer.status, answer.error("code")), (400, "invalid_form"));
    assert_eq!(shop.objects().await, 0);

    // Its sender is gone, and nobody can be told.
    let silent = stream::iter([Ok(noise(2 * FILE_PART_BYTES).into())]).chain(stream::pending());
    let (router, request) = (shop.router.clone(), from("a", pieces(silent)));
    let upload = tokio::spawn(router.oneshot(request));
    soon(async {
        while shop.objects().await < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    upload.abort();
    shop.emptied().await;
}

#[tokio::test]
async fn an_upload_that_stalls_is_answered_408_and_leaves_nothing() {
    let shop = shop();
    let silent = stream::iter([Ok(noise(FILE_PART_BYTES).into())]).chain(stream::pending());
    let (router, request) = (shop.router.clone(), from("a", pieces(silent)));
    let upload = tokio::spawn(async move { call(&router, request).await });
    soon(async {
        while shop.objects().await < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The stall limit and the whole time.
    asleep(&shop.clock, 2).await;
    shop.clock.advance(Duration::from_secs(30));
    let answer = upload.await.unwrap();
    assert_eq!((answer.status, answer.error("code")), (408, "body_timeout"));
    assert_eq!(shop.objects().await, 0);
}

#[tokio::test]
async fn a_download_that_cannot_go_on_ends_before_its_announced_length() {
    let shop = shop();
    let bytes = noise(2 * FILE_PART_BYTES);
    let id = shop.upload("a", &bytes).await;
    let second = hybrid_core::Digest::of(&bytes[FILE_PART_BYTES..]);
    let parts = shop.store.list_all("t/a/files/parts/").await.unwrap();
    let key = parts.into_iter().map(|meta| meta.key).find(|key| key.as_str().contains(&second.to_string())).unwrap();
    shop.store.corrupt(&key, "other".into());
    let (status, length, came, whole) = shop.content(&id).await;
    assert_eq!((status, length, came.len(), whole), (200, Some(bytes.len()), FILE_PART_BYTES, false));

    let first = shop.upload("b", b"short").await;
    let parts = shop.store.list_all(&format!("t/a/files/parts/{}/", &first[5..])).await.unwrap();
    shop.store.corrupt(&parts[0].key, "other".into());
    assert_eq!(shop.content(&first).await.0, 500);
}

#[tokio::test]
async fn a_client_that_does_not_read_a_download_is_given_up() {
    let (store, clock) = (MemoryStore::default(), noon());
    let limits = StorefrontLimits { requests: 1, ..StorefrontLimits::default() };
    let storefront = files(&store, &clock).limits(limits).build().unwrap();
    let shop = Shop { store, clock, desk: Arc::default(), router: storefront.router() };
    let id = shop.upload("a", &noise(16 * FILE_PART_BYTES)).await;
    let served = serve(&storefront).await;
    let head = format!("GET /v1/files/{id}/content HTTP/1.1\nhost: shop\nauthorization: Bearer a\n\n");
    let idle = served.send(&head, b"").await;
    // Its place is taken until the stall limit has passed.
    soon(async {
        while shop.send(get("/v1/files")).await.status == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(async {
        while shop.send(get("/v1/files")).await.status != 200 {
            shop.clock.advance(Duration::from_secs(30));
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(idle);
}

#[tokio::test]
async fn a_download_that_fails_gives_its_place_back_though_nobody_reads_it() {
    const PIECE: usize = 256 * 1024;
    let shop = shop_with(StorefrontLimits { requests: 1, ..StorefrontLimits::default() });
    let bytes = noise(2 * FILE_PART_BYTES);
    let id = shop.upload("a", &bytes).await;
    let second = hybrid_core::Digest::of(&bytes[FILE_PART_BYTES..]).to_string();
    let parts = shop.store.list_all("t/a/files/parts/").await.unwrap();
    let key = parts.into_iter().map(|meta| meta.key).find(|key| key.as_str().contains(&second)).unwrap();
    shop.store.corrupt(&key, "other".into());
    let request = from("a", get(&format!("/v1/files/{id}/content")));
    let mut body = soon(shop.router.clone().oneshot(request)).await.unwrap().into_body();
    // The last piece of the first part waits to be read when the second part turns out to be bad.
    let mut came = 0;
    while came < FILE_PART_BYTES - PIECE {
        came += soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
    }
    soon(async {
        while shop.send(get("/v1/files")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
    assert!(soon(body.frame()).await.unwrap().is_err(), "and what is cut does not look whole");
}

#[tokio::test]
async fn an_upload_goes_over_a_real_connection() {
    let (store, clock) = (MemoryStore::default(), noon());
    let storefront = files(&store, &clock).build().unwrap();
    let served = serve(&storefront).await;
    let bytes = noise(3 * FILE_PART_BYTES + 1);
    let sent =
        stream::iter(bytes.clone().chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>());
    let body = pieces(sent).into_body().into_data_stream().map(|piece| Ok::<_, Infallible>(piece.unwrap()));
    let client = reqwest::Client::new();
    let at = format!("http://{}/v1/files", served.at);
    let request = client.post(&at).bearer_auth("a").header("content-type", "multipart/form-data; boundary=b");
    let collected = body.map(|piece| piece.unwrap()).collect::<Vec<_>>().await.concat();
    let file: Value = request.body(collected).send().await.unwrap().json().await.unwrap();
    assert_eq!(file["bytes"], bytes.len(), "{file}");
    let content =
        client.get(format!("{at}/{}/content", file["id"].as_str().unwrap())).bearer_auth("a").send().await.unwrap();
    assert!(content.bytes().await.unwrap() == bytes);
    assert!(store.exists(&store.list_all("t/a/files/index/").await.unwrap()[0].key).await.unwrap());
}
