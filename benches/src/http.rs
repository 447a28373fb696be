//! Sixteen callers that ask over loopback: a storefront, and a bare handler that reads and writes the same JSON.

use std::{future::Future, net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::{Json, Router, extract::State, routing::post};
use hybrid_cloud::storefront::Storefront;
use hybrid_core::{Cancellation, ServedModel, task::Classification};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
    time::Instant,
};

use crate::{
    linear::{self, LinearClassifier},
    must,
    statistics::quantile,
    swap::TEXT,
};

/// Callers at one time, each with a connection that it keeps.
pub const CALLERS: usize = 16;

/// A server on a loopback port.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Cancellation,
}

/// What the callers saw.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Requests a second, all callers together.
    pub rate: f64,
    /// Half of the requests took less.
    pub p50: Duration,
    /// 99 of 100 took less.
    pub p99: Duration,
}

#[derive(Debug, Deserialize)]
struct Question {
    input: String,
}

/// What the storefront answers, field by field.
#[derive(Debug, Serialize)]
struct Answer {
    object: &'static str,
    model: &'static str,
    version: Option<u64>,
    manifest: Option<String>,
    results: Vec<Classification>,
}

impl Server {
    /// A storefront as it is built by default, on `runtime`: with ids, deadlines, limits, spans and the checks of its body.
    pub fn storefront(runtime: &Runtime) -> Self {
        let backend = Arc::new(LinearClassifier::new(linear::weights(1), ServedModel::named("linear")));
        let storefront = must(Storefront::builder().classify("linear", backend).build());
        Self::start(runtime, |listener, stop| async move {
            let router = storefront.router();
            storefront.serve(listener, router, stop.cancelled_owned(), Duration::from_secs(1)).await;
        })
    }

    /// The same classifier behind one axum handler and nothing else.
    pub fn bare(runtime: &Runtime) -> Self {
        let router = Router::new().route("/v1/classify", post(bare)).with_state(Arc::new(linear::weights(1)));
        Self::start(runtime, |listener, stop| async move {
            must(axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await);
        })
    }

    fn start<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        serve: impl FnOnce(TcpListener, Cancellation) -> F,
    ) -> Self {
        let stop = Cancellation::new();
        let listener = must(runtime.block_on(TcpListener::bind("127.0.0.1:0")));
        let address = must(listener.local_addr());
        runtime.spawn(serve(listener, stop.clone()));
        Self { address, stop }
    }

    /// Asks `requests` times in all from [`CALLERS`] connections, on a thread of its own.
    pub fn ask(&self, requests: usize) -> Asked {
        let address = self.address;
        let callers = thread::spawn(move || {
            must(tokio::runtime::Builder::new_current_thread().enable_all().build()).block_on(async {
                let mut callers: JoinSet<_> = (0..CALLERS).map(|_| caller(address, requests / CALLERS)).collect();
                let (started, mut took) = (Instant::now(), Vec::with_capacity(requests));
                while let Some(caller) = callers.join_next().await {
                    took.extend(must(caller));
                }
                (started.elapsed(), took)
            })
        });
        let (elapsed, mut took) = must(callers.join().map_err(|_| "the callers failed"));
        took.sort_unstable();
        let rate = took.len() as f64 / elapsed.as_secs_f64();
        Asked { rate, p50: quantile(&took, 0.5), p99: quantile(&took, 0.99) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bare(State(weights): State<Arc<Vec<u8>>>, Json(Question { input }): Json<Question>) -> Json<Answer> {
    let results = must(linear::classify(&weights, &[input])).results;
    Json(Answer { object: "classification.list", model: "linear", version: None, manifest: None, results })
}

/// As little of a client as can be, since it shares the machine with the server.
async fn caller(address: SocketAddr, requests: usize) -> Vec<Duration> {
    let body = format!("{{\"input\":{}}}", must(serde_json::to_string(TEXT)));
    let head = "POST /v1/classify HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length";
    let request = format!("{head}: {}\r\n\r\n{body}", body.len());
    let mut stream = must(TcpStream::connect(address).await);
    must(stream.set_nodelay(true));
    let (mut took, mut answer) = (Vec::with_capacity(requests), Vec::with_capacity(4096));
    for _ in 0..requests {
        let started = Instant::now();
        must(stream.write_all(request.as_bytes()).await);
        answer.clear();
        while !is_whole(&answer) {
            assert!(must(stream.read_buf(&mut answer).await) > 0, "the server hung up");
        }
        took.push(started.elapsed());
    }
    took
}

/// Whether an answer, which must be 200, has arrived to its end.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = must(std::str::from_utf8(&answer[..end]));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = must(must(length.ok_or("an answer has no length")).parse());
    answer.len() == end + 4 + length
}
