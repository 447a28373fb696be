//! What the storefront is compared with: one axum handler for each route, without ids, deadlines, limits, spans and checks.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use hybrid_core::task::{ChatDelta, Classification};
use serde::{Deserialize, Serialize};

use super::teller;
use crate::{linear, must};

/// The routes of a storefront with the same models, bare.
pub fn router() -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/v1/classify", post(classify))
        .route("/v1/chat/completions", post(chat))
        .with_state(Arc::new(linear::weights(1)))
}

#[derive(Debug, Deserialize)]
struct Question {
    input: String,
}

/// What the storefront answers, field by field.
#[derive(Debug, Serialize)]
struct Answer {
    object: &'static str,
    model: &'static str,
    version: Option<u64>,
    manifest: Option<String>,
    results: Vec<Classification>,
}

async fn classify(State(weights): State<Arc<Vec<u8>>>, Json(Question { input }): Json<Question>) -> Json<Answer> {
    let results = must(linear::classify(&weights, &[input])).results;
    Json(Answer { object: "classification.list", model: "linear", version: None, manifest: None, results })
}

/// What a client sends, as far as a bare handler needs it.
#[derive(Debug, Deserialize)]
struct Conversation {
    model: String,
}

/// One event of the storefront's, field by field.
#[derive(Debug, Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [Choice<'a>; 1],
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

async fn chat(Json(Conversation { model }): Json<Conversation>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let id = "chatcmpl-0198c5c5-0000-7000-8000-000000000000".to_owned();
    let events = teller::deltas().filter_map(move |delta| {
        let (delta, finish_reason) = match &delta {
            ChatDelta::Start { .. } => (Delta { role: Some("assistant"), content: Some("") }, None),
            ChatDelta::Stop { .. } => (Delta::default(), Some("stop")),
            delta => match delta.as_text() {
                Some(text) => (Delta { content: Some(text), ..Delta::default() }, None),
                None => return std::future::ready(None),
            },
        };
        let choices = [Choice { index: 0, delta, finish_reason }];
        let chunk = Chunk { id: &id, object: "chat.completion.chunk", created: 1_772_798_400, model: &model, choices };
        std::future::ready(Some(Event::default().data(must(serde_json::to_string(&chunk)))))
    });
    Sse::new(events.chain(stream::iter([Event::default().data("[DONE]")])).map(Ok))
}
