//! How records end: deleted, expired, erased; and whose they are not.

use std::time::Duration;

use super::{RecordHarness, Shelf};
use crate::{
    ErrorKind, NewRecord, PutCondition, RecordQuery,
    conformance::case::{CaseResult, equal, refused, skip},
};

type Harness<'a> = &'a dyn RecordHarness;

pub(super) async fn deletes_delete(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    for key in ["a", "a/b", "b"] {
        shelf.put(key, "x").await?;
    }
    shelf.delete("a").await?;
    shelf.delete("a").await?;
    shelf.delete("missing").await?;
    shelf.beside("nobody", "nothing")?.delete("a").await?;
    equal("the deleted record", &shelf.get("a").await?, &None)?;
    let left = vec!["a/b".to_owned(), "b".to_owned()];
    equal("the keys left", &shelf.keys(RecordQuery::default()).await?, &left)?;
    equal("the export", &shelf.exported().await?, &vec!["orders/a/b".to_owned(), "orders/b".to_owned()])
}

pub(super) async fn tenants_share_nothing(harness: Harness<'_>) -> CaseResult {
    let ours = Shelf::new(harness).await?;
    let version = ours.put("a", "ours").await?;
    let mut others = Vec::new();
    for (tenant, collection) in [
        ("baker", "orders"),
        ("bakery-", "orders"),
        ("bakery_orders", "orders"),
        ("b", "orders"),
        ("orders", "bakery"),
        ("bakery", "order"),
        ("bakery", "orders-"),
        ("bakery", "a"),
    ] {
        let other = ours.beside(tenant, collection)?;
        equal(&format!("what {tenant} sees in {collection}"), &other.keys(RecordQuery::default()).await?, &vec![])?;
        equal(&format!("what {tenant} reads in {collection}"), &other.get("a").await?, &None)?;
        let put = other.try_put("a", NewRecord::new("wrong"), PutCondition::Version(version)).await;
        refused("a put over another's version", ErrorKind::NotFound, put)?;
        let value = format!("{tenant} {collection}");
        let version = other.try_put("a", NewRecord::new(value.clone()), PutCondition::Create).await?;
        others.push((other, value, version));
    }
    ours.check("a", b"ours", version).await?;
    for (other, value, version) in &others {
        other.check("a", value.as_bytes(), *version).await?;
        equal("the keys of another", &other.keys(RecordQuery::default()).await?, &vec!["a".to_owned()])?;
        other.delete("a").await?;
    }
    ours.check("a", b"ours", version).await?;
    equal("the export", &ours.exported().await?, &vec!["orders/a".to_owned()])
}

pub(super) async fn expired_records_are_in_no_answer(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let (short, long) = (Duration::from_millis(1_500), Duration::from_secs(3_600));
    for i in 0..30 {
        let end = harness.now().plus(if i % 3 == 0 { long } else { short });
        let record = NewRecord::new("x").until(end);
        shelf.try_put(&format!("{i:02}"), record, PutCondition::Always).await?;
    }
    equal("the count before", &shelf.keys(RecordQuery::default()).await?.len(), &30)?;
    harness.advance(Duration::from_secs(2)).await;
    let left: Vec<_> = (0..10).map(|i| format!("{:02}", i * 3)).collect();
    for limit in [1, 4, 100] {
        let found = shelf.keys(RecordQuery::default().limit(limit)).await?;
        equal(&format!("the keys after, {limit} a page"), &found, &left)?;
        let mut found = shelf.keys(RecordQuery::default().limit(limit).descending()).await?;
        found.reverse();
        equal(&format!("the keys after, descending, {limit} a page"), &found, &left)?;
    }
    equal("an expired record", &shelf.get("01").await?, &None)?;
    ensure!(shelf.get("03").await?.is_some(), "a record that has not expired is missing");
    equal("the count of the export", &shelf.exported().await?.len(), &10)?;
    // One that has ended before it begins is written and never seen.
    shelf.try_put("past", NewRecord::new("x").until(harness.now()), PutCondition::Always).await?;
    equal("a record that ended when it was written", &shelf.get("past").await?, &None)
}

pub(super) async fn an_expired_key_is_free(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let ending = |seconds| NewRecord::new("first").until(harness.now().plus(Duration::from_secs(seconds)));
    let first = shelf.try_put("a", ending(1), PutCondition::Always).await?;
    let other = shelf.try_put("b", ending(1), PutCondition::Always).await?;
    let prolonged = shelf.try_put("c", ending(1), PutCondition::Always).await?;
    let early = shelf.try_put("a", NewRecord::new("early"), PutCondition::Create).await;
    refused("a create before the end", ErrorKind::AlreadyExists, early)?;
    let prolonged = shelf.try_put("c", ending(3_600), PutCondition::Version(prolonged)).await?;
    harness.advance(Duration::from_secs(2)).await;
    for (key, version) in [("a", first), ("b", other)] {
        let put = shelf.try_put(key, NewRecord::new("late"), PutCondition::Version(version)).await;
        refused("a put over what has expired", ErrorKind::NotFound, put)?;
    }
    let second = shelf.try_put("a", NewRecord::new("second"), PutCondition::Create).await?;
    shelf.check("a", b"second", second).await?;
    shelf.check("c", b"first", prolonged).await?;
    shelf.delete("b").await
}

pub(super) async fn an_erased_tenant_is_gone(harness: Harness<'_>) -> CaseResult {
    let ours = Shelf::new(harness).await?;
    ours.store.erase(&ours.tenant).await?;
    let theirs = ours.beside("bakery2", "orders")?;
    let kept = theirs.put("a", "theirs").await?;
    // More than one batch of any service that we know, in several collections.
    for i in 0..70 {
        ours.beside("bakery", ["orders", "files", "reviews"][i % 3])?.put(&format!("{i:03}"), "x").await?;
    }
    ours.store.erase(&ours.tenant).await?;
    for collection in ["orders", "files", "reviews"] {
        let shelf = ours.beside("bakery", collection)?;
        equal("the keys after the erasure", &shelf.keys(RecordQuery::default()).await?, &Vec::new())?;
    }
    equal("the export after the erasure", &ours.exported().await?, &Vec::new())?;
    theirs.check("a", b"theirs", kept).await?;
    let version = ours.try_put("000", NewRecord::new("new life"), PutCondition::Create).await?;
    ours.check("000", b"new life", version).await
}

pub(super) async fn nothing_is_left_of_an_erased_tenant(harness: Harness<'_>) -> CaseResult {
    let ours = Shelf::new(harness).await?;
    let theirs = ours.beside("other", "orders")?;
    for i in 0..60 {
        // Small and large by turns, so that rows move between pages; some replaced, some deleted, some expired.
        let size = if i % 4 == 0 { 9_000 } else { 40 };
        let value = |who: &str| format!("{who}-secret-{i} {}", "x".repeat(size));
        ours.put(&format!("mine-{i}"), value("our")).await?;
        theirs.put(&format!("theirs-{i}"), value("their")).await?;
    }
    ours.put("mine-1", "replaced").await?;
    ours.delete("mine-2").await?;
    let ending = NewRecord::new("our-secret-ending").until(harness.now().plus(Duration::from_secs(1)));
    ours.try_put("mine-ending", ending, PutCondition::Always).await?;
    harness.advance(Duration::from_secs(2)).await;
    match (harness.holds(b"our-secret-5 ").await, harness.holds(b"mine-5").await) {
        (Some(true), Some(true)) => {}
        (None, _) | (_, None) => return skip("nobody can look at what the store keeps"),
        _ => ensure!(false, "the harness does not find what the store keeps"),
    }
    ours.store.erase(&ours.tenant).await?;
    for gone in ["our-secret", "mine-", "bakery"] {
        ensure!(harness.holds(gone.as_bytes()).await == Some(false), "{gone:?} is left after the erasure");
    }
    ensure!(harness.holds(b"their-secret-59 ").await == Some(true), "another tenant's records are gone");
    Ok(())
}
