//! The official Python client against the storefront.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hybrid_cloud::{
    storefront::{Authenticator, Principal, TenantQuota},
    testkit::Python,
};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, DataPolicy, Error, ErrorKind, Event, Files, InferenceBackend, JobKind,
    Limits, Locality, Reply, Result, ServedModel, TenantId,
    memory::{MemoryStore, ScriptedBackend},
    task::{Chat, ChatDelta, ChatRequest, ChatResponse, Choice, Message, Role, StopReason, ToolUse},
};
use serde_json::json;

use super::{
    media::{ears, painter, says, vectors},
    rig::{Desk, builder, noon, serve},
};

fn always(answer: impl Fn() -> Result<ChatResponse>) -> Arc<ScriptedBackend<Chat>> {
    Arc::new(ScriptedBackend::new("scripted", std::iter::repeat_with(answer).take(16)))
}

fn fails(kind: ErrorKind) -> Arc<ScriptedBackend<Chat>> {
    always(move || Err(Error::new(kind, "infer", "secret")))
}

/// A model that fails after its first words.
#[derive(Debug)]
struct Breaks;

#[async_trait]
impl InferenceBackend<Chat> for Breaks {
    fn profile(&self) -> Arc<BackendProfile> {
        InferenceBackend::<Chat>::profile(&*says(""))
    }

    async fn infer(&self, _: &CallContext, _: ChatRequest) -> Result<Reply<Chat>> {
        Err(Error::unavailable("infer", "broke off"))
    }

    async fn stream(&self, _: &CallContext, _: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let events = [Ok(Event::Delta(ChatDelta::text(0, "Two "))), Err(Error::unavailable("infer", "broke off"))];
        Ok(stream::iter(events).boxed())
    }
}

#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Authenticator for Nobody {
    async fn authenticate(&self, _: &str) -> Result<Option<Arc<Principal>>> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_gets_every_answer_and_every_error_it_expects() {
    let weigher = always(|| {
        let call = ToolUse::new("c1", "weigh", json!({ "grams": 5 }));
        let choice = Choice::new(Message::new(Role::Assistant, [call]), StopReason::ToolUse);
        Ok(ChatResponse { choices: vec![choice], ..ChatResponse::default() })
    });
    let far = BackendProfile {
        name: "far".into(),
        model: ServedModel::named("far"),
        locality: Locality::Region("us-east-1".into()),
        limits: Limits::default(),
        price: None,
    };
    let open = builder(&noon())
        .policy(DataPolicy::Site)
        .chat("loaf-1", says("Two loaves."))
        .chat("weigher", weigher)
        .chat("structured", says(r#"{"loaves":2}"#))
        .chat("busy", fails(ErrorKind::RateLimited))
        .chat("away", fails(ErrorKind::Unavailable))
        .chat("slow", fails(ErrorKind::Timeout))
        .chat("broken", fails(ErrorKind::Internal))
        .chat("far", Arc::new(ScriptedBackend::with_profile(far, [])))
        .chat("breaks", Arc::new(Breaks))
        .embed("vectors", vectors())
        .transcribe("ears", ears())
        .images("painter", painter())
        .files(Files::new(Arc::new(MemoryStore::default()), Arc::new(noon())))
        .jobs(Arc::new(Desk::default()), [JobKind::new("enrich").unwrap()]);
    let open = serve(&open.build().unwrap()).await;
    let locked = builder(&noon()).authenticator(Arc::new(Nobody)).chat("loaf-1", says("no")).build().unwrap();
    let locked = serve(&locked).await;
    let quota = |_: &TenantId| TenantQuota { requests_per_minute: Some(1), ..TenantQuota::default() };
    let limited = serve(&builder(&noon()).chat("loaf-1", says("once")).quotas(quota).build().unwrap()).await;
    let [open_url, locked_url, limited_url] =
        [&open, &locked, &limited].map(|served| format!("http://{}/v1", served.at));
    let run = tokio::task::spawn_blocking(move || {
        let python = Python::environment(include_str!("requirements-openai.txt"))?;
        python.run(include_str!("openai_client.py"), &[&open_url, &locked_url, &limited_url])
    });
    let printed = run.await.unwrap().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(printed.trim(), "all checks passed");
}
