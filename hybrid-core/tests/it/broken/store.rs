use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxStream, Error, ErrorKind, Key, ListOptions, MAX_OBJECT_BYTES, ObjectMeta,
    ReadOptions, Result, conformance::artifacts, memory::MemoryStore,
};

use crate::conformance::Stores;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StoreFault {
    Overwrites,
    TakesTheSameBytesAgain,
    ChecksThenWrites,
    ShowsHalfAnObject,
    ListsLate,
    KeepsTextOnly,
    RefusesEmpty,
    FoldsKeys,
    RefusesTheLargest,
    CutsTheTooLarge,
    DeletesByPrefix,
    DeletesWhatIsThereOnly,
    MissingIsEmpty,
    RangeIsOffByOne,
    ClampsRanges,
    ReturnsUnverified,
    ListsByParts,
    PrefixIsAPath,
    EmptyPrefixIsNothing,
    StartAfterIsInclusive,
    SkipsAtAPageBorder,
    PagesByOffset,
}

use StoreFault::*;

const PLANTED: &[super::Planted<StoreFault>] = &[
    (Overwrites, &["create_keeps_the_first_bytes", "one_of_many_creators_wins"]),
    (TakesTheSameBytesAgain, &["create_keeps_the_first_bytes"]),
    (ChecksThenWrites, &["one_of_many_creators_wins"]),
    (ShowsHalfAnObject, &["create_is_atomic", "a_dropped_create_is_whole_or_nothing"]),
    (ListsLate, &["created_objects_are_seen"]),
    (KeepsTextOnly, &["any_bytes_come_back"]),
    (RefusesEmpty, &["an_object_may_be_empty"]),
    (FoldsKeys, &["a_key_may_be_anything_legal"]),
    (RefusesTheLargest, &["the_largest_object_is_stored"]),
    (CutsTheTooLarge, &["a_larger_object_is_refused"]),
    (DeletesByPrefix, &["delete_removes_one_object"]),
    (DeletesWhatIsThereOnly, &["delete_of_nothing_is_ok"]),
    (MissingIsEmpty, &["missing_keys_are_not_found"]),
    (RangeIsOffByOne, &["a_range_is_those_bytes"]),
    (ClampsRanges, &["a_range_outside_is_refused"]),
    (ReturnsUnverified, &["a_digest_is_checked", "changed_bytes_are_noticed"]),
    (ListsByParts, &["keys_come_in_byte_order"]),
    (PrefixIsAPath, &["a_prefix_is_plain_text"]),
    (EmptyPrefixIsNothing, &["the_empty_prefix_is_everything"]),
    (StartAfterIsInclusive, &["start_after_is_exclusive"]),
    (SkipsAtAPageBorder, &["long_listings_are_complete"]),
    (PagesByOffset, &["a_listing_bears_changes"]),
];

#[tokio::test]
async fn the_suite_notices_broken_stores() {
    super::check(PLANTED, |fault| async move { artifacts::run(&Stores::broken(fault)).await }).await;
}

#[derive(Debug)]
pub(crate) struct BrokenStore {
    pub(crate) memory: MemoryStore,
    pub(crate) fault: StoreFault,
}

impl BrokenStore {
    fn key(&self, key: &Key) -> Key {
        if self.fault == FoldsKeys { Key::new(key.as_str().replace("..", "_")).unwrap() } else { key.clone() }
    }
}

#[async_trait]
impl ArtifactStore for BrokenStore {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let key = &self.key(key);
        match self.fault {
            Overwrites => {
                self.memory.delete(key).await?;
                self.memory.create(key, bytes).await
            }
            TakesTheSameBytesAgain => self.memory.create_same(key, bytes).await,
            ChecksThenWrites => {
                if self.memory.exists(key).await? {
                    return Err(Error::already_exists("create object", "the object exists"));
                }
                tokio::task::yield_now().await;
                self.memory.delete(key).await?;
                self.memory.create(key, bytes).await
            }
            ShowsHalfAnObject => {
                self.memory.create(key, bytes.slice(..bytes.len() / 2)).await?;
                tokio::task::yield_now().await;
                self.memory.corrupt(key, bytes);
                Ok(())
            }
            KeepsTextOnly => self.memory.create(key, String::from_utf8_lossy(&bytes).into_owned().into()).await,
            RefusesEmpty if bytes.is_empty() => Err(Error::invalid("create object", "the object is empty")),
            RefusesTheLargest if bytes.len() == MAX_OBJECT_BYTES => {
                Err(Error::too_large("create object", "the object is over the limit"))
            }
            CutsTheTooLarge => self.memory.create(key, bytes.slice(..bytes.len().min(MAX_OBJECT_BYTES))).await,
            _ => self.memory.create(key, bytes).await,
        }
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        let key = &self.key(key);
        let ReadOptions { range, digest } = options.clone();
        match (self.fault, range) {
            (MissingIsEmpty, _) if !self.memory.exists(key).await? => Ok(Bytes::new()),
            (ReturnsUnverified, range) => self.memory.read(key, ReadOptions { range, digest: None }).await,
            (RangeIsOffByOne, Some(range)) if range.start < range.end => {
                self.memory.read(key, ReadOptions { range: Some(range.start..range.end - 1), digest }).await
            }
            (ClampsRanges, Some(range)) => {
                let size = self.memory.head(key).await?.size;
                let start = range.start.min(size);
                self.memory.read(key, ReadOptions { range: Some(start..range.end.clamp(start, size)), digest }).await
            }
            _ => self.memory.read(key, options).await,
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.memory.head(&self.key(key)).await.map(|meta| ObjectMeta { key: key.clone(), ..meta })
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = self.memory.list(prefix, options.clone());
        match self.fault {
            ListsLate => stream::once(listing.try_collect::<Vec<_>>())
                .map_ok(|mut metas| {
                    metas.sort_by_key(|meta| meta.created);
                    metas.pop();
                    stream::iter(metas).map(Ok)
                })
                .try_flatten()
                .boxed(),
            ListsByParts => stream::once(listing.try_collect::<Vec<_>>())
                .map_ok(|mut metas| {
                    metas.sort_by(|a, b| a.key.parts().cmp(b.key.parts()));
                    stream::iter(metas).map(Ok)
                })
                .try_flatten()
                .boxed(),
            PrefixIsAPath => {
                let folder = format!("{}/", prefix.trim_end_matches('/'));
                listing
                    .try_filter(move |meta| std::future::ready(folder == "/" || meta.key.as_str().starts_with(&folder)))
                    .boxed()
            }
            EmptyPrefixIsNothing if prefix.is_empty() => stream::empty().boxed(),
            StartAfterIsInclusive => {
                let prefix = prefix.to_owned();
                let first = stream::iter(options.start_after.filter(|key| key.as_str().starts_with(&prefix)));
                let memory = self.memory.clone();
                let first = first.filter_map(move |key| {
                    let memory = memory.clone();
                    async move { memory.head(&key).await.ok().map(Ok) }
                });
                first.chain(listing).boxed()
            }
            SkipsAtAPageBorder => {
                listing.enumerate().filter_map(|(i, meta)| std::future::ready((i != 1_000).then_some(meta))).boxed()
            }
            PagesByOffset => {
                let (memory, prefix) = (self.memory.clone(), prefix.to_owned());
                stream::unfold(0, move |offset| {
                    let listing = memory.list(&prefix, options.clone());
                    async move { listing.skip(offset).next().await.map(|meta| (meta, offset + 1)) }
                })
                .boxed()
            }
            _ => listing,
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        match self.fault {
            DeletesWhatIsThereOnly if !self.memory.exists(key).await? => {
                Err(Error::new(ErrorKind::NotFound, "delete object", "no such object"))
            }
            DeletesByPrefix => {
                for meta in self.memory.list_all(key.as_str()).await? {
                    self.memory.delete(&meta.key).await?;
                }
                Ok(())
            }
            _ => self.memory.delete(&self.key(key)).await,
        }
    }
}
