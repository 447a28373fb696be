//! What a customer sees of the kitchen: results and failures, and never where the kitchen keeps things.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_cloud::storefront::Storefront;
use hybrid_core::{Cancellation, Error, ErrorKind, JobKind, Result, SystemClock, SystemIds, TenantId};
use hybrid_local::{FolderStore, SqliteQueue, SqliteQueueOptions};
use hybrid_sync::{
    job::{DeadJobs, QueuedJobs},
    worker::{JobContext, JobHandler, Worker, WorkerOptions},
};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::app::{answer, until};

/// A kind of failure, its name in orders, and the code that the customer reads.
const FAILURES: [(ErrorKind, &str, &str); 8] = [
    (ErrorKind::InvalidInput, "invalid", "invalid_request"),
    (ErrorKind::TooLarge, "large", "too_large"),
    (ErrorKind::Unsupported, "unsupported", "unsupported"),
    (ErrorKind::PolicyDenied, "policy", "policy_denied"),
    (ErrorKind::Corrupt, "corrupt", "internal_error"),
    (ErrorKind::Untrusted, "untrusted", "internal_error"),
    // Tried again until they are given up.
    (ErrorKind::PermissionDenied, "denied", "internal_error"),
    (ErrorKind::Internal, "bug", "internal_error"),
];

/// Fails as the order says, and names its scratch folder in every part of an error but the message, which is the customer's.
#[derive(Debug)]
struct Failing(PathBuf);

#[async_trait]
impl JobHandler for Failing {
    const KIND: &'static str = "fail";
    type Payload = String;
    type Output = Value;

    async fn run(&self, _: &JobContext, payload: String) -> Result<Value> {
        let path = self.0.join("scratch/model.safetensors");
        let named = format!("{}: no such file", path.display());
        match FAILURES.iter().find(|(_, name, _)| *name == payload) {
            Some((kind, ..)) => Err(Error::new(*kind, "load model", "cannot be worked on")
                .with("field", "payload.model")
                .with("path", path.display())
                .quote("said", &named)
                .with_source(Error::internal("open file", named).with("path", path.display()))),
            None if payload == "panic" => panic!("{named}"),
            None => Ok(json!({ "done": true })),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_never_sees_the_kitchens_paths_in_what_becomes_of_a_job() {
    let folder = tempfile::Builder::new().prefix("kitchen-of-anna").tempdir().unwrap();
    let store = Arc::new(FolderStore::open(folder.path().join("artifacts")).unwrap());
    let options = SqliteQueueOptions { max_deliveries: 1, ..SqliteQueueOptions::default() };
    let queue = Arc::new(SqliteQueue::open(folder.path().join("queue.db"), options).unwrap());
    let (clock, ids) = (Arc::new(SystemClock), Arc::new(SystemIds::default()));
    let jobs = QueuedJobs::new(queue.clone(), store.clone(), clock.clone(), ids);
    let storefront = Storefront::builder().jobs(Arc::new(jobs), [JobKind::new("fail").unwrap()]);
    let storefront = storefront.tenant(TenantId::single()).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("http://{}/v1/jobs", listener.local_addr().unwrap());
    let stop = Cancellation::new();
    let (stopped, router) = (stop.clone().cancelled_owned(), storefront.router());
    let serving = tokio::spawn(async move { storefront.serve(listener, router, stopped, Duration::ZERO).await });

    let client = Client::new();
    let mut ordered = Vec::new();
    let orders =
        FAILURES.iter().map(|(_, name, code)| (*name, *code)).chain([("panic", "internal_error"), ("well", "")]);
    for (name, code) in orders {
        let order = json!({ "kind": "fail", "payload": name });
        let (status, job) = answer(client.post(&root).json(&order)).await;
        assert_eq!(status, 202, "{job}");
        ordered.push((name, code, format!("{root}/{}", job["id"].as_str().unwrap())));
    }
    let options = WorkerOptions { name: "worker-of-anna".to_owned(), ..WorkerOptions::default() };
    let worker = Worker::builder(queue.clone(), store.clone()).options(options);
    let worker = worker.handler(Failing(folder.path().to_owned())).build().unwrap();
    let working = tokio::spawn({
        let stop = stop.clone();
        async move { worker.run(stop).await }
    });
    // What is tried again has one try here, and stands still until somebody gives it up.
    let dead = DeadJobs::new(queue.clone(), store.clone(), clock);
    let letters = until("three stand still", async || {
        let letters = dead.list().await.unwrap();
        (letters.len() == 3).then_some(letters)
    });
    let letters: Vec<_> = letters.await.into_iter().map(|found| found.letter.id).collect();
    dead.give_up(&letters).await.unwrap();

    let known = ["object", "id", "kind", "status", "request_id", "created_at", "finished_at", "output", "error"];
    for (name, code, url) in ordered {
        let job = until("the job ends", async || {
            let (status, job) = answer(client.get(&url)).await;
            assert_eq!(status, 200, "{job}");
            matches!(job["status"].as_str(), Some("succeeded" | "failed")).then_some(job)
        })
        .await;
        let text = job.to_string();
        for secret in ["of-anna", "scratch", "safetensors", "no such file"] {
            assert!(!text.contains(secret), "{name}: {text}");
        }
        let fields: BTreeSet<_> = job.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(fields.is_subset(&BTreeSet::from(known)), "{name}: {fields:?}");
        match code {
            "" => assert_eq!(job["output"], json!({ "done": true })),
            _ => assert_eq!(job["error"]["code"], code, "{name}: {text}"),
        }
        if name == "invalid" {
            assert_eq!(
                job["error"]["message"], "payload.model cannot be worked on",
                "what is the order's own fault is told"
            );
        }
    }
    stop.cancel();
    working.await.unwrap();
    serving.await.unwrap();
}
