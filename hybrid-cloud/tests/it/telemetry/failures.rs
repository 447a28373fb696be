//! A collector that is away or hangs is nobody's affair but its own.

use std::time::Duration;

use futures_util::poll;
use hybrid_cloud::telemetry::Telemetry;
use hybrid_core::ErrorKind;

use super::rig::{answered, ask, watch};
use crate::storefront::rig::soon;

/// More than the exporter's queue and the batch in its hands hold together.
const MORE_THAN_FITS: usize = 1500;

#[tokio::test]
async fn a_collector_that_hangs_delays_and_fails_no_request() {
    let watched = watch(|telemetry| telemetry);
    watched.collector.hang();
    let router = watched.storefront().build().unwrap().router();
    for _ in 0..MORE_THAN_FITS {
        assert_eq!(answered(&router, ask("x", false)).await.0, 200);
    }
    assert!(watched.collector.exports().is_empty());

    let limit = Duration::from_secs(3);
    let mut stopping = std::pin::pin!(watched.telemetry.shutdown(limit));
    assert!(poll!(&mut stopping).is_pending());
    watched.clock.advance(limit);
    assert_eq!(soon(stopping).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(answered(&router, ask("x", false)).await.0, 200, "and after it has stopped");
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_of_when_one_asks() {
    let watched = watch(|telemetry| telemetry.otlp("http://127.0.0.1:9"));
    let router = watched.storefront().build().unwrap().router();
    assert_eq!(answered(&router, ask("x", false)).await.0, 200);
    let error = soon(watched.telemetry.flush(Duration::from_secs(60))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("not everything was sent"), "{error}");
}

#[tokio::test]
async fn what_has_ended_is_sent_before_the_end() {
    let watched = watch(|telemetry| telemetry);
    let router = watched.storefront().build().unwrap().router();
    answered(&router, ask("x", false)).await;
    soon(watched.telemetry.shutdown(Duration::from_secs(10))).await.unwrap();
    assert_eq!(watched.collector.spans().unwrap().len(), 2);
    assert!(!watched.collector.points().unwrap().is_empty());
    soon(watched.telemetry.shutdown(Duration::from_secs(10))).await.unwrap();
}

#[tokio::test]
async fn a_share_of_traces_is_exported_and_everything_is_counted() {
    let watched = watch(|telemetry| telemetry.sample(0.0));
    let router = watched.storefront().build().unwrap().router();
    let mut request = ask("x", false);
    let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.headers_mut().insert("traceparent", sampled.parse().unwrap());
    answered(&router, request).await;
    assert_eq!(watched.points("http.server.request.duration").await[0].count, 1);
    assert_eq!(watched.spans().await, [], "a caller cannot force one");
}

#[test]
fn what_is_no_collector_is_refused_by_name() {
    let refused = |endpoint: &str| Telemetry::builder("shop").otlp(endpoint).start().unwrap_err().to_string();
    for (bad, shown) in [
        ("collector:4318", "otlp: collector://"),
        ("ftp://collector/hunter2", "otlp: ftp://collector"),
        ("http://collector/in?api-key=hunter2", "otlp: http://collector"),
        ("hunter2", "such as http://127.0.0.1:4318"),
        ("http://host:hunter2/", "such as http://127.0.0.1:4318"),
    ] {
        let error = refused(bad);
        assert!(error.contains(shown) && !error.contains("hunter2"), "{error}");
    }
    let secret = refused("http://anna:hunter2@collector");
    assert!(secret.contains("header") && !secret.contains("hunter2"), "{secret}");
    assert!(Telemetry::builder("shop").sample(1.5).start().unwrap_err().to_string().contains("sample: 1.5"));
    assert!(Telemetry::builder("shop").series(0).start().is_err());
}
