//! A server and an adapter whose clocks move on together, so that a test of twelve hours takes none.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::Mutex,
    time::Duration,
};

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    testkit::Python,
};
use hybrid_core::ManualClock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ministack,
    Moto,
}

/// The server's wall clock runs on and jumps ahead with the manual clock.
#[derive(Debug)]
pub(super) struct Clocked {
    pub(super) clock: ManualClock,
    pub(super) aws: AwsConfig,
    pub(super) endpoint: String,
    wire: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    child: Child,
}

impl Clocked {
    pub(super) async fn start(kind: Kind) -> Self {
        let name = match kind {
            Kind::Ministack => "ministack",
            Kind::Moto => "moto",
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Python::servers()
            .unwrap()
            .command()
            .args(["-I", "-c", include_str!("server.py"), name, &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let endpoint = format!("http://127.0.0.1:{port}");
        let aws = AwsConfig::load(AwsOptions::local(&endpoint, "test", "test")).await.unwrap();
        let server = Self { clock: ManualClock::default(), aws, endpoint, wire: Mutex::new((stdin, stdout)), child };
        server.expect("ready");
        server
    }

    pub(super) fn advance(&self, by: Duration) {
        writeln!(self.wire.lock().unwrap().0, "{}", by.as_secs_f64()).unwrap();
        self.expect("moved");
        self.clock.advance(by);
    }

    fn expect(&self, answer: &str) {
        let mut line = String::new();
        self.wire.lock().unwrap().1.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), answer, "the server has ended or speaks another language");
    }
}

impl Drop for Clocked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
