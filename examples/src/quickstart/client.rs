//! A customer and an expert, seen from outside: plain HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::data::Decided;

/// Speaks to a storefront.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// What the storefront says of one message.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// One result for each input.
    pub results: Vec<Labelled>,
}

/// One message's label.
#[derive(Debug, Deserialize)]
pub struct Labelled {
    /// The label.
    pub label: String,
    /// How sure the model is, from 0 to 1.
    pub confidence: f32,
}

impl Client {
    /// A client of the storefront at `base`, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) if no client can be made.
    pub fn new(base: String) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| Error::internal("make client", "the HTTP client cannot start").with_source(error))?;
        Ok(Self { http, base })
    }

    /// Asks for the labels of `texts`.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) with status and body for anything but success.
    pub async fn classify(&self, texts: &[&str]) -> Result<Answer> {
        let answer = self.post("/v1/classify", &json!({ "input": texts, "top_k": 1 })).await?;
        serde_json::from_value(answer)
            .map_err(|error| Error::corrupt("classify", "the storefront's answer has another shape").with_source(error))
    }

    /// Sends one decision; when it returns the storefront has it safe.
    ///
    /// # Errors
    /// As [`classify`](Self::classify).
    pub async fn judge(&self, decided: &Decided) -> Result<()> {
        let body = json!({
            "idempotency_key": decided.id(),
            "input": { "text": decided.text },
            "label": decided.label,
            "by": "head-baker",
            "tags": { "language": decided.language },
        });
        self.post("/v1/judgments", &body).await.map(drop)
    }

    /// Sends decisions, a few at a time; calls `sent` after each.
    ///
    /// # Errors
    /// That of the first that fails.
    pub async fn judge_all(&self, decided: &[Decided], sent: impl Fn()) -> Result<()> {
        stream::iter(decided)
            .map(|one| async { self.judge(one).await.map(|()| sent()) })
            .buffer_unordered(16)
            .try_collect()
            .await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let failed =
            |message: &'static str| Error::new(ErrorKind::Unavailable, "call storefront", message).with("path", path);
        let response = self
            .http
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await
            .map_err(|error| failed("no answer").with_source(error))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| failed("the answer broke off").with_source(error))?;
        if !status.is_success() {
            return Err(failed("refused").with("status", status).with("body", text));
        }
        serde_json::from_str(&text)
            .map_err(|error| failed("the answer is not JSON").with("body", text).with_source(error))
    }
}

/// A customer who keeps asking, one question after the other, and counts what comes back.
#[derive(Debug)]
pub struct Traffic {
    counts: Arc<Counts>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    failed: AtomicU64,
    slowest_micros: AtomicU64,
}

/// What a [`Traffic`] saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Questions answered.
    pub served: u64,
    /// Questions not answered.
    pub failed: u64,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Traffic {
    /// Starts asking `questions`, over and over, until stopped.
    pub fn start(client: Client, questions: Vec<String>) -> Self {
        let (counts, stop) = (Arc::<Counts>::default(), CancellationToken::new());
        let task = tokio::spawn(ask(client, questions, Arc::clone(&counts), stop.clone()));
        Self { counts, stop, task }
    }

    /// Stops after the question in flight and says what was seen.
    pub async fn stop(self) -> Seen {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the customer's task ended early");
        }
        Seen {
            served: self.counts.served.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            slowest: Duration::from_micros(self.counts.slowest_micros.load(Ordering::Relaxed)),
        }
    }
}

async fn ask(client: Client, questions: Vec<String>, counts: Arc<Counts>, stop: CancellationToken) {
    // A person's pace, so that training keeps the machine; the next question waits for the last answer anyway.
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for question in questions.iter().cycle() {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return,
        }
        let start = std::time::Instant::now();
        match client.classify(&[question]).await {
            Ok(_) => counts.served.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                tracing::error!(%error, "a customer got no answer");
                counts.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.slowest_micros.fetch_max(micros, Ordering::Relaxed);
    }
}
