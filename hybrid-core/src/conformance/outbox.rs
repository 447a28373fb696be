//! The suite of [`Outbox`].

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, equal, noise, same_bytes, skip},
};
use crate::{Outbox, Result};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait OutboxHarness: Debug + Send + Sync {
    /// A fresh, empty outbox.
    async fn outbox(&self) -> Result<Arc<dyn Outbox>>;

    /// The same outbox after a restart of its process; the suite has dropped all its own handles but this. `None`, the default, where it does not outlive its process.
    async fn restart(&self, outbox: Arc<dyn Outbox>) -> Result<Option<Arc<dyn Outbox>>> {
        let _ = outbox;
        Ok(None)
    }
}

/// Runs all cases against an adapter, each on an outbox of its own.
pub async fn run(harness: &dyn OutboxHarness) -> Report {
    let mut report = Report::new("outbox");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        cases::numbers_grow => "`append` returns the record's number; numbers grow",
        cases::records_come_back_as_appended => "a record is durable when `append` returns, to the byte",
        cases::pending_is_the_oldest_in_order => "`pending` answers with the oldest records, at most `max`, in order of their numbers",
        cases::pending_begins_after_a_number => "`pending` answers with records above a number alone",
        cases::pending_changes_nothing => "`pending` changes nothing: a drain that dies is repeated",
        cases::remove_drops_what_is_named => "`remove` drops the records with the numbers given, and no other",
        cases::remove_of_nothing_is_ok => "what is gone already is no error",
        cases::numbers_are_never_used_again => "numbers are never used again",
        cases::remove_leaves_later_records => "a record appended after a `remove` is pending, whatever numbers that named",
        cases::appends_side_by_side_all_count => "concurrent appends each get a number of their own",
        cases::a_restart_keeps_records_and_numbers => "records are durable and numbers are never used again, also after a restart",
    ]);
    report
}

mod cases {
    use super::*;

    type Harness<'a> = &'a dyn OutboxHarness;

    async fn filled(harness: Harness<'_>, records: usize) -> CaseResult<(Arc<dyn Outbox>, Vec<u64>)> {
        let outbox = harness.outbox().await?;
        let mut numbers = Vec::new();
        for i in 0..records {
            numbers.push(outbox.append(record(i)).await?);
        }
        Ok((outbox, numbers))
    }

    fn record(i: usize) -> Bytes {
        format!("record {i}").into()
    }

    async fn numbers(outbox: &dyn Outbox) -> CaseResult<Vec<u64>> {
        Ok(outbox.pending(0, 1_000).await?.into_iter().map(|(number, _)| number).collect())
    }

    pub(super) async fn numbers_grow(harness: Harness<'_>) -> CaseResult {
        let (outbox, numbers) = filled(harness, 20).await?;
        ensure!(numbers.is_sorted_by(|a, b| a < b), "the numbers of 20 appends were {numbers:?}");
        equal("the count of records", &outbox.len().await?, &20)
    }

    pub(super) async fn records_come_back_as_appended(harness: Harness<'_>) -> CaseResult {
        let outbox = harness.outbox().await?;
        let all_bytes: Vec<u8> = (0..=255).collect();
        let records = [Bytes::new(), Bytes::from(all_bytes), noise(1, 1024 * 1024).into(), "{\"ü\":\"🥐\"}\n".into()];
        for record in &records {
            outbox.append(record.clone()).await?;
        }
        let pending = outbox.pending(0, 10).await?;
        equal("the count of pending records", &pending.len(), &records.len())?;
        for (i, ((_, found), record)) in pending.iter().zip(&records).enumerate() {
            same_bytes(&format!("record {i}"), found, record)?;
        }
        Ok(())
    }

    pub(super) async fn pending_is_the_oldest_in_order(harness: Harness<'_>) -> CaseResult {
        let (outbox, numbers) = filled(harness, 12).await?;
        for max in [0, 1, 5, 12, 100] {
            let expected: Vec<_> = numbers.iter().copied().zip((0..12).map(record)).take(max).collect();
            equal(&format!("pending({max})"), &outbox.pending(0, max).await?, &expected)?;
        }
        Ok(())
    }

    pub(super) async fn pending_changes_nothing(harness: Harness<'_>) -> CaseResult {
        let (outbox, _) = filled(harness, 3).await?;
        let first = outbox.pending(0, 2).await?;
        equal("a second look", &outbox.pending(0, 2).await?, &first)?;
        equal("the count of records", &outbox.len().await?, &3)
    }

    pub(super) async fn pending_begins_after_a_number(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 5).await?;
        for (after, expected) in [(all[0], &all[1..4]), (all[3], &all[4..]), (all[4], &[]), (u64::MAX, &[])] {
            let found: Vec<_> = outbox.pending(after, 3).await?.into_iter().map(|(number, _)| number).collect();
            equal(&format!("pending({after}, 3)"), &found, &expected.to_vec())?;
        }
        ensure!(all[0] > 0, "the first number is 0, which nothing is above");
        Ok(())
    }

    pub(super) async fn remove_drops_what_is_named(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 6).await?;
        outbox.remove(&[]).await?;
        outbox.remove(&[all[4], all[0], all[2]]).await?;
        equal("what is pending after removing three", &numbers(&*outbox).await?, &vec![all[1], all[3], all[5]])?;
        equal("the count of records", &outbox.len().await?, &3)?;
        outbox.remove(&all).await?;
        equal("what is pending after removing all", &numbers(&*outbox).await?, &Vec::new())?;
        equal("the count of records", &outbox.len().await?, &0)
    }

    pub(super) async fn remove_of_nothing_is_ok(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 3).await?;
        outbox.remove(&all[..2]).await?;
        outbox.remove(&all[1..2]).await?;
        outbox.remove(&all[..1]).await?;
        equal("what is pending", &numbers(&*outbox).await?, &vec![all[2]])
    }

    pub(super) async fn numbers_are_never_used_again(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 3).await?;
        outbox.remove(&all).await?;
        let next = outbox.append(record(3)).await?;
        ensure!(next > all[2], "after numbers {all:?} were removed the next one is {next}");
        Ok(())
    }

    pub(super) async fn remove_leaves_later_records(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 1).await?;
        outbox.remove(&[all[0], all[0] + 1]).await?;
        let next = outbox.append(record(1)).await?;
        equal("what is pending", &outbox.pending(0, 10).await?, &vec![(next, record(1))])
    }

    pub(super) async fn appends_side_by_side_all_count(harness: Harness<'_>) -> CaseResult {
        let outbox = harness.outbox().await?;
        let appends = join_all((0..16).map(|i| outbox.append(record(i)))).await;
        let mut appended =
            appends.into_iter().enumerate().map(|(i, number)| Ok((number?, record(i)))).collect::<Result<Vec<_>>>()?;
        appended.sort();
        equal("what is pending", &outbox.pending(0, 100).await?, &appended)?;
        ensure!(appended.is_sorted_by(|a, b| a.0 < b.0), "two of 16 concurrent appends share a number: {appended:?}");
        Ok(())
    }

    pub(super) async fn a_restart_keeps_records_and_numbers(harness: Harness<'_>) -> CaseResult {
        let (outbox, all) = filled(harness, 4).await?;
        outbox.remove(&all[..2]).await?;
        let Some(outbox) = harness.restart(outbox).await? else {
            return skip("the outbox does not outlive its process");
        };
        let expected = vec![(all[2], record(2)), (all[3], record(3))];
        equal("what is pending after a restart", &outbox.pending(0, 10).await?, &expected)?;
        outbox.remove(&all[2..]).await?;
        let Some(outbox) = harness.restart(outbox).await? else {
            return skip("the outbox does not outlive its process");
        };
        let next = outbox.append(record(4)).await?;
        ensure!(next > all[3], "after a restart with numbers {all:?} removed the next one is {next}");
        Ok(())
    }
}
