//! A job queue, an outbox, a record store and a vector index, each in one SQLite file: see [`SqliteQueue`], [`SqliteOutbox`], [`SqliteRecordStore`] and
//! [`SqliteVectorIndex`].

mod database;
mod outbox;
mod queue;
mod records;
mod vectors;
mod writer;

pub use outbox::SqliteOutbox;
pub use queue::{SqliteQueue, SqliteQueueOptions};
pub use records::{SqliteRecordOptions, SqliteRecordStore};
pub use vectors::{SqliteVectorIndex, SqliteVectorOptions};
