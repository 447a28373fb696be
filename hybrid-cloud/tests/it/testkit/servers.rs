//! Installing, starting and ending of the servers.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hybrid_cloud::testkit::{Ministack, Moto, Python, Seaweed, target_folder};
use hybrid_core::ErrorKind;

/// Set for a process that starts a server and waits to be killed.
const ROLE: &str = "HYBRID_TESTKIT_ROLE";

fn answers(endpoint: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(endpoint.trim_start_matches("http://")) else { return false };
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 ")
}

#[test]
fn each_server_answers_when_its_start_returns_and_is_gone_when_dropped() {
    fn check<S>(start: fn() -> hybrid_core::Result<S>, endpoint: fn(&S) -> &str) {
        let server = start().unwrap();
        let endpoint = endpoint(&server).to_owned();
        assert!(answers(&endpoint), "{endpoint}");
        drop(server);
        assert!(TcpStream::connect(endpoint.trim_start_matches("http://")).is_err(), "{endpoint}");
    }
    check(Seaweed::start, Seaweed::endpoint);
    check(Ministack::start, Ministack::endpoint);
    check(Moto::start, Moto::endpoint);
}

#[test]
fn a_server_dies_with_the_process_that_started_it() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["testkit::servers::plays_its_role", "--exact", "--nocapture"])
        .env(ROLE, "owner")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let endpoint = lines.find_map(|line| line.unwrap().strip_prefix('@').map(str::to_owned)).unwrap();
    assert!(answers(&endpoint));
    // Without a chance to clean up.
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while TcpStream::connect(endpoint.trim_start_matches("http://")).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "{endpoint} outlives its owner");
        std::thread::yield_now();
    }
}

/// Does nothing unless this process was started in a role.
#[test]
fn plays_its_role() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let server = Ministack::start().unwrap();
    println!("\n@{}", server.endpoint());
    std::thread::park();
}

#[test]
fn an_environment_is_installed_once_and_again_after_a_kill() {
    let list = format!("# {}\nsix==1.17.0\n", std::process::id());
    let install = || Python::environment(&list).unwrap().program("python");
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(install);
        (install(), one.join().unwrap())
    });
    assert_eq!(one, other, "two who install at once share one environment");
    let version = "import six; print(six.__version__)";
    assert_eq!(Python::environment(&list).unwrap().run(version, &[]).unwrap().trim(), "1.17.0");
    // A killed installation leaves a folder, and no marker.
    let name = one.ancestors().nth(2).unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let marker = target_folder().join("testkit/python").join(format!("{}.ready", &name[..12]));
    fs::remove_file(&marker).unwrap();
    fs::remove_dir_all(one.ancestors().nth(2).unwrap().join("lib")).unwrap();
    let repaired = install();
    assert_ne!(repaired, one);
    assert!(!one.exists());
    assert_eq!(Python::environment(&list).unwrap().run(version, &[]).unwrap().trim(), "1.17.0");
    fs::remove_dir_all(repaired.ancestors().nth(2).unwrap()).unwrap();
    fs::remove_file(marker).unwrap();
}

#[test]
fn what_cannot_be_installed_is_named_and_not_taken_for_installed() {
    for _ in 0..2 {
        let error = Python::environment("six==0.0.0.1\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let text = error.to_string();
        assert!(text.contains("six==0.0.0.1") && text.contains("registry"), "{text}");
    }
}
