//! A storefront over ports in memory, called in process or over a socket.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request},
};
use http_body_util::BodyExt;
use hybrid_cloud::storefront::{Authenticator, Drained, Principal, Storefront, StorefrontBuilder};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, CollectionName, DatasetName, DownloadOptions, Error,
    ErrorKind, Event, InferenceBackend, JobEnd, JobId, JobKind, JobOrder, JobStatus, Jobs, Judgment, JudgmentSink, Key,
    ManualClock, Presign, Reply, Result, SeededIds, SignedRequest, TenantId, Timestamp, UploadOptions, VectorSchema,
    memory::{MemoryRecordStore, MemoryVectorIndex, ScriptedBackend},
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
    vector::Metric,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tower::ServiceExt;

pub(crate) const NOON: &str = "2026-03-01T12:00:00Z";

pub(crate) fn noon() -> ManualClock {
    ManualClock::at(NOON.parse().unwrap())
}

pub(crate) fn labelled(label: &str) -> ClassifyResponse {
    let scores = vec![LabelScore::new(label, 0.75), LabelScore::new("other", 0.25)];
    ClassifyResponse { results: vec![Classification::ranked(scores, None).unwrap()] }
}

/// A model that says `order` as often as it is asked.
pub(crate) fn orders() -> Arc<ScriptedBackend<Classify>> {
    Arc::new(ScriptedBackend::new("scripted", std::iter::repeat_with(|| Ok(labelled("order"))).take(64)))
}

/// A builder with time and ids that a test can tell.
pub(crate) fn builder(clock: &ManualClock) -> StorefrontBuilder {
    Storefront::builder().clock(Arc::new(clock.clone())).ids(Arc::new(SeededIds::default()))
}

pub(crate) fn app(backend: Arc<dyn InferenceBackend<Classify>>) -> Router {
    builder(&noon()).classify("messages", backend).build().unwrap().router()
}

pub(crate) fn dataset() -> DatasetName {
    DatasetName::new("bakery").unwrap()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn error(&self, field: &str) -> &str {
        self.body["error"][field].as_str().unwrap_or_else(|| panic!("no {field} in {self:?}"))
    }
}

pub(crate) async fn call(router: &Router, request: Request<Body>) -> Answer {
    let response = soon(router.clone().oneshot(request)).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub(crate) fn classify(body: &Value) -> Request<Body> {
    post("/v1/classify", body.to_string())
}

/// Knows a few tokens, one of them revoked.
#[derive(Debug, Default)]
pub(crate) struct Tokens(BTreeMap<&'static str, Arc<Principal>>);

impl Tokens {
    pub(crate) fn new(known: impl IntoIterator<Item = (&'static str, Principal)>) -> Arc<Self> {
        Arc::new(Self(known.into_iter().map(|(token, principal)| (token, Arc::new(principal))).collect()))
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Option<Arc<Principal>>> {
        match token {
            "revoked" => {
                Err(Error::new(ErrorKind::PermissionDenied, "authenticate", "the key is revoked").with("key", "k-7"))
            }
            "nobody-knows" => Err(Error::unavailable("authenticate", "the key server is away").with("at", "10.0.0.7")),
            token => Ok(self.0.get(token).cloned()),
        }
    }
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// The request with a bearer token.
pub(crate) fn from(token: &str, mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Takes orders for work that is never done, and knows one job that has ended for each tenant.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    orders: Mutex<Vec<(JobId, JobOrder)>>,
    pub(crate) stalled: Mutex<Option<Timestamp>>,
    pub(crate) end: Mutex<Option<JobEnd>>,
}

impl Desk {
    /// The id of a job that every tenant has.
    pub(crate) const ALWAYS: &str = "01890000-0000-7000-8000-000000000000";

    pub(crate) fn orders(&self) -> Vec<JobOrder> {
        self.orders.lock().unwrap().iter().map(|(_, order)| order.clone()).collect()
    }
}

#[async_trait]
impl Jobs for Desk {
    async fn submit(&self, order: JobOrder) -> Result<JobId> {
        let id = JobId::next(&SeededIds::new(self.orders().len() as u64));
        self.orders.lock().unwrap().push((id, order));
        Ok(id)
    }

    async fn status(&self, tenant: &TenantId, id: JobId) -> Result<Option<JobStatus>> {
        let orders = self.orders.lock().unwrap();
        let (kind, request) = match orders.iter().find(|(known, order)| *known == id && order.tenant == *tenant) {
            Some((_, order)) => (order.kind.clone(), order.request.clone()),
            None if id.to_string() == Self::ALWAYS => (JobKind::new("enrich")?, None),
            None => return Ok(None),
        };
        let (stalled, end) = (*self.stalled.lock().unwrap(), self.end.lock().unwrap().clone());
        Ok(Some(JobStatus { kind, submitted: NOON.parse()?, request, stalled, end }))
    }
}

/// An index of vectors of two numbers, and a store of reviews.
pub(crate) fn kept(builder: StorefrontBuilder, embedder: Option<&str>) -> StorefrontBuilder {
    let index = MemoryVectorIndex::new(VectorSchema::new(2, Metric::Cosine).unwrap());
    let reviews = CollectionName::new("reviews").unwrap();
    let records = MemoryRecordStore::new(Arc::new(noon()));
    builder.vectors(Arc::new(index), embedder).records(Arc::new(records), [reviews])
}

/// Signs links that lead nowhere.
#[derive(Debug)]
pub(crate) struct Links;

impl Links {
    fn to(method: &str, key: &Key) -> Result<SignedRequest> {
        let (url, expires) = (format!("https://bucket.invalid/{key}?signed"), NOON.parse()?);
        Ok(SignedRequest { method: method.to_owned(), url, headers: Vec::new(), expires })
    }
}

#[async_trait]
impl Presign for Links {
    async fn presign_upload(&self, key: &Key, _: UploadOptions) -> Result<SignedRequest> {
        Self::to("PUT", key)
    }

    async fn presign_download(&self, key: &Key, _: DownloadOptions) -> Result<SignedRequest> {
        Self::to("GET", key)
    }
}

/// Keeps judgments, and fails as told: one entry of the script a call, `None` for success.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    kept: Mutex<Vec<(TenantId, DatasetName, Judgment)>>,
    script: Mutex<VecDeque<Option<Error>>>,
}

impl Sink {
    pub(crate) fn failing(script: impl IntoIterator<Item = Option<Error>>) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.into_iter().collect()), ..Self::default() })
    }

    pub(crate) fn judgments(&self) -> Vec<Judgment> {
        self.kept.lock().unwrap().iter().map(|(_, _, judgment)| judgment.clone()).collect()
    }

    pub(crate) fn places(&self) -> Vec<(TenantId, DatasetName)> {
        self.kept.lock().unwrap().iter().map(|(tenant, dataset, _)| (tenant.clone(), dataset.clone())).collect()
    }
}

#[async_trait]
impl JudgmentSink for Sink {
    async fn record(&self, tenant: &TenantId, dataset: &DatasetName, judgment: Judgment) -> Result<()> {
        if let Some(Some(error)) = self.script.lock().unwrap().pop_front() {
            return Err(error);
        }
        self.kept.lock().unwrap().push((tenant.clone(), dataset.clone(), judgment));
        Ok(())
    }
}

/// A model that says when a call has come in, and answers when it is let.
#[derive(Debug)]
pub(crate) struct Gate {
    inner: Arc<ScriptedBackend<Classify>>,
    entered: Semaphore,
    open: Semaphore,
    calls: Mutex<Vec<CallContext>>,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Self> {
        Arc::new(Self { inner: orders(), entered: Semaphore::new(0), open: Semaphore::new(0), calls: Mutex::default() })
    }

    /// Waits for the next call to be at work; answers with its context.
    pub(crate) async fn entered(&self) -> CallContext {
        soon(self.entered.acquire()).await.unwrap().forget();
        self.calls.lock().unwrap().last().unwrap().clone()
    }

    /// Lets one call go on.
    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

#[async_trait]
impl InferenceBackend<Classify> for Gate {
    fn profile(&self) -> Arc<BackendProfile> {
        self.inner.profile()
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        self.calls.lock().unwrap().push(cx.clone());
        self.entered.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        self.inner.infer(cx, request).await
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        self.inner.stream(cx, request).await
    }
}

/// A storefront on a loopback port.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) at: SocketAddr,
    pub(crate) stop: Cancellation,
    pub(crate) done: JoinHandle<Drained>,
}

pub(crate) const GRACE: Duration = Duration::from_secs(5);

pub(crate) async fn serve(storefront: &Storefront) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, stop, storefront) = (listener.local_addr().unwrap(), Cancellation::new(), storefront.clone());
    let stopped = stop.clone().cancelled_owned();
    let done = tokio::spawn(async move { storefront.serve(listener, storefront.router(), stopped, GRACE).await });
    Served { at, stop, done }
}

impl Served {
    /// Opens a connection and sends `head`, with line ends put right, and `body`.
    pub(crate) async fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        let head = head.replace('\n', "\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        stream
    }
}

/// A request to classify with `body`, on a connection that is closed after it.
pub(crate) fn classify_head(length: usize) -> String {
    format!(
        "POST /v1/classify HTTP/1.1\nhost: shop\nconnection: close\ncontent-type: application/json\ncontent-length: {length}\n\n"
    )
}

pub(crate) const ASK: &str = r#"{"input":"two loaves, please"}"#;

/// Waits for what must happen at once; only a broken promise takes so long that the limit matters.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), event).await.expect("it never happened")
}

/// All that comes until the other side closes: head and body.
pub(crate) async fn read_all(stream: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.to_owned(), body.to_owned())
}

/// Sends a request on a connection that stays open, and reads its 200 up to `end`.
pub(crate) async fn keep_alive(stream: &mut TcpStream, head: &str, body: &str, end: &str) {
    let head = head.replace("connection: close\n", "").replace('\n', "\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
    }
    assert!(read.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&read));
}

/// Waits until somebody sleeps who wakes after `limit` at the latest.
pub(crate) async fn asleep_within(clock: &ManualClock, limit: Duration) {
    soon(async {
        while clock.next_wake().is_none_or(|wake| wake > limit) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Waits until `clock` has `count` sleepers: the moment when time may move.
pub(crate) async fn asleep(clock: &ManualClock, count: usize) {
    soon(async {
        while clock.sleepers() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
