//! The storefront as a function, driven over the protocol of Lambda's runtime API.

use std::{
    collections::HashMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as Segment, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use base64::Engine;
use hybrid_cloud::storefront::{KeyList, NewKey};
use hybrid_core::{ArtifactStoreExt, Clock, DatasetName, DatasetRef, Document, SystemClock, TenantId};
use hybrid_examples::{locations::Locations, site::Site};
use hybrid_local::FolderStore;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::{Mutex as Turn, mpsc, oneshot},
};

use crate::app;

/// The service's side of the runtime API: gives events out and takes answers.
struct Service {
    events: Turn<mpsc::Receiver<(String, Value)>>,
    waiting: Mutex<HashMap<String, oneshot::Sender<(StatusCode, Value)>>>,
}

async fn next(State(service): State<Arc<Service>>) -> impl IntoResponse {
    let (id, event) = service.events.lock().await.recv().await.unwrap();
    let headers = [
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", "4102444800000".to_owned()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:f".to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    (headers, event.to_string())
}

async fn answer(
    State(service): State<Arc<Service>>,
    Segment((id, kind)): Segment<(String, String)>,
    _headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let status = if kind == "response" { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let waiting = service.waiting.lock().unwrap().remove(&id);
    waiting.unwrap().send((status, serde_json::from_slice(&body).unwrap())).unwrap();
    StatusCode::ACCEPTED
}

/// A function that runs under a service of the test's own.
struct Function {
    service: Arc<Service>,
    events: mpsc::Sender<(String, Value)>,
    invocations: usize,
    _process: Child,
}

impl Function {
    /// A function that lets anyone in, unless `more` has a list of keys.
    async fn start(site: &Path, more: &[(&str, String)]) -> Self {
        let (events, receiver) = mpsc::channel(1);
        let service = Arc::new(Service { events: Turn::new(receiver), waiting: Mutex::default() });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{kind}", post(answer))
            .with_state(Arc::clone(&service));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });

        let mut program = Self::program(site);
        program.env("AWS_LAMBDA_RUNTIME_API", address.to_string()).env("HYBRID_OPEN", "true");
        program.envs(more.iter().map(|(name, value)| (name, value)));
        let process = program.spawn().unwrap();
        Self { service, events, invocations: 0, _process: process }
    }

    /// The program with what the service and the site say to it, and nothing about who may come in.
    fn program(site: &Path) -> Command {
        let key = |name: &str| std::fs::read_to_string(site.join("keys").join(name)).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_storefront-lambda"));
        program
            .env("AWS_LAMBDA_FUNCTION_NAME", "f")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("HYBRID_SITE", tempfile::tempdir().unwrap().keep())
            .env("HYBRID_ARTIFACTS", format!("file://{}", site.join("artifacts").display()))
            .env("HYBRID_BUILDER_KEY", key("builder.pub.pem"))
            .env("HYBRID_RELEASE_KEY", key("release.pub.pem"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        program
    }

    /// One request as an HTTP API sends it: status and body.
    async fn call(&mut self, method: &str, path: &str, body: Option<Value>) -> (u64, Value) {
        self.call_as("", method, path, body).await
    }

    /// The same with an API key.
    async fn call_as(&mut self, key: &str, method: &str, path: &str, body: Option<Value>) -> (u64, Value) {
        self.invocations += 1;
        let id = format!("00000000-0000-0000-0000-{:012}", self.invocations);
        let (sender, answer) = oneshot::channel();
        self.service.waiting.lock().unwrap().insert(id.clone(), sender);
        let mut event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "",
            "headers": { "content-type": "application/json", "host": "abc.execute-api.eu-central-1.amazonaws.com" },
            "requestContext": {
                "accountId": "123456789012", "apiId": "abc", "domainName": "abc.execute-api.eu-central-1.amazonaws.com",
                "domainPrefix": "abc", "requestId": id, "routeKey": "$default", "stage": "$default",
                "time": "06/Mar/2026:12:00:00 +0000", "timeEpoch": 1_772_798_400_000_i64,
                "http": { "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "test" },
            },
            "body": body.map(|body| body.to_string()), "isBase64Encoded": false,
        });
        if !key.is_empty() {
            event["headers"]["authorization"] = format!("Bearer {key}").into();
        }
        self.events.send((id, event)).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("the function is silent");
        let (status, answer) = answered.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        let text = answer["body"].as_str().unwrap_or_default();
        let text = match answer["isBase64Encoded"].as_bool() {
            Some(true) => String::from_utf8(base64::prelude::BASE64_STANDARD.decode(text).unwrap()).unwrap(),
            _ => text.to_owned(),
        };
        (answer["statusCode"].as_u64().unwrap(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// A site with versions in its bucket.
fn site() -> tempfile::TempDir {
    let site = tempfile::tempdir().unwrap();
    app::summary(&app::quickstart(site.path()).output().unwrap());
    site
}

/// A key of a tenant, and the list that knows it, as the function's environment has it.
fn key(tenant: &TenantId) -> (String, (&'static str, String)) {
    let key = NewKey::generate(tenant.clone(), "shop", SystemClock.now()).unwrap();
    let list = KeyList { keys: vec![key.record().clone()] }.encode().unwrap();
    (key.reveal().to_owned(), ("HYBRID_API_KEYS", String::from_utf8(list.into()).unwrap()))
}

#[tokio::test]
async fn a_function_serves_what_the_channel_names_and_acknowledges_what_is_in_the_bucket() {
    let site = site();
    let (key, keys) = key(&TenantId::single());
    let mut function = Function::start(site.path(), &[keys]).await;
    assert_eq!(function.call("GET", "/healthz", None).await.0, 200);

    let question = json!({ "input": "Do your rolls contain sesame?" });
    let (status, answer) = function.call_as(&key, "POST", "/v1/classify", Some(question)).await;
    assert_eq!((status, answer["version"].as_u64()), (200, Some(2)), "{answer}");
    assert!(answer["results"][0]["label"].is_string());

    let store = FolderStore::open(site.path().join("artifacts")).unwrap();
    let dataset = async || {
        let tenant = TenantId::single();
        let fixed = DatasetRef::fix(&store, &tenant, &DatasetName::new("bakery").unwrap()).await.unwrap();
        fixed.read(&store).await.unwrap()
    };
    let before = dataset().await.len();
    let judgment = json!({ "input": "Is the function open on Sundays?", "label": "hours" });
    assert_eq!(function.call_as(&key, "POST", "/v1/judgments", Some(judgment)).await.0, 201);
    let after = dataset().await;
    assert_eq!(after.len(), before + 1);
    assert!(after.iter().any(|judgment| judgment.input["text"] == "Is the function open on Sundays?"));
    assert_eq!(function.call_as(&key, "POST", "/v1/classify", Some(json!({ "inputs": 1 }))).await.0, 400);
    assert!(
        store
            .list_all("t/default/datasets/bakery/")
            .await
            .unwrap()
            .iter()
            .any(|meta| meta.key.as_str().contains("/function-"))
    );
}

#[tokio::test]
async fn nobody_without_a_key_decides_what_the_next_version_learns() {
    let site = tempfile::tempdir().unwrap();
    Site::open(&Locations::folder(site.path())).await.unwrap().signers().unwrap();
    let judgment = || Some(json!({ "input": "Is the function open on Sundays?", "label": "hours" }));
    let (_, keys) = key(&TenantId::single());
    let mut function = Function::start(site.path(), &[keys]).await;
    let (stranger, _) = key(&TenantId::single());
    for key in ["", &stranger, "hk_"] {
        assert_eq!(function.call_as(key, "POST", "/v1/judgments", judgment()).await.0, 401, "{key}");
        let question = Some(json!({ "input": "Are you open?" }));
        assert_eq!(function.call_as(key, "POST", "/v1/classify", question).await.0, 401, "{key}");
    }
    // Who lets anyone in takes judgments from nobody.
    let mut function = Function::start(site.path(), &[]).await;
    assert_eq!(function.call("POST", "/v1/judgments", judgment()).await.0, 404);
    assert!(!site.path().join("artifacts/t").exists());
    // And nobody opens it by leaving something out.
    let started = Function::program(site.path()).env("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1").output().await.unwrap();
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(!started.status.success() && said.contains("HYBRID_API_KEYS") && said.contains("HYBRID_OPEN"), "{said}");
}

#[tokio::test]
async fn a_cold_start_goes_no_lower_than_the_floor_of_its_configuration() {
    let site = site();
    let floor = std::fs::read_to_string(site.path().join("storefront/models/bakery.stable.floor.json")).unwrap();
    // Somebody sets the channel back to the first version.
    let statement = |number: u64| site.path().join(format!("artifacts/channels/bakery/stable/{number:020}"));
    std::fs::remove_file(statement(2)).unwrap();
    assert!(statement(1).exists() && !statement(3).exists());
    let version = async |more: &[(&str, String)]| {
        let mut function = Function::start(site.path(), more).await;
        let (status, answer) = function.call("POST", "/v1/classify", Some(json!({ "input": "Are you open?" }))).await;
        assert_eq!(status, 200, "{answer}");
        answer["version"].as_u64().unwrap()
    };
    assert_eq!(version(&[]).await, 1, "nothing tells a function without a floor that there was more");
    assert_eq!(version(&[("HYBRID_FLOOR", floor)]).await, 2);
}

#[cfg(feature = "telemetry")]
#[tokio::test]
async fn what_a_function_tells_is_with_the_collector_before_it_may_be_frozen_and_a_hanging_collector_stops_no_answer() {
    use hybrid_cloud::testkit::otlp::Collector;

    let (site, collector) = (site(), Collector::start().unwrap());
    let mut function = Function::start(site.path(), &[("HYBRID_OTLP", collector.endpoint())]).await;
    for asked in 1..=2 {
        let (status, answer) = function.call("POST", "/v1/classify", Some(json!({ "input": "Are you open?" }))).await;
        assert_eq!(status, 200, "{answer}");
        // The service has the answer and freezes the function: nothing more can come.
        let spans = collector.spans().unwrap();
        assert_eq!(spans.iter().filter(|span| span.name == "POST /v1/classify").count(), asked, "{spans:#?}");
        let points = collector.points().unwrap();
        let durations = points.iter().find(|point| point.metric == "http.server.request.duration").unwrap();
        assert_eq!(durations.count, asked as u64, "{points:#?}");
    }
    collector.hang();
    let (status, _) = function.call("POST", "/v1/classify", Some(json!({ "input": "Are you open?" }))).await;
    assert_eq!(status, 200);
}
