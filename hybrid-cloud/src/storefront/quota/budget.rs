//! A day's money, held by all instances together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, Currency, Document, Error, ErrorKind, IdSource, Key, ListOptions, Money,
    Result, TenantId, Timestamp, WriterId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const HOLD: &str = "hold budget";
/// How often a slice is asked for again whose answer was ambiguous, before the caller is told to come back.
const TRIES: usize = 3;

/// Tenants' daily budgets of money, held by any number of instances that share a bucket.
///
/// An instance spends only what it has claimed: slices of a tenant's budget, each an object `t/<tenant>/budget/<day>/<number>` that is created once
/// and says how much it claims and how much all slices up to it claim together. Whoever creates the next number has won; the loser reads it and
/// decides again. So all claims together never exceed the budget, whatever the instances do.
///
/// # Behavior
/// - [`hold`](Self::hold) before a call, [`Held::settle`] or [`Held::release`] after it; dropping a [`Held`] keeps the whole amount as spent.
/// - Nobody overspends as long as no call costs more than was held for it. What one does is taken from the next slice.
/// - What an instance has claimed and not spent when it ends is lost until the day ends: at most a slice for each tenant and what was in flight.
/// - An answer that does not say whether a slice was claimed is cleared up by asking for the very same slice again, by this caller or the next.
/// - A budget that changes during the day counts from the next claim on. The day changes at midnight UTC by the injected clock.
#[derive(Debug)]
pub struct Budget {
    store: Arc<dyn ArtifactStore>,
    instance: WriterId,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    slices: u32,
    pools: Mutex<HashMap<TenantId, Arc<Pool>>>,
}

/// What this instance has of one tenant's day.
#[derive(Debug)]
struct Pool {
    tenant: TenantId,
    day: String,
    currency: Currency,
    /// Claimed, and neither held nor spent. Below zero where calls have cost more than was held for them.
    available: Mutex<i128>,
    /// One claim at a time.
    chain: tokio::sync::Mutex<Chain>,
}

/// What is known of the slices in the bucket.
#[derive(Debug, Default)]
struct Chain {
    /// Whether the bucket was looked at.
    known: bool,
    next: u64,
    /// What all slices before `next` claim together.
    claimed: i128,
    /// A claim whose outcome is not known. Kept across callers: it may have been made.
    pending: Option<Slice>,
}

/// One claimed slice of a tenant's day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slice {
    number: u64,
    /// What it claims.
    amount: Money,
    /// What all slices up to and with it claim.
    total: Money,
    instance: WriterId,
    nonce: Uuid,
    at: Timestamp,
}

impl Document for Slice {
    const FORMAT: &'static str = "hybrid.budget-slice";
    const MAJOR: u32 = 1;
}

impl Budget {
    /// Budgets whose slices lie in `store`, claimed in the name of `instance`, a 64th of a day's budget at a time.
    pub fn new(
        store: Arc<dyn ArtifactStore>,
        instance: WriterId,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { store, instance, clock, ids, slices: 64, pools: Mutex::default() }
    }

    /// The same with `slices` to a day: more lose less when an instance ends, and ask the bucket more often.
    #[must_use]
    pub fn with_slices(mut self, slices: u32) -> Self {
        self.slices = slices.max(1);
        self
    }

    /// Holds `amount` of the tenant's `per_day`.
    ///
    /// # Errors
    /// - [`RateLimited`](ErrorKind::RateLimited) with the time until midnight if today's budget does not have it any more.
    /// - [`InvalidInput`](ErrorKind::InvalidInput) for two currencies or a negative amount.
    /// - Those of the store, and [`Corrupt`](ErrorKind::Corrupt) for slices that do not add up: nothing is held then.
    ///
    /// # Cancel safety
    /// Dropping the future holds nothing. A slice that was being claimed is this instance's none the less, and the next caller finds it.
    pub async fn hold(&self, tenant: &TenantId, per_day: Money, amount: Money) -> Result<Held> {
        if per_day.currency != amount.currency {
            return Err(Error::invalid(HOLD, "the budget and the price have different currencies; give both in one")
                .with("budget", per_day)
                .with("price", amount));
        }
        if amount.pico < 0 {
            return Err(Error::invalid(HOLD, "an amount below zero cannot be held").with("amount", amount));
        }
        let pool = self.pool(tenant, per_day.currency);
        if pool.take(amount.pico).is_err() {
            let mut chain = pool.chain.lock().await;
            while let Err(missing) = pool.take(amount.pico) {
                self.claim(&pool, &mut chain, per_day, missing).await?;
            }
        }
        Ok(Held { pool, pico: amount.pico })
    }

    /// Today's pool.
    fn pool(&self, tenant: &TenantId, currency: Currency) -> Arc<Pool> {
        let day = self.clock.now().date();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        match pools.get(tenant) {
            Some(pool) if pool.day == day && pool.currency == currency => Arc::clone(pool),
            // What was claimed of another day stays there, and is nobody's concern any more.
            _ => {
                if pools.len() == pools.capacity() {
                    pools.retain(|_, pool| pool.day == day);
                }
                let pool = Arc::new(Pool {
                    tenant: tenant.clone(),
                    day,
                    currency,
                    available: Mutex::default(),
                    chain: tokio::sync::Mutex::default(),
                });
                pools.insert(tenant.clone(), Arc::clone(&pool));
                pool
            }
        }
    }

    /// Claims the next slice, with at least `missing`.
    async fn claim(&self, pool: &Pool, chain: &mut Chain, per_day: Money, missing: i128) -> Result<()> {
        if !chain.known {
            self.look_up(pool, chain).await?;
        }
        for _ in 0..TRIES {
            let slice = match chain.pending.clone() {
                Some(slice) => slice,
                None => self.next_slice(pool, chain, per_day, missing)?,
            };
            chain.pending = Some(slice.clone());
            let key = pool.key(slice.number)?;
            let standing = match self.store.create(&key, slice.encode()?).await {
                Ok(()) => Some(slice.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Some(self.read(pool, &key).await?),
                Err(error) => {
                    tracing::warn!(%error, %key, "it is not known whether a slice of a budget was claimed");
                    None
                }
            };
            let Some(standing) = standing else { continue };
            chain.pending = None;
            let ours = standing.nonce == slice.nonce;
            chain.advance(pool, &standing)?;
            if ours {
                *pool.available() += slice.amount.pico;
            }
            return Ok(());
        }
        Err(Error::unavailable(HOLD, "the bucket does not say whether a slice was claimed")
            .with("tenant", &pool.tenant))
    }

    /// The slice to claim after those that are known.
    fn next_slice(&self, pool: &Pool, chain: &Chain, per_day: Money, missing: i128) -> Result<Slice> {
        let rest = per_day.pico - chain.claimed;
        if rest < missing {
            return Err(Error::new(ErrorKind::RateLimited, HOLD, "the day's budget is used up")
                .with("tenant", &pool.tenant)
                .with("budget", per_day)
                .with_retry_after(until_midnight(self.clock.now())));
        }
        let usual = per_day.pico / i128::from(self.slices) + 1;
        let pico = usual.clamp(missing, rest);
        Ok(Slice {
            number: chain.next,
            amount: Money { currency: pool.currency, pico },
            total: Money { currency: pool.currency, pico: chain.claimed + pico },
            instance: self.instance.clone(),
            nonce: self.ids.next_uuid(),
            at: self.clock.now(),
        })
    }

    /// Finds the last slice in the bucket: it says what all claim together.
    async fn look_up(&self, pool: &Pool, chain: &mut Chain) -> Result<()> {
        let mut objects = self.store.list(&pool.prefix(), ListOptions::default());
        let (mut last, mut count) = (None, 0u64);
        while let Some(object) = objects.try_next().await? {
            (last, count) = (Some(object.key), count + 1);
        }
        if let Some(key) = last {
            let slice = self.read(pool, &key).await?;
            if slice.number + 1 != count {
                return Err(pool.broken("slices are missing").with("key", key));
            }
            (chain.next, chain.claimed) = (count, slice.total.pico);
        }
        chain.known = true;
        Ok(())
    }

    async fn read(&self, pool: &Pool, key: &Key) -> Result<Slice> {
        let slice = Slice::decode(&self.store.get(key).await?).map_err(|error| error.with("key", key))?;
        let fits = slice.amount.currency == pool.currency
            && slice.total.currency == pool.currency
            && slice.amount.pico >= 0
            && pool.key(slice.number)? == *key;
        if fits { Ok(slice) } else { Err(pool.broken("a slice does not fit its place").with("key", key)) }
    }
}

impl Chain {
    /// `slice` is known to stand at `next`.
    fn advance(&mut self, pool: &Pool, slice: &Slice) -> Result<()> {
        if slice.number != self.next || slice.total.pico != self.claimed + slice.amount.pico {
            return Err(pool.broken("a slice does not add up").with("number", slice.number));
        }
        (self.next, self.claimed) = (self.next + 1, slice.total.pico);
        Ok(())
    }
}

impl Pool {
    fn prefix(&self) -> String {
        format!("t/{}/budget/{}/", self.tenant, self.day)
    }

    fn key(&self, number: u64) -> Result<Key> {
        Key::new(format!("{}{number:020}", self.prefix()))
    }

    fn available(&self) -> std::sync::MutexGuard<'_, i128> {
        self.available.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `pico`, or says how much is missing.
    fn take(&self, pico: i128) -> Result<(), i128> {
        let mut available = self.available();
        if *available < pico {
            return Err(pico - *available);
        }
        *available -= pico;
        Ok(())
    }

    fn broken(&self, message: &'static str) -> Error {
        Error::corrupt(HOLD, message).with("tenant", &self.tenant).with("day", &self.day)
    }
}

fn until_midnight(now: Timestamp) -> Duration {
    const DAY: i64 = 86_400_000_000;
    let left = DAY - now.unix_micros().rem_euclid(DAY);
    Duration::from_micros(left.unsigned_abs())
}

/// Money held for one call. Dropping it keeps the whole amount as spent: nobody knows what a call has cost that was cut off.
#[derive(Debug)]
#[must_use = "what is held and dropped counts as spent"]
pub struct Held {
    pool: Arc<Pool>,
    pico: i128,
}

impl Held {
    /// The call cost `cost`; the rest is free again.
    pub fn settle(self, cost: Money) {
        if cost.currency != self.pool.currency {
            tracing::error!(%cost, tenant = %self.pool.tenant, "a call cost another currency than was held; the amount held counts as spent");
            return;
        }
        if cost.pico > self.pico {
            tracing::warn!(%cost, tenant = %self.pool.tenant, "a call cost more than was held for it");
        }
        *self.pool.available() += self.pico - cost.pico.max(0);
    }

    /// The call cost nothing.
    pub fn release(self) {
        *self.pool.available() += self.pico;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn midnight_is_in_utc() {
        let left = |now: &str| until_midnight(now.parse().unwrap()).as_secs();
        assert_eq!(left("2026-03-01T23:59:50Z"), 10);
        assert_eq!(left("2026-03-01T00:00:00Z"), 86_400);
        assert_eq!(left("1969-12-31T23:00:00Z"), 3_600);
    }

    #[test]
    fn a_slice_survives_its_json() {
        let pico = 123_456_789_012_345_678_901_i128;
        let money = Money { currency: Currency::USD, pico };
        let slice = Slice {
            number: 3,
            amount: money,
            total: money,
            instance: WriterId::new("i").unwrap(),
            nonce: Uuid::nil(),
            at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(Slice::decode(&slice.encode().unwrap()).unwrap(), slice);
    }
}
