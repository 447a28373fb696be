//! Data that must not leave the device, or the site, does not: from the HTTP edge through the live model, streaming too.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hybrid_cloud::storefront::{ApiKeys, CredentialFile, KeyList, KeyRecord, NewKey, Storefront};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, CandidateFile, ChannelName, Clock, DataPolicy, DatasetName,
    DatasetRef, Digest, Document, Error, ErrorKind, Event, FileName, Files, InferenceBackend, Interval, JobKind,
    Limits, Lineage, Locality, Manifest, ModelLoader, ModelName, Reply, ReplyMeta, RequestId, Requirements, Result,
    ServedModel, SystemClock, SystemIds, TenantId, TrainPlan, Usage, Verdict, VerdictRecord,
    inference::{collect_reply, stream_reply},
    memory::{MemoryStore, ScriptedBackend},
    task::{Chat, ChatResponse, Classification, Classify, ClassifyRequest, ClassifyResponse, Message},
};
use hybrid_local::{FolderStore, SqliteOutbox, SqliteQueue, SqliteQueueOptions};
use hybrid_sync::{
    batch::{BatchOptions, Enrich},
    job::QueuedJobs,
    live::LiveModel,
    registry::{Draft, FileSigner, Namespace, PublishOptions, Registry, Release, Trust},
    worker::Worker,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::app::{answer, until};

/// A server elsewhere: counts the bytes that reach it.
#[derive(Debug)]
struct Elsewhere {
    address: std::net::SocketAddr,
    bytes: Arc<AtomicUsize>,
}

impl Elsewhere {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let seen = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                // Even a connection tells that there is a customer.
                seen.fetch_add(1, Ordering::SeqCst);
                let mut text = Vec::new();
                caller.read_to_end(&mut text).await.unwrap();
                seen.fetch_add(text.len(), Ordering::SeqCst);
                caller.write_all(b"order").await.unwrap();
            }
        });
        Self { address, bytes }
    }

    fn seen(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// A backend that checks nothing itself and sends the text to a server, unless it runs on this device.
#[derive(Debug)]
struct Careless {
    profile: Arc<BackendProfile>,
    server: std::net::SocketAddr,
}

impl Careless {
    async fn answer(&self, text: &str) -> std::io::Result<String> {
        if self.profile.locality == Locality::Device {
            return Ok("order".to_owned());
        }
        let mut server = TcpStream::connect(self.server).await?;
        server.write_all(text.as_bytes()).await?;
        server.shutdown().await?;
        let mut label = String::new();
        server.read_to_string(&mut label).await?;
        Ok(label)
    }
}

#[async_trait]
impl InferenceBackend<Classify> for Careless {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, _cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        let label = self.answer(&request.inputs[0]).await;
        let label = label.map_err(|error| Error::unavailable("classify", "the server is away").with_source(error))?;
        let result = Classification { label, confidence: 1.0, scores: Vec::new() };
        let meta = ReplyMeta::of(&self.profile, Duration::ZERO, Usage::default())?;
        Ok(Reply { response: ClassifyResponse { results: vec![result] }, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

/// Loads versions whose only file says where they run.
#[derive(Debug)]
struct Loader {
    server: std::net::SocketAddr,
}

#[async_trait]
impl ModelLoader<Classify> for Loader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let locality = serde_json::from_slice(&std::fs::read(folder.join("where.json")).unwrap()).unwrap();
        let model =
            ServedModel { name: manifest.model.to_string(), version: Some(manifest.version), manifest: Some(digest) };
        let profile =
            BackendProfile { name: "careless".to_owned(), model, locality, limits: Limits::default(), price: None };
        Ok(Arc::new(Careless { profile: Arc::new(profile), server: self.server }))
    }
}

fn draft(version: u64, path: &Path) -> Draft {
    let model = ModelName::new("bakery").unwrap();
    let dataset = DatasetRef { name: DatasetName::new("bakery").unwrap(), segments: Vec::new() };
    let interval = Interval { value: 1.0, low: 0.9, high: 1.0 };
    Draft {
        model: model.clone(),
        version,
        task: "classify".to_owned(),
        architecture: "careless/1".to_owned(),
        files: vec![CandidateFile { name: FileName::new("where.json").unwrap(), path: path.to_owned() }],
        requirements: Requirements::default(),
        lineage: Lineage {
            dataset: dataset.digest(),
            plan: TrainPlan {
                model,
                method: "none".to_owned(),
                base: None,
                dataset,
                hyperparameters: BTreeMap::new(),
                seed: 0,
            },
            examples: 0,
            trainer: "none".to_owned(),
            device: "cpu".to_owned(),
        },
        verdict: VerdictRecord {
            verdict: Verdict::Promote,
            golden: Digest::of(b"golden"),
            cases: 1,
            incumbent: None,
            metric: "accuracy".to_owned(),
            candidate: interval,
            baseline: None,
            fixes: 0,
            regressions: 0,
            p: None,
            ece: None,
        },
        metadata: BTreeMap::new(),
        base: None,
    }
}

/// A storefront under `policy` on a loopback port.
async fn serve(live: &LiveModel<Classify>, policy: DataPolicy, stop: &Cancellation) -> String {
    let http = Storefront::builder().classify("bakery", Arc::new(live.clone())).policy(policy).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/classify", listener.local_addr().unwrap());
    let stop = stop.clone();
    tokio::spawn(async move {
        let router = http.router();
        http.serve(listener, router, stop.cancelled_owned(), Duration::from_secs(1)).await
    });
    url
}

#[tokio::test]
async fn data_never_reaches_a_backend_outside_its_policy_whatever_version_is_in_service() {
    let (folder, elsewhere, stop) = (tempfile::tempdir().unwrap(), Elsewhere::start().await, Cancellation::new());
    let registry = Registry::new(Arc::new(MemoryStore::default()), Namespace::root());
    let key = |name: &str| FileSigner::generate(&folder.path().join(name)).unwrap();
    let (builder, release) = (key("builder.pem"), key("release.pem"));
    let trust = Trust { builders: vec![builder.public_key().clone()], releases: vec![release.public_key().clone()] };
    let model = ModelName::new("bakery").unwrap();
    let loader = Arc::new(Loader { server: elsewhere.address });
    let cache = folder.path().join("cache");
    let channel = ChannelName::stable();
    let live = LiveModel::builder(registry.clone(), model.clone(), channel.clone(), trust, loader, cache)
        .build()
        .await
        .unwrap();

    let region = |name: &str| Locality::Region(name.to_owned());
    let policies = [
        DataPolicy::Device,
        DataPolicy::Site,
        DataPolicy::Regions(vec!["eu-central-1".to_owned()]),
        DataPolicy::Anywhere,
    ];
    let mut storefronts = Vec::new();
    for policy in policies {
        storefronts.push((serve(&live, policy.clone(), &stop).await, policy));
    }
    // The same storefronts all along: what changes is the version, as a kitchen may change it at any time.
    let versions = [
        (Locality::Device, [true, true, true, true]),
        (Locality::Site, [false, true, true, true]),
        (region("eu-central-1"), [false, false, true, true]),
        (region("us-east-1"), [false, false, false, true]),
    ];
    let (http, ids, mut incumbent) = (reqwest::Client::new(), SystemIds::default(), None);
    for (version, (locality, admitted)) in (1..).zip(versions) {
        let path = folder.path().join(format!("where-{version}.json"));
        std::fs::write(&path, serde_json::to_vec(&locality).unwrap()).unwrap();
        let options = PublishOptions::new(format!("test-{version}"), SystemClock.now());
        let manifest = registry.publish(draft(version, &path), &builder, options).await.unwrap().manifest;
        let statement = Release::new(manifest, incumbent, "test", &ids);
        let day = Duration::from_secs(86_400);
        registry.channel(&model, &channel).append(statement, &release, SystemClock.now(), day).await.unwrap();
        incumbent = Some(manifest);
        live.refresh().await.unwrap();

        for ((url, policy), admitted) in storefronts.iter().zip(admitted) {
            let case = format!("{policy:?} with a version in {locality}");
            let before = elsewhere.seen();
            let response = http.post(url).json(&json!({ "input": "my phone number is" })).send().await.unwrap();
            let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
            let mut cx = CallContext::new(TenantId::single(), RequestId::next(&ids));
            cx.policy = policy.clone();
            let called = live.infer(&cx, ClassifyRequest::one("my phone number is")).await;
            let streamed = match live.stream(&cx, ClassifyRequest::one("my phone number is")).await {
                Ok(events) => collect_reply(events).await,
                Err(error) => Err(error),
            };
            if admitted {
                assert_eq!((status.as_u16(), &answer["results"][0]["label"]), (200, &json!("order")), "{case}");
                assert!(called.is_ok() && streamed.is_ok(), "{case}");
                // Three calls arrived, so the server would have seen the others, too.
                let expected = if locality == Locality::Device { 0 } else { 3 * (1 + "my phone number is".len()) };
                assert_eq!(elsewhere.seen() - before, expected, "{case}");
            } else {
                assert_eq!((status.as_u16(), &answer["error"]["code"]), (403, &json!("policy_denied")), "{case}");
                assert_eq!(called.unwrap_err().kind(), ErrorKind::PolicyDenied, "{case}");
                assert_eq!(streamed.unwrap_err().kind(), ErrorKind::PolicyDenied, "{case}");
                assert_eq!(elsewhere.seen(), before, "{case}");
            }
        }
    }
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_key_may_not_send_away_no_job_of_its_own_sends_away_either() {
    let (folder, clock, stop) = (tempfile::tempdir().unwrap(), Arc::new(SystemClock), Cancellation::new());
    let at = |name: &str| folder.path().join(name);
    let store = Arc::new(FolderStore::open(at("artifacts")).unwrap());
    let queue = Arc::new(SqliteQueue::open(at("queue.db"), SqliteQueueOptions::default()).unwrap());
    let outbox = Arc::new(SqliteOutbox::open(at("orders.db")).unwrap());
    let jobs = QueuedJobs::new(queue.clone(), store.clone(), clock.clone(), Arc::new(SystemIds::default()));
    let jobs = Arc::new(jobs.with_outbox(outbox));
    let mut list = KeyList { keys: Vec::new() };
    let keys = [DataPolicy::Anywhere, DataPolicy::Site].map(|policy| {
        let key = NewKey::generate(TenantId::new("bakery").unwrap(), "shop", SystemClock.now()).unwrap();
        list.keys.push(KeyRecord { policy, ..key.record().clone() });
        key.reveal().to_owned()
    });
    std::fs::write(at("keys.json"), list.encode().unwrap()).unwrap();
    let keys_of = ApiKeys::open(Arc::new(CredentialFile::new(at("keys.json"))), clock.clone()).await.unwrap();
    let files = Files::new(store.clone(), clock.clone());
    let http = Storefront::builder().authenticator(Arc::new(keys_of)).files(files);
    let http = http.jobs(jobs.clone(), [JobKind::new("enrich").unwrap()]).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("http://{}/v1", listener.local_addr().unwrap());
    let (stopped, router) = (stop.clone().cancelled_owned(), http.router());
    let serving = tokio::spawn(async move { http.serve(listener, router, stopped, Duration::ZERO).await });

    // The kitchen's model is far away, and the kitchen itself minds nothing.
    let profile = BackendProfile {
        name: "far".to_owned(),
        model: ServedModel::named("far"),
        locality: Locality::Region("us-east-1".to_owned()),
        limits: Limits::default(),
        price: None,
    };
    let reply = ChatResponse::one(Message::assistant("\"yes\""));
    let far = Arc::new(ScriptedBackend::<Chat>::with_profile(profile, [Ok(reply)]));
    let worker = Worker::builder(queue.clone(), store.clone());
    let worker = worker.handler(Enrich::new(far.clone(), BatchOptions::default())).build().unwrap();
    let (sent, ended, cancel) = (jobs.clone(), stop.clone(), stop.clone());
    let sending = tokio::spawn(async move { sent.run(ended, Duration::from_secs(1)).await });
    let working = tokio::spawn(async move { worker.run(cancel).await });

    let client = reqwest::Client::new();
    let part = reqwest::multipart::Part::text("{\"text\": \"my phone number is\"}\n").file_name("rows.jsonl");
    let form = reqwest::multipart::Form::new().text("purpose", "batch").part("file", part);
    let (status, file) = answer(client.post(format!("{root}/files")).bearer_auth(&keys[0]).multipart(form)).await;
    assert_eq!(status, 200, "{file}");
    let payload = json!({ "prompt": "{{text}}", "schema": { "enum": ["yes", "no"] } });
    // One and the same order, by one tenant: the stricter is no repetition of the other.
    let order = json!({ "kind": "enrich", "payload": payload, "input_file_id": file["id"], "idempotency_key": "k" });
    for (key, ended) in keys.iter().zip(["succeeded", "failed"]) {
        let (status, job) = answer(client.post(format!("{root}/jobs")).bearer_auth(key).json(&order)).await;
        assert_eq!(status, 202, "{job}");
        let url = format!("{root}/jobs/{}", job["id"].as_str().unwrap());
        let job = until("the job ends", async || {
            let (_, job) = answer(client.get(&url).bearer_auth(key)).await;
            (job["status"] != "queued").then_some(job)
        })
        .await;
        assert_eq!(job["status"], ended, "{job}");
        assert_eq!(job["error"]["code"] == "policy_denied", ended == "failed", "{job}");
        assert_eq!(far.asked().len(), 1, "the row went once: {job}");
    }
    stop.cancel();
    let (served, ..) = tokio::join!(serving, sending, working);
    served.unwrap();
}
