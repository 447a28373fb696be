//! Limits that only a real connection can meet.

use std::time::Duration;

use hybrid_cloud::storefront::StorefrontLimits;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::rig::{ASK, Gate, asleep, builder, classify_head, keep_alive, noon, orders, read_all, serve, soon};

fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ten_megabytes_are_refused_and_their_sender_gets_to_read_why() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    let large = vec![b'x'; 10_000_000];
    let mut announced = served.send(&classify_head(large.len()), &large).await;
    let (head, body) = read_all(&mut announced).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(code(&body), "body_too_large");
    assert!(body.contains("1048576 bytes and has 10000000"), "{body}");

    let chunked = classify_head(0).replace("content-length: 0", "transfer-encoding: chunked");
    let mut stream = served.send(&chunked, b"").await;
    for part in large.chunks(1_000_000) {
        stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await.unwrap();
        stream.write_all(part).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let (head, body) = read_all(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(code(&body), "body_too_large");
}

#[tokio::test]
async fn a_client_that_asks_before_sending_too_much_is_told_at_once() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    let head = classify_head(10_000_000).replace("host: shop", "host: shop\nexpect: 100-continue");
    let mut stream = served.send(&head, b"").await;
    let (head, body) = read_all(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(code(&body), "body_too_large");
}

#[tokio::test]
async fn a_head_that_trickles_in_ends_its_connection_and_no_other() {
    let clock = noon();
    let served = serve(&builder(&clock).classify("messages", orders()).build().unwrap()).await;
    let mut slow = served.send("POST /v1/classify HTTP/1.1\nx-a: ", b"b").await;
    asleep(&clock, 1).await;
    clock.advance(Duration::from_secs(9));
    slow.write_all(b"c").await.unwrap();
    let mut other = served.send(&classify_head(ASK.len()), ASK.as_bytes()).await;
    assert!(read_all(&mut other).await.0.starts_with("HTTP/1.1 200 "));
    clock.advance(Duration::from_secs(1));
    assert_eq!(read_all(&mut slow).await, (String::new(), String::new()));
}

#[tokio::test]
async fn a_body_that_trickles_in_is_answered_408() {
    let clock = noon();
    let served = serve(&builder(&clock).classify("messages", orders()).build().unwrap()).await;
    let head = classify_head(ASK.len()).replace("host: shop", "host: shop\nexpect: 100-continue");
    let mut slow = served.send(&head, &ASK.as_bytes()[..5]).await;
    // The server says that it has the head and waits for the body; from then on only the request's own timer runs.
    let mut told = [0; 25];
    soon(slow.read_exact(&mut told)).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    asleep(&clock, 1).await;
    clock.advance(Duration::from_secs(30));
    let (head, body) = read_all(&mut slow).await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    assert_eq!(code(&body), "body_timeout");
}

#[tokio::test]
async fn a_request_id_cannot_smuggle_a_header() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    for smuggled in ["a\rx-evil: 1", "a\0b", "a%0d%0ax-evil: 1", "a\tb", "a; x-evil=1"] {
        let head = format!("GET /healthz HTTP/1.1\nhost: shop\nconnection: close\nx-request-id: {smuggled}\n\n");
        let (head, _) = read_all(&mut served.send(&head, b"").await).await;
        let evil = head.contains("evil") || head.contains('\0') || head.contains('\t');
        assert!(head.starts_with("HTTP/1.1 ") && !evil, "{smuggled:?}: {head}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_the_next_is_served() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    let (head, _) = read_all(&mut served.send("\u{16}\u{3}\u{1} what\n\n", b"").await).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(
        read_all(&mut served.send(&classify_head(ASK.len()), ASK.as_bytes()).await)
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_call() {
    let gate = Gate::closed();
    let served = serve(&builder(&noon()).classify("messages", gate.clone()).build().unwrap()).await;
    let stream = served.send(&classify_head(ASK.len()), ASK.as_bytes()).await;
    let cx = gate.entered().await;
    assert!(!cx.cancel.is_cancelled());
    drop(stream);
    soon(cx.cancel.cancelled()).await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_one_to_end() {
    let gate = Gate::closed();
    let limits = StorefrontLimits { connections: 1, ..StorefrontLimits::default() };
    let served = serve(&builder(&noon()).classify("messages", gate.clone()).limits(limits).build().unwrap()).await;
    let mut first = served.send(&classify_head(ASK.len()), ASK.as_bytes()).await;
    gate.entered().await;
    let mut second = served.send("GET /healthz HTTP/1.1\nhost: shop\nconnection: close\n\n", b"").await;
    tokio::select! {
        biased;
        answer = second.readable() => panic!("the second was served beside the first: {answer:?}"),
        () = async { for _ in 0..200 { tokio::task::yield_now().await } } => gate.open(),
    }
    assert!(read_all(&mut first).await.0.starts_with("HTTP/1.1 200 "));
    assert!(read_all(&mut second).await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_asks_on_and_on_and_never_reads_is_cut_off() {
    let clock = noon();
    let limits = StorefrontLimits { connections: 1, ..StorefrontLimits::default() };
    let stall = limits.stream_stall;
    let served = serve(&builder(&clock).classify("messages", orders()).limits(limits).build().unwrap()).await;
    let mut deaf = TcpStream::connect(served.at).await.unwrap();
    // The limit on heads, which sleeps on from then; the next sleeper is the limit on the answers that are not read.
    asleep(&clock, 1).await;
    let asks = "GET /healthz HTTP/1.1\r\nhost: shop\r\n\r\n".repeat(100);
    let asking = async { while deaf.write_all(asks.as_bytes()).await.is_ok() {} };
    tokio::select! {
        () = asking => panic!("it was cut off before its time"),
        () = asleep(&clock, 2) => clock.advance(stall),
    }
    let mut next = served.send("GET /healthz HTTP/1.1\nhost: shop\nconnection: close\n\n", b"").await;
    assert!(read_all(&mut next).await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    for _ in 0..3 {
        keep_alive(&mut stream, &classify_head(ASK.len()), ASK, "}]}]}").await;
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_before_anything_is_done_with_it() {
    let limits = StorefrontLimits { head_bytes: 8192, ..StorefrontLimits::default() };
    let served = serve(&builder(&noon()).classify("messages", orders()).limits(limits).build().unwrap()).await;
    let long = format!("GET /healthz HTTP/1.1\nhost: shop\nx-long: {}\n\n", "x".repeat(10_000));
    let (head, _) = read_all(&mut served.send(&long, b"").await).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let many = format!("GET /healthz HTTP/1.1\nhost: shop\n{}\n", "a: b\n".repeat(150));
    let (head, _) = read_all(&mut served.send(&many, b"").await).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let fits = format!("GET /healthz HTTP/1.1\nhost: shop\nconnection: close\nx-long: {}\n\n", "x".repeat(7_000));
    assert!(read_all(&mut served.send(&fits, b"").await).await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_path_cannot_climb_out_of_its_route() {
    let served = serve(&builder(&noon()).classify("messages", orders()).build().unwrap()).await;
    for (path, expected) in [
        ("/v1/models/../../etc/passwd", "model_not_found"),
        ("/v1/models/..%2f..%2fetc%2fpasswd", "model_not_found"),
        ("/v1/models/%2e%2e/messages", "model_not_found"),
        ("/v1/models/messages%00", "model_not_found"),
        ("/v1/models/%0d%0ax-evil:%201", "model_not_found"),
        ("/v1/models/%ff", "invalid_request"),
        ("/v1/../healthz", "not_found"),
        ("//v1/models", "not_found"),
    ] {
        let head = format!("GET {path} HTTP/1.1\nhost: shop\nconnection: close\n\n");
        let (head, body) = read_all(&mut served.send(&head, b"").await).await;
        assert_eq!(code(&body), expected, "{path}");
        assert!(!head.contains("evil"), "{head}");
    }
}
