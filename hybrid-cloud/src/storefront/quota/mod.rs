//! What a tenant may use, held before a call begins and settled when it ends.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use hybrid_core::{Clock, Error, ErrorKind, Money, Monotonic, Result, TenantId, Usage};

mod bucket;
mod budget;
mod estimate;

pub use budget::{Budget, Held};
pub(super) use estimate::{Estimate, Estimated};

use bucket::Bucket;

use super::error::ApiError;

/// What one tenant may use. `None` means no limit.
///
/// Rates and streams are each instance's own: of N instances behind a load balancer each should get its share. Money is held by all instances
/// together: see [`Budget`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantQuota {
    /// Requests a minute, refused ones too; as many may come at once after a quiet minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, read and written. A call takes its likely number and is settled with its real one, so a minute may be overdrawn by what
    /// calls in flight were underestimated; the next ones wait for it.
    pub tokens_per_minute: Option<u64>,
    /// Streamed answers at one time.
    pub streams: Option<u32>,
    /// Money a day, by UTC. Needs a [`Budget`].
    pub money_per_day: Option<Money>,
}

/// Which of a tenant's limits refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limited {
    Requests,
    Tokens,
    Streams,
    Money,
}

impl Limited {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests per minute",
            Self::Tokens => "tokens per minute",
            Self::Streams => "streams",
            Self::Money => "money per day",
        }
    }
}

/// Says what a tenant may use now. It is asked at each request and must not block.
pub(super) type QuotaOf = Box<dyn Fn(&TenantId) -> TenantQuota + Send + Sync>;

/// What all tenants use.
pub(super) struct Quotas {
    of: QuotaOf,
    budget: Option<Arc<Budget>>,
    clock: Arc<dyn Clock>,
    used: Mutex<Tenants>,
}

/// Who uses something, or has lately.
#[derive(Debug, Default)]
struct Tenants {
    used: HashMap<TenantId, Arc<Used>>,
    /// How many there may be before those that are at rest are forgotten.
    sweep_at: usize,
}

/// What one tenant uses.
#[derive(Debug, Default)]
struct Used {
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
    streams: Mutex<u32>,
}

impl Used {
    /// Whether a new one would be the same to everybody.
    fn is_at_rest(self: &Arc<Self>, now: Monotonic, quota: &TenantQuota) -> bool {
        let full =
            |bucket: &Mutex<Bucket>, limit: Option<u64>| limit.is_none_or(|limit| lock(bucket).is_full(now, limit));
        Arc::strong_count(self) == 1
            && full(&self.requests, quota.requests_per_minute)
            && full(&self.tokens, quota.tokens_per_minute)
    }
}

impl Quotas {
    pub(super) fn new(of: QuotaOf, budget: Option<Arc<Budget>>, clock: Arc<dyn Clock>) -> Self {
        Self { of, budget, clock, used: Mutex::default() }
    }

    fn used(&self, tenant: &TenantId) -> Arc<Used> {
        let mut tenants = lock(&self.used);
        if let Some(used) = tenants.used.get(tenant) {
            return Arc::clone(used);
        }
        if tenants.used.len() >= tenants.sweep_at {
            let now = self.clock.monotonic();
            tenants.used.retain(|tenant, used| !used.is_at_rest(now, &(self.of)(tenant)));
            tenants.sweep_at = 2 * tenants.used.len() + 64;
        }
        Arc::clone(tenants.used.entry(tenant.clone()).or_default())
    }

    /// Counts a request.
    pub(super) fn request(&self, tenant: &TenantId) -> Result<(), Box<ApiError>> {
        let Some(limit) = (self.of)(tenant).requests_per_minute else { return Ok(()) };
        let used = self.used(tenant);
        let taken = lock(&used.requests).take(self.clock.monotonic(), limit, 1);
        taken.map_err(|wait| Box::new(ApiError::rate_limited(Limited::Requests, limit, wait)))
    }

    /// Holds what a call is likely to use. Whatever is refused leaves nothing held.
    pub(super) async fn hold(
        &self,
        tenant: &TenantId,
        estimate: &Estimate,
        streamed: bool,
    ) -> Result<Holding, ApiError> {
        let quota = (self.of)(tenant);
        let used = self.used(tenant);
        let mut holding = Holding { used, clock: Arc::clone(&self.clock), stream: false, tokens: None, money: None };
        if let Some(limit) = quota.streams.filter(|_| streamed) {
            let mut streams = lock(&holding.used.streams);
            if *streams >= limit {
                return Err(ApiError::too_many_streams(limit));
            }
            *streams += 1;
            drop(streams);
            holding.stream = true;
        }
        if let Some(limit) = quota.tokens_per_minute {
            // A call that is likelier larger than a whole minute waits for a whole minute and overdraws it.
            let tokens = estimate.tokens.min(limit.max(1));
            // What asks no model need not wait until an overdrawn minute is made up for.
            if estimate.tokens > 0 {
                let taken = lock(&holding.used.tokens).take(self.clock.monotonic(), limit, tokens);
                taken.map_err(|wait| ApiError::rate_limited(Limited::Tokens, limit, wait))?;
            }
            holding.tokens = Some((limit, tokens));
        }
        if let Some(per_day) = quota.money_per_day {
            let held = match (&self.budget, estimate.cost) {
                (_, None) => Ok(None),
                (Some(budget), Some(cost)) => budget.hold(tenant, per_day, cost).await.map(Some),
                (None, Some(_)) => Err(Error::internal("hold budget", "a quota of money needs a budget to hold it")),
            };
            match held {
                Ok(money) => holding.money = money,
                Err(error) => {
                    holding.release();
                    return Err(match error.kind() {
                        ErrorKind::RateLimited => ApiError::budget_spent(error),
                        // The operator's mistake, such as two currencies: nothing is wrong with the request.
                        ErrorKind::InvalidInput
                        | ErrorKind::Unsupported
                        | ErrorKind::TooLarge
                        | ErrorKind::PolicyDenied => {
                            Error::internal("hold budget", "the budget cannot hold a price").with_source(error).into()
                        }
                        _ => error.into(),
                    });
                }
            }
        }
        Ok(holding)
    }
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("budget", &self.budget).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is held for one call. Dropping it without a word keeps what was held as used, since nobody knows what the call has cost.
#[derive(Debug)]
pub(super) struct Holding {
    used: Arc<Used>,
    clock: Arc<dyn Clock>,
    stream: bool,
    /// The limit and what was taken of it.
    tokens: Option<(u64, u64)>,
    money: Option<Held>,
}

impl Holding {
    /// The call used this and cost that.
    pub(super) fn settle(mut self, usage: &Usage, cost: Option<Money>) {
        let used = usage.total_input_tokens().saturating_add(usage.output_tokens);
        self.settle_tokens(used);
        if let (Some(held), Some(cost)) = (self.money.take(), cost) {
            held.settle(cost);
        }
    }

    /// The call used nothing.
    pub(super) fn release(mut self) {
        self.settle_tokens(0);
        if let Some(held) = self.money.take() {
            held.release();
        }
    }

    fn settle_tokens(&mut self, used: u64) {
        if let Some((limit, taken)) = self.tokens.take() {
            lock(&self.used.tokens).settle(self.clock.monotonic(), limit, taken, used);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.stream {
            let mut streams = lock(&self.used.streams);
            *streams = streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use std::time::Duration;

    use hybrid_core::ManualClock;

    use super::*;

    #[tokio::test]
    async fn tenants_at_rest_are_forgotten_and_one_that_still_owes_or_streams_is_not() {
        let clock = ManualClock::default();
        let quota = TenantQuota {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(10),
            streams: Some(1),
            ..TenantQuota::default()
        };
        let quotas = Quotas::new(Box::new(move |_| quota.clone()), None, Arc::new(clock.clone()));
        let tenant = |number: usize| TenantId::new(format!("t-{number}")).unwrap();
        let (owing, streaming) = (TenantId::new("owing").unwrap(), TenantId::new("streaming").unwrap());
        let hold = async |tenant: &TenantId| quotas.hold(tenant, &Estimate { tokens: 1, cost: None }, true).await;
        // It has used the tokens of a week.
        hold(&owing).await.unwrap().settle(&Usage { input_tokens: 100_000, ..Usage::default() }, None);
        let stream = hold(&streaming).await.unwrap();
        for number in 0..5_000 {
            quotas.request(&tenant(number)).unwrap();
            assert!(quotas.request(&tenant(number)).is_err(), "the minute's one request is used");
            clock.advance(Duration::from_secs(1));
        }
        assert!(lock(&quotas.used).used.len() < 400, "about a minute's worth: {}", lock(&quotas.used).used.len());
        assert!(quotas.request(&tenant(4_999)).is_err());
        assert!(hold(&owing).await.is_err() && hold(&streaming).await.is_err());
        drop(stream);
        assert!(hold(&streaming).await.is_ok());
    }
}
