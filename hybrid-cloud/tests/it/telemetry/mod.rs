//! What leaves the process, read by a collector.

mod content;
mod failures;
mod names;
mod prometheus;
mod rig;
