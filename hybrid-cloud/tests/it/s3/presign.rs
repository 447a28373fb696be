//! Links, used by a client that has no credentials and no SDK.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hybrid_core::{
    ArtifactStoreExt, Clock, Digest, DownloadOptions, ErrorKind, ManualClock, Presign, SeededIds, SignedRequest,
    SystemClock, Timestamp, UploadOptions,
};

use super::{BOTH, Server, key, noise};

const HOUR: Duration = Duration::from_secs(3600);

async fn send(request: &SignedRequest, body: Bytes) -> reqwest::Response {
    send_with(request, body, |_, value| Some(value.to_owned())).await
}

/// With each signed header as `change` makes it, or without it.
async fn send_with(
    request: &SignedRequest,
    body: Bytes,
    change: impl Fn(&str, &str) -> Option<String>,
) -> reqwest::Response {
    let method = request.method.parse().unwrap();
    let mut builder = reqwest::Client::new().request(method, &request.url);
    for (name, value) in &request.headers {
        if let Some(value) = change(name, value)
            && name != "content-length"
        {
            builder = builder.header(name, value);
        }
    }
    if !body.is_empty() {
        builder = builder.body(body);
    }
    builder.send().await.unwrap()
}

fn upload(size: usize) -> UploadOptions {
    UploadOptions { expires_in: HOUR, size: size as u64, content_type: None, digest: None }
}

fn download() -> DownloadOptions {
    DownloadOptions { expires_in: HOUR, content_type: None, file_name: None }
}

#[tokio::test]
async fn what_a_customer_uploads_by_a_link_is_an_object_and_a_link_gives_it_back() {
    for server in BOTH {
        let bucket = server.bucket().await;
        let store = server.store(&bucket).await;
        let (key, bytes) = (key("t/default/files/recording"), noise(70_000, 1));
        let options = UploadOptions {
            content_type: Some("audio/wav".to_owned()),
            digest: Some(Digest::of(&bytes)),
            ..upload(bytes.len())
        };
        let link = store.presign_upload(&key, options).await.unwrap();
        assert!(!format!("{link:?}").contains("Signature"), "{link:?}");
        let answer = send(&link, bytes.clone()).await;
        assert!(answer.status().is_success(), "{server:?}: {} {}", answer.status(), answer.text().await.unwrap());
        assert_eq!(store.get(&key).await.unwrap(), bytes);
        // A link creates; it never overwrites.
        assert_eq!(send(&link, bytes.clone()).await.status(), 412, "{server:?}");

        let link = store.presign_download(&key, download()).await.unwrap();
        let answer = send(&link, Bytes::new()).await;
        assert!(answer.status().is_success(), "{server:?}: {}", answer.status());
        assert_eq!(answer.headers()["content-type"], "audio/wav");
        assert_eq!(answer.bytes().await.unwrap(), bytes);
        let named = DownloadOptions {
            content_type: Some("application/octet-stream".to_owned()),
            file_name: Some("what you said.wav".to_owned()),
            ..download()
        };
        let answer = send(&store.presign_download(&key, named).await.unwrap(), Bytes::new()).await;
        assert_eq!(answer.headers()["content-disposition"], "attachment; filename=\"what you said.wav\"");
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    }
}

#[tokio::test]
async fn an_upload_is_what_its_link_says_or_nothing() {
    // The other server does not check signatures.
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    let store = server.store(&bucket).await;
    let (key, bytes) = (key("k"), noise(1_000, 1));
    let options = UploadOptions {
        content_type: Some("text/plain".to_owned()),
        digest: Some(Digest::of(&bytes)),
        ..upload(bytes.len())
    };
    let link = store.presign_upload(&key, options).await.unwrap();
    let as_signed = |_: &str, value: &str| Some(value.to_owned());
    let without = |left_out: &'static str| move |name: &str, value: &str| (name != left_out).then(|| value.to_owned());
    let other_type =
        |name: &str, value: &str| Some(if name == "content-type" { "text/html".to_owned() } else { value.to_owned() });
    let refused = [
        ("more bytes", send_with(&link, noise(1_001, 1), as_signed).await),
        ("fewer bytes", send_with(&link, noise(999, 1), as_signed).await),
        ("other bytes", send_with(&link, noise(1_000, 2), as_signed).await),
        ("no condition", send_with(&link, bytes.clone(), without("if-none-match")).await),
        ("another type", send_with(&link, bytes.clone(), other_type).await),
        (
            "another method",
            send_with(&SignedRequest { method: "GET".to_owned(), ..link.clone() }, Bytes::new(), as_signed).await,
        ),
        (
            "another key",
            send_with(&SignedRequest { url: link.url.replace("/k?", "/l?"), ..link.clone() }, bytes.clone(), as_signed)
                .await,
        ),
    ];
    for (what, answer) in refused {
        assert!(answer.status().is_client_error(), "{what}: {}", answer.status());
        assert!(!store.exists(&key).await.unwrap(), "{what}");
    }
    assert!(send(&link, bytes.clone()).await.status().is_success());
    assert_eq!(store.get(&key).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_link_holds_until_its_time_and_no_longer() {
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    let store = server.store(&bucket).await;
    store.create_same(&key("k"), "x".into()).await.unwrap();
    let signed_at = |ago: Duration| {
        let then = Timestamp::from_unix_micros(SystemClock.now().unix_micros() - ago.as_micros() as i64);
        store.clone().with_sources(Arc::new(ManualClock::at(then)), Arc::new(SeededIds::new(1)))
    };
    let (fresh, stale) = (signed_at(HOUR / 2), signed_at(HOUR + Duration::from_secs(60)));
    let link = fresh.presign_download(&key("k"), download()).await.unwrap();
    assert!(link.expires > SystemClock.now());
    assert_eq!(send(&link, Bytes::new()).await.text().await.unwrap(), "x");
    let link = stale.presign_download(&key("k"), download()).await.unwrap();
    assert!(link.expires < SystemClock.now());
    assert_eq!(send(&link, Bytes::new()).await.status(), 403);
    let link = stale.presign_upload(&key("late"), upload(1)).await.unwrap();
    assert_eq!(send(&link, "x".into()).await.status(), 403);
    assert!(!store.exists(&key("late")).await.unwrap());
}

#[tokio::test]
async fn a_link_that_could_never_work_is_not_made() {
    let store = Server::Ministack.store("bucket").await;
    for expires_in in [Duration::ZERO, Duration::from_millis(999), 7 * 24 * HOUR + Duration::from_secs(1)] {
        let error = store.presign_upload(&key("k"), UploadOptions { expires_in, ..upload(1) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let error = store.presign_download(&key("k"), DownloadOptions { expires_in, ..download() }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    for name in ["", "a\"b", "a\r\nset-cookie: x", "../a", "ü"] {
        let options = DownloadOptions { file_name: Some(name.to_owned()), ..download() };
        let error = store.presign_download(&key("k"), options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let error = store.presign_upload(&key("k"), upload(usize::MAX)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}
