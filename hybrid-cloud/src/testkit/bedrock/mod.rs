//! A Bedrock that says what a script tells it, on the true wire: REST-JSON, event-stream frames with their checksums, error bodies; and that breaks
//! off, stalls or garbles at any byte.
//!
//! ```
//! use hybrid_cloud::testkit::bedrock::{Answer, BedrockServer, Reply};
//!
//! # fn main() -> hybrid_core::Result<()> {
//! let server = BedrockServer::start()?;
//! server.script([Reply::error(429, "ThrottlingException", "slow down"), Answer::text("Flour and water").into()]);
//! println!("point the SDK at {}", server.url());
//! # Ok(())
//! # }
//! ```
//!
//! Signatures are not checked: any credentials do.

mod answer;
mod control;
mod http;

use std::{
    collections::VecDeque,
    fmt,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hybrid_core::{Error, Result};
use serde_json::{Value, json};

pub use self::{
    answer::{Answer, chunk_frame, event_frame, exception_frame},
    control::{ControlPlane, Course},
};

/// The server: it listens on a free port of the loopback interface until it is dropped.
#[derive(Debug)]
pub struct BedrockServer {
    url: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `POST`, `GET`, …
    pub method: String,
    /// The path without the query, percent-decoded: `/model/amazon.nova-lite-v1:0/converse`.
    pub path: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; null if there is none, or if it is not JSON.
    pub body: Value,
}

impl Request {
    /// The model of a call of the runtime, as `amazon.nova-lite-v1:0`; empty elsewhere.
    pub fn model(&self) -> &str {
        let inner = self.path.strip_prefix("/model/").and_then(|rest| rest.rsplit_once('/'));
        inner.map_or("", |(model, _)| model)
    }

    /// The last part of the path: `converse`, `converse-stream`, `invoke`, …
    pub fn operation(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What one request gets.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What is answered.
    pub body: Body,
    /// What goes wrong on the way.
    pub fault: Option<Fault>,
    /// What the reply waits for, before its first byte.
    pub gate: Option<Gate>,
    /// Headers beside the usual ones.
    pub headers: Vec<(String, String)>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Body {
    /// A model's answer, whole or as a stream, as it is asked for.
    Answer(Box<Answer>),
    /// JSON with a status.
    Json(u16, Value),
    /// A stream of these bytes.
    Stream(Vec<u8>),
}

/// What goes wrong. Bytes of the body are counted from 0, without HTTP's framing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is read and the connection closed, without a byte of an answer.
    HangUp,
    /// The body ends before this byte, in good order for HTTP.
    EndAt(usize),
    /// The connection is closed before this byte.
    CutAt(usize),
    /// From this byte on nothing comes, and the connection stays.
    StallAt(usize),
    /// This byte is another.
    GarbleAt(usize),
    /// From this byte on the stream is an exception of this name, and ends.
    ExceptionAt(usize, String),
}

/// Holds replies back until it is opened. Clones are one gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets all replies through, now and later.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    fn wait(&self, stopped: &AtomicBool) {
        let mut open = lock(&self.0.0);
        while !*open && !stopped.load(Ordering::SeqCst) {
            // Wakes now and then for the case that the server goes away.
            open = self.0.1.wait_timeout(open, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Reply {
    /// JSON with status 200.
    pub fn json(body: Value) -> Self {
        Self::json_as(200, body)
    }

    /// JSON with a status.
    pub fn json_as(status: u16, body: Value) -> Self {
        Self::new(Body::Json(status, body))
    }

    /// A stream of these frames.
    pub fn frames(frames: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::new(Body::Stream(frames.into_iter().flatten().collect()))
    }

    /// An error as Bedrock writes it: its name in `x-amzn-errortype`, its message in the body.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let header =
            ("x-amzn-errortype".to_owned(), format!("{code}:http://internal.amazon.com/coral/com.amazon.bedrock/"));
        Self { headers: vec![header], ..Self::new(Body::Json(status, json!({"message": message}))) }
    }

    /// The same reply, with something going wrong.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The same reply, once the gate is open.
    #[must_use]
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// The same reply with another header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn new(body: Body) -> Self {
        Self { body, fault: None, gate: None, headers: Vec::new() }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::new(Body::Answer(Box::new(answer)))
    }
}

type Script = Box<dyn FnMut(&Request) -> Reply + Send>;

struct Shared {
    state: Mutex<State>,
    /// Told of each request.
    came: Condvar,
    stopped: AtomicBool,
}

struct State {
    script: VecDeque<Reply>,
    otherwise: Script,
    requests: Vec<Request>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("requests", &lock(&self.state).requests.len()).finish_non_exhaustive()
    }
}

impl BedrockServer {
    /// Starts a server without a script: it answers every request with an error.
    ///
    /// # Errors
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if no port is free.
    pub fn start() -> Result<Self> {
        let failed = |error| Error::unavailable("start scripted Bedrock", "no port to listen on").with_source(error);
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let otherwise: Script = Box::new(|request| {
            Reply::error(500, "InternalServerException", &format!("the script has no answer for {}", request.path))
        });
        let state = State { script: VecDeque::new(), otherwise, requests: Vec::new() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), came: Condvar::new(), stopped: AtomicBool::new(false) });
        let serving = Arc::clone(&shared);
        let listener = thread::spawn(move || {
            for connection in listener.incoming() {
                if serving.stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(connection) = connection {
                    let shared = Arc::clone(&serving);
                    thread::spawn(move || serve(connection, &shared));
                }
            }
        });
        Ok(Self { url: format!("http://{address}"), shared, listener: Some(listener) })
    }

    /// The endpoint's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds replies for the next requests, one each, in order.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.shared.state).script.extend(replies);
    }

    /// Says what requests get when the script is at its end.
    pub fn otherwise(&self, answer: impl FnMut(&Request) -> Reply + Send + 'static) {
        lock(&self.shared.state).otherwise = Box::new(answer);
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.state).requests.clone()
    }

    /// How many requests have come.
    pub fn calls(&self) -> usize {
        lock(&self.shared.state).requests.len()
    }

    /// Blocks until this many requests have come in all; false if they have not within `limit`.
    pub fn wait_for_calls(&self, calls: usize, limit: Duration) -> bool {
        let state = lock(&self.shared.state);
        let waited = self.shared.came.wait_timeout_while(state, limit, |state| state.requests.len() < calls);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for BedrockServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener out of its wait.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(connection: TcpStream, shared: &Shared) {
    let Ok(mut connection) = http::Connection::new(connection) else { return };
    while let Ok(Some(request)) = connection.request() {
        let reply = {
            let mut state = lock(&shared.state);
            state.requests.push(request.clone());
            shared.came.notify_all();
            match state.script.pop_front() {
                Some(reply) => reply,
                None => (state.otherwise)(&request),
            }
        };
        if let Some(gate) = &reply.gate {
            gate.wait(&shared.stopped);
        }
        if connection.answer(&request, reply, &shared.stopped).is_err() || shared.stopped.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
