//! However many spend, and whatever goes wrong, a day's budget is never overspent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::body::Bytes;
use futures_util::future::join_all;
use hybrid_cloud::storefront::{Budget, Held};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxStream, Clock, Currency, Error, ErrorKind, Key, ListOptions, ManualClock,
    Money, ObjectMeta, ReadOptions, Result, SeededIds, WriterId, memory::MemoryStore,
};

use super::rig::{noon, tenant};

fn usd(pico: i128) -> Money {
    Money { currency: Currency::USD, pico }
}

fn budget(store: Arc<dyn ArtifactStore>, instance: usize, life: u64, clock: &ManualClock) -> Budget {
    // No two lives of any instance share an id.
    let ids = SeededIds::new((instance as u64) << 40 | life << 20);
    Budget::new(store, WriterId::new(format!("shop-{instance}")).unwrap(), Arc::new(clock.clone()), Arc::new(ids))
}

/// The same numbers for the same seed.
#[derive(Debug)]
struct Dice(Mutex<u64>);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % sides
    }

    async fn dawdle(&self) {
        for _ in 0..self.roll(4) {
            tokio::task::yield_now().await;
        }
    }
}

/// A store whose answers cannot be trusted: creates land and fail, fail and land later, or fail; reads and lists fail.
#[derive(Debug)]
struct Ambiguous {
    inner: MemoryStore,
    dice: Dice,
    late: Mutex<Vec<(Key, Bytes)>>,
}

impl Ambiguous {
    async fn land_late(&self) {
        let next = if self.dice.roll(3) == 0 { self.late.lock().unwrap().pop() } else { None };
        if let Some((key, bytes)) = next {
            // Somebody may stand there by now.
            let _ = self.inner.create(&key, bytes).await;
        }
    }
}

#[async_trait]
impl ArtifactStore for Ambiguous {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.dice.dawdle().await;
        self.land_late().await;
        let lost = || Err(Error::unavailable("create object", "the answer was lost"));
        let outcome = match self.dice.roll(8) {
            0 => self.inner.create(key, bytes).await.and(lost()),
            1 => lost(),
            2 => {
                self.late.lock().unwrap().push((key.clone(), bytes));
                Err(Error::timeout("create object", "no answer"))
            }
            _ => self.inner.create(key, bytes).await,
        };
        self.dice.dawdle().await;
        outcome
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.dice.dawdle().await;
        if self.dice.roll(8) == 0 {
            return Err(Error::unavailable("read object", "the store is away"));
        }
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

/// What was spent and what is held, checked at each step.
#[derive(Debug, Default)]
struct Till {
    spent: i128,
    held: i128,
}

/// Hundreds of callers on several instances, some of which crash; answers with what was spent.
async fn a_day_at_the_shops(seed: u64, instances: usize, faulty: bool) -> i128 {
    const DAY: i128 = 1_000_000;
    let clock = noon();
    let memory = MemoryStore::new(Arc::new(clock.clone()));
    let faults = Ambiguous { inner: memory.clone(), dice: Dice(Mutex::new(seed)), late: Mutex::default() };
    let store: Arc<dyn ArtifactStore> = if faulty { Arc::new(faults) } else { Arc::new(memory.clone()) };
    let shops: Vec<_> =
        (0..instances).map(|i| Mutex::new((Arc::new(budget(Arc::clone(&store), i, 0, &clock)), 0u64))).collect();
    let (dice, till) = (Dice(Mutex::new(!seed)), Mutex::new(Till::default()));
    let caller = async |i: usize| -> () {
        let shop = &shops[i % instances];
        dice.dawdle().await;
        if faulty && dice.roll(40) == 0 {
            // A crash: what this instance had claimed is gone, what it had in flight may still be billed.
            let mut shop = shop.lock().unwrap();
            shop.1 += 1;
            shop.0 = Arc::new(budget(Arc::clone(&store), i % instances, shop.1, &clock));
        }
        let shop = Arc::clone(&shop.lock().unwrap().0);
        let most = i128::from(dice.roll(9_000)) + 1;
        let bakery = tenant("bakery");
        let holding = shop.hold(&bakery, usd(DAY), usd(most));
        // Some callers hang up while their money is being claimed.
        let held: Held = tokio::select! {
            biased;
            held = holding => match held {
                Ok(held) => held,
                Err(error) => {
                    let told = matches!(error.kind(), ErrorKind::RateLimited | ErrorKind::Unavailable);
                    assert!(told, "seed {seed}: {error}");
                    return;
                }
            },
            () = async {
                let patience = if faulty && dice.roll(10) == 0 { dice.roll(20) } else { 1_000_000 };
                for _ in 0..patience { tokio::task::yield_now().await }
            } => return,
        };
        {
            let mut till = till.lock().unwrap();
            till.held += most;
            assert!(till.spent + till.held <= DAY, "seed {seed}: {till:?}");
        }
        dice.dawdle().await;
        let cost = match dice.roll(6) {
            0 => {
                held.release();
                0
            }
            1 => {
                drop(held);
                most
            }
            _ => {
                let cost = i128::from(dice.roll(9_000)).min(most);
                held.settle(usd(cost));
                cost
            }
        };
        let mut till = till.lock().unwrap();
        till.held -= most;
        till.spent += cost;
    };
    join_all((0..600).map(caller)).await;
    let mut claimed = BTreeMap::new();
    for object in memory.list_all("t/bakery/budget/2026-03-01/").await.unwrap() {
        let slice: serde_json::Value = serde_json::from_slice(&memory.get(&object.key).await.unwrap()).unwrap();
        claimed.insert(object.key, slice["amount"]["pico"].as_i64().unwrap());
    }
    assert!(i128::from(claimed.values().sum::<i64>()) <= DAY, "seed {seed}: {claimed:?}");
    till.into_inner().unwrap().spent
}

/// Seed after seed; a failure names its own.
#[tokio::test]
async fn hundreds_of_callers_on_several_instances_never_overspend() {
    for seed in 0..40u64 {
        let (instances, faulty) = (1 + seed as usize % 5, seed % 3 != 0);
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spent = a_day_at_the_shops(seed, instances, faulty).await;
        // 600 callers want more than there is: where nothing goes wrong, nearly all of it is used.
        assert!(faulty || spent > 700_000, "seed {seed}: {spent}");
    }
}

#[tokio::test]
async fn a_budget_is_used_up_to_the_last_unit_and_is_full_again_at_midnight() {
    let clock = noon();
    let budget = budget(Arc::new(MemoryStore::default()), 0, 0, &clock).with_slices(7);
    let (bakery, day) = (tenant("bakery"), usd(1_000));
    let mut last = None;
    for _ in 0..100 {
        last = Some(budget.hold(&bakery, day, usd(10)).await.unwrap());
    }
    let spent = budget.hold(&bakery, day, usd(1)).await.unwrap_err();
    assert_eq!((spent.kind(), spent.retry_after()), (ErrorKind::RateLimited, Some(Duration::from_secs(12 * 3600))));
    // Another tenant's day is another's, and what costs nothing is free.
    drop(budget.hold(&tenant("florist"), day, usd(1_000)).await.unwrap());
    drop(budget.hold(&bakery, day, usd(0)).await.unwrap());
    // What a call does not need is there for the next.
    last.unwrap().settle(usd(4));
    drop(budget.hold(&bakery, day, usd(6)).await.unwrap());
    assert!(budget.hold(&bakery, day, usd(1)).await.is_err());
    // A budget that was raised counts at once.
    drop(budget.hold(&bakery, usd(1_100), usd(100)).await.unwrap());

    clock.advance(Duration::from_secs(12 * 3600));
    drop(budget.hold(&bakery, day, usd(1_000)).await.unwrap());
    clock.jump_wall(-86_400_000_000);
    // Yesterday is still spent, by this instance's own slices.
    assert!(budget.hold(&bakery, day, usd(1)).await.is_err());
}

#[tokio::test]
async fn what_costs_more_than_was_held_is_taken_from_the_next() {
    let budget = budget(Arc::new(MemoryStore::default()), 0, 0, &noon());
    let (bakery, day) = (tenant("bakery"), usd(1_000));
    budget.hold(&bakery, day, usd(100)).await.unwrap().settle(usd(300));
    drop(budget.hold(&bakery, day, usd(700)).await.unwrap());
    assert!(budget.hold(&bakery, day, usd(1)).await.is_err());
}

#[tokio::test]
async fn slices_that_do_not_add_up_let_nobody_spend() {
    let (clock, store) = (noon(), MemoryStore::default());
    let (bakery, day) = (tenant("bakery"), usd(1_000));
    drop(budget(Arc::new(store.clone()), 0, 0, &clock).hold(&bakery, day, usd(10)).await.unwrap());
    let key = Key::new(format!("t/bakery/budget/{}/{:020}", clock.now().date(), 0)).unwrap();
    let good = String::from_utf8(store.get(&key).await.unwrap().to_vec()).unwrap();
    for bad in [
        "{}".to_owned(),
        good.replace("\"number\":0", "\"number\":1"),
        good.replace("USD", "EUR"),
        good.replace("hybrid.budget-slice/1", "hybrid.budget-slice/2"),
    ] {
        assert_ne!(bad, good);
        store.corrupt(&key, bad.clone().into());
        let error = budget(Arc::new(store.clone()), 1, 0, &clock).hold(&bakery, day, usd(10)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{bad}: {error}");
    }
    let euros = Money { currency: Currency::EUR, pico: 1 };
    let mixed = budget(Arc::new(store), 2, 0, &clock).hold(&bakery, day, euros).await.unwrap_err();
    assert_eq!(mixed.kind(), ErrorKind::InvalidInput);
}
