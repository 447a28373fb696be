//! A server that speaks the wire form of Amazon S3 Vectors, since no emulator serves its queries.

mod filter;
mod service;

use std::{
    collections::HashMap,
    io::{self, BufReader, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use hybrid_core::{Error, Result};
use serde_json::{Value, json};

use super::http::{Framing, Head, Part, pass_body};
use service::{Refusal, Service};

/// The most bytes of a request's body: 20 MiB.
const MAX_BODY: usize = 20 * 1024 * 1024;

/// What the service's documentation leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingField {
    /// `$ne` and `$nin` are true of a record without the field.
    DiffersFromAll,
    /// They are false of it.
    IsUnknown,
}

/// A server for the part of Amazon S3 Vectors that handles buckets, indexes and vectors: REST-JSON as in botocore's model `s3vectors/2025-07-15`, with the limits of the
/// service's documentation refused as the service refuses them, and an exact search where the service's is approximate.
///
/// It keeps everything in memory and looks at no signature. Written for these tests and checked with botocore's client; nobody has compared it with the service itself.
pub struct S3VectorsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    endpoint: String,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
}

struct State {
    service: Service,
    /// Calls left that are answered with a refusal of the rate.
    throttled: usize,
    calls: Vec<(String, Value)>,
    connections: HashMap<u64, TcpStream>,
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl S3VectorsServer {
    /// Starts an empty server on a free loopback port; it ends when dropped.
    ///
    /// # Errors
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if no port or thread is to be had.
    pub fn start(missing: MissingField) -> Result<Self> {
        let failed = |error: io::Error| Error::unavailable("start test server", "no loopback port").with_source(error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let state = State {
            service: Service::new(missing),
            throttled: 0,
            calls: Vec::new(),
            connections: HashMap::new(),
            is_closed: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let of_acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("s3 vectors".to_owned())
            .spawn(move || accept(&listener, &of_acceptor))
            .map_err(failed)?;
        Ok(Self { shared, address, endpoint: format!("http://{address}"), acceptor: Some(acceptor) })
    }

    /// The URL where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Answers the next `calls` with `TooManyRequestsException`.
    pub fn throttle(&self, calls: usize) {
        self.shared.lock().throttled = calls;
    }

    /// The operations called so far, with their bodies.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.shared.lock().calls.clone()
    }
}

impl std::fmt::Debug for S3VectorsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3VectorsServer").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Drop for S3VectorsServer {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.lock();
            state.is_closed = true;
            std::mem::take(&mut state.connections)
        };
        for connection in connections.into_values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, connection) in (0..).zip(listener.incoming()) {
        let Ok(connection) = connection else { continue };
        let Ok(handle) = connection.try_clone() else { continue };
        {
            let mut state = shared.lock();
            if state.is_closed {
                return;
            }
            state.connections.insert(number, handle);
        }
        let of_connection = Arc::clone(shared);
        // A connection without a thread is dropped, which its client sees.
        let _ = thread::Builder::new().name("s3 vectors connection".to_owned()).spawn(move || {
            let _ = serve(&connection, &of_connection);
            of_connection.lock().connections.remove(&number);
        });
    }
}

/// Answers the requests of a connection until the client goes.
fn serve(connection: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::new(connection.try_clone()?);
    let mut to = connection;
    connection.set_nodelay(true)?;
    while let Some(head) = Head::read(&mut from)? {
        if head.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
            to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        let framing = head.request_framing();
        if framing != Framing::None {
            pass_body(&mut from, framing, |piece, part| {
                if part == Part::Content && body.len() <= MAX_BODY {
                    body.extend_from_slice(piece);
                }
                Ok(())
            })?;
        }
        let (status, code, answer) = match answer(&head, &body, shared) {
            Ok(answer) => (200, None, answer),
            Err(Refusal { status, code, message }) => (status, Some(code), json!({ "message": message })),
        };
        let answer = answer.to_string();
        let code = code.map_or_else(String::new, |code| format!("x-amzn-errortype: {code}\r\n"));
        let head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\n{code}content-length: {}\r\n\r\n",
            if status == 200 { "OK" } else { "Refused" },
            answer.len()
        );
        to.write_all([head.as_bytes(), answer.as_bytes()].concat().as_slice())?;
    }
    Ok(())
}

fn answer(head: &Head, body: &[u8], shared: &Shared) -> std::result::Result<Value, Refusal> {
    if head.word(0) != "POST" {
        return Err(Refusal::validation("the method is not POST"));
    }
    if head.header("authorization").is_none() {
        return Err(Refusal { status: 403, code: "AccessDeniedException", message: "no signature".to_owned() });
    }
    if body.len() > MAX_BODY {
        return Err(Refusal::validation("the payload is over 20 MiB"));
    }
    let body: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::validation(format!("the body is not JSON: {error}")))?;
    let operation = head.word(1).trim_start_matches('/').to_owned();
    let mut state = shared.lock();
    state.calls.push((operation.clone(), body.clone()));
    if state.throttled > 0 {
        state.throttled -= 1;
        return Err(Refusal { status: 429, code: "TooManyRequestsException", message: "slow down".to_owned() });
    }
    state.service.call(&operation, &body)
}
