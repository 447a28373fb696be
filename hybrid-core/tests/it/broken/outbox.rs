use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    Error, Outbox, Result,
    conformance::{Report, outbox},
};

use crate::conformance::Outboxes;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OutboxFault {
    Panics,
    CountsWhatIsThere,
    EndsRecordsAtAZero,
    NewestFirst,
    HandsOutOnce,
    RemovesOlder,
    BeginsAnew,
    NothingIsAnError,
    RemembersRemoved,
    NumbersTooEarly,
}

use OutboxFault::*;

const PLANTED: &[super::Planted<OutboxFault>] = &[
    (CountsWhatIsThere, &["numbers_are_never_used_again", "a_restart_keeps_records_and_numbers"]),
    (EndsRecordsAtAZero, &["records_come_back_as_appended"]),
    (NewestFirst, &["pending_is_the_oldest_in_order"]),
    (HandsOutOnce, &["pending_changes_nothing"]),
    (RemovesOlder, &["remove_drops_what_is_named"]),
    (BeginsAnew, &["pending_begins_after_a_number"]),
    (NothingIsAnError, &["remove_of_nothing_is_ok"]),
    (RemembersRemoved, &["remove_leaves_later_records"]),
    (NumbersTooEarly, &["appends_side_by_side_all_count"]),
    (Panics, &["numbers_grow"]),
];

pub(super) async fn run(fault: OutboxFault) -> Report {
    outbox::run(&Outboxes { fault: Some(fault) }).await
}

#[tokio::test]
async fn the_suite_notices_broken_outboxes() {
    super::check(PLANTED, run).await;
}

#[derive(Debug)]
pub(crate) struct BrokenOutbox {
    fault: OutboxFault,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    removed: u64,
    records: Vec<(u64, Bytes)>,
}

impl BrokenOutbox {
    pub(crate) fn new(fault: OutboxFault) -> Self {
        Self { fault, state: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Outbox for BrokenOutbox {
    async fn append(&self, record: Bytes) -> Result<u64> {
        assert!(self.fault != Panics, "out of paper");
        let next = match self.fault {
            CountsWhatIsThere => self.lock().records.len() as u64 + 1,
            _ => self.lock().last + 1,
        };
        if self.fault == NumbersTooEarly {
            tokio::task::yield_now().await;
        }
        let mut state = self.lock();
        state.last = next;
        let record = match self.fault {
            EndsRecordsAtAZero => {
                record.split(|byte| *byte == 0).next().map(|part| record.slice_ref(part)).unwrap_or_default()
            }
            _ => record,
        };
        state.records.push((next, record));
        Ok(next)
    }

    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        assert!(self.fault != Panics, "out of paper");
        let mut state = self.lock();
        let removed = if self.fault == RemembersRemoved { state.removed } else { 0 };
        let after = if self.fault == BeginsAnew { 0 } else { after };
        let wanted = state.records.iter().filter(|(number, _)| *number > removed.max(after)).cloned();
        let found: Vec<_> =
            if self.fault == NewestFirst { wanted.rev().take(max).collect() } else { wanted.take(max).collect() };
        if self.fault == HandsOutOnce {
            state.records.retain(|record| !found.contains(record));
        }
        Ok(found)
    }

    async fn remove(&self, numbers: &[u64]) -> Result<()> {
        let mut state = self.lock();
        let there = |number: &u64| state.records.iter().any(|(other, _)| other == number);
        if self.fault == NothingIsAnError && !numbers.iter().all(there) {
            return Err(Error::not_found("remove record", "no such record"));
        }
        let last = numbers.iter().copied().max().unwrap_or_default();
        let older = self.fault == RemovesOlder;
        state.records.retain(|(other, _)| if older { *other > last } else { !numbers.contains(other) });
        state.removed = state.removed.max(last);
        Ok(())
    }

    async fn len(&self) -> Result<u64> {
        assert!(self.fault != Panics, "out of paper");
        Ok(self.lock().records.len() as u64)
    }
}
