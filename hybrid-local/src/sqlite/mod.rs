//! A job queue and an outbox, each in one SQLite file: see [`SqliteQueue`] and [`SqliteOutbox`].

mod database;
mod outbox;
mod queue;
mod writer;

pub use outbox::SqliteOutbox;
pub use queue::{SqliteQueue, SqliteQueueOptions};
