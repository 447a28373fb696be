//! A proxy that breaks what passes through it, where a test says.

use std::{
    collections::HashMap,
    fmt,
    io::{self, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hybrid_core::{Error, Result};

use super::http::{Framing, Head, Part, pass_body};

/// An HTTP/1.1 proxy before a server, on a loopback port of its own: it passes everything on until a test says what shall go wrong.
///
/// The `host` header stays the client's, so signatures hold. Bodies pass as they arrive. Dropping the proxy cuts all connections.
pub struct FaultProxy {
    shared: Arc<Shared>,
    endpoint: String,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The server never sees the request; the answer has this status and body.
    Answer {
        /// The status, such as 503.
        status: u16,
        /// The body.
        body: String,
    },
    /// The server acts, and its answer is replaced by one with this status and body.
    ReplaceAnswer {
        /// The status, such as 500.
        status: u16,
        /// The body.
        body: String,
    },
    /// The server acts, and the connection ends without a byte of its answer.
    DropAnswer,
    /// The server sees so many bytes of the request's body, then both connections end.
    CutRequest {
        /// Bytes of the body.
        after: u64,
    },
    /// So many bytes of the answer's body pass, then the connection ends.
    CutAnswer {
        /// Bytes of the body.
        after: u64,
    },
    /// So many bytes of the answer's body pass, then nothing more until the client gives up.
    StallAnswer {
        /// Bytes of the body.
        after: u64,
    },
    /// One bit of the answer's body is turned over.
    FlipBit {
        /// The byte whose lowest bit it is, from zero.
        at: u64,
    },
    /// The request waits so long before the server sees it.
    Delay(Duration),
}

/// A request on its way to the server.
#[derive(Clone, Debug)]
pub struct ProxiedRequest {
    /// The how manieth request through this proxy, from zero.
    pub number: u64,
    /// The method, such as `PUT`.
    pub method: String,
    /// The path with its query.
    pub target: String,
    head: Head,
}

impl ProxiedRequest {
    /// A header's value; its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
}

type Script = Box<dyn FnMut(&ProxiedRequest) -> Option<Fault> + Send>;

struct Shared {
    server: SocketAddr,
    script: Mutex<Option<Script>>,
    connections: Mutex<HashMap<u64, TcpStream>>,
    cut: AtomicBool,
    closed: AtomicBool,
    requests: AtomicU64,
    faults: AtomicU64,
    under_way: AtomicUsize,
    most_at_once: AtomicUsize,
    next_connection: AtomicU64,
}

impl FaultProxy {
    /// Starts a proxy before the server at `endpoint`, a URL such as `http://127.0.0.1:8333` or a socket address.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if it is no address, [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if no port is free.
    pub fn start(endpoint: &str) -> Result<Self> {
        const OPERATION: &str = "start fault proxy";
        let server = endpoint.trim_start_matches("http://").trim_end_matches('/').parse().map_err(
            |error: std::net::AddrParseError| {
                Error::invalid(OPERATION, "expected http:// and an IP address with a port")
                    .with("endpoint", endpoint)
                    .with_source(error)
            },
        )?;
        let failed = |error: io::Error| Error::unavailable(OPERATION, "no loopback port").with_source(error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            server,
            script: Mutex::default(),
            connections: Mutex::default(),
            cut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            next_connection: AtomicU64::new(0),
        });
        let of_acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("fault proxy".to_owned())
            .spawn(move || of_acceptor.accept(&listener))
            .map_err(failed)?;
        Ok(Self { shared, endpoint: format!("http://{address}"), address, acceptor: Some(acceptor) })
    }

    /// The URL that the client is pointed at.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on `script` says of each request what goes wrong with it; it sees them one at a time.
    pub fn script(&self, script: impl FnMut(&ProxiedRequest) -> Option<Fault> + Send + 'static) {
        *lock(&self.shared.script) = Some(Box::new(script));
    }

    /// From now on everything passes.
    pub fn pass(&self) {
        *lock(&self.shared.script) = None;
    }

    /// The next request with this method has this fault; all others pass.
    pub fn once(&self, method: &'static str, fault: Fault) {
        self.times(method, 1, fault);
    }

    /// The next `count` requests with this method have this fault; all others pass.
    pub fn times(&self, method: &'static str, count: usize, fault: Fault) {
        let mut left = count;
        self.script(move |request| {
            if left == 0 || request.method != method {
                return None;
            }
            left -= 1;
            Some(fault.clone())
        });
    }

    /// A share of all requests, from 0 to 1, has this fault: the same ones for the same seed and order of requests.
    pub fn share(&self, share: f64, seed: u64, fault: Fault) {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        self.script(move |_| {
            // xorshift64*, Vigna 2016; the upper 53 bits as a number from 0 to 1.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let unit = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64;
            (unit < share).then(|| fault.clone())
        });
    }

    /// Ends all connections and accepts none until [`mend`](Self::mend), as a cut cable does.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.end_connections();
    }

    /// Undoes [`cut`](Self::cut).
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// How many requests have come.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// The most requests that have been under way at one time.
    pub fn most_at_once(&self) -> usize {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }

    /// How many of them had a fault.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

/// Counts a request while it is under way.
struct UnderWay<'a>(&'a Shared);

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = shared.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_at_once.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("endpoint", &self.endpoint)
            .field("server", &self.shared.server)
            .finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.end_connections();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let shared = Arc::clone(self);
            // A connection that has no thread is closed, which the client sees.
            let _ =
                thread::Builder::new().name("fault proxy connection".to_owned()).spawn(move || shared.serve(&client));
        }
    }

    fn serve(&self, client: &TcpStream) {
        let Ok(copy) = client.try_clone() else { return };
        let number = self.next_connection.fetch_add(1, Ordering::SeqCst);
        lock(&self.connections).insert(number, copy);
        // After the connection is known, so that no cut misses it.
        if !self.cut.load(Ordering::SeqCst) && !self.closed.load(Ordering::SeqCst) {
            // An error here is a connection that one of the sides has ended: so does this.
            let _ = self.relay(client);
        }
        let _ = client.shutdown(Shutdown::Both);
        lock(&self.connections).remove(&number);
    }

    fn end_connections(&self) {
        for connection in lock(&self.connections).values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn decide(&self, request: &ProxiedRequest) -> Option<Fault> {
        let fault = lock(&self.script).as_mut().and_then(|script| script(request));
        if fault.is_some() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        fault
    }

    /// Passes requests and answers until one side ends the connection or a fault does.
    fn relay(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut from_client = BufReader::new(client);
        let mut server: Option<BufReader<TcpStream>> = None;
        while let Some(head) = Head::read(&mut from_client)? {
            let number = self.requests.fetch_add(1, Ordering::SeqCst);
            let _under_way = UnderWay::new(self);
            let (method, target) = (head.word(0).to_owned(), head.word(1).to_owned());
            let mut request = ProxiedRequest { number, method, target, head };
            let fault = self.decide(&request);
            if request.header("expect").is_some() {
                request.head.remove("expect");
                (&mut &*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let framing = request.head.request_framing();
            if let Some(Fault::Answer { status, body }) = &fault {
                pass_body(&mut from_client, framing, |_, _| Ok(()))?;
                answer(client, &request.method, *status, body)?;
                if closes(&request.head) {
                    return Ok(());
                }
                continue;
            }
            if let Some(Fault::Delay(wait)) = fault {
                thread::sleep(wait);
            }
            // The server may have ended an idle connection: a new one each time something could be lost by that.
            let upstream = match server.take() {
                Some(upstream) if alive(upstream.get_ref()) => upstream,
                _ => BufReader::new(self.connect()?),
            };
            let upstream = server.insert(upstream);
            pass_request(&mut from_client, upstream.get_ref(), &request.head, framing, &fault)?;
            let answered = final_head(upstream)?;
            match fault {
                Some(Fault::DropAnswer) => {
                    // What the server has begun it shall finish.
                    pass_body(upstream, answered.answer_framing(&request.method), |_, _| Ok(()))?;
                    return Ok(());
                }
                Some(Fault::ReplaceAnswer { status, body }) => {
                    pass_body(upstream, answered.answer_framing(&request.method), |_, _| Ok(()))?;
                    answer(client, &request.method, status, &body)?;
                }
                fault => {
                    let framing = answered.answer_framing(&request.method);
                    (&mut &*client).write_all(&answered.to_bytes())?;
                    pass_answer(upstream, client, framing, &fault)?;
                    if framing == Framing::UntilClose {
                        return Ok(());
                    }
                }
            }
            if closes(&answered) {
                server = None;
            }
            if closes(&request.head) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.server, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn closes(head: &Head) -> bool {
    head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// Whether an idle connection still stands: it has neither ended nor said anything unasked.
fn alive(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let waits = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && waits
}

fn pass_request(
    from: &mut BufReader<&TcpStream>,
    mut server: &TcpStream,
    head: &Head,
    framing: Framing,
    fault: &Option<Fault>,
) -> io::Result<()> {
    server.write_all(&head.to_bytes())?;
    let mut left = match fault {
        Some(Fault::CutRequest { after }) => Some(*after),
        _ => None,
    };
    pass_body(from, framing, |piece, part| send_up_to(&mut server, piece, part, &mut left))?;
    if left.is_some() { Err(cut()) } else { Ok(()) }
}

fn pass_answer(
    from: &mut BufReader<TcpStream>,
    mut client: &TcpStream,
    framing: Framing,
    fault: &Option<Fault>,
) -> io::Result<()> {
    let (mut left, stalls, flip) = match fault {
        Some(Fault::CutAnswer { after }) => (Some(*after), false, None),
        Some(Fault::StallAnswer { after }) => (Some(*after), true, None),
        Some(Fault::FlipBit { at }) => (None, false, Some(*at)),
        _ => (None, false, None),
    };
    let mut seen = 0;
    let passed = pass_body(from, framing, |piece, part| {
        if part == Part::Content {
            let offset = flip.and_then(|at: u64| at.checked_sub(seen)).and_then(|offset| usize::try_from(offset).ok());
            if let Some(byte) = offset.and_then(|offset| piece.get_mut(offset)) {
                *byte ^= 1;
            }
            seen += piece.len() as u64;
        }
        send_up_to(&mut client, piece, part, &mut left)
    });
    if stalls {
        // Returns when the client gives up, or the proxy is dropped.
        let _ = client.read(&mut [0]);
        return Err(cut());
    }
    passed
}

/// Sends what may pass. Ends with an error where the limit is reached.
fn send_up_to(mut to: impl Write, piece: &[u8], part: Part, left: &mut Option<u64>) -> io::Result<()> {
    match left {
        None => to.write_all(piece),
        Some(left) => {
            let fits = if part == Part::Content { (piece.len() as u64).min(*left) as usize } else { piece.len() };
            to.write_all(&piece[..fits])?;
            if part == Part::Content {
                *left -= fits as u64;
            }
            if *left == 0 { Err(cut()) } else { Ok(()) }
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the test")
}

/// The head of the answer, past those that only say to go on.
fn final_head(server: &mut BufReader<TcpStream>) -> io::Result<Head> {
    loop {
        let head = Head::read(server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !(100..=199).contains(&head.status()) {
            return Ok(head);
        }
    }
}

fn answer(mut client: &TcpStream, method: &str, status: u16, body: &str) -> io::Result<()> {
    let shown = if method == "HEAD" { "" } else { body };
    write!(
        client,
        "HTTP/1.1 {status} Fault\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{shown}",
        body.len()
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
