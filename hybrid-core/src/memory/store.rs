use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{
    ArtifactStore, BoxStream, Clock, Error, Key, ListOptions, ObjectMeta, ReadOptions, Result, SystemClock, Timestamp,
    check_object_size,
};

/// An [`ArtifactStore`] in memory. Clones share their objects.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use hybrid_core::{ArtifactStore, ArtifactStoreExt, Key, memory::MemoryStore};
///
/// let store = MemoryStore::default();
/// let key = Key::new("blobs/a")?;
/// store.create(&key, "bytes".into()).await?;
/// assert_eq!(store.get(&key).await?, "bytes");
/// assert!(store.create(&key, "other".into()).await.is_err());
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStore {
    objects: Arc<RwLock<BTreeMap<Key, (Bytes, Timestamp)>>>,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// An empty store whose creation times come from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { objects: Arc::default(), clock }
    }

    /// Replaces an object's bytes behind the port's back, as a failing disk would: for tests of those who must notice.
    pub fn corrupt(&self, key: &Key, bytes: Bytes) {
        if let Some(object) = self.objects.write().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            object.0 = bytes;
        }
    }

    fn find(&self, operation: &'static str, key: &Key) -> Result<(Bytes, Timestamp)> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(key).cloned().ok_or_else(|| Error::not_found(operation, "no such object").with("key", key))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock))
    }
}

#[async_trait]
impl ArtifactStore for MemoryStore {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        check_object_size(key, bytes.len())?;
        match self.objects.write().unwrap_or_else(PoisonError::into_inner).entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert((bytes, self.clock.now()));
                Ok(())
            }
            Entry::Occupied(_) => Err(Error::already_exists("create object", "the object exists").with("key", key)),
        }
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        let (bytes, _) = self.find("read object", key)?;
        options.apply(key, bytes)
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let (bytes, created) = self.find("head object", key)?;
        Ok(ObjectMeta { key: key.clone(), size: bytes.len() as u64, created })
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let ListOptions { start_after } = options;
        // Starts at whichever is later, so that a listing costs what it yields.
        let from = match &start_after {
            Some(key) if key.as_str() >= prefix => Bound::Excluded(key.as_str()),
            _ => Bound::Included(prefix),
        };
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<_> = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, (bytes, created))| {
                Ok(ObjectMeta { key: key.clone(), size: bytes.len() as u64, created: *created })
            })
            .collect();
        stream::iter(found).boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(())
    }
}
