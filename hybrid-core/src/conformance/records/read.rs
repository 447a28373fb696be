//! Reading: by key, by pages, all of a tenant.

use super::{RecordHarness, Shelf};
use crate::{
    ErrorKind, MAX_PAGE, RecordKey, RecordQuery,
    conformance::case::{CaseResult, equal, noise, refused, skip},
};

type Harness<'a> = &'a dyn RecordHarness;

const NAMES: [&str; 12] = ["A", "a", "a-b", "a/", "a/b", "a/b/c", "a/c", "a0", "ab", "b", "ä", "🥐"];

async fn filled(harness: Harness<'_>) -> CaseResult<Shelf<'_>> {
    let shelf = Shelf::new(harness).await?;
    // In no order.
    for i in 0..NAMES.len() {
        shelf.put(NAMES[i * 5 % NAMES.len()], "x").await?;
    }
    Ok(shelf)
}

pub(super) async fn missing_records_are_none(harness: Harness<'_>) -> CaseResult {
    let shelf = filled(harness).await?;
    for missing in ["", "b/", "c", "a/b/", "B"] {
        if !missing.is_empty() {
            equal(&format!("the record {missing:?}"), &shelf.get(missing).await?, &None)?;
        }
    }
    let empty = shelf.beside("bakery", "nothing")?;
    equal("a collection without records", &empty.keys(RecordQuery::default()).await?, &Vec::new())
}

/// Checks a query in both orders, for several sizes of page.
async fn check(shelf: &Shelf<'_>, query: &RecordQuery, expected: &[&str]) -> CaseResult {
    for limit in [1, 2, 5, 12, MAX_PAGE] {
        let query = query.clone().limit(limit);
        let what = format!("{query:?}");
        equal(&what, &shelf.keys(query.clone()).await?, &expected.iter().map(|key| (*key).to_owned()).collect())?;
        let reversed: Vec<_> = expected.iter().rev().map(|key| (*key).to_owned()).collect();
        equal(&format!("{what}, descending"), &shelf.keys(query.descending()).await?, &reversed)?;
    }
    Ok(())
}

pub(super) async fn a_prefix_is_plain_text(harness: Harness<'_>) -> CaseResult {
    let shelf = filled(harness).await?;
    for prefix in ["", "a", "a/", "a/b", "A", "b", "c", "a/b/c/d", "%", "_", "*", "ä", "🥐", "\u{10FFFF}", "\u{1}"] {
        let expected: Vec<_> = NAMES.into_iter().filter(|name| name.starts_with(prefix)).collect();
        check(&shelf, &RecordQuery::prefix(prefix), &expected).await?;
    }
    Ok(())
}

pub(super) async fn bounds_are_exclusive(harness: Harness<'_>) -> CaseResult {
    let shelf = filled(harness).await?;
    // Keys that exist and keys that do not, on both sides, also crossed.
    let bounds = [None, Some("A"), Some("a"), Some("a/a"), Some("a/b"), Some("b"), Some("z"), Some("🥐"), Some("!")];
    let key = |bound: Option<&str>| bound.map(RecordKey::new).transpose();
    for after in bounds {
        for before in bounds {
            for prefix in ["", "a/"] {
                let query = RecordQuery { after: key(after)?, before: key(before)?, ..RecordQuery::prefix(prefix) };
                let lies_between = |name: &&str| {
                    name.starts_with(prefix)
                        && after.is_none_or(|after| *name > after)
                        && before.is_none_or(|before| *name < before)
                };
                let expected: Vec<_> = NAMES.into_iter().filter(lies_between).collect();
                let found = shelf.keys(query.clone().limit(3)).await?;
                equal(&format!("{query:?}"), &found, &expected.iter().map(|key| (*key).to_owned()).collect())?;
                let reversed: Vec<_> = expected.iter().rev().map(|key| (*key).to_owned()).collect();
                let found = shelf.keys(query.clone().limit(3).descending()).await?;
                equal(&format!("{query:?}, descending"), &found, &reversed)?;
            }
        }
    }
    Ok(())
}

pub(super) async fn pages_are_complete(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let keys: Vec<_> = (0..231).map(|i| format!("key/{i:04}")).collect();
    for key in &keys {
        shelf.put(key, key.clone()).await?;
    }
    for limit in [1, 7, 100, 230, 231, 232, MAX_PAGE] {
        let found = shelf.keys(RecordQuery::prefix("key/").limit(limit)).await?;
        ensure!(found == keys, "pages of {limit} have {} of {} records or another order", found.len(), keys.len());
    }
    Ok(())
}

pub(super) async fn large_pages_are_complete(harness: Harness<'_>) -> CaseResult {
    // More than the megabyte that some services put in one answer.
    let shelf = Shelf::new(harness).await?;
    for i in 0..12_u64 {
        shelf.put(&format!("{i:02}"), noise(i + 1, 300_000)).await?;
    }
    let found = shelf.all(RecordQuery::default()).await?;
    equal("the count of records", &found.len(), &12)?;
    for (i, record) in found.iter().enumerate() {
        ensure!(*record.value == noise(i as u64 + 1, 300_000), "the value of {:?} is another", record.key);
    }
    equal("the count of exported records", &shelf.exported().await?.len(), &12)
}

pub(super) async fn paging_bears_changes(harness: Harness<'_>) -> CaseResult {
    for descending in [false, true] {
        let shelf = Shelf::new(harness).await?;
        let keys: Vec<_> = (0..40).map(|i| format!("{i:02}")).collect();
        for key in &keys {
            shelf.put(key, "x").await?;
        }
        let query = RecordQuery::default().limit(5);
        let query = if descending { query.descending() } else { query };
        let (mut found, mut next) = (Vec::new(), Some(query));
        while let Some(query) = next {
            let page = shelf.store.query(&shelf.tenant, &shelf.collection, query).await?;
            found.extend(page.records.iter().map(|record| record.key.as_str().to_owned()));
            next = page.next;
            // Behind, at and before the place that the paging has reached, whichever way it goes.
            if found.len() == 5 {
                let at = found.last().cloned().unwrap_or_default();
                for gone in ["02", "37", "20", &at] {
                    shelf.delete(gone).await?;
                }
                for new in ["01-new", "20-new", "38-new"] {
                    shelf.put(new, "new").await?;
                }
            }
        }
        let untouched = |keys: &[String]| {
            let mut keys: Vec<_> = keys
                .iter()
                .filter(|key| !["02", "37", "20", "04", "35"].contains(&key.as_str()) && !key.ends_with("new"))
                .cloned()
                .collect();
            if descending {
                keys.sort();
            }
            keys
        };
        equal("the records that nobody touched, as paged", &untouched(&found), &untouched(&keys))?;
    }
    Ok(())
}

pub(super) async fn a_limit_out_of_range_is_refused(harness: Harness<'_>) -> CaseResult {
    let shelf = filled(harness).await?;
    for limit in [0, MAX_PAGE + 1, usize::MAX] {
        let page = shelf.store.query(&shelf.tenant, &shelf.collection, RecordQuery::default().limit(limit)).await;
        refused(&format!("pages of {limit}"), ErrorKind::InvalidInput, page)?;
    }
    Ok(())
}

pub(super) async fn an_export_is_complete(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    equal("the export of nothing", &shelf.exported().await?, &Vec::new())?;
    let mut expected = Vec::new();
    for collection in ["orders", "order", "orders-2", "files", "a"] {
        let shelf = shelf.beside("bakery", collection)?;
        for i in 0..60 {
            shelf.put(&format!("{i:03}"), format!("{collection} {i}")).await?;
            expected.push(format!("{collection}/{i:03}"));
        }
    }
    shelf.beside("other", "orders")?.put("theirs", "x").await?;
    expected.sort();
    equal("the export", &shelf.exported().await?, &expected)
}

pub(super) async fn a_restart_keeps_records(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness).await?;
    let version = shelf.put("a", "kept").await?;
    shelf.put("b", "gone").await?;
    shelf.delete("b").await?;
    let (tenant, collection) = (shelf.tenant.clone(), shelf.collection.clone());
    let Some(store) = harness.restart(shelf.store).await? else {
        return skip("the store does not outlive its process");
    };
    let shelf = Shelf { harness, store, tenant, collection };
    shelf.check("a", b"kept", version).await?;
    equal("the keys", &shelf.keys(RecordQuery::default()).await?, &vec!["a".to_owned()])
}
