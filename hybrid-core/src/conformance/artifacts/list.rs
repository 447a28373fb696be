//! Listing.

use futures_util::{StreamExt, TryStreamExt};

use super::Shelf;
use crate::{
    ArtifactStore, Key, ListOptions,
    conformance::case::{CaseResult, equal, fail},
};

/// Names that a folder walk, a comparison by parts or one by words would put in another order; in byte order. No one is a folder of another.
const NAMES: [&str; 12] = ["a-b", "a-c/d", "a.b", "a/0", "a/b-", "a/b/c", "a/b0", "a0", "aa/b", "b", "b_/a", "ba"];

async fn fill(shelf: &Shelf<'_>) -> CaseResult {
    let backwards: Vec<_> = NAMES.iter().rev().map(|name| (*name).to_owned()).collect();
    shelf.put_all(&backwards).await
}

async fn check(shelf: &Shelf<'_>, prefix: &str, start_after: Option<&str>, expected: &[&str]) -> CaseResult {
    let expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    equal(
        &format!("the listing of {prefix:?} after {start_after:?}"),
        &shelf.names(prefix, start_after).await?,
        &expected,
    )
}

pub(super) async fn keys_come_in_byte_order(shelf: &Shelf<'_>) -> CaseResult {
    fill(shelf).await?;
    check(shelf, "", None, &NAMES).await
}

pub(super) async fn a_prefix_is_plain_text(shelf: &Shelf<'_>) -> CaseResult {
    fill(shelf).await?;
    let prefixes = ["a", "a/", "a/b", "a/b/", "a/b/c", "a-", "a.", "b", "b_", "c", "a/b/c/", "0", "a//"];
    for prefix in prefixes {
        let expected: Vec<_> = NAMES.into_iter().filter(|name| name.starts_with(prefix)).collect();
        check(shelf, prefix, None, &expected).await?;
    }
    // A prefix is text of any kind, not a key.
    for prefix in ["A", "ü", "..", "a/../a", "\\", "%", "*"] {
        check(shelf, prefix, None, &[]).await?;
    }
    Ok(())
}

pub(super) async fn the_empty_prefix_is_everything(shelf: &Shelf<'_>) -> CaseResult {
    fill(shelf).await?;
    // Other objects may be in the store, so the listing starts just before this case's own.
    let start_after = Some(Key::new(&shelf.root)?);
    let found: Vec<_> = shelf.store.list("", ListOptions { start_after }).take(NAMES.len()).try_collect().await?;
    let found: Vec<_> = found.iter().map(|meta| shelf.name_of(&meta.key)).collect();
    equal("the listing of everything from here", &found, &NAMES.map(str::to_owned).to_vec())
}

pub(super) async fn start_after_is_exclusive(shelf: &Shelf<'_>) -> CaseResult {
    fill(shelf).await?;
    // Keys that exist, and keys that do not: before, between and behind, also folders of others.
    let missing = ["-", "a", "a/a", "a-c", "a/b", "a/b/c/d", "a/b/c0", "a0/0", "azz", "b_", "z"];
    for after in NAMES.iter().chain(&missing) {
        for prefix in ["", "a", "a/", "a/b", "b"] {
            let expected: Vec<_> =
                NAMES.into_iter().filter(|name| *name > *after && name.starts_with(prefix)).collect();
            check(shelf, prefix, Some(after), &expected).await?;
        }
    }
    Ok(())
}

pub(super) async fn long_listings_are_complete(shelf: &Shelf<'_>) -> CaseResult {
    // More than the 1,000 keys of one page, in many folders, with neighbours on both sides.
    let inside: Vec<_> = (0..1_037).map(|i| format!("many/{:02}/{i:04}", i / 50)).collect();
    let outside = ["many-", "many0"].map(str::to_owned);
    shelf.put_all(&inside).await?;
    shelf.put_all(&outside).await?;
    for start in [0, 1, 499, 999, 1_000, 1_036] {
        let after = (start > 0).then(|| inside[start - 1].as_str());
        let found = shelf.names("many/", after).await?;
        let expected = &inside[start..];
        if let Some((at, (found, expected))) =
            found.iter().zip(expected).enumerate().find(|(_, (found, expected))| found != expected)
        {
            return fail(format!(
                "item {at} of the listing after {after:?} is {found:?} where {expected:?} was expected"
            ));
        }
        equal(&format!("the length of the listing after {after:?}"), &found.len(), &expected.len())?;
    }
    Ok(())
}

pub(super) async fn a_listing_bears_changes(shelf: &Shelf<'_>) -> CaseResult {
    // Behind and before the place that the listing has reached.
    check_changes(shelf, "less", &["02", "03", "20"], &[]).await?;
    check_changes(shelf, "more", &[], &["01-new", "03-new", "30-new"]).await
}

/// Lists 40 objects, and after the fifth deletes and creates some.
async fn check_changes(shelf: &Shelf<'_>, folder: &str, deleted: &[&str], created: &[&str]) -> CaseResult {
    let name = |name: &str| format!("{folder}/{name}");
    let all: Vec<_> = (0..40).map(|i| name(&format!("{i:02}"))).collect();
    shelf.put_all(&all).await?;
    let mut listing = shelf.store.list(&shelf.prefix(&name("")), ListOptions::default());
    let mut found = Vec::new();
    while let Some(meta) = listing.try_next().await? {
        found.push(shelf.name_of(&meta.key));
        if found.len() == 5 {
            for gone in deleted {
                shelf.store.delete(&shelf.key(&name(gone))?).await?;
            }
            for new in created {
                shelf.put(&name(new), "new").await?;
            }
        }
    }
    ensure!(found.is_sorted_by(|a, b| a < b), "the listing is out of order or repeats: {found:?}");
    let changed: Vec<_> = deleted.iter().chain(created).map(|changed| name(changed)).collect();
    let untouched = |names: &[String]| names.iter().filter(|name| !changed.contains(name)).cloned().collect::<Vec<_>>();
    equal("the objects that nobody touched, as listed", &untouched(&found), &untouched(&all))
}
