//! The hub's protocol: what is asked for, and what its refusals mean.

use std::{fmt, time::Duration};

use hybrid_core::{Error, ErrorKind, Result};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header::HeaderMap, redirect::Policy};

use super::{OPERATION, Promised, shown};
use crate::source::HubModel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_LISTING_BYTES: usize = 64 << 20;
const MAX_REDIRECTS: usize = 10;

/// Asks the hub.
#[derive(Clone)]
pub(super) struct Client {
    endpoint: Url,
    token: Option<String>,
    http: Http,
}

#[derive(Clone)]
struct Http {
    /// Follows the hub to where it keeps its files. The token does not go along.
    files: reqwest::Client,
    /// Stays at the hub, whose own answers say what a file is.
    answers: reqwest::Client,
}

impl Client {
    pub(super) fn new(endpoint: &str) -> Result<Self> {
        Ok(Self { endpoint: parse(endpoint)?, token: None, http: Http::new(IDLE_TIMEOUT)? })
    }

    pub(super) fn with_endpoint(self, endpoint: &str) -> Result<Self> {
        Ok(Self { endpoint: parse(endpoint)?, ..self })
    }

    pub(super) fn with_token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    pub(super) fn with_idle_timeout(self, timeout: Duration) -> Result<Self> {
        Ok(Self { http: Http::new(timeout)?, ..self })
    }

    #[cfg(test)]
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The listing of a model's revision.
    pub(super) async fn list(&self, model: &HubModel) -> Result<Vec<u8>> {
        let mut url =
            self.at(["api", "models"].into_iter().chain(model.name().split('/')).chain(["revision", model.revision()]));
        url.set_query(Some("blobs=true"));
        let request = self.request(&self.http.files, Method::GET, &url);
        let mut response = self.send(request, &url, |status| status.is_success()).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| away(&url, error))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_LISTING_BYTES {
                return Err(
                    Error::too_large(OPERATION, "the hub's listing is over the limit").with("limit", MAX_LISTING_BYTES)
                );
            }
        }
        Ok(bytes)
    }

    /// Where a file of a commit is.
    pub(super) fn resolve(&self, model: &HubModel, commit: &str, file: &str) -> Url {
        self.at(model.name().split('/').chain(["resolve", commit]).chain(file.split('/')))
    }

    /// What the hub's own answer says of a file, where the listing does not.
    pub(super) async fn promised(&self, url: &Url, commit: &str) -> Result<(Promised, u64)> {
        let request = self.request(&self.http.answers, Method::HEAD, url);
        let response = self.send(request, url, |status| status.is_success() || status.is_redirection()).await?;
        let headers = response.headers();
        if let Some(found) = text(headers, "x-repo-commit").filter(|found| *found != commit) {
            return Err(Error::corrupt(OPERATION, "the hub answers with a file of another commit")
                .with("expected", commit)
                .with("found", found));
        }
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).unwrap_or_default();
        let digest = Promised::parse(etag.trim_start_matches("W/").trim_matches('"'));
        // Of an answer that only sends on, the length is not the file's.
        let own = || text(headers, "content-length").filter(|_| response.status().is_success());
        let size = text(headers, "x-linked-size").or_else(own).and_then(|size| size.parse().ok());
        digest.zip(size).ok_or_else(|| {
            Error::unsupported(OPERATION, "the server promises no digest and size of the file, so that it cannot be verified; use another HF_ENDPOINT, or a folder")
                .with("url", shown(url))
                .with("etag", etag)
        })
    }

    /// Asks for a file, or for what of it is behind `from` bytes.
    pub(super) async fn get(&self, url: &Url, from: u64) -> Result<Response> {
        let mut request = self.request(&self.http.files, Method::GET, url);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        self.send(request, url, |status| status.is_success()).await
    }

    fn at<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // An address with a host always has segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    fn request(&self, http: &reqwest::Client, method: Method, url: &Url) -> RequestBuilder {
        // Bytes are counted and continued, so they have to come as they are.
        let request = http.request(method, url.clone()).header("accept-encoding", "identity");
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder, url: &Url, fits: impl Fn(StatusCode) -> bool) -> Result<Response> {
        let response = request.send().await.map_err(|error| away(url, error))?;
        if fits(response.status()) { Ok(response) } else { Err(refusal(&response, url)) }
    }
}

impl Http {
    fn new(idle_timeout: Duration) -> Result<Self> {
        let client = |policy: Policy| {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("hybrid-local/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(idle_timeout)
                .redirect(policy);
            builder.build().map_err(|error| Error::internal(OPERATION, "no client can be made").with_source(error))
        };
        let at_home = Policy::custom(|attempt| {
            let origin = attempt.previous().first().map(Url::origin);
            let stays = origin == Some(attempt.url().origin()) && attempt.previous().len() <= MAX_REDIRECTS;
            if stays { attempt.follow() } else { attempt.stop() }
        });
        Ok(Self { files: client(Policy::limited(MAX_REDIRECTS))?, answers: client(at_home)? })
    }
}

fn parse(endpoint: &str) -> Result<Url> {
    let url = Url::parse(endpoint).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    url.ok_or_else(|| {
        Error::invalid(OPERATION, "the hub's endpoint is no address such as https://huggingface.co; set HF_ENDPOINT")
            .with("endpoint", endpoint.rsplit_once('@').map_or(endpoint, |(_password, host)| host))
    })
}

/// What an answer means that is not the one asked for.
fn refusal(response: &Response, url: &Url) -> Error {
    let (status, headers) = (response.status(), response.headers());
    let code = text(headers, "x-error-code").unwrap_or_default();
    let (kind, message) = match (code, status) {
        // To strangers the hub says the same of models that it hides.
        ("RepoNotFound", _) => (
            ErrorKind::NotFound,
            "the hub has no such model, or shows it only with a token; check the name or set HF_TOKEN",
        ),
        ("RevisionNotFound", _) => (ErrorKind::NotFound, "the model has no such revision"),
        ("EntryNotFound", _) => (ErrorKind::NotFound, "the model has no such file"),
        ("GatedRepo", _) => (
            ErrorKind::PermissionDenied,
            "the model is gated; accept its conditions on its page, and set HF_TOKEN to a token of that account",
        ),
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => (
            ErrorKind::PermissionDenied,
            "the hub refuses the model; set HF_TOKEN to a token that may read it, or check its name",
        ),
        (_, StatusCode::NOT_FOUND) => (ErrorKind::NotFound, "the hub has no such model, revision or file"),
        (_, StatusCode::TOO_MANY_REQUESTS) => {
            (ErrorKind::RateLimited, "the hub is asked too often; wait, or set HF_TOKEN")
        }
        (_, StatusCode::REQUEST_TIMEOUT) => (ErrorKind::Timeout, "the hub waited too long for the request"),
        (_, status) if status.is_server_error() => (ErrorKind::Unavailable, "the hub is out of order for now"),
        _ => (ErrorKind::Internal, "the hub gave an answer that was not expected"),
    };
    let mut error = Error::new(kind, OPERATION, message).with("status", status.as_u16()).with("url", shown(url));
    if let Some(reason) = text(headers, "x-error-message") {
        error = error.with("reason", reason);
    }
    match text(headers, "retry-after").and_then(|seconds| seconds.parse().ok()) {
        Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
        None => error,
    }
}

/// A connection that was not made, or that ended.
pub(super) fn away(url: &Url, error: reqwest::Error) -> Error {
    let (kind, message) = match error.is_timeout() {
        true => {
            (ErrorKind::Timeout, "the hub sent nothing for too long; with HF_HUB_OFFLINE=1 what the cache has is used")
        }
        false => {
            (ErrorKind::Unavailable, "the hub cannot be reached; with HF_HUB_OFFLINE=1 what the cache has is used")
        }
    };
    Error::new(kind, OPERATION, message).with("url", shown(url)).with_source(error.without_url())
}

/// A header that is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, token, http: _ } = self;
        let token = token.as_ref().map(|_| "…");
        f.debug_struct("Client").field("endpoint", &shown(endpoint)).field("token", &token).finish_non_exhaustive()
    }
}
