//! A job queue, an outbox and a vector index, each in one SQLite file: see [`SqliteQueue`], [`SqliteOutbox`] and [`SqliteVectorIndex`].

mod database;
mod outbox;
mod queue;
mod vectors;
mod writer;

pub use outbox::SqliteOutbox;
pub use queue::{SqliteQueue, SqliteQueueOptions};
pub use vectors::{SqliteVectorIndex, SqliteVectorOptions};
