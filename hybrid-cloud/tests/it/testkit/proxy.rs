//! Each fault, seen from the client's side of the wire, before a server that this test can count the requests of.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hybrid_cloud::testkit::{Fault, FaultProxy};

/// Answers each request with `0123456789`, one after the other on a connection; counts the bodies that came whole.
struct Server {
    endpoint: String,
    whole: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let whole = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&whole);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || answer_all(&stream.unwrap(), &count));
            }
        });
        Self { endpoint, whole }
    }

    fn whole(&self) -> usize {
        self.whole.load(Ordering::SeqCst)
    }
}

fn answer_all(mut stream: &TcpStream, count: &AtomicUsize) {
    let mut from = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        if from.read_exact(&mut vec![0; length]).is_err() {
            return;
        }
        count.fetch_add(1, Ordering::SeqCst);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789").unwrap();
    }
}

/// Sends one request on a connection of its own: what comes back, and how that ends.
fn call(proxy: &FaultProxy, method: &str) -> String {
    let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
    let request = format!("{method} /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello");
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => answer += std::str::from_utf8(&buffer[..read]).unwrap(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return answer + " STALLS";
            }
            // What was never read may make the end of a connection a reset.
            _ => return answer + " END",
        }
        if answer.ends_with(STALLED) {
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
    }
}

/// Where an answer stalls, nothing more is waited for.
const STALLED: &str = "\r\n01234";

#[test]
fn each_fault_is_what_its_name_says() {
    let server = Server::start();
    let proxy = FaultProxy::start(&server.endpoint).unwrap();
    let plain = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789 END";
    assert_eq!(call(&proxy, "PUT"), plain);
    assert_eq!((server.whole(), proxy.requests(), proxy.faults()), (1, 1, 0));
    // The fault, what the client sees, whether the server got the request.
    let status = |status: u16| {
        format!("HTTP/1.1 {status} Fault\r\ncontent-type: application/xml\r\ncontent-length: 4\r\n\r\nbody END")
    };
    let body = || "body".to_owned();
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
    let cases = [
        (Fault::Answer { status: 503, body: body() }, status(503), false),
        (Fault::ReplaceAnswer { status: 500, body: body() }, status(500), true),
        (Fault::DropAnswer, " END".to_owned(), true),
        (Fault::CutRequest { after: 3 }, " END".to_owned(), false),
        (Fault::CutAnswer { after: 4 }, format!("{head}0123 END"), true),
        (Fault::StallAnswer { after: 5 }, format!("{head}01234 STALLS"), true),
        (Fault::FlipBit { at: 4 }, format!("{head}0123556789 END"), true),
        (Fault::Delay(Duration::from_millis(1)), plain.to_owned(), true),
    ];
    for (fault, seen, acted) in cases {
        let before = server.whole();
        proxy.once("PUT", fault.clone());
        assert_eq!(call(&proxy, "GET"), plain, "another method passes");
        assert_eq!(call(&proxy, "PUT"), seen, "{fault:?}");
        assert_eq!(call(&proxy, "PUT"), plain, "once is once");
        assert_eq!(server.whole() - before, 2 + usize::from(acted), "{fault:?}");
    }
    assert_eq!(proxy.faults(), 8);
}

#[test]
fn a_share_is_the_same_for_the_same_seed() {
    let server = Server::start();
    let run = |seed| {
        let proxy = FaultProxy::start(&server.endpoint).unwrap();
        proxy.share(0.3, seed, Fault::Answer { status: 503, body: String::new() });
        let outcomes = (0..100).map(|_| {
            let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            status.ends_with(b"503")
        });
        outcomes.collect::<Vec<_>>()
    };
    let one = run(7);
    assert_eq!(one, run(7));
    assert_ne!(one, run(8));
    let faults = one.iter().filter(|fault| **fault).count();
    assert!((15..=45).contains(&faults), "{faults}");
}

#[test]
fn a_cut_cable_ends_what_is_open_and_lets_nothing_through_until_mended() {
    let server = Server::start();
    let proxy = FaultProxy::start(&server.endpoint).unwrap();
    proxy.once("PUT", Fault::StallAnswer { after: 1 });
    let open = std::thread::scope(|scope| {
        let open = scope.spawn(|| {
            let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
            stream.write_all(b"PUT / HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        while proxy.faults() == 0 {
            std::thread::yield_now();
        }
        proxy.cut();
        open.join().unwrap()
    });
    assert!(open.is_err() || !open.unwrap().contains("0123456789"));
    assert_eq!(call(&proxy, "GET"), " END");
    proxy.mend();
    assert!(call(&proxy, "GET").ends_with("0123456789 END"));
}
