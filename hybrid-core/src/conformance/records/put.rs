//! Writing, and its conditions.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::{RecordHarness, Shelf};
use crate::{
    ErrorKind, MAX_RECORD_BYTES, NewRecord, PutCondition, RecordKey, RecordQuery,
    conformance::case::{CaseResult, equal, noise, refused},
};

type Harness<'a> = &'a dyn RecordHarness;

pub(super) async fn values_come_back(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let before = harness.now();
    let expires = harness.now().plus(std::time::Duration::from_micros(3_600_000_001));
    let all_bytes: Vec<u8> = (0..=255).collect();
    let values = [vec![], all_bytes, noise(1, 100_000), "{\"ü\":\"🥐\"}\n".into()];
    for (i, value) in values.iter().enumerate() {
        let version = shelf.put(&format!("plain/{i}"), value.clone()).await?;
        shelf.check(&format!("plain/{i}"), value, version).await?;
        let ending = NewRecord::new(value.clone()).until(expires);
        let version = shelf.try_put(&format!("ending/{i}"), ending, PutCondition::Create).await?;
        shelf.check(&format!("ending/{i}"), value, version).await?;
    }
    let records = shelf.all(RecordQuery::default()).await?;
    equal("the count of records", &records.len(), &(2 * values.len()))?;
    for record in records {
        let expected = record.key.as_str().starts_with("ending").then_some(expires);
        equal(&format!("the end of {:?}", record.key), &record.expires, &expected)?;
        ensure!(
            before <= record.written && record.written <= harness.now(),
            "{:?} was written at {}, between {before} and now",
            record.key,
            record.written
        );
        let found = shelf.get(record.key.as_str()).await?;
        equal("a record as `get` and as `query` show it", &found, &Some(record))?;
    }
    Ok(())
}

pub(super) async fn the_largest_value_is_stored(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?.beside(&"t".repeat(63), &"c".repeat(63))?;
    let (key, value) = ("k".repeat(RecordKey::MAX_BYTES), noise(1, MAX_RECORD_BYTES));
    let expires = harness.now().plus(std::time::Duration::from_secs(3_600));
    let version = shelf.try_put(&key, NewRecord::new(value.clone()).until(expires), PutCondition::Create).await?;
    shelf.check(&key, &value, version).await
}

pub(super) async fn a_larger_value_is_refused(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let version = shelf.put("a", "kept").await?;
    for key in ["a", "b"] {
        let value = NewRecord::new(vec![0; MAX_RECORD_BYTES + 1]);
        let put = shelf.try_put(key, value, PutCondition::Always).await;
        refused("a value over the limit", ErrorKind::TooLarge, put)?;
    }
    shelf.check("a", b"kept", version).await?;
    equal("the keys", &shelf.keys(RecordQuery::default()).await?, &vec!["a".to_owned()])
}

pub(super) async fn a_key_may_be_anything_legal(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let long = "x".repeat(RecordKey::MAX_BYTES);
    let mut names =
        ["a", "A", " ", "a ", "a/", "a/b", "../a", "%2F", "ä", "a\u{308}", "🥐", "'; --", "*", "a%", "a_", &long];
    for name in names {
        shelf.put(name, name.to_owned()).await?;
    }
    names.sort_unstable();
    let records = shelf.all(RecordQuery::default()).await?;
    let found: Vec<_> = records.iter().map(|record| record.key.as_str()).collect();
    equal("the keys in order", &found, &names.to_vec())?;
    for record in &records {
        equal("a value", &&*record.value, &record.key.as_str().as_bytes())?;
    }
    Ok(())
}

pub(super) async fn a_put_replaces_whole(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let expires = harness.now().plus(std::time::Duration::from_secs(60));
    shelf.try_put("a", NewRecord::new("a longer first value").until(expires), PutCondition::Always).await?;
    let version = shelf.put("a", "second").await?;
    shelf.check("a", b"second", version).await?;
    equal("the end of the second value", &shelf.get("a").await?.and_then(|record| record.expires), &None)
}

pub(super) async fn create_needs_a_free_key(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let version = shelf.try_put("a", NewRecord::new("first"), PutCondition::Create).await?;
    for value in ["second", "first"] {
        let again = shelf.try_put("a", NewRecord::new(value), PutCondition::Create).await;
        refused("a second create", ErrorKind::AlreadyExists, again)?;
    }
    shelf.check("a", b"first", version).await?;
    shelf.delete("a").await?;
    shelf.try_put("a", NewRecord::new("third"), PutCondition::Create).await.map(drop)?;
    Ok(())
}

pub(super) async fn a_version_must_be_the_one(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let first = shelf.put("a", "first").await?;
    let other = shelf.put("b", "other").await?;
    let second = shelf.try_put("a", NewRecord::new("second"), PutCondition::Version(first)).await?;
    ensure!(first != second, "a replaced record keeps its version {first}");
    for wrong in [first, other] {
        let put = shelf.try_put("a", NewRecord::new("wrong"), PutCondition::Version(wrong)).await;
        refused("a put over another version", ErrorKind::AlreadyExists, put)?;
    }
    shelf.check("a", b"second", second).await?;
    let put = shelf.try_put("missing", NewRecord::new("wrong"), PutCondition::Version(first)).await;
    refused("a put over nothing", ErrorKind::NotFound, put)?;
    shelf.delete("a").await?;
    let put = shelf.try_put("a", NewRecord::new("wrong"), PutCondition::Version(second)).await;
    refused("a put over what was deleted", ErrorKind::NotFound, put)?;
    equal("the keys", &shelf.keys(RecordQuery::default()).await?, &vec!["b".to_owned()])
}

pub(super) async fn one_of_many_puts_wins(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    for round in 0..8 {
        let key = format!("race/{round}");
        let first = shelf.put(&format!("{key}/version"), "first").await?;
        for (key, condition, loser) in [
            (format!("{key}/create"), PutCondition::Create, ErrorKind::AlreadyExists),
            (format!("{key}/version"), PutCondition::Version(first), ErrorKind::AlreadyExists),
        ] {
            let (shelf, key) = (&shelf, &key);
            let puts = (0..12).map(|i| async move {
                let value = format!("value {i}");
                (shelf.try_put(key, NewRecord::new(value.clone()), condition).await, value)
            });
            let mut winners = Vec::new();
            for (put, value) in join_all(puts).await {
                match put {
                    Ok(version) => winners.push((version, value)),
                    lost => refused("a put that came too late", loser, lost)?,
                }
            }
            ensure!(winners.len() == 1, "of 12 puts with {condition:?} these won: {winners:?}");
            shelf.check(key, winners[0].1.as_bytes(), winners[0].0).await?;
        }
    }
    Ok(())
}

pub(super) async fn versions_never_come_twice(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let mut seen = HashSet::new();
    for _ in 0..10 {
        for key in ["a", "b"] {
            for value in ["same", "same"] {
                let version = shelf.put(key, value).await?;
                ensure!(seen.insert(version), "the version {version} comes twice");
            }
            shelf.delete(key).await?;
        }
    }
    Ok(())
}
