//! The leases that this adapter holds, by its own monotonic clock.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hybrid_core::{Clock, Error, Monotonic, Receipt, Result};

use super::incoming::Incoming;

/// One message held.
#[derive(Clone)]
pub(super) struct Lease {
    /// When the holder must have let go.
    pub(super) end: Monotonic,
    /// When SQS shows the message again, whatever is asked.
    pub(super) limit: Monotonic,
    /// What is sent again when the lease is handed over.
    pub(super) message: Arc<Incoming>,
}

pub(super) struct Leases {
    clock: Arc<dyn Clock>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    held: HashMap<String, Lease>,
    /// How many there may be before those that have run out are swept.
    sweep_at: usize,
}

impl Leases {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, table: Mutex::default() }
    }

    pub(super) fn insert(&self, receipt: String, lease: Lease) {
        let mut table = self.lock();
        if table.held.len() >= table.sweep_at {
            let now = self.clock.monotonic();
            table.held.retain(|_, lease| lease.end > now);
            table.sweep_at = 2 * table.held.len() + 64;
        }
        table.held.insert(receipt, lease);
    }

    /// The lease, if it lasts.
    pub(super) fn get(&self, receipt: &Receipt) -> Result<Lease> {
        let now = self.clock.monotonic();
        self.lock().held.get(&receipt.0).filter(|lease| lease.end > now).cloned().ok_or_else(|| lost(receipt))
    }

    /// Takes the lease out, if it lasts: from now on it is lost to its holder.
    pub(super) fn take(&self, receipt: &Receipt) -> Result<Lease> {
        let now = self.clock.monotonic();
        self.lock().held.remove(&receipt.0).filter(|lease| lease.end > now).ok_or_else(|| lost(receipt))
    }

    /// Makes the lease end at another time. One that was settled meanwhile stays so.
    pub(super) fn extend(&self, receipt: &Receipt, end: Monotonic) -> Result<()> {
        let mut table = self.lock();
        let lease = table.held.get_mut(&receipt.0).ok_or_else(|| lost(receipt))?;
        lease.end = end;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("held", &self.lock().held.len()).finish_non_exhaustive()
    }
}

fn lost(receipt: &Receipt) -> Error {
    // Handles are long; their beginning tells them apart well enough.
    let start: String = receipt.0.chars().take(24).collect();
    Error::lease_lost("find lease", "the lease has ended, or is not held here").with("receipt", start)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hybrid_core::{ErrorKind, ManualClock};

    use super::*;

    #[test]
    fn leases_that_have_run_out_do_not_pile_up() {
        let clock = ManualClock::default();
        let leases = Leases::new(Arc::new(clock.clone()));
        let message = Arc::new(Incoming::default());
        for i in 0..10_000 {
            let end = clock.monotonic().plus(Duration::from_secs(5));
            leases.insert(i.to_string(), Lease { end, limit: end, message: message.clone() });
            clock.advance(Duration::from_secs(1));
        }
        assert!(leases.lock().held.len() < 200, "{leases:?}");
        assert!(leases.get(&Receipt("9998".to_owned())).is_ok());
        let error = leases.get(&Receipt("9000".to_owned())).err().map(|error| error.kind());
        assert_eq!(error, Some(ErrorKind::LeaseLost));
    }
}
