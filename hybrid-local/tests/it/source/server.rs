//! A small server that speaks the hub's protocol: listings with digests, files with parts of them, large files from another address.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header, response},
    response::Response,
};
use futures_util::{StreamExt, future, stream};
use hybrid_core::Digest;
use serde_json::json;
use sha1::{Digest as _, Sha1};
use tokio::{net::TcpListener, sync::Notify};

pub(super) const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
pub(super) const MODEL: &str = "org/tiny";

/// What a server has, and how it behaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Site {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Files that come from the other address, and are promised by SHA-256.
    pub(super) large: Vec<String>,
    /// What is sent instead of a file's bytes.
    pub(super) altered: BTreeMap<String, Vec<u8>>,
    /// What happens to the bodies of files, one after the other; then nothing does.
    pub(super) faults: Vec<Fault>,
    /// Requests by these methods, one after the other, find the hub out of order.
    pub(super) away: Vec<Method>,
    /// Whether parts of files are refused.
    pub(super) whole_only: bool,
    /// Whether the listing says nothing but names.
    pub(super) names_only: bool,
    /// Without it nothing is given.
    pub(super) token: Option<String>,
    /// What is answered instead of anything: a status and the hub's name for it.
    pub(super) refusal: Option<(u16, &'static str)>,
}

/// What happens to the body of a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// After so many bytes the connection is cut.
    Cut(usize),
    /// After so many bytes nothing more comes, and the connection stays.
    Stall(usize),
    /// The status comes instead.
    Status(u16),
}

/// A question.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    /// Where the part that is asked for begins.
    pub(super) from: Option<u64>,
    pub(super) token: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    site: Mutex<Site>,
    asked: Mutex<Vec<Asked>>,
    /// Told when a body stalls.
    stalled: Notify,
    /// Where large files come from.
    store: Mutex<String>,
}

impl Server {
    pub(super) async fn start(site: Site) -> Self {
        let shared = Arc::new(Shared { site: Mutex::new(site), ..Shared::default() });
        let mut addresses = Vec::new();
        for _ in ["store", "hub"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(format!("http://{}", listener.local_addr().unwrap()));
            let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
            tokio::spawn(async move { axum::serve(listener, app).await });
        }
        *shared.store.lock().unwrap() = addresses.remove(0);
        Self { address: addresses.remove(0), shared }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Site)) {
        change(&mut self.shared.site.lock().unwrap());
    }

    /// What was asked for since.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// Ends when a body has stalled.
    pub(super) async fn stalled(&self) {
        self.shared.stalled.notified().await;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (path, headers) = (request.uri().path_and_query().unwrap().as_str().to_owned(), request.headers());
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let range = text(header::RANGE);
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    let token = text(header::AUTHORIZATION).map(|token| token.replace("Bearer ", ""));
    let method = request.method().clone();
    let is_ours = text(header::USER_AGENT).is_some_and(|name| name.starts_with("hybrid-local/"));
    assert!(!is_ours || text(header::ACCEPT_ENCODING).as_deref() == Some("identity"));
    let asked = Asked { method: method.clone(), path: path.clone(), from, token: token.clone() };
    shared.asked.lock().unwrap().push(asked);
    let mut site = shared.site.lock().unwrap();
    if let Some((status, code)) = site.refusal {
        let error =
            head(status).header("x-error-code", code).header("x-error-message", "no").header("retry-after", "7");
        return error.body(Body::empty()).unwrap();
    }
    if site.away.first() == Some(&method) {
        site.away.remove(0);
        return head(503).body(Body::empty()).unwrap();
    }
    let stored = path.strip_prefix("/stored/");
    if stored.is_none() && site.token.is_some() && token != site.token {
        return head(401).header("x-error-code", "GatedRepo").body(Body::empty()).unwrap();
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{MODEL}/revision/")) {
        let known = [COMMIT, "main", "refs%2Fpr%2F1"].map(|revision| format!("{revision}?blobs=true"));
        if !known.iter().any(|known| known == revision) {
            return head(404).header("x-error-code", "RevisionNotFound").body(Body::empty()).unwrap();
        }
        return head(200).body(Body::from(listing(&site))).unwrap();
    }
    let resolved = [COMMIT, "main"].map(|revision| format!("/{MODEL}/resolve/{revision}/"));
    let resolved = resolved.iter().find_map(|prefix| path.strip_prefix(prefix));
    let Some(name) = stored.or(resolved) else {
        return head(404).header("x-error-code", "RepoNotFound").body(Body::empty()).unwrap();
    };
    let name = name.split_once('?').map_or(name, |(name, _)| name);
    let Some(promised) = site.files.get(name).cloned() else {
        return head(404).header("x-error-code", "EntryNotFound").body(Body::empty()).unwrap();
    };
    if stored.is_none() && site.large.iter().any(|large| large == name) {
        let to = format!("{}/stored/{name}?signature=secret", shared.store.lock().unwrap());
        let answer = head(302).header("location", to).header("x-repo-commit", COMMIT).header("etag", "\"x\"");
        let answer = answer.header("x-linked-etag", format!("\"{}\"", Digest::of(&promised)));
        return answer.header("x-linked-size", promised.len()).body(Body::empty()).unwrap();
    }
    let bytes = site.altered.get(name).cloned().unwrap_or_else(|| promised.clone());
    let etag = format!("\"{}\"", git_digest(&promised));
    if method == Method::HEAD {
        let answer = head(200).header("etag", etag).header("x-repo-commit", COMMIT);
        return answer.header("content-length", promised.len()).body(Body::empty()).unwrap();
    }
    let fault = if site.faults.is_empty() { None } else { Some(site.faults.remove(0)) };
    if let Some(Fault::Status(status)) = fault {
        return head(status).header("retry-after", "7").body(Body::empty()).unwrap();
    }
    let from = from.filter(|_| !site.whole_only);
    let answer = match from {
        Some(from) => head(206).header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        None => head(200),
    };
    let rest = bytes[(from.unwrap_or_default() as usize).min(bytes.len())..].to_vec();
    let answer = answer.header("content-length", rest.len()).header("etag", etag);
    answer.body(body(rest, fault, &shared)).unwrap()
}

fn head(status: u16) -> response::Builder {
    Response::builder().status(StatusCode::from_u16(status).unwrap())
}

fn body(bytes: Vec<u8>, fault: Option<Fault>, shared: &Arc<Shared>) -> Body {
    let part = |sent: usize| stream::iter([Ok(Bytes::copy_from_slice(&bytes[..sent.min(bytes.len())]))]);
    let shared = Arc::clone(shared);
    match fault {
        Some(Fault::Cut(sent)) => {
            // What is there is on its way once the task comes back.
            let cut = stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(part(sent).chain(cut))
        }
        Some(Fault::Stall(sent)) => {
            let stall = stream::once(async move {
                tokio::task::yield_now().await;
                shared.stalled.notify_one();
                future::pending().await
            });
            Body::from_stream(part(sent).chain(stall))
        }
        _ => Body::from(bytes),
    }
}

fn listing(site: &Site) -> Vec<u8> {
    let file = |(name, bytes): (&String, &Vec<u8>)| {
        if site.names_only {
            return json!({"rfilename": name});
        }
        let mut file = json!({"rfilename": name, "size": bytes.len(), "blobId": git_digest(bytes)});
        if site.large.contains(name) {
            let sha256 = Digest::of(bytes).to_string();
            file["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 134});
        }
        file
    };
    let siblings: Vec<_> = site.files.iter().map(file).collect();
    json!({"id": MODEL, "sha": COMMIT, "siblings": siblings}).to_string().into_bytes()
}

pub(super) fn git_digest(bytes: &[u8]) -> String {
    let digest = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
