//! Adapters that keep everything in memory: references for the contracts, and parts for tests.

mod backend;
mod outbox;
mod queue;
mod records;
mod store;
mod vectors;

pub use backend::ScriptedBackend;
pub use outbox::MemoryOutbox;
pub use queue::{MemoryQueue, MemoryQueueOptions};
pub use records::MemoryRecordStore;
pub use store::MemoryStore;
pub use vectors::MemoryVectorIndex;
