//! What a tenant may use, as its clients see it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::Router;
use hybrid_cloud::storefront::{Budget, Principal, TenantQuota};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Currency, Error, ErrorKind, Event, InferenceBackend, Limits, Locality,
    ManualClock, Money, Price, Reply, ReplyMeta, Result, SeededIds, ServedModel, Usage, WriterId,
    memory::{MemoryStore, ScriptedBackend},
    task::{Classify, ClassifyRequest},
};
use serde_json::json;

use super::rig::{
    Answer, Gate, Sink, Tokens, builder, call, classify, dataset, from, get, labelled, noon, orders, post, tenant,
};

fn usd(decimal: &str) -> Money {
    Money::new(Currency::USD, decimal).unwrap()
}

/// A model that costs a dollar for a million tokens and says how many it used.
#[derive(Debug)]
struct Metered {
    tokens: AtomicU64,
    fails: Option<(ErrorKind, bool)>,
}

impl Metered {
    fn using(tokens: u64) -> Arc<Self> {
        Arc::new(Self { tokens: tokens.into(), fails: None })
    }

    fn failing(kind: ErrorKind, in_doubt: bool) -> Arc<Self> {
        Arc::new(Self { tokens: 0.into(), fails: Some((kind, in_doubt)) })
    }
}

#[async_trait]
impl InferenceBackend<Classify> for Metered {
    fn profile(&self) -> Arc<BackendProfile> {
        let price = Price {
            input: usd("1"),
            output: usd("1"),
            cache_read: None,
            cache_write: None,
            audio_second: None,
            image: None,
        };
        Arc::new(BackendProfile {
            name: "metered".to_owned(),
            model: ServedModel::named("metered"),
            locality: Locality::Device,
            limits: Limits { input_tokens: Some(1_000), ..Limits::default() },
            price: Some(price),
        })
    }

    async fn infer(&self, _: &CallContext, _: ClassifyRequest) -> Result<Reply<Classify>> {
        if let Some((kind, in_doubt)) = self.fails {
            let error = Error::new(kind, "infer", "told to fail");
            return Err(if in_doubt { error.in_doubt() } else { error });
        }
        let usage = Usage { input_tokens: self.tokens.load(Ordering::Relaxed), ..Usage::default() };
        Ok(Reply { response: labelled("order"), meta: ReplyMeta::of(&self.profile(), Duration::ZERO, usage)? })
    }

    async fn stream(&self, _: &CallContext, _: ClassifyRequest) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Err(Error::unsupported("stream", "this model does not stream"))
    }
}

fn shop(clock: &ManualClock, backend: Arc<dyn InferenceBackend<Classify>>, quota: TenantQuota) -> Router {
    let tokens = Tokens::new([("a", Principal::new(tenant("a"), "anna")), ("b", Principal::new(tenant("b"), "bert"))]);
    let store = Arc::new(MemoryStore::default());
    let writer = WriterId::new("shop-1").unwrap();
    let budget = Budget::new(store, writer, Arc::new(clock.clone()), Arc::new(SeededIds::new(7)));
    builder(clock)
        .authenticator(tokens)
        .classify("m", backend)
        .quotas(move |_| quota.clone())
        .budget(Arc::new(budget))
        .build()
        .unwrap()
        .router()
}

async fn ask(router: &Router, who: &str) -> Answer {
    call(router, from(who, classify(&json!({ "input": "x" })))).await
}

/// Status, code, and when and whether to come again.
fn told(answer: &Answer) -> (u16, &str, &str, &str) {
    let header = |name: &str| answer.headers.get(name).map_or("", |value| value.to_str().unwrap());
    (answer.status, answer.error("code"), header("retry-after"), header("x-should-retry"))
}

#[tokio::test]
async fn a_tenant_that_asks_too_often_is_told_when_to_come_again_and_no_other_waits() {
    let clock = noon();
    let router = shop(&clock, orders(), TenantQuota { requests_per_minute: Some(3), ..TenantQuota::default() });
    assert_eq!(ask(&router, "a").await.status, 200);
    // What is not found and what is wrong counts too; probes do not, nor strangers.
    call(&router, from("a", get("/v1/nothing"))).await;
    call(&router, from("a", get("/v1/models"))).await;
    assert_eq!(told(&ask(&router, "a").await), (429, "rate_limit_exceeded", "20", "true"));
    assert_eq!(call(&router, get("/healthz")).await.status, 200);
    assert_eq!(call(&router, from("stranger", get("/v1/models"))).await.status, 401);
    assert_eq!(ask(&router, "b").await.status, 200);
    clock.advance(Duration::from_secs(19));
    assert_eq!(told(&ask(&router, "a").await), (429, "rate_limit_exceeded", "1", "true"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&router, "a").await.status, 200);
}

#[tokio::test]
async fn tokens_are_settled_with_what_a_call_has_used() {
    let clock = noon();
    let model = Metered::using(100);
    let router = shop(&clock, model.clone(), TenantQuota { tokens_per_minute: Some(400), ..TenantQuota::default() });
    // A call is likely to use 132 tokens, and uses 100.
    for _ in 0..3 {
        assert_eq!(ask(&router, "a").await.status, 200);
    }
    let refused = ask(&router, "a").await;
    assert_eq!((refused.status, refused.error("code")), (429, "rate_limit_exceeded"));
    assert!(refused.error("message").contains("tokens per minute"), "{refused:?}");
    assert_eq!(ask(&router, "b").await.status, 200);
    // One that uses far more overdraws the minute; the next ones wait for it.
    clock.advance(Duration::from_secs(60));
    model.tokens.store(1_000, Ordering::Relaxed);
    assert_eq!(ask(&router, "a").await.status, 200);
    clock.advance(Duration::from_secs(60));
    assert_eq!(ask(&router, "a").await.status, 429);
    clock.advance(Duration::from_secs(60));
    assert_eq!(ask(&router, "a").await.status, 200);
}

#[tokio::test]
async fn an_overdrawn_minute_holds_up_nothing_that_asks_no_model() {
    let shop = |limit| {
        let quota = TenantQuota { tokens_per_minute: Some(limit), ..TenantQuota::default() };
        let shop = builder(&noon()).classify("m", Metered::using(1_000)).judgments(Sink::failing([]), dataset());
        shop.quotas(move |_| quota.clone()).build().unwrap().router()
    };
    let router = shop(400);
    let ask = || classify(&json!({ "input": "x" }));
    assert_eq!(call(&router, ask()).await.status, 200);
    assert_eq!(call(&router, ask()).await.status, 429);
    let judgment = json!({ "input": "x", "label": "order" }).to_string();
    assert_eq!(call(&router, post("/v1/judgments", judgment)).await.status, 201);
    // A limit of zero lets no model be asked, not even once.
    assert_eq!(call(&shop(0), ask()).await.status, 429);
}

#[tokio::test]
async fn a_day_whose_money_is_spent_is_not_worth_trying_again() {
    let clock = noon();
    // A call can cost 0.000528 at most, by its bytes and what templates add; it costs 0.0005.
    let quota = TenantQuota { money_per_day: Some(usd("0.003")), ..TenantQuota::default() };
    let router = shop(&clock, Metered::using(500), quota);
    for _ in 0..5 {
        assert_eq!(ask(&router, "a").await.status, 200);
    }
    let spent = ask(&router, "a").await;
    assert_eq!(told(&spent), (429, "insufficient_quota", "43200", "false"));
    assert_eq!(spent.error("type"), "insufficient_quota");
    assert!(!spent.body.to_string().contains("0.003"), "{spent:?}");
    assert_eq!(ask(&router, "b").await.status, 200);
    clock.advance(Duration::from_secs(43_200));
    assert_eq!(ask(&router, "a").await.status, 200);
}

#[tokio::test]
async fn a_call_that_failed_for_certain_costs_nothing_and_one_that_may_have_cost_is_charged() {
    for (kind, in_doubt, calls) in [
        (ErrorKind::Unavailable, false, 50),
        (ErrorKind::RateLimited, false, 50),
        (ErrorKind::InvalidInput, false, 50),
        (ErrorKind::Unavailable, true, 5),
        (ErrorKind::Timeout, false, 5),
        (ErrorKind::Internal, false, 5),
    ] {
        let quota = TenantQuota { money_per_day: Some(usd("0.003")), ..TenantQuota::default() };
        let router = shop(&noon(), Metered::failing(kind, in_doubt), quota);
        for _ in 0..calls {
            assert_ne!(ask(&router, "a").await.error("code"), "insufficient_quota", "{kind:?}");
        }
        let then = ask(&router, "a").await;
        assert_eq!(then.error("code") == "insufficient_quota", calls == 5, "{kind:?}: {then:?}");
    }
}

/// A gate before a model with a price.
#[derive(Debug)]
struct Dear(Arc<Gate>);

#[async_trait]
impl InferenceBackend<Classify> for Dear {
    fn profile(&self) -> Arc<BackendProfile> {
        Metered::using(0).profile()
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        self.0.infer(cx, request).await
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        self.0.stream(cx, request).await
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_is_charged_what_was_held() {
    let gate = Gate::closed();
    let quota = TenantQuota { money_per_day: Some(usd("0.001")), ..TenantQuota::default() };
    let router = shop(&noon(), Arc::new(Dear(gate.clone())), quota);
    let asking = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, "a").await }
    });
    gate.entered().await;
    assert_eq!(told(&ask(&router, "a").await).1, "insufficient_quota");
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!(told(&ask(&router, "a").await).1, "insufficient_quota");
}

#[tokio::test]
async fn a_price_that_does_not_work_out_is_the_storefronts_fault() {
    let euros = || Money::new(Currency::EUR, "1").unwrap();
    let profile = |output| {
        let mut profile = (*Metered::using(0).profile()).clone();
        profile.price.as_mut().unwrap().output = output;
        profile
    };
    let backend = |profile| Arc::new(ScriptedBackend::<Classify>::with_profile(profile, [Ok(labelled("order"))]));
    // The budget is in another currency than the price, and the price is in two.
    for (per_day, output) in [(euros(), usd("1")), (usd("1"), euros())] {
        let quota = TenantQuota { money_per_day: Some(per_day), ..TenantQuota::default() };
        let answer = ask(&shop(&noon(), backend(profile(output)), quota), "a").await;
        assert_eq!((answer.status, answer.error("code")), (500, "internal_error"), "{answer:?}");
        assert!(!answer.body.to_string().contains("EUR"), "{answer:?}");
    }
}

#[tokio::test]
async fn money_without_a_budget_to_hold_it_is_the_storefronts_fault() {
    let quota = TenantQuota { money_per_day: Some(usd("1")), ..TenantQuota::default() };
    let free = quota.clone();
    let router =
        builder(&noon()).classify("m", Metered::using(1)).quotas(move |_| quota.clone()).build().unwrap().router();
    assert_eq!(call(&router, classify(&json!({ "input": "x" }))).await.status, 500);
    // What has no price needs none.
    let script = [Ok(labelled("order"))];
    let backend = Arc::new(ScriptedBackend::<Classify>::new("free", script));
    let router = builder(&noon()).classify("m", backend).quotas(move |_| free.clone()).build().unwrap().router();
    assert_eq!(call(&router, classify(&json!({ "input": "x" }))).await.status, 200);
}
