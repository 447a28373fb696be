//! A server on a loopback port that speaks the OpenAI API as it is told, word for word: for faults that no real server makes on demand.
//!
//! ```
//! use hybrid_cloud::testkit::openai::{Answer, OpenAiServer, chat_stream};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let server = OpenAiServer::start().await?;
//! server.answer(Answer::sse(chat_stream("m", ["Two ", "loaves."])));
//! // … point a client at `server.base_url()`, then look at `server.requests()`.
//! # Ok::<(), hybrid_core::Error>(())
//! # }).unwrap();
//! ```

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hybrid_core::{Error, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

const OPERATION: &str = "scripted openai server";

/// A server that answers each request with the next line of its script, and with the last line for ever.
#[derive(Debug)]
pub struct OpenAiServer {
    address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

type Responder = Box<dyn Fn(&Request) -> Answer + Send>;

struct State {
    script: Mutex<VecDeque<Answer>>,
    responder: Mutex<Option<Responder>>,
    requests: Mutex<Vec<Request>>,
    seen: watch::Sender<usize>,
    hung_up: watch::Sender<usize>,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, such as `POST`.
    pub method: String,
    /// The path, such as `/v1/chat/completions`.
    pub path: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header called `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers besides those that frame the body.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What happens after so many bytes of the body; `None` for nothing.
    pub fault: Option<(usize, Fault)>,
    /// How many bytes are written at once, and the pause after them; `None` for all of them.
    pub pace: Option<(usize, Duration)>,
}

/// What goes wrong on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The connection is cut.
    Cut,
    /// The body ends as if it were whole.
    End,
    /// Nothing comes any more, until the other side hangs up.
    Stall,
    /// A byte that is no UTF-8 stands in the place of the next one.
    Garbage,
}

impl Answer {
    /// An answer of JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// An error in the API's form.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
        Self::json(status, &json!({"error": {"message": message, "type": kind, "param": null, "code": code}}))
    }

    /// A stream of events.
    pub fn sse(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, "text/event-stream", body)
    }

    /// An answer of any media type.
    pub fn new(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), media_type.to_owned())];
        Self { status, headers, body: body.into(), fault: None, pace: None }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same, but written `bytes` bytes at a time, with a pause after each.
    #[must_use]
    pub fn with_pace(mut self, bytes: usize, pause: Duration) -> Self {
        self.pace = Some((bytes.max(1), pause));
        self
    }

    /// The same, but something goes wrong after `bytes` bytes of the body.
    #[must_use]
    pub fn with_fault(mut self, bytes: usize, fault: Fault) -> Self {
        self.fault = Some((bytes, fault));
        self
    }
}

impl OpenAiServer {
    /// Starts a server with an empty script: it answers 503.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if there is no port.
    pub async fn start() -> Result<Self> {
        let failed = |error| Error::internal(OPERATION, "there is no loopback port").with_source(error);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let state = Arc::new(State {
            script: Mutex::default(),
            responder: Mutex::default(),
            requests: Mutex::default(),
            seen: watch::Sender::new(0),
            hung_up: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, accepting })
    }

    /// Where the API begins.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Adds a line to the script.
    pub fn answer(&self, answer: Answer) {
        lock(&self.state.script).push_back(answer);
    }

    /// Answers what the script has no line for with what `responder` makes of the request.
    pub fn answer_with(&self, responder: impl Fn(&Request) -> Answer + Send + 'static) {
        *lock(&self.state.responder) = Some(Box::new(responder));
    }

    /// Forgets the script and goes on with this line.
    pub fn answer_now(&self, answer: Answer) {
        *lock(&self.state.script) = VecDeque::from([answer]);
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }

    /// Waits until `count` requests have come.
    pub async fn until_requests(&self, count: usize) {
        // The sender lives as long as this server.
        let _ = self.state.seen.subscribe().wait_for(|seen| *seen >= count).await;
    }

    /// Waits until `count` clients have hung up on a stalled answer.
    pub async fn until_hung_up(&self, count: usize) {
        let _ = self.state.hung_up.subscribe().wait_for(|seen| *seen >= count).await;
    }
}

impl Drop for OpenAiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The events of a whole chat answer of these texts: a role, the texts, the end, what was used, `[DONE]`.
pub fn chat_stream<'a>(model: &str, texts: impl IntoIterator<Item = &'a str>) -> String {
    let event = |choices: Value, usage: Value| {
        let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_772_366_400, "model": model, "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let mut events = event(choice(json!({"role": "assistant", "content": ""}), Value::Null), Value::Null);
    for text in texts {
        events += &event(choice(json!({ "content": text }), Value::Null), Value::Null);
    }
    events += &event(choice(json!({}), json!("stop")), Value::Null);
    events += &event(json!([]), json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}));
    events + "data: [DONE]\n\n"
}

/// A whole chat answer of this text.
pub fn chat_completion(model: &str, text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_772_366_400, "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropped with this future: no connection outlives its server.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let mut stream = stream;
            while let Ok(Some(request)) = read_request(&mut stream).await {
                let answer = state.next(request);
                if !matches!(write_answer(&mut stream, &answer, &state).await, Ok(true)) {
                    break;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("script", &self.script).field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl State {
    fn next(&self, request: Request) -> Answer {
        let scripted = {
            let mut script = lock(&self.script);
            let last = script.len() == 1 && lock(&self.responder).is_none();
            if last { script.front().cloned() } else { script.pop_front() }
        };
        let answer = scripted.or_else(|| lock(&self.responder).as_ref().map(|responder| responder(&request)));
        lock(&self.requests).push(request);
        self.seen.send_modify(|seen| *seen += 1);
        answer.unwrap_or_else(|| Answer::error(503, "no_script", "the server has no script"))
    }
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(head + 4);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, path, headers, body: Vec::new() };
    if request.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        request.body = read_chunks(stream, body).await?;
        return Ok(Some(request));
    }
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    body.truncate(length);
    request.body = body;
    Ok(Some(request))
}

async fn read_chunks(stream: &mut TcpStream, mut rest: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
                break end;
            }
            if stream.read_buf(&mut rest).await? == 0 {
                return Ok(body);
            }
        };
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..end]).trim(), 16).unwrap_or(0);
        while rest.len() < end + 2 + size + 2 {
            if stream.read_buf(&mut rest).await? == 0 {
                return Ok(body);
            }
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest.drain(..end + 2 + size + 2);
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Writes an answer in chunks, so that only its last one says that it is whole; says whether the connection can go on.
async fn write_answer(stream: &mut TcpStream, answer: &Answer, state: &State) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} scripted\r\ntransfer-encoding: chunked\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).await?;
    let end = answer.fault.map_or(answer.body.len(), |(at, _)| at.min(answer.body.len()));
    match answer.pace {
        Some((bytes, pause)) => {
            for piece in answer.body[..end].chunks(bytes) {
                write_chunk(stream, piece).await?;
                tokio::time::sleep(pause).await;
            }
        }
        None => write_chunk(stream, &answer.body[..end]).await?,
    }
    match answer.fault.map(|(_, fault)| fault) {
        Some(Fault::Cut) => return Ok(false),
        Some(Fault::Stall) => {
            // Nothing more is read than the end of the other side.
            while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
            state.hung_up.send_modify(|seen| *seen += 1);
            return Ok(false);
        }
        Some(Fault::Garbage) => {
            write_chunk(stream, b"\xff").await?;
            write_chunk(stream, answer.body.get(end + 1..).unwrap_or_default()).await?;
        }
        Some(Fault::End) | None => {}
    }
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}

async fn write_chunk(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
    stream.write_all(bytes).await?;
    stream.write_all(b"\r\n").await
}
