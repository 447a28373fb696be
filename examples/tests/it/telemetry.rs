//! One id, from a customer's request through queue and kitchen to the result.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_cloud::{storefront::Storefront, telemetry::Telemetry, testkit::otlp::Collector};
use hybrid_core::{Cancellation, Clock, JobKind, Result, SystemClock, SystemIds, TenantId};
use hybrid_local::{FolderStore, SqliteQueue, SqliteQueueOptions};
use hybrid_sync::{
    job::{QueuedJobs, wait_for_result},
    worker::{JobContext, JobHandler, Worker},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt;

struct Shout;

#[async_trait]
impl JobHandler for Shout {
    const KIND: &'static str = "shout";
    type Payload = String;
    type Output = String;

    async fn run(&self, _: &JobContext, payload: String) -> Result<String> {
        Ok(payload.to_uppercase())
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn one_id_is_followed_from_a_request_through_queue_and_kitchen_to_the_result() {
    let collector = Collector::start().unwrap();
    let telemetry = Telemetry::builder("bakery").otlp(collector.endpoint()).start().unwrap();
    let _installed = tracing::subscriber::set_default(tracing_subscriber::registry().with(telemetry.layer()));

    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Arc::new(FolderStore::open(folder.path().join("bucket")).unwrap());
    let queue = SqliteQueue::open(folder.path().join("queue.db"), SqliteQueueOptions::default()).unwrap();
    let queue = Arc::new(queue);
    let ids = Arc::new(SystemIds::new(Arc::clone(&clock)));
    let jobs = QueuedJobs::new(queue.clone(), store.clone(), Arc::clone(&clock), ids);

    let storefront = Storefront::builder().jobs(Arc::new(jobs), [JobKind::new("shout").unwrap()]).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, stop) = (listener.local_addr().unwrap(), Cancellation::new());
    let (router, stopped) = (storefront.router(), stop.clone().cancelled_owned());
    let serving =
        tokio::spawn(async move { storefront.serve(listener, router, stopped, Duration::from_secs(5)).await });
    let worker = Worker::builder(queue, store.clone()).handler(Shout).build().unwrap();
    let working = tokio::spawn({
        let stop = stop.clone();
        async move { worker.run(stop).await }
    });

    // A customer's own trace and id come in …
    let client = reqwest::Client::new();
    let ordered = client
        .post(format!("http://{at}/v1/jobs"))
        .header("x-request-id", "order-42")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .json(&json!({ "kind": "shout", "payload": "fresh bread" }))
        .send()
        .await
        .unwrap();
    assert_eq!((ordered.status().as_u16(), &ordered.headers()["x-request-id"]), (202, &"order-42".parse().unwrap()));
    let ordered: Value = ordered.json().await.unwrap();
    let id = ordered["id"].as_str().unwrap();

    // … stand in the result that the kitchen leaves in the bucket …
    let tenant = TenantId::single();
    let waited = wait_for_result(&*store, &tenant, id.parse().unwrap(), &*clock, Duration::from_millis(10));
    let result = tokio::time::timeout(Duration::from_secs(20), waited).await.expect("no result").unwrap();
    assert_eq!(result.output::<String>().unwrap(), "FRESH BREAD");
    assert_eq!(result.request.as_ref().map(|request| request.as_str()), Some("order-42"));
    assert!(result.trace.as_ref().is_some_and(|trace| trace.contains(TRACE)), "{result:?}");

    // … and in what the customer is told of it.
    let status: Value = client.get(format!("http://{at}/v1/jobs/{id}")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&status["status"], &status["request_id"]), (&json!("succeeded"), &json!("order-42")));
    stop.cancel();
    serving.await.unwrap();
    assert_eq!(working.await.unwrap().succeeded, 1);

    telemetry.flush(Duration::from_secs(10)).await.unwrap();
    let spans = collector.spans().unwrap();
    let mut parent = "b7ad6b7169203331".to_owned();
    for (name, kind) in [("POST /v1/jobs", 2), ("jobs", 1), ("process shout", 5)] {
        let span = spans.iter().find(|span| span.trace == TRACE && span.name == name);
        let span = span.unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
        assert_eq!((&span.parent, span.kind), (&parent, kind), "{name}");
        assert_eq!(span.attributes["hybrid.request.id"], "order-42", "{name}");
        parent.clone_from(&span.id);
    }
    let points = collector.points().unwrap();
    let job = points.iter().find(|point| point.metric == "hybrid.job.duration").unwrap();
    assert_eq!(
        (job.count, &*job.attributes["hybrid.job.kind"], &*job.attributes["hybrid.job.ending"]),
        (1, "shout", "Succeeded")
    );
}
