//! A backend on a scripted server, and a context to call it in.

use std::sync::Arc;

use hybrid_cloud::{
    openai::{OpenAiCompatible, OpenAiConfig},
    testkit::openai::{Answer, OpenAiServer, Request, chat_completion, chat_stream},
};
use hybrid_core::{CallContext, Locality, ManualClock, RequestId, TenantId};

pub(crate) fn context() -> (CallContext, ManualClock) {
    let clock = ManualClock::at("2026-03-01T12:00:00Z".parse().unwrap());
    let mut cx = CallContext::new(TenantId::single(), "r-1".parse::<RequestId>().unwrap());
    cx.clock = Arc::new(clock.clone());
    (cx, clock)
}

pub(crate) fn config(base_url: String) -> OpenAiConfig {
    OpenAiConfig::new("scripted", base_url, "loaf-1", Locality::Site)
}

pub(crate) async fn backend() -> (OpenAiServer, Arc<OpenAiCompatible>) {
    let server = OpenAiServer::start().await.unwrap();
    let backend = OpenAiCompatible::new(config(server.base_url())).unwrap();
    (server, Arc::new(backend))
}

/// A chat answer of these texts, as a stream or whole, as was asked.
pub(crate) fn chat_answer(request: &Request, texts: &[&str]) -> Answer {
    if request.json()["stream"] == true {
        Answer::sse(chat_stream("loaf-1", texts.iter().copied()))
    } else {
        Answer::json(200, &chat_completion("loaf-1", &texts.concat()))
    }
}
