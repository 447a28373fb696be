//! Cold starts: this program again, as a server that was never there before.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hybrid_core::Cancellation;
use tokio::net::TcpListener;

use crate::{
    http::{bare_router, storefront},
    must,
};

/// What tells this program what to be; its value is a [`Kind`]'s name.
const VARIABLE: &str = "HYBRID_BENCH_START";

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A storefront with two models.
    Storefront,
    /// The same models behind bare axum handlers.
    Bare,
}

/// How long a process took, from before it existed.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Until it listened.
    pub listening: Duration,
    /// Until the first byte of its first answer was there.
    pub first_byte: Duration,
    /// From its first line of code until it listened.
    pub own: Duration,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Storefront => "storefront",
            Self::Bare => "bare",
        }
    }

    /// Starts a process and classifies a message with it.
    pub fn start(self) -> Started {
        let started = Instant::now();
        let mut process =
            must(Command::new(must(std::env::current_exe())).env(VARIABLE, self.name()).stdout(Stdio::piped()).spawn());
        let mut said = String::new();
        let out = must(process.stdout.take().ok_or("the process has no output"));
        must(BufReader::new(out).read_line(&mut said));
        let listening = started.elapsed();
        let (address, own) = must(said.trim().split_once(' ').ok_or("the process did not say where it listens"));
        let (address, own): (SocketAddr, u64) = (must(address.parse()), must(own.parse()));
        let mut stream = must(TcpStream::connect(address));
        let head = "POST /v1/classify HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length";
        must(write!(stream, "{head}: 22\r\n\r\n{{\"input\":\"two loaves\"}}"));
        let mut answer = [0; 12];
        must(stream.read_exact(&mut answer));
        let first_byte = started.elapsed();
        assert_eq!(&answer, b"HTTP/1.1 200");
        must(process.kill());
        must(process.wait());
        Started { listening, first_byte, own: Duration::from_nanos(own) }
    }
}

/// Whether this process is to be what is measured.
pub fn is_asked() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Listens, says where and how long that took, and serves until it is killed.
pub fn run() {
    let begun = Instant::now();
    let runtime = must(tokio::runtime::Builder::new_current_thread().enable_all().build());
    runtime.block_on(async {
        let is_bare = std::env::var(VARIABLE).is_ok_and(|kind| kind == Kind::Bare.name());
        let storefront = (!is_bare).then(storefront);
        let router = storefront.as_ref().map_or_else(bare_router, |storefront| storefront.router());
        let listener = must(TcpListener::bind("127.0.0.1:0").await);
        println!("{} {}", must(listener.local_addr()), begun.elapsed().as_nanos());
        match storefront {
            Some(storefront) => {
                let never = Cancellation::new();
                storefront.serve(listener, router, never.cancelled_owned(), Duration::ZERO).await;
            }
            None => must(axum::serve(listener, router).await),
        }
    });
}
