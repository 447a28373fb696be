//! Storefronts in process, with and without quotas and an audit: what each adds to a request.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request};
use hybrid_cloud::storefront::{
    AuditLog, AuditLogOptions, AuditOptions, Budget, Storefront, StorefrontBuilder, TenantQuota,
};
use hybrid_core::{Currency, Money, Price, ServedModel, SystemClock, SystemIds, WriterId, memory::MemoryStore};
use tokio::{runtime::Runtime, task::JoinSet};
use tower::ServiceExt;

use crate::{
    linear::{self, LinearClassifier},
    must,
    statistics::quantile,
};

/// A storefront whose model answers within some hundred nanoseconds and has a price.
#[derive(Clone, Debug)]
pub struct Guarded(Router);

impl Guarded {
    /// With neither quotas nor an audit.
    pub fn bare() -> Self {
        Self::of(|builder| builder)
    }

    /// With every quota, none of which is ever reached; the budget's slices lie in memory.
    pub fn limited() -> Self {
        let clock = Arc::new(SystemClock);
        let ids = Arc::new(SystemIds::new(Arc::clone(&clock) as _));
        let budget = Budget::new(Arc::new(MemoryStore::default()), must(WriterId::new("bench")), clock, ids);
        let quota = TenantQuota {
            requests_per_minute: Some(1_000_000_000),
            tokens_per_minute: Some(1_000_000_000_000),
            streams: Some(1_000),
            money_per_day: Some(usd("1000000")),
        };
        Self::of(|builder| builder.quotas(move |_| quota.clone()).budget(Arc::new(budget)))
    }

    /// With an audit log in `folder`, each entry of which has reached the system, or with `sync` the disk, before its answer leaves.
    pub fn audited(folder: &Path, sync: bool) -> Self {
        let options = AuditLogOptions { sync, ..AuditLogOptions::default() };
        let log = Arc::new(must(AuditLog::open(folder, must(WriterId::new("bench")), options)));
        Self::of(|builder| builder.audit(log, AuditOptions::default()))
    }

    fn of(with: impl FnOnce(StorefrontBuilder) -> StorefrontBuilder) -> Self {
        let [input, output] = [usd("0.1"), usd("0.1")];
        let price = Price { input, output, cache_read: None, cache_write: None, audio_second: None, image: None };
        let model = LinearClassifier::new(linear::weights(1), ServedModel::named("linear")).at(price);
        Self(must(with(Storefront::builder().classify("linear", Arc::new(model))).build()).router())
    }

    /// The time of the middle one of `requests` requests, one after the other.
    pub fn alone(&self, runtime: &Runtime, requests: usize) -> Duration {
        let mut took: Vec<_> = runtime.block_on(async {
            let mut took = Vec::with_capacity(requests);
            for _ in 0..requests {
                let started = Instant::now();
                self.ask().await;
                took.push(started.elapsed());
            }
            took
        });
        took.sort_unstable();
        quantile(&took, 0.5)
    }

    /// The share of the whole time that a request takes where `callers` at once each send `requests`.
    pub fn together(&self, runtime: &Runtime, callers: u32, requests: u32) -> Duration {
        let started = Instant::now();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..callers {
                let shop = self.clone();
                tasks.spawn(async move {
                    for _ in 0..requests {
                        shop.ask().await;
                    }
                });
            }
            tasks.join_all().await;
        });
        started.elapsed() / (callers * requests)
    }

    async fn ask(&self) {
        let request = Request::post("/v1/classify").header("content-type", "application/json");
        let request = must(request.body(Body::from(r#"{"input":"two loaves, please"}"#)));
        let answer = must(self.0.clone().oneshot(request).await);
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

fn usd(decimal: &str) -> Money {
    must(Money::new(Currency::USD, decimal))
}
