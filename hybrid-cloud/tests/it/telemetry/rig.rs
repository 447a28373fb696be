//! A storefront whose telemetry goes to a collector, and a model that takes its time.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hybrid_cloud::{
    storefront::{Principal, StorefrontBuilder},
    telemetry::{Telemetry, TelemetryBuilder},
    testkit::otlp::{Collector, ReceivedPoint, ReceivedSpan},
};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Currency, Event, InferenceBackend, Limits, Locality, ManualClock, Money,
    Reply, ReplyMeta, Result, ServedModel, Usage,
    task::{Chat, ChatDelta, ChatRequest, ChatResponse, Message, StopReason},
};
use serde_json::json;
use tower::ServiceExt;
use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

use crate::storefront::rig::{Tokens, builder, from, noon, post, soon, tenant};

/// A process whose telemetry is watched: spans and measurements by a collector, lines of every level by a log.
pub(crate) struct Watched {
    pub(crate) clock: ManualClock,
    pub(crate) collector: Collector,
    pub(crate) telemetry: Telemetry,
    pub(crate) log: Log,
    _installed: tracing::subscriber::DefaultGuard,
}

pub(crate) fn watch(more: impl FnOnce(TelemetryBuilder) -> TelemetryBuilder) -> Watched {
    let (clock, collector, log) = (noon(), Collector::start().unwrap(), Log::default());
    let telemetry = Telemetry::builder("shop").otlp(collector.endpoint()).clock(Arc::new(clock.clone())).prometheus();
    let telemetry = more(telemetry).start().unwrap();
    let lines = tracing_subscriber::fmt::layer().with_writer(log.clone()).with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(lines).with(telemetry.layer());
    let _installed = tracing::subscriber::set_default(subscriber);
    Watched { clock, collector, telemetry, log, _installed }
}

impl Watched {
    pub(crate) fn storefront(&self) -> StorefrontBuilder {
        let bakery = Principal::new(tenant("bakery"), "anna");
        builder(&self.clock)
            .authenticator(Tokens::new([("b", bakery)]))
            .chat("loaf", Arc::new(Clerk { clock: self.clock.clone() }))
    }

    pub(crate) async fn flush(&self) {
        soon(self.telemetry.flush(Duration::from_secs(10))).await.unwrap();
    }

    pub(crate) async fn spans(&self) -> Vec<ReceivedSpan> {
        self.flush().await;
        self.collector.spans().unwrap()
    }

    pub(crate) async fn points(&self, metric: &str) -> Vec<ReceivedPoint> {
        self.flush().await;
        self.collector.points().unwrap().into_iter().filter(|point| point.metric == metric).collect()
    }
}

/// Lines as a program would print them, from all levels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Says two words and what it was asked: the first after 200 ms, the end after another second. Eleven tokens, a tenth of a cent.
#[derive(Debug)]
struct Clerk {
    clock: ManualClock,
}

impl Clerk {
    fn answer(request: &ChatRequest) -> [String; 2] {
        ["You said: ".to_owned(), request.messages.iter().map(Message::text).collect()]
    }

    fn meta(&self) -> ReplyMeta {
        let usage = Usage { input_tokens: 7, cache_read_tokens: 2, output_tokens: 11, ..Usage::default() };
        let mut meta = ReplyMeta::of(&self.profile(), Duration::ZERO, usage).unwrap();
        meta.cost = Some(Money::new(Currency::USD, "0.001").unwrap());
        meta
    }
}

#[async_trait]
impl InferenceBackend<Chat> for Clerk {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::new(BackendProfile {
            name: "bedrock/eu.clerk".to_owned(),
            model: ServedModel::named("clerk-2"),
            locality: Locality::Region("eu-central-1".to_owned()),
            limits: Limits::default(),
            price: None,
        })
    }

    async fn infer(&self, _: &CallContext, request: ChatRequest) -> Result<Reply<Chat>> {
        self.clock.advance(Duration::from_millis(1200));
        let response = ChatResponse::one(Message::assistant(Self::answer(&request).concat()));
        Ok(Reply { response, meta: self.meta() })
    }

    async fn stream(&self, _: &CallContext, request: ChatRequest) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
        let waits = [Duration::from_millis(200), Duration::ZERO, Duration::from_secs(1)];
        let said = Self::answer(&request).map(|text| Event::Delta(ChatDelta::text(0, text)));
        let meta = self.meta();
        let stopped = ChatDelta::Stop { choice: 0, reason: StopReason::EndTurn, sequence: None };
        let events = said.into_iter().chain([Event::Delta(stopped), Event::Done(meta)]);
        let waits = waits.into_iter().chain([Duration::ZERO]);
        let clock = self.clock.clone();
        Ok(stream::iter(waits.zip(events))
            .map(move |(wait, event)| {
                clock.advance(wait);
                Ok(event)
            })
            .boxed())
    }
}

/// What a customer says, with more fields of the request.
pub(crate) fn ask(text: &str, stream: bool) -> Request<Body> {
    let body = json!({ "model": "loaf", "stream": stream, "messages": [{ "role": "user", "content": text }] });
    from("b", post("/v1/chat/completions", body.to_string()))
}

/// The status of the answer, read to its end.
pub(crate) async fn answered(router: &Router, request: Request<Body>) -> (u16, String) {
    let response = soon(router.clone().oneshot(request)).await.unwrap();
    let status = response.status().as_u16();
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
