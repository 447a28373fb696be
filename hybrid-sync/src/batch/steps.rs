//! What a job has done so far: effects that are created once, each of some rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use hybrid_core::{ArtifactStoreExt, Error, ErrorKind, Key, Result};

use crate::worker::JobContext;

/// How many effects are removed at once.
const REMOVALS: usize = 16;

/// What a job has done so far.
///
/// The effects of its steps are `t/<tenant>/jobs/<id>/steps/<number, 20 digits>`: whatever is at a number stays, and whoever comes later takes it for its own.
#[derive(Debug)]
pub struct Steps<'a> {
    cx: &'a JobContext,
    prefix: String,
    done: BTreeMap<u64, Key>,
}

impl<'a> Steps<'a> {
    /// What earlier attempts have left.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(cx: &'a JobContext) -> Result<Self> {
        let prefix = format!("{}/", cx.effect_key("steps")?);
        let found = cx.store.list_all(&prefix).await?;
        let number = |key: &Key| key.as_str().strip_prefix(&prefix)?.parse::<u64>().ok();
        let done = found.into_iter().filter_map(|meta| Some((number(&meta.key)?, meta.key))).collect();
        Ok(Self { cx, prefix, done })
    }

    /// What step `number` has made, if it is done.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn get(&self, number: u64) -> Result<Option<Bytes>> {
        match self.done.get(&number) {
            Some(key) => self.cx.store.get(key).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes `bytes` what step `number` has made, unless another attempt was first: then what that made.
    ///
    /// # Errors
    /// [`TooLarge`](ErrorKind::TooLarge) for more than an object holds; those of the store.
    pub async fn put(&mut self, number: u64, bytes: Bytes) -> Result<Bytes> {
        let key = Key::new(format!("{}{number:020}", self.prefix))?;
        let made = match self.cx.store.create(&key, bytes.clone()).await {
            Ok(()) => bytes,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.cx.store.get(&key).await?,
            Err(error) => return Err(error),
        };
        self.done.insert(number, key);
        Ok(made)
    }

    /// Removes them all, once what they were for is durable. Where this worker may not delete, they stay, and a warning says so: the job is done.
    ///
    /// # Errors
    /// Those of the store, but for [`PermissionDenied`](ErrorKind::PermissionDenied).
    pub async fn clear(self) -> Result<()> {
        let store = &self.cx.store;
        let keys = stream::iter(self.done.into_values().map(Ok::<_, Error>));
        let cleared = keys.try_for_each_concurrent(REMOVALS, async |key| store.delete(&key).await).await;
        match cleared {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                tracing::warn!(%error, prefix = self.prefix, "the steps of a job that is done stay: let the worker delete them");
                Ok(())
            }
            cleared => cleared,
        }
    }
}
