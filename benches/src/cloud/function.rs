//! Cold starts of a cloud function: this program again, under a runtime API of our own, with its model in a bucket.

use std::{
    fs,
    future::pending,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use hybrid_cloud::{
    aws::AwsConfig,
    s3::{S3Location, S3Options, S3Store},
    storefront::{Answers, Storefront},
    testkit::Seaweed,
};
use hybrid_core::{CandidateFile, ChannelName, Clock, FileName, Signer, SystemClock, SystemIds};
use hybrid_sync::{
    live::{LiveModel, OnDemand},
    registry::{MemoryFloor, Namespace, PublicKey, Registry, Release, Trust},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};

use super::s3;
use crate::{
    http::bare_router,
    linear::{LinearLoader, WEIGHTS, weights},
    must,
    registry::{Site, model},
    scratch,
};

/// What tells this program what to be; its value is a [`Kind`]'s name.
const VARIABLE: &str = "HYBRID_BENCH_FUNCTION";
const PREFIX: &str = "function";

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A storefront whose model lies in the bucket.
    Storefront,
    /// A bare axum handler with the same model in its program.
    Bare,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Storefront => "storefront",
            Self::Bare => "bare",
        }
    }
}

/// How long a process took, from before it existed.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Until it asked for its first request.
    pub ready: Duration,
    /// Until the first answer was there.
    pub answered: Duration,
}

/// A bucket with a version in service, and the service that starts functions.
#[derive(Debug)]
pub struct Service {
    bucket: s3::Site,
    site: Site,
    address: String,
    api: Arc<Api>,
    moments: mpsc::Receiver<Instant>,
    folder: TempDir,
}

impl Service {
    /// Publishes and releases a version, and listens.
    pub fn start(runtime: &Runtime) -> Self {
        let (bucket, folder) = (s3::Site::start(runtime), scratch());
        let site = Site::new(Arc::new(bucket.store(PREFIX)), folder.path());
        let path = folder.path().join(WEIGHTS);
        must(fs::write(&path, weights(1)));
        let (told, moments) = mpsc::channel(2);
        let api = Arc::new(Api { told, has_request: AtomicBool::new(false) });
        let router = runtime_api(Arc::clone(&api));
        let address = runtime.block_on(async {
            let file = CandidateFile { name: must(FileName::new(WEIGHTS)), path };
            let manifest = site.publish(1, file, None).await.manifest;
            let release = Release::new(manifest, None, "bench", &SystemIds::default());
            let channel = site.registry.channel(&model(), &ChannelName::stable());
            let day = Duration::from_secs(86_400);
            must(channel.append(release, &site.release, SystemClock.now(), day).await);
            let listener = must(TcpListener::bind("127.0.0.1:0").await);
            let address = must(listener.local_addr()).to_string();
            tokio::spawn(async move { must(axum::serve(listener, router).await) });
            address
        });
        Self { bucket, site, address, api, moments, folder }
    }

    /// Starts a function and lets it classify a message.
    pub fn call(&mut self, runtime: &Runtime, kind: Kind) -> Started {
        self.api.has_request.store(true, Ordering::SeqCst);
        let started = Instant::now();
        let mut process = self.spawn(kind);
        let mut next = || runtime.block_on(self.moments.recv());
        let [ready, answered] = [next(), next()].map(|moment| must(moment.ok_or("the service has ended")) - started);
        must(process.kill());
        must(process.wait());
        Started { ready, answered }
    }

    fn spawn(&self, kind: Kind) -> Child {
        let home = must(tempfile::tempdir_in(self.folder.path())).keep();
        let mut command = Command::new(must(std::env::current_exe()));
        command.env(VARIABLE, kind.name()).stdin(Stdio::null()).envs([
            ("AWS_LAMBDA_RUNTIME_API", self.address.as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("HYBRID_ENDPOINT", self.bucket.server().endpoint()),
            ("HYBRID_BUILDER_KEY", self.site.builder.public_key_pem()),
            ("HYBRID_RELEASE_KEY", self.site.release.public_key_pem()),
        ]);
        must(command.env("HYBRID_HOME", home).spawn())
    }
}

/// As much of the runtime API as one request needs.
#[derive(Debug)]
struct Api {
    /// Hears when a function was ready, and when it had answered.
    told: mpsc::Sender<Instant>,
    has_request: AtomicBool,
}

fn runtime_api(api: Arc<Api>) -> Router {
    Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{id}/response", post(answered))
        .with_state(api)
}

async fn next(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let moment = Instant::now();
    if !api.has_request.swap(false, Ordering::SeqCst) {
        // It has answered, and is about to be killed.
        pending::<()>().await;
    }
    must(api.told.send(moment).await);
    let headers = [
        ("lambda-runtime-aws-request-id", "00000000-0000-0000-0000-000000000001"),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:bench"),
        ("content-type", "application/json"),
    ];
    (headers, event().to_string())
}

async fn answered(State(api): State<Arc<Api>>, body: Bytes) -> StatusCode {
    let moment = Instant::now();
    let answer: Value = must(serde_json::from_slice(&body));
    assert_eq!(answer["statusCode"], 200, "{answer}");
    must(api.told.send(moment).await);
    StatusCode::ACCEPTED
}

/// One request as an HTTP API sends it.
fn event() -> Value {
    let http = json!({
        "method": "POST", "path": "/v1/classify", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "bench",
    });
    json!({
        "version": "2.0", "routeKey": "$default", "rawPath": "/v1/classify", "rawQueryString": "",
        "headers": { "content-type": "application/json", "host": "bench" },
        "requestContext": {
            "accountId": "123456789012", "apiId": "abc", "domainName": "bench", "domainPrefix": "abc", "requestId": "1",
            "routeKey": "$default", "stage": "$default", "time": "06/Mar/2026:12:00:00 +0000",
            "timeEpoch": 1_772_798_400_000_i64, "http": http,
        },
        "body": r#"{"input":"two loaves"}"#, "isBase64Encoded": false,
    })
}

/// Whether this process is to be what is measured.
pub fn is_asked() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Serves until it is killed.
pub fn run() {
    let runtime = must(tokio::runtime::Builder::new_current_thread().enable_all().build());
    runtime.block_on(async {
        if std::env::var(VARIABLE).is_ok_and(|kind| kind == Kind::Bare.name()) {
            return must(lambda_http::run(bare_router()).await);
        }
        let variable = |name: &str| must(std::env::var(name));
        let aws = must(AwsConfig::load(Seaweed::options(&variable("HYBRID_ENDPOINT"))).await);
        let location = must(S3Location::new(s3::BUCKET, PREFIX));
        let store = Arc::new(must(S3Store::new(&aws, location, S3Options::default())));
        let key = |name| vec![must(PublicKey::from_pem(&variable(name)))];
        let trust = Trust { builders: key("HYBRID_BUILDER_KEY"), releases: key("HYBRID_RELEASE_KEY") };
        let registry = Registry::new(store, Namespace::root());
        let home = PathBuf::from(variable("HYBRID_HOME"));
        let live = LiveModel::builder(registry, model(), ChannelName::stable(), trust, Arc::new(LinearLoader), home);
        let live = must(live.floor(Arc::new(MemoryFloor::default())).build().await);
        let backend = OnDemand::new(live, Arc::new(SystemClock), Duration::from_secs(60));
        let storefront = must(Storefront::builder().classify("linear", Arc::new(backend)).build());
        must(storefront.serve_lambda(Answers::Whole, async || {}).await);
    });
}
