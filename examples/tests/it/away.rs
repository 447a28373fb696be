//! A customer's request never waits for the kitchen, and the kitchen may be gone for months.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hybrid_core::{
    BoxFuture, Cancellation, Clock, DatasetName, DatasetRef, JobKind, ModelName, Monotonic, SystemClock, SystemIds,
    TenantId, Timestamp, Verdict,
};
use hybrid_examples::{
    data::Decided,
    judging::{GoldenRef, store_golden},
    locations::Locations,
    quickstart::client::Client,
    serving::Channels,
    site::Site,
    storefront::Storefront,
    train_job::{TrainHandler, TrainJob, TrainOutcome},
};
use hybrid_local::DeviceChoice;
use hybrid_sync::{
    job::{self, Job},
    registry::{Namespace, Registry},
    worker::Worker,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const DAY: Duration = Duration::from_secs(86_400);
const PATIENCE: Duration = Duration::from_secs(120);

/// The machine's clock, some days ahead.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    days: AtomicU64,
}

impl Calendar {
    pub(crate) fn turn_to(&self, day: u64) {
        self.days.store(day, Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        DAY * u32::try_from(self.days.load(Ordering::SeqCst)).unwrap()
    }
}

impl Clock for Calendar {
    fn now(&self) -> Timestamp {
        SystemClock.now().plus(self.ahead())
    }

    fn monotonic(&self) -> Monotonic {
        SystemClock.monotonic().plus(self.ahead())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        SystemClock.sleep(duration)
    }
}

/// A kitchen at work until it leaves.
struct Kitchen {
    stop: Cancellation,
    work: JoinHandle<()>,
}

impl Kitchen {
    async fn open(site: &Site) -> Self {
        let channels = Channels::open(site).unwrap();
        let worker = Worker::builder(site.queue().await.unwrap().jobs, site.store())
            .clock(site.clock())
            .handler(TrainHandler::open(site, &channels, DeviceChoice::Cpu).unwrap())
            .build()
            .unwrap();
        let stop = Cancellation::new();
        let work = tokio::spawn({
            let stop = stop.clone();
            async move {
                worker.run(stop).await;
            }
        });
        Self { stop, work }
    }

    async fn leave(self) {
        self.stop.cancel();
        self.work.await.unwrap();
    }
}

pub(crate) fn data(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/bakery").join(file)
}

/// Sends a job that trains on all judgments that are in the bucket.
async fn send_job(site: &Site, version: u64, golden: &GoldenRef) -> Job {
    let (store, queue, tenant) = (site.store(), site.queue().await.unwrap().jobs, TenantId::single());
    let dataset = DatasetRef::fix(&*store, &tenant, &DatasetName::new("bakery").unwrap()).await.unwrap();
    let payload = TrainJob::new(ModelName::new("bakery").unwrap(), version, dataset, golden.clone());
    let kind = JobKind::new("train").unwrap();
    let job = Job::new(&SystemIds::default(), &*site.clock(), tenant, kind, payload).unwrap();
    job::submit(&*queue, &*store, &job).await.unwrap();
    job
}

async fn outcome(site: &Site, job: &Job) -> TrainOutcome {
    let (store, clock) = (site.store(), site.clock());
    let result = job::wait_for_result(&*store, &job.tenant, job.id, &*clock, Duration::from_millis(20));
    tokio::time::timeout(PATIENCE, result).await.unwrap().unwrap().output().unwrap()
}

/// A customer's question as it goes over the wire: the version that answered, and the codes of what the answer says about itself.
async fn ask(storefront: &Storefront) -> (u64, Vec<String>) {
    let response = reqwest::Client::new()
        .post(format!("http://{}/v1/classify", storefront.address()))
        .json(&json!({ "input": "Two rye loaves for Saturday, please" }))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    let notes = answer["notes"].as_array().into_iter().flatten();
    (answer["version"].as_u64().unwrap(), notes.map(|note| note["code"].as_str().unwrap().to_owned()).collect())
}

async fn is_ready(storefront: &Storefront) -> bool {
    reqwest::get(format!("http://{}/readyz", storefront.address())).await.unwrap().status() == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn customers_are_answered_and_judgments_kept_while_the_kitchen_is_gone_and_it_goes_on_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let calendar = Arc::new(Calendar::default());
    let site = Site::open(&Locations::folder(folder.path())).await.unwrap().with_clock(calendar.clone());
    let model = ModelName::new("bakery").unwrap();
    let start = async || Storefront::start(&site, model.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = |storefront: &Storefront| Client::new(format!("http://{}", storefront.address())).unwrap();
    let golden = store_golden(&*site.store(), &TenantId::single(), &data("golden.jsonl")).await.unwrap();

    // The kitchen makes a first version and leaves.
    let mut storefront = start().await;
    let first = Decided::read(&data("first.jsonl")).unwrap();
    client(&storefront).judge_all(&first, || {}).await.unwrap();
    storefront.drain().await.unwrap();
    let kitchen = Kitchen::open(&site).await;
    let one = outcome(&site, &send_job(&site, 1, &golden).await).await;
    kitchen.leave().await;
    storefront.serving(one.manifest.unwrap(), PATIENCE).await.unwrap();
    assert_eq!(ask(&storefront).await, (1, vec![]));

    // Weeks go by. Every judgment is taken, every question answered, and nobody is told of anything.
    let more = Decided::read(&data("more.jsonl")).unwrap();
    let weeks = more.chunks(more.len() / 3);
    for (day, judgments) in [4, 30, 89].into_iter().zip(weeks) {
        calendar.turn_to(day);
        client(&storefront).judge_all(judgments, || {}).await.unwrap();
        assert_eq!(ask(&storefront).await, (1, vec![]), "day {day}");
        assert!(is_ready(&storefront).await);
    }
    storefront.drain().await.unwrap();
    let job = send_job(&site, 2, &golden).await;

    // Nothing was heard for longer than a release is valid: the answers say so, and still come, also after a restart.
    calendar.turn_to(91);
    assert_eq!(ask(&storefront).await, (1, vec!["stale".to_owned()]));
    storefront.stop().await.unwrap();
    let mut storefront = start().await;
    assert_eq!(ask(&storefront).await, (1, vec!["stale".to_owned()]));
    let honest = Decided::read(&data("honest.jsonl")).unwrap();
    client(&storefront).judge_all(&honest, || {}).await.unwrap();
    assert!(is_ready(&storefront).await);

    // The kitchen is back: it finds the job that waited for it, and its version goes into service by itself.
    calendar.turn_to(95);
    let kitchen = Kitchen::open(&site).await;
    let two = outcome(&site, &job).await;
    kitchen.leave().await;
    assert_eq!(two.verdict.verdict, Verdict::Promote, "{two:?}");
    storefront.serving(two.manifest.unwrap(), PATIENCE).await.unwrap();
    assert_eq!(ask(&storefront).await, (2, vec![]));

    // It has learnt from every judgment that was taken before its job was sent, and those after it are kept.
    let registry = Registry::new(site.store(), Namespace::root());
    let learnt = registry.manifest(two.manifest.unwrap()).await.unwrap().lineage.examples;
    assert_eq!(learnt, (first.len() + more.len()) as u64);
    storefront.stop().await.unwrap();
    let all = DatasetRef::fix(&*site.store(), &TenantId::single(), &DatasetName::new("bakery").unwrap()).await.unwrap();
    let kept = all.read(&*site.store()).await.unwrap().len();
    assert_eq!(kept, first.len() + more.len() + honest.len());
}
