//! The clients, and what they were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hybrid_core::{JobId, JudgmentId};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{
    Plan,
    servers::said,
    storefront::{CHAT, KIND},
};
use crate::must;

/// How many broken answers are kept word by word.
const KEPT: usize = 10;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A chat, to the end of its stream.
    Chat,
    /// The same, to its first piece.
    ChatBegins,
    /// A classification.
    Classify,
    /// A judgment.
    Judgment,
    /// An order for a job.
    Job,
}

impl Kind {
    /// What the client's request number `step` is about: half are chats.
    fn of(client: usize, step: usize) -> Self {
        match (client + step) % 8 {
            0..=3 => Self::Chat,
            4 | 5 => Self::Classify,
            6 => Self::Judgment,
            _ => Self::Job,
        }
    }
}

/// What all clients together have seen.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Seen>);

/// The same, to be read.
#[derive(Debug, Default)]
pub struct Seen {
    /// How long answers took.
    pub took: BTreeMap<Kind, Vec<Duration>>,
    /// Streams that came whole.
    pub whole_streams: u64,
    /// Judgments that were acknowledged.
    pub judgments: BTreeSet<JudgmentId>,
    /// Jobs that were taken, with what their result must be.
    pub jobs: BTreeMap<JobId, Value>,
    /// Which versions have answered, each time that another one did so than the time before.
    pub versions: Vec<u64>,
    /// How many answers were not what was promised.
    pub broken: u64,
    /// The first of them.
    pub first_broken: Vec<String>,
}

impl Tally {
    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets all clients ask for as long as planned; returns when the last answer is there.
pub async fn ask(plan: &Plan, address: SocketAddr, tally: &Arc<Tally>) {
    let period = Duration::from_secs_f64(plan.clients as f64 / plan.rate);
    let end = Instant::now() + plan.lasts;
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let tally = Arc::clone(tally);
        // Spread over the first period, as customers are.
        let begin = period.mul_f64(number as f64 / plan.clients as f64);
        clients.spawn(async move {
            // Each has a connection of its own.
            let http = must(Client::builder().no_proxy().build());
            let client = OneClient { root: format!("http://{address}/v1"), http, number, tally };
            sleep(begin).await;
            for step in 0.. {
                let next = Instant::now() + period;
                client.ask(step).await;
                if next >= end {
                    break;
                }
                sleep(next.saturating_duration_since(Instant::now())).await;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        must(ended);
    }
}

struct OneClient {
    root: String,
    http: Client,
    number: usize,
    tally: Arc<Tally>,
}

impl OneClient {
    /// Asks once, and notes what came of it.
    async fn ask(&self, step: usize) {
        let (kind, begun) = (Kind::of(self.number, step), Instant::now());
        let prompt = format!("client {} asks {step}", self.number);
        let answered = match kind {
            Kind::Chat | Kind::ChatBegins => self.chat(&prompt).await,
            Kind::Classify => self.classify(&prompt).await,
            Kind::Judgment => self.judge(&prompt).await,
            Kind::Job => self.order(&prompt).await,
        };
        let mut seen = self.tally.seen();
        match answered {
            Ok(()) => seen.took.entry(kind).or_default().push(begun.elapsed()),
            Err(broken) => {
                seen.broken += 1;
                if seen.first_broken.len() < KEPT {
                    seen.first_broken.push(format!("{kind:?} of {prompt:?}: {broken}"));
                }
            }
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response, String> {
        let sent = self.http.post(format!("{}{path}", self.root)).json(body).send().await;
        let answer = sent.map_err(|error| format!("no answer: {error:?}"))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()))
    }

    async fn json(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.post(path, body).await?.json().await.map_err(|error| format!("no JSON: {error}"))
    }

    async fn chat(&self, prompt: &str) -> Result<(), String> {
        let body = json!({ "model": CHAT, "stream": true, "messages": [{ "role": "user", "content": prompt }] });
        let begun = Instant::now();
        let mut answer = self.post("/chat/completions", &body).await?;
        let (mut text, mut first) = (Vec::new(), None);
        while let Some(piece) = answer.chunk().await.map_err(|error| format!("a stream broke off: {error:?}"))? {
            first.get_or_insert_with(|| begun.elapsed());
            text.extend_from_slice(&piece);
        }
        whole(&String::from_utf8_lossy(&text), &said(prompt).concat())?;
        let mut seen = self.tally.seen();
        seen.whole_streams += 1;
        seen.took.entry(Kind::ChatBegins).or_default().push(first.unwrap_or_default());
        Ok(())
    }

    async fn classify(&self, text: &str) -> Result<(), String> {
        let answer = self.json("/classify", &json!({ "input": text })).await?;
        let version = answer["version"].as_u64().ok_or_else(|| format!("no version: {answer}"))?;
        if !answer["results"][0]["label"].is_string() {
            return Err(format!("no label: {answer}"));
        }
        let mut seen = self.tally.seen();
        if seen.versions.last() != Some(&version) {
            seen.versions.push(version);
        }
        Ok(())
    }

    async fn judge(&self, text: &str) -> Result<(), String> {
        let answer = self.json("/judgments", &json!({ "input": text, "label": "order" })).await?;
        let id = answer["id"].as_str().and_then(|id| id.parse().ok()).ok_or_else(|| format!("no id: {answer}"))?;
        self.tally.seen().judgments.insert(id);
        Ok(())
    }

    async fn order(&self, text: &str) -> Result<(), String> {
        let answer = self.json("/jobs", &json!({ "kind": KIND, "payload": text })).await?;
        let id = answer["id"].as_str().and_then(|id| id.parse().ok()).ok_or_else(|| format!("no id: {answer}"))?;
        self.tally.seen().jobs.insert(id, text.into());
        Ok(())
    }
}

/// Whether a stream came to its proper end and says what it should.
fn whole(stream: &str, expected: &str) -> Result<(), String> {
    let (mut text, mut stopped, mut done) = (String::new(), false, false);
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).map_err(|error| format!("{error} in {data:?}"))?;
        text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        stopped |= chunk["choices"][0]["finish_reason"] == "stop";
    }
    match (done && stopped, text == expected) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("a stream says {text:?}")),
        (false, _) => Err(format!("a stream of {} bytes has no proper end", stream.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(texts: &[&str], end: &str) -> String {
        let chunk = |text: &&str| format!("data: {}\n\n", json!({ "choices": [{ "delta": { "content": text } }] }));
        texts.iter().map(chunk).collect::<String>() + end
    }

    #[test]
    fn a_stream_that_is_cut_or_says_something_else_is_noticed() {
        let end =
            format!("data: {}\n\ndata: [DONE]\n\n", json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] }));
        assert_eq!(whole(&stream(&["a", "b"], &end), "ab"), Ok(()));
        assert!(whole(&stream(&["a"], &end), "ab").is_err());
        assert!(whole(&stream(&["a", "b"], ""), "ab").is_err());
        assert!(whole(&stream(&["a", "b"], "data: [DONE]\n\n"), "ab").is_err());
        assert!(whole(&stream(&["a", "b"], "data: {\"error\":{}}\n\n"), "ab").is_err());
    }
}
