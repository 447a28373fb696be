//! The suite of [`ArtifactStore`].

mod create;
mod list;
mod read;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, noise},
};
use crate::{ArtifactStore, ArtifactStoreExt, IdSource, Key, ListOptions, SystemIds};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait ArtifactHarness: Debug + Send + Sync {
    /// The store under test. It may hold other objects; the suite stays below [`root`](Self::root).
    fn store(&self) -> Arc<dyn ArtifactStore>;

    /// A prefix for this run's keys, legal as a key itself, at most 60 bytes, under which nothing has ever been created: by default `conformance/<a fresh UUID>`.
    fn root(&self) -> String {
        format!("conformance/{}", SystemIds::default().next_uuid())
    }

    /// Changes a byte of an object behind the port's back, as a failing disk would. Answers whether it could; by default it cannot, and the case is skipped.
    async fn corrupt(&self, key: &Key) -> bool {
        let _ = key;
        false
    }
}

/// Runs all cases against a store.
///
/// Writes about 40 MB in about 1,200 objects below the harness's root and deletes them again.
pub async fn run(harness: &dyn ArtifactHarness) -> Report {
    let mut report = Report::new("artifact store");
    let (store, root) = (harness.store(), harness.root());
    let shelf = |case: &str| Shelf { harness, store: Arc::clone(&store), root: format!("{root}/{case}") };
    run_cases!(report, CASE_LIMIT, |name| &shelf(name), [
        create::created_objects_are_seen => "after `create` has returned, `read`, `head` and a `list` that starts later see the object",
        create::any_bytes_come_back => "`read` returns exactly the bytes created",
        create::an_object_may_be_empty => "an empty object is legal",
        create::a_key_may_be_anything_legal => "any `Key` can be created and stays an object of its own",
        create::create_keeps_the_first_bytes => "creators of a key that exists get `AlreadyExists` and change nothing",
        create::one_of_many_creators_wins => "of concurrent creators of one key exactly one gets `Ok`, and its bytes are the object",
        create::create_is_atomic => "readers and listings see the whole object or nothing",
        create::a_dropped_create_is_whole_or_nothing => "a dropped `create` has created the whole object or nothing; create again, and read on `AlreadyExists`",
        create::the_largest_object_is_stored => "an object may have `MAX_OBJECT_BYTES` bytes",
        create::a_larger_object_is_refused => "more than `MAX_OBJECT_BYTES` is refused with `TooLarge` and stores nothing",
        create::delete_removes_one_object => "`delete` removes the object and no other",
        create::delete_of_nothing_is_ok => "`delete` of a key that does not exist is `Ok`",
        read::missing_keys_are_not_found => "`read` and `head` of a key that does not exist answer `NotFound`",
        read::a_range_is_those_bytes => "`read` returns the bytes of the range; an empty range is legal",
        read::a_range_outside_is_refused => "a range must lie within the object, `InvalidInput` otherwise",
        read::a_digest_is_checked => "with a digest the adapter checks the bytes it is about to return and answers `Corrupt` if they differ",
        read::changed_bytes_are_noticed => "bytes that changed in the store do not pass for the ones created",
        list::keys_come_in_byte_order => "`list` yields keys in byte order",
        list::a_prefix_is_plain_text => "`list` yields each object whose key starts with the prefix, and no other",
        list::the_empty_prefix_is_everything => "the empty prefix matches everything",
        list::start_after_is_exclusive => "`list` yields keys strictly after `start_after`, whether that key exists or not",
        list::long_listings_are_complete => "`list` yields each object once, however many there are",
        list::a_listing_bears_changes => "objects created or deleted meanwhile may or may not be seen; every other one is",
    ]);
    // What is left behind harms nobody, since the next run has a root of its own.
    let left = store.list(&format!("{root}/"), ListOptions::default());
    let store = &store;
    left.filter_map(|meta| std::future::ready(meta.ok()))
        .for_each_concurrent(32, |meta| async move { drop(store.delete(&meta.key).await) })
        .await;
    report
}

/// The place of one case: the keys below its own prefix.
struct Shelf<'a> {
    harness: &'a dyn ArtifactHarness,
    store: Arc<dyn ArtifactStore>,
    root: String,
}

impl Shelf<'_> {
    fn prefix(&self, rest: &str) -> String {
        format!("{}/{rest}", self.root)
    }

    fn key(&self, name: &str) -> CaseResult<Key> {
        Ok(Key::new(self.prefix(name))?)
    }

    async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> CaseResult<Key> {
        let key = self.key(name)?;
        self.store.create(&key, bytes.into()).await?;
        Ok(key)
    }

    /// Creates an object for each name, many at a time, each with its own name as content.
    async fn put_all(&self, names: &[String]) -> CaseResult {
        stream::iter(names)
            .map(Ok)
            .try_for_each_concurrent(32, |name| async move { self.put(name, name.clone()).await.map(drop) })
            .await
    }

    async fn get(&self, key: &Key) -> CaseResult<Bytes> {
        Ok(self.store.get(key).await?)
    }

    /// The names below this case's prefix that a listing yields, in its order.
    async fn names(&self, prefix: &str, start_after: Option<&str>) -> CaseResult<Vec<String>> {
        let start_after = start_after.map(|name| self.key(name)).transpose()?;
        let found: Vec<_> = self.store.list(&self.prefix(prefix), ListOptions { start_after }).try_collect().await?;
        Ok(found.into_iter().map(|meta| self.name_of(&meta.key)).collect())
    }

    fn name_of(&self, key: &Key) -> String {
        let own = key.as_str().strip_prefix(&self.root).and_then(|rest| rest.strip_prefix('/'));
        own.unwrap_or(key.as_str()).to_owned()
    }
}

fn some_bytes(seed: u64, length: usize) -> Bytes {
    noise(seed, length).into()
}
