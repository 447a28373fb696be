//! Streams, below the routes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, poll, stream};
use hybrid_core::{
    BackendProfile, BoxFuture, BoxStream, CallContext, Clock, Error, ErrorKind, Event, IdSource, InferenceBackend,
    Limits, Locality, ManualClock, Reply, ReplyMeta, RequestId, Result, SeededIds, ServedModel, TenantId, Usage,
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
};
use tokio::sync::oneshot;

use super::{Admitted, ENTRY_WAIT, Front, Model, Offer, Ports};
use crate::storefront::{
    StorefrontLimits,
    audit::{Audit, AuditEntry, AuditFailure, AuditOptions, AuditSink, Outcome},
    edge::Edge,
    identity::Principal,
    quota::{Quotas, TenantQuota},
};

/// Streams what it is told to.
#[derive(Debug)]
struct Script(Mutex<Vec<Item>>);

#[derive(Clone, Copy, Debug)]
enum Item {
    Delta,
    Done,
    Fail,
    Hang,
}

fn response() -> ClassifyResponse {
    ClassifyResponse { results: vec![Classification::ranked(vec![LabelScore::new("order", 1.0)], None).unwrap()] }
}

#[async_trait]
impl InferenceBackend<Classify> for Script {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::new(BackendProfile {
            name: "script".to_owned(),
            model: ServedModel::named("script"),
            locality: Locality::Device,
            limits: Limits::default(),
            price: None,
        })
    }

    async fn infer(&self, _: &CallContext, _: ClassifyRequest) -> Result<Reply<Classify>> {
        Err(Error::unsupported("infer", "this model streams"))
    }

    async fn stream(&self, _: &CallContext, _: ClassifyRequest) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        let profile = self.profile();
        let items = stream::iter(self.0.lock().unwrap().clone()).then(move |item| {
            let profile = Arc::clone(&profile);
            async move {
                match item {
                    Item::Delta => Ok(Event::Delta(response())),
                    Item::Fail => Err(Error::unavailable("stream", "cut")),
                    Item::Hang => std::future::pending().await,
                    Item::Done => {
                        let usage = Usage { input_tokens: 7, ..Usage::default() };
                        Ok(Event::Done(ReplyMeta::of(&profile, Duration::ZERO, usage)?))
                    }
                }
            }
        });
        Ok(items.boxed())
    }
}

/// Keeps entries until it is told to fail.
#[derive(Debug, Default)]
struct Entries(Mutex<(Vec<AuditEntry>, bool)>);

impl AuditSink for Entries {
    fn append(&self, entry: AuditEntry) -> BoxFuture<'static, Result<()>> {
        let mut entries = self.0.lock().unwrap();
        if entries.1 {
            return Box::pin(async { Err(Error::unavailable("append", "the disk is gone")) });
        }
        entries.0.push(entry);
        Box::pin(async { Ok(()) })
    }
}

/// Keeps entries, or does not, when it is told to.
#[derive(Debug, Default)]
struct Later(Mutex<Vec<oneshot::Sender<Result<()>>>>);

impl AuditSink for Later {
    fn append(&self, _: AuditEntry) -> BoxFuture<'static, Result<()>> {
        let (done, kept) = oneshot::channel();
        self.0.lock().unwrap().push(done);
        Box::pin(async { kept.await.unwrap() })
    }
}

impl Later {
    fn fail(&self) {
        self.0.lock().unwrap().remove(0).send(Err(Error::unavailable("append", "the disk is gone"))).unwrap();
    }
}

struct Shop {
    admitted: Admitted,
    clock: ManualClock,
    entries: Arc<Entries>,
}

fn shop(items: &[Item], on_failure: AuditFailure) -> Shop {
    let (clock, entries) = (ManualClock::default(), Arc::<Entries>::default());
    Shop { admitted: admitted(items, on_failure, entries.clone(), &clock), clock, entries }
}

fn admitted(items: &[Item], on_failure: AuditFailure, sink: Arc<dyn AuditSink>, clock: &ManualClock) -> Admitted {
    let shared: Arc<dyn Clock> = Arc::new(clock.clone());
    let ids: Arc<dyn IdSource> = Arc::new(SeededIds::default());
    let quota = |_: &TenantId| TenantQuota { streams: Some(1), ..TenantQuota::default() };
    let backend: Arc<dyn InferenceBackend<Classify>> = Arc::new(Script(Mutex::new(items.to_vec())));
    let ports = Ports {
        audit: Some(Audit { sink, options: AuditOptions { on_failure, content: true } }),
        trace_content: false,
        quotas: Some(Quotas::new(Box::new(quota), None, Arc::clone(&shared))),
        tenant: TenantId::single(),
        authenticators: Vec::new(),
        policy: hybrid_core::DataPolicy::Anywhere,
        clock: shared,
        ids: Arc::clone(&ids),
        limits: StorefrontLimits::default(),
        models: vec![Model::new(Offer::new("m"), backend)],
        labels: None,
        judgments: None,
        jobs: None,
        files: None,
        vectors: None,
        records: None,
        checks: Vec::new(),
    };
    let deadline = clock.monotonic().plus(Duration::from_secs(30));
    Admitted {
        front: Arc::new(Front::new(ports)),
        principal: Arc::new(Principal::new(TenantId::single(), "anna")),
        edge: Edge { request: RequestId::next(&*ids), deadline, trace: None },
    }
}

impl Shop {
    async fn stream(&self) -> Result<BoxStream<'static, Result<Event<Classify>>>, String> {
        let model = self.admitted.model::<Classify>(None).map_err(|error| error.code().to_owned())?;
        let streamed = self.admitted.stream(&model, ClassifyRequest::one("x")).await;
        streamed.map_err(|error| error.code().to_owned())
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.entries.0.lock().unwrap().0.iter().map(|entry| entry.outcome.clone()).collect()
    }
}

#[tokio::test]
async fn a_stream_is_kept_when_it_begins_and_when_it_ends_with_what_it_said() {
    let shop = shop(&[Item::Delta, Item::Done], AuditFailure::Refuse);
    let events = shop.stream().await.unwrap();
    assert_eq!(shop.outcomes(), [Outcome::Begun]);
    assert_eq!(events.collect::<Vec<_>>().await.len(), 2);
    assert_eq!(shop.outcomes(), [Outcome::Begun, Outcome::Done]);
    let entry = shop.entries.0.lock().unwrap().0[1].clone();
    assert_eq!((entry.usage.unwrap().input_tokens, entry.subject.as_str()), (7, "anna"));
    let content = entry.content.unwrap();
    assert_eq!(content["request"]["inputs"][0], "x");
    assert_eq!(content["response"]["results"][0]["label"], "order");
}

#[tokio::test]
async fn a_tenant_has_as_many_streams_as_it_may_and_another_when_one_has_ended() {
    let shop = shop(&[Item::Delta, Item::Done], AuditFailure::Refuse);
    let mut first = shop.stream().await.unwrap();
    first.next().await.unwrap().unwrap();
    assert_eq!(shop.stream().await.err().unwrap(), "rate_limit_exceeded");
    while first.next().await.is_some() {}
    drop(first);
    drop(shop.stream().await.unwrap());
    // One whose client has gone has ended too.
    drop(shop.stream().await.unwrap());
}

#[tokio::test]
async fn a_stream_that_is_cut_or_fails_is_kept_as_such() {
    let shop = shop(&[Item::Delta, Item::Hang], AuditFailure::Refuse);
    let mut events = shop.stream().await.unwrap();
    events.next().await.unwrap().unwrap();
    drop(events);
    assert_eq!(shop.outcomes(), [Outcome::Begun, Outcome::Cut]);

    let failing = self::shop(&[Item::Delta, Item::Fail, Item::Done], AuditFailure::Refuse);
    let events: Vec<_> = failing.stream().await.unwrap().collect().await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(failing.outcomes(), [Outcome::Begun, Outcome::Failed("Unavailable".to_owned())]);
}

#[tokio::test]
async fn a_stream_ends_when_its_time_is_up_however_slow_it_is() {
    let shop = shop(&[Item::Delta, Item::Hang], AuditFailure::Refuse);
    let mut events = shop.stream().await.unwrap();
    // The request's own time is for its beginning.
    shop.clock.advance(Duration::from_secs(31));
    events.next().await.unwrap().unwrap();
    {
        let mut next = Box::pin(events.next());
        assert!(futures_util::poll!(&mut next).is_pending());
        shop.clock.advance(Duration::from_secs(570));
        assert_eq!(next.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    }
    assert!(events.next().await.is_none());
    assert_eq!(shop.outcomes()[1], Outcome::Failed("Timeout".to_owned()));
}

#[tokio::test]
async fn a_stream_that_cannot_be_audited_does_not_begin_unless_that_is_allowed() {
    let refusing = shop(&[Item::Delta, Item::Done], AuditFailure::Refuse);
    refusing.entries.0.lock().unwrap().1 = true;
    assert_eq!(refusing.stream().await.err().unwrap(), "unavailable");

    let going_on = shop(&[Item::Delta, Item::Done], AuditFailure::Continue);
    going_on.entries.0.lock().unwrap().1 = true;
    assert_eq!(going_on.stream().await.unwrap().collect::<Vec<_>>().await.len(), 2);
    assert_eq!(going_on.admitted.front.unaudited(), 2);

    // A disk that fails in the middle of a stream: its end says so.
    let late = shop(&[Item::Delta, Item::Done], AuditFailure::Refuse);
    let mut events = late.stream().await.unwrap();
    events.next().await.unwrap().unwrap();
    late.entries.0.lock().unwrap().1 = true;
    assert_eq!(events.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn an_error_leaves_once_its_entry_is_kept_or_counted() {
    let (sink, clock) = (Arc::<Later>::default(), ManualClock::default());
    let admitted = admitted(&[Item::Delta, Item::Fail], AuditFailure::Refuse, sink.clone(), &clock);
    let model = admitted.model::<Classify>(None).unwrap();
    let unaudited = || admitted.front.unaudited();
    let mut asking = Box::pin(admitted.infer(&model, ClassifyRequest::one("x")));
    assert!(poll!(&mut asking).is_pending());
    let done = sink.0.lock().unwrap().remove(0);
    done.send(Ok(())).unwrap();
    assert_eq!(asking.await.unwrap_err().code(), "unsupported");
    assert_eq!(unaudited(), 0);

    // What the disk says hides no error.
    let mut asking = Box::pin(admitted.infer(&model, ClassifyRequest::one("x")));
    assert!(poll!(&mut asking).is_pending());
    sink.fail();
    assert_eq!(asking.await.unwrap_err().code(), "unsupported");
    assert_eq!(unaudited(), 1);

    // A disk that hangs holds no answer for ever.
    let mut asking = Box::pin(admitted.infer(&model, ClassifyRequest::one("x")));
    assert!(poll!(&mut asking).is_pending());
    clock.advance(ENTRY_WAIT);
    assert_eq!(asking.await.unwrap_err().code(), "unsupported");
    assert_eq!(unaudited(), 2);
}

#[tokio::test]
async fn an_entry_that_fails_when_its_caller_has_gone_is_counted() {
    let (sink, clock) = (Arc::<Later>::default(), ManualClock::default());
    let admitted = admitted(&[Item::Delta], AuditFailure::Refuse, sink.clone(), &clock);
    let model = admitted.model::<Classify>(None).unwrap();
    // One leaves while an error waits for its entry, the other while a stream waits to begin, which is two entries.
    assert!(admitted.infer(&model, ClassifyRequest::one("x")).now_or_never().is_none());
    assert!(admitted.stream(&model, ClassifyRequest::one("x")).now_or_never().is_none());
    for counted in 1..=3 {
        sink.fail();
        // Whoever counts it runs on this very thread.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(admitted.front.unaudited(), counted);
    }
    assert!(sink.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_stream_that_does_not_begin_in_time_ends_as_such() {
    let shop = shop(&[Item::Hang], AuditFailure::Refuse);
    let mut events = shop.stream().await.unwrap();
    let mut next = Box::pin(events.next());
    assert!(poll!(&mut next).is_pending());
    shop.clock.advance(Duration::from_secs(30));
    assert_eq!(next.now_or_never().unwrap().unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(shop.outcomes(), [Outcome::Begun, Outcome::Failed("Timeout".to_owned())]);
}
