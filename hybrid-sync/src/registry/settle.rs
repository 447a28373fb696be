//! Creating and reading objects over a store that may answer ambiguously.

use std::time::Duration;

use bytes::Bytes;
use hybrid_core::{ArtifactStoreExt, Error, ErrorKind, Key, Result};

use super::Registry;

/// Tries of one operation before its error is the caller's.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// How a create ended once every doubt was removed.
#[derive(Debug)]
pub(super) enum Settled {
    /// This call created the object.
    Created,
    /// The object is there with the same bytes: an earlier try landed.
    Same,
    /// Somebody else's bytes are there.
    Other(Bytes),
}

impl Registry {
    /// Creates an object and, where the answer leaves doubt, reads back what is there.
    ///
    /// Two answers leave doubt: a temporary error (the create may have landed) and `AlreadyExists` (an earlier try of ours may have landed, and
    /// some stores answer so when nothing is stored).
    pub(super) async fn create_settled(&self, key: &Key, bytes: &Bytes) -> Result<Settled> {
        let mut attempt = 0;
        loop {
            let doubt = match self.store.create(key, bytes.clone()).await {
                Ok(()) => return Ok(Settled::Created),
                Err(error) if is_doubtful(&error) => error,
                Err(error) => return Err(error),
            };
            match self.read(key).await {
                Ok(found) if found == *bytes => return Ok(Settled::Same),
                Ok(found) => return Ok(Settled::Other(found)),
                Err(error) if error.kind() == ErrorKind::NotFound || error.is_temporary() => {}
                Err(error) => return Err(error),
            }
            attempt += 1;
            self.wait_or_give_up(attempt, doubt, key).await?;
        }
    }

    /// Creates a chunk under a key that only this publication uses, so that an object of the same size is the chunk itself.
    ///
    /// `Ok(true)` if this call created it.
    pub(super) async fn create_blob(&self, key: &Key, bytes: &Bytes) -> Result<bool> {
        let mut attempt = 0;
        loop {
            let doubt = match self.store.create(key, bytes.clone()).await {
                Ok(()) => return Ok(true),
                Err(error) if is_doubtful(&error) => error,
                Err(error) => return Err(error),
            };
            match self.store.head(key).await {
                Ok(meta) if meta.size == bytes.len() as u64 => return Ok(false),
                Ok(meta) => {
                    return Err(Error::corrupt("upload chunk", "an object of another size has the chunk's name")
                        .with("key", key)
                        .with("expected", bytes.len())
                        .with("found", meta.size));
                }
                Err(error) if error.kind() == ErrorKind::NotFound || error.is_temporary() => {}
                Err(error) => return Err(error),
            }
            attempt += 1;
            self.wait_or_give_up(attempt, doubt, key).await?;
        }
    }

    /// Reads a whole object; tries again on temporary errors.
    pub(super) async fn read(&self, key: &Key) -> Result<Bytes> {
        let mut attempt = 0;
        loop {
            match self.store.get(key).await {
                Err(error) if error.is_temporary() => {
                    attempt += 1;
                    self.wait_or_give_up(attempt, error, key).await?;
                }
                other => return other,
            }
        }
    }

    async fn wait_or_give_up(&self, attempt: u32, error: Error, key: &Key) -> Result<()> {
        if attempt < ATTEMPTS {
            let wait = error.retry_after().unwrap_or(FIRST_WAIT * 2_u32.pow(attempt - 1));
            tracing::debug!(%key, attempt, %error, ?wait, "trying again");
            self.clock.sleep(wait).await;
            return Ok(());
        }
        if error.kind() == ErrorKind::AlreadyExists {
            return Err(Error::unavailable(
                "create object",
                "the store says that the object exists, and has none; try again later",
            )
            .with("key", key)
            .with_source(error));
        }
        Err(error)
    }
}

fn is_doubtful(error: &Error) -> bool {
    error.kind() == ErrorKind::AlreadyExists || error.is_temporary()
}
