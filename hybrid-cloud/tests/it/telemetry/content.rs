//! What customers write stays where it is.

use hybrid_core::{Error, ErrorKind, memory::ScriptedBackend, task::Chat};
use serde_json::{Value, json};
use std::sync::Arc;

use super::rig::{Watched, answered, ask, watch};
use crate::storefront::rig::{classify, from, get, post};

const CANARY: &str = "canary-7f3a";

/// Every way in which a customer's words come in, and a failure that quotes them.
async fn say_it_everywhere(watched: &Watched, trace_content: bool) {
    let quoting = || Err(Error::new(ErrorKind::Unavailable, "infer", CANARY).with("said", CANARY).with_source(CANARY));
    let broken = Arc::new(ScriptedBackend::<Chat>::new("broken", [quoting(), quoting()]));
    let mut storefront = watched.storefront().chat("broken", broken);
    if trace_content {
        storefront = storefront.trace_content();
    }
    let router = storefront.build().unwrap().router();
    for stream in [false, true] {
        assert_eq!(answered(&router, ask(CANARY, stream)).await.0, 200);
    }
    let broken =
        |stream| json!({ "model": "broken", "stream": stream, "messages": [{ "role": "user", "content": CANARY }] });
    let failed = [false, true].map(|stream| from("b", post("/v1/chat/completions", broken(stream).to_string())));
    let refused = [
        from("b", post("/v1/chat/completions", format!("{{\"{CANARY}"))),
        from("b", post("/v1/chat/completions", json!({ "model": CANARY, "messages": [] }).to_string())),
        from("b", classify(&json!({ "input": CANARY }))),
        from("b", get(&format!("/v1/models/{CANARY}"))),
        from("b", get(&format!("/v1/models?{CANARY}"))),
        from(CANARY, get("/v1/models")),
    ];
    for request in failed {
        assert_eq!(answered(&router, request).await.0, 503);
    }
    for request in refused {
        answered(&router, request).await;
    }
}

#[tokio::test]
async fn what_customers_write_is_in_nothing_that_is_exported() {
    let watched = watch(|telemetry| telemetry);
    say_it_everywhere(&watched, false).await;
    assert!(watched.spans().await.len() > 10, "everything was told");
    for (path, body) in watched.collector.exports() {
        assert!(!String::from_utf8_lossy(&body).contains(CANARY), "{path}");
    }
    assert!(!watched.telemetry.prometheus().unwrap().text().unwrap().contains(CANARY));
    // The log has the cause of a failure, and so what a backend quotes in it; it has nothing else that customers wrote.
    let lines = watched.log.text();
    let quoted: Vec<_> = lines.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(quoted.iter().all(|line| line.contains("request failed")), "{quoted:#?}");
}

#[tokio::test]
async fn what_is_asked_and_answered_is_told_where_it_is_wanted() {
    let watched = watch(|telemetry| telemetry);
    say_it_everywhere(&watched, true).await;
    let told: Vec<_> = watched.spans().await.into_iter().filter(|span| span.name == "chat loaf").collect();
    assert_eq!(told.len(), 2);
    for span in told {
        let messages = |name: &str| serde_json::from_str::<Value>(&span.attributes[name]).unwrap();
        let text = |text: &str| json!([{ "type": "text", "content": text }]);
        assert_eq!(messages("gen_ai.input.messages")[0], json!({ "role": "user", "parts": text(CANARY) }));
        let answer = &messages("gen_ai.output.messages")[0];
        assert_eq!(
            (&answer["parts"], &answer["finish_reason"]),
            (&text(&format!("You said: {CANARY}")), &json!("end_turn"))
        );
    }
    let metrics = watched.telemetry.prometheus().unwrap().text().unwrap();
    assert!(!metrics.contains(CANARY), "never in a metric");
}
