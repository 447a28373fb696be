use std::time::Duration;

use hybrid_cloud::storefront::Drained;
use tokio::net::TcpStream;

use super::rig::{ASK, GRACE, Gate, asleep, builder, classify_head, keep_alive, noon, read_all, serve, soon};

#[tokio::test]
async fn requests_in_flight_finish_while_new_connections_are_refused() {
    let (clock, gate) = (noon(), Gate::closed());
    let storefront = builder(&clock).classify("messages", gate.clone()).build().unwrap();
    let served = serve(&storefront).await;
    // Kept alive by the client; the answer must end the connection none the less.
    let head = classify_head(ASK.len()).replace("connection: close\n", "");
    let mut busy = served.send(&head, ASK.as_bytes()).await;
    let cx = gate.entered().await;
    let mut idle = TcpStream::connect(served.at).await.unwrap();
    keep_alive(&mut idle, "GET /healthz HTTP/1.1\nhost: shop\n\n", "", "\"ok\"}").await;

    served.stop.cancel();
    // The idle connection is closed, so shutdown has begun and the listener is gone.
    assert_eq!(read_all(&mut idle).await.0, "");
    let refused = TcpStream::connect(served.at).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!served.done.is_finished() && !cx.cancel.is_cancelled());

    gate.open();
    let (head, body) = read_all(&mut busy).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close"), "{head}");
    assert!(body.contains("\"order\""), "{body}");
    assert_eq!(soon(served.done).await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cancelled_and_counted() {
    let (clock, gate) = (noon(), Gate::closed());
    let served = serve(&builder(&clock).classify("messages", gate.clone()).build().unwrap()).await;
    let mut busy = served.send(&classify_head(ASK.len()), ASK.as_bytes()).await;
    let cx = gate.entered().await;
    let before = clock.sleepers();
    served.stop.cancel();
    asleep(&clock, before + 1).await;
    clock.advance(GRACE - Duration::from_millis(1));
    tokio::task::yield_now().await;
    assert!(!served.done.is_finished() && !cx.cancel.is_cancelled());
    clock.advance(Duration::from_millis(1));
    assert_eq!(soon(served.done).await.unwrap(), Drained { cut: 1 });
    assert!(cx.cancel.is_cancelled());
    assert_eq!(read_all(&mut busy).await.0, "");
}
