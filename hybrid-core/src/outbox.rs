//! The outbox port: what must reach the bucket some day, kept on this machine until it has.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;

/// A durable, ordered list of records on this machine.
///
/// # Behavior
/// - A record is durable when [`append`](Self::append) returns its number. Numbers are at least 1, grow and are never used again, also after a restart.
/// - [`pending`](Self::pending) answers with the oldest records above a number, in order of their numbers, and changes nothing: a drain that dies is
///   repeated, and one that cannot carry a record goes on behind it.
/// - [`remove`](Self::remove) drops the records with the numbers given, all or none, and no other; what is gone already is no error.
/// - A full disk is [`StorageFull`](crate::ErrorKind::StorageFull) and leaves earlier records whole.
#[async_trait]
// A drain asks how many records wait; nobody asks only whether there are any.
#[allow(clippy::len_without_is_empty)]
pub trait Outbox: Debug + Send + Sync + 'static {
    /// Adds a record and makes it durable; answers with its number.
    async fn append(&self, record: Bytes) -> Result<u64>;
    /// The oldest records with numbers above `after` (0 for all), at most `max`.
    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>>;
    /// Drops the records with these numbers.
    async fn remove(&self, numbers: &[u64]) -> Result<()>;
    /// How many records wait.
    async fn len(&self) -> Result<u64>;
}
