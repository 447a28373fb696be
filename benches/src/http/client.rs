//! Callers on a thread of their own: as little of a client as can be, since it shares the machine with the server.

use std::{future::Future, net::SocketAddr, thread, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use super::TOKENS;
use crate::{must, statistics::quantile, swap::TEXT};

/// What callers saw whose answers come whole.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Requests a second, all callers together.
    pub rate: f64,
    /// Half of the requests took less.
    pub p50: Duration,
    /// 99 of 100 took less.
    pub p99: Duration,
}

/// What callers saw whose answers are streamed.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Text deltas a second, all callers together.
    pub rate: f64,
    /// Half of the answers began sooner.
    pub first: Duration,
}

pub(super) fn ask(address: SocketAddr, connections: usize, requests: usize) -> Asked {
    let body = format!("{{\"input\":{}}}", must(serde_json::to_string(TEXT)));
    let request = post("/v1/classify", &body);
    let caller = move || {
        let (request, mut took) = (request.clone(), Vec::with_capacity(requests / connections));
        async move {
            let mut caller = Caller::connect(address).await;
            for _ in 0..requests / connections {
                let started = Instant::now();
                caller.send(&request).await;
                while !is_whole(&caller.answer) {
                    caller.receive().await;
                }
                took.push(started.elapsed());
            }
            took
        }
    };
    let (elapsed, took) = side_by_side(connections, caller);
    let rate = took.len() as f64 / elapsed.as_secs_f64();
    Asked { rate, p50: quantile(&took, 0.5), p99: quantile(&took, 0.99) }
}

pub(super) fn read(address: SocketAddr, connections: usize, answers: usize) -> Read {
    let body = r#"{"model":"teller","stream":true,"messages":[{"role":"user","content":"What is in the bread?"}]}"#;
    let request = post("/v1/chat/completions", body);
    let caller = move || {
        let (request, mut first) = (request.clone(), Vec::new());
        async move {
            let mut caller = Caller::connect(address).await;
            for _ in 0..answers / connections {
                let started = Instant::now();
                caller.send(&request).await;
                while head(&caller.answer).is_none_or(|head| caller.answer.len() == head.len() + 4) {
                    caller.receive().await;
                }
                first.push(started.elapsed());
                // The last chunk of the body is empty, and no event ends in these bytes.
                while !caller.answer.ends_with(b"\r\n0\r\n\r\n") {
                    caller.receive().await;
                }
                check_stream(&caller.answer);
            }
            first
        }
    };
    let (elapsed, first) = side_by_side(connections, caller);
    Read { rate: (first.len() * TOKENS) as f64 / elapsed.as_secs_f64(), first: quantile(&first, 0.5) }
}

/// Runs callers side by side: how long until the last was done, and what they measured, sorted.
fn side_by_side<F>(connections: usize, caller: impl Fn() -> F + Send + 'static) -> (Duration, Vec<Duration>)
where
    F: Future<Output = Vec<Duration>> + Send + 'static,
{
    let callers = thread::spawn(move || {
        must(tokio::runtime::Builder::new_current_thread().enable_all().build()).block_on(async {
            let mut callers: JoinSet<_> = (0..connections).map(|_| caller()).collect();
            let (started, mut measured) = (Instant::now(), Vec::new());
            while let Some(caller) = callers.join_next().await {
                measured.extend(must(caller));
            }
            (started.elapsed(), measured)
        })
    });
    let (elapsed, mut measured) = must(callers.join().map_err(|_| "the callers failed"));
    measured.sort_unstable();
    (elapsed, measured)
}

fn post(path: &str, body: &str) -> String {
    let head = "host: bench\r\ncontent-type: application/json\r\ncontent-length";
    format!("POST {path} HTTP/1.1\r\n{head}: {}\r\n\r\n{body}", body.len())
}

/// A connection that is kept.
struct Caller {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Caller {
    async fn connect(address: SocketAddr) -> Self {
        let stream = must(TcpStream::connect(address).await);
        must(stream.set_nodelay(true));
        Self { stream, answer: Vec::with_capacity(4096) }
    }

    async fn send(&mut self, request: &str) {
        must(self.stream.write_all(request.as_bytes()).await);
        self.answer.clear();
    }

    async fn receive(&mut self) {
        assert!(must(self.stream.read_buf(&mut self.answer).await) > 0, "the server hung up");
    }
}

/// An answer's head, which must be that of a 200, once it is there.
fn head(answer: &[u8]) -> Option<&str> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = must(std::str::from_utf8(&answer[..end]));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Some(head)
}

/// Whether an answer with a length has arrived to its end.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = head(answer) else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = must(must(length.ok_or("an answer has no length")).parse());
    answer.len() == head.len() + 4 + length
}

/// Every word must be there, and the end.
fn check_stream(answer: &[u8]) {
    let answer = must(std::str::from_utf8(answer));
    assert_eq!(answer.matches("sourdough").count(), TOKENS);
    assert!(answer.contains("data: [DONE]"), "the answer has no end");
}
