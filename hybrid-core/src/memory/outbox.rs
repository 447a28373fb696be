use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Outbox, Result};

/// An [`Outbox`] in memory: durable for as long as the value lives.
#[derive(Debug, Default)]
pub struct MemoryOutbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    records: BTreeMap<u64, Bytes>,
}

impl MemoryOutbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Outbox for MemoryOutbox {
    async fn append(&self, record: Bytes) -> Result<u64> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.records.insert(number, record);
        Ok(number)
    }

    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        let state = self.lock();
        let records = state.records.range(after.saturating_add(1)..);
        Ok(records.take(max).map(|(number, record)| (*number, record.clone())).collect())
    }

    async fn remove(&self, numbers: &[u64]) -> Result<()> {
        let mut state = self.lock();
        for number in numbers {
            state.records.remove(number);
        }
        Ok(())
    }

    async fn len(&self) -> Result<u64> {
        Ok(self.lock().records.len() as u64)
    }
}
