//! What customers write stays where it is.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hybrid_cloud::{
    openai::{OpenAiCompatible, OpenAiConfig, RetryPolicy},
    testkit::{
        bedrock::{self, BedrockServer},
        openai::{self, Answer, OpenAiServer, chat_stream},
    },
};
use hybrid_core::{Error, memory::ScriptedBackend, task::Chat};
use serde_json::{Value, json};

use super::rig::{Watched, answered, ask, watch};
use crate::{
    bedrock::rig as bedrock_rig,
    openai::rig::config,
    storefront::rig::{classify, from, get, post},
};

const CANARY: &str = "canary-7f3a";

/// Every way in which a customer's words come in, and a failure that quotes them.
async fn say_it_everywhere(watched: &Watched, trace_content: bool) {
    let quoting =
        || Err(Error::unavailable("infer", CANARY).quoting().quote("said", CANARY).with_quoted_source(CANARY));
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
    // The log has the cause of a failure, but for what a backend quotes in it.
    let lines = watched.log.text();
    assert!(!lines.contains(CANARY), "{lines}");
    assert_eq!(lines.matches("infer: [withheld] (said: [withheld]): [withheld]").count(), 2, "{lines}");
}

/// How a server echoes what it was asked, and the status that a customer gets.
const ECHOES: [(&str, u16); 7] = [
    ("an error", 503),
    ("a refusal", 400),
    ("a text", 503),
    ("another form", 500),
    ("no JSON", 500),
    ("an error for an answer", 503),
    ("an error in a stream", 200),
];

fn echo(request: &openai::Request) -> Answer {
    let prompt = request.json()["messages"][0]["content"].as_str().unwrap().to_owned();
    let said = format!("cannot answer: {prompt}");
    match prompt.split_once(": ").unwrap().0 {
        "an error" => Answer::error(500, "internal", &said),
        "a refusal" => Answer::error(400, "bad", &said),
        "a text" => Answer::new(502, "text/html", said),
        "another form" => Answer::json(200, &json!({ "choices": said })),
        "no JSON" => Answer::json(200, &json!(said)),
        "an error for an answer" => Answer::json(200, &json!({ "error": { "message": said } })),
        _ => {
            let mut events = chat_stream("loaf-1", ["Two "]);
            events.truncate(events.find("data: [DONE]").unwrap());
            let failure = json!({ "error": { "message": said, "type": "server_error" } });
            Answer::sse(format!("{events}data: {failure}\n\n"))
        }
    }
}

fn say(model: &str, text: &str, stream: bool) -> Request<Body> {
    let body = json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": text }] });
    from("b", post("/v1/chat/completions", body.to_string()))
}

/// Servers that quote the prompt in whatever goes wrong, each in its own protocol.
async fn ask_those_who_echo(watched: &Watched, trace_content: bool) {
    let (server, provider) = (OpenAiServer::start().await.unwrap(), BedrockServer::start().unwrap());
    server.answer_with(echo);
    let retry = RetryPolicy { attempts: 2, first_wait: Duration::ZERO, ..RetryPolicy::default() };
    let loaf = OpenAiCompatible::new(OpenAiConfig { retry, ..config(server.base_url()) }).unwrap();
    let nova = bedrock_rig::chat_once(&provider, bedrock_rig::NOVA);
    let mut storefront = watched.storefront().chat("echo", Arc::new(loaf)).chat("nova", Arc::new(nova));
    if trace_content {
        storefront = storefront.trace_content();
    }
    let router: Router = storefront.build().unwrap().router();
    for (how, status) in ECHOES {
        let stream = how.ends_with("stream");
        let (answered, body) = answered(&router, say("echo", &format!("{how}: {CANARY}"), stream)).await;
        assert_eq!(answered, status, "{how}: {body}");
        assert!(!body.contains(CANARY), "{how}: {body}");
    }
    let original = json!({ "message": CANARY, "originalStatusCode": 500, "originalMessage": CANARY });
    provider.script([
        bedrock::Reply::error(500, "InternalServerException", CANARY),
        bedrock::Reply {
            body: bedrock::Body::Json(424, original),
            ..bedrock::Reply::error(424, "ModelErrorException", "")
        },
        bedrock::Reply {
            body: bedrock::Body::Json(200, json!({ "output": CANARY })),
            ..bedrock::Reply::error(200, "", "")
        },
    ]);
    for _ in 0..3 {
        let (status, body) = answered(&router, say("nova", CANARY, false)).await;
        assert!(status >= 500 && !body.contains(CANARY), "{status} {body}");
    }
}

#[tokio::test]
async fn what_a_server_quotes_of_a_prompt_is_withheld_from_every_log_and_export() {
    let watched = watch(|telemetry| telemetry);
    ask_those_who_echo(&watched, false).await;
    let lines = watched.log.text();
    // The AWS SDK's own events of the level TRACE hold whole answers; who prints those has asked for them.
    let sdk_trace = |line: &&str| line.contains(" TRACE ") && line.contains(": aws_smithy_runtime");
    let quoting: Vec<_> = lines.lines().filter(|line| line.contains(CANARY)).filter(|line| !sdk_trace(line)).collect();
    assert!(quoting.is_empty(), "{quoting:#?}");
    for fact in ["status: 500", "status: 502", "a call is tried again", "stream failed", "InternalServerException"] {
        assert!(lines.contains(fact), "what went wrong is told all the same: {fact}\n{lines}");
    }
    watched.flush().await;
    for (path, body) in watched.collector.exports() {
        assert!(!String::from_utf8_lossy(&body).contains(CANARY), "{path}");
    }
}

#[tokio::test]
async fn what_a_server_quotes_is_in_the_log_where_content_is_wanted() {
    let watched = watch(|telemetry| telemetry);
    ask_those_who_echo(&watched, true).await;
    let lines = watched.log.text();
    let told = |event: &str| lines.lines().any(|line| line.contains(event) && line.contains(CANARY));
    assert!(told("request failed") && told("stream failed"), "{lines}");
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
