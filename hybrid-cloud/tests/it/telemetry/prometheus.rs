//! Metrics as Prometheus scrapes them.

use hybrid_core::Cancellation;
use tokio::net::TcpListener;

use super::rig::{answered, ask, watch};
use crate::storefront::rig::{from, get, soon};

#[tokio::test]
async fn metrics_are_scraped_on_an_address_of_their_own() {
    let watched = watch(|telemetry| telemetry);
    let router = watched.storefront().build().unwrap().router();
    answered(&router, ask("x", true)).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, stop) = (listener.local_addr().unwrap(), Cancellation::new());
    let metrics = watched.telemetry.prometheus().unwrap().clone();
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(async move { metrics.serve(listener, stopped).await });
    let scraped = reqwest::get(format!("http://{at}/metrics")).await.unwrap();
    assert_eq!(scraped.headers()["content-type"], "text/plain; version=0.0.4");
    let text = scraped.text().await.unwrap();
    for line in [
        "# TYPE http_server_request_duration_seconds histogram",
        "http_server_request_duration_seconds_count{",
        "http_route=\"/v1/chat/completions\"",
        "gen_ai_server_time_to_first_token_seconds_sum{",
        "hybrid_tenant=\"bakery\"",
        "hybrid_call_cost_total{",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert_eq!(reqwest::get(format!("http://{at}/v1/models")).await.unwrap().status(), 404);
    stop.cancel();
    soon(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn customers_do_not_get_to_them() {
    let watched = watch(|telemetry| telemetry);
    let storefront = watched.storefront().build().unwrap();
    assert!(storefront.routes().iter().all(|route| route.path != "/metrics"));
    let router = storefront.router();
    assert_eq!(answered(&router, get("/metrics")).await.0, 401);
    assert_eq!(answered(&router, from("b", get("/metrics"))).await.0, 404);
}
