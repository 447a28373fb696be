//! Integration tests, one module per topic.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "batch")]
mod batch;
mod capture;
mod faults;
mod job;
mod registry;
#[path = "../../../hybrid-core/tests/support/small_disk.rs"]
mod small_disk;
mod time;
mod worker;
mod write_through;
