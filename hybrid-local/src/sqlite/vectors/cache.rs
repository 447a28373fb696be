//! Which tenants' vectors are held in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use hybrid_core::TenantId;

use super::{
    shard::{Change, Shard},
    table::Step,
};

/// Shards of the tenants asked last, up to a number of bytes.
///
/// It changes only on the thread that owns the database, after the commit of what the change says; so it never shows what is not durable, and goes in
/// the order of the commits.
pub(super) struct Cache {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts the looks, to tell which was last.
    looks: u64,
    held: HashMap<TenantId, Held>,
}

struct Held {
    shard: Arc<RwLock<Shard>>,
    generation: i64,
    bytes: usize,
    components: usize,
    last_look: u64,
}

impl Held {
    fn measure(&mut self, shard: &Shard) {
        (self.generation, self.bytes, self.components) = (shard.generation(), shard.bytes(), shard.components());
    }
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held of a tenant, if it is not older than `generation`.
    pub(super) fn get(&self, tenant: &TenantId, generation: i64) -> Option<Arc<RwLock<Shard>>> {
        let mut state = self.lock();
        let state = &mut *state;
        state.looks += 1;
        let held = state.held.get_mut(tenant).filter(|held| held.generation >= generation)?;
        held.last_look = state.looks;
        Some(Arc::clone(&held.shard))
    }

    /// How many components a scan of the tenant looks at.
    pub(super) fn components(&self, tenant: &TenantId) -> usize {
        self.lock().held.get(tenant).map_or(0, |held| held.components)
    }

    /// Holds a tenant that was just read, and lets go of those not asked for longest.
    pub(super) fn insert(&self, tenant: &TenantId, shard: Shard) -> Arc<RwLock<Shard>> {
        let mut state = self.lock();
        state.looks += 1;
        let last_look = state.looks;
        let mut held = Held { shard: Arc::default(), generation: 0, bytes: 0, components: 0, last_look };
        held.measure(&shard);
        held.shard = Arc::new(RwLock::new(shard));
        let kept = Arc::clone(&held.shard);
        state.held.insert(tenant.clone(), held);
        while state.held.values().map(|held| held.bytes).sum::<usize>() > self.limit {
            let oldest = state.held.iter().filter(|(name, _)| *name != tenant).min_by_key(|(_, held)| held.last_look);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            state.held.remove(&oldest);
        }
        kept
    }

    /// Brings what is held of a tenant from one generation to the next; what is not of that generation is let go.
    pub(super) fn apply<'a>(&self, tenant: &TenantId, step: Step, changes: impl Iterator<Item = Change<'a>>) {
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(tenant) else { return };
        if held.generation != step.from {
            state.held.remove(tenant);
            return;
        }
        let shard = Arc::clone(&held.shard);
        // Searches hold the shard for the length of a scan; looks at other tenants must not wait for that.
        drop(state);
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        shard.apply(step.to, changes);
        if let Some(held) = self.lock().held.get_mut(tenant) {
            held.measure(&shard);
        }
    }

    pub(super) fn remove(&self, tenant: &TenantId) {
        self.lock().held.remove(tenant);
    }
}
