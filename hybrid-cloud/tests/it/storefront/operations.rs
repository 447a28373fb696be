use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hybrid_core::Error;
use serde_json::json;

use super::rig::{app, builder, call, classify, get, noon, orders};

#[tokio::test]
async fn readiness_waits_for_every_check_and_names_the_failing_ones() {
    let loaded = Arc::new(AtomicBool::new(false));
    let look = Arc::clone(&loaded);
    let ready = move || match look.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(Error::unavailable("look", "no version is loaded yet").with("path", "/srv/models")),
    };
    let storefront = builder(&noon())
        .classify("messages", orders())
        .ready_when("model", ready)
        .ready_when("outbox", || Ok(()))
        .build()
        .unwrap();
    let router = storefront.router();
    let waiting = call(&router, get("/readyz")).await;
    assert_eq!(
        (waiting.status, waiting.error("code"), &waiting.headers["retry-after"]),
        (503, "not_ready", &"1".parse().unwrap())
    );
    assert!(
        waiting.error("message").starts_with("not ready: model: no version is loaded yet (request id:"),
        "{waiting:?}"
    );
    assert_eq!(call(&router, get("/healthz")).await.body, json!({ "status": "ok" }));

    loaded.store(true, Ordering::Relaxed);
    assert_eq!(call(&router, get("/readyz")).await.body, json!({ "status": "ready" }));

    storefront.drain();
    assert!(call(&router, get("/readyz")).await.error("message").contains("shutting down"));
    assert_eq!(call(&router, classify(&json!({ "input": "a" }))).await.status, 200);
    assert_eq!(call(&router, get("/healthz")).await.status, 200);
}

#[tokio::test]
async fn no_answer_is_kept_by_a_cache() {
    let router = app(orders());
    for request in [get("/readyz"), get("/nowhere"), classify(&json!({ "input": "a" }))] {
        assert_eq!(call(&router, request).await.headers["cache-control"], "no-store");
    }
}
