//! The registry and the bucket protocol's promises, by their numbers.

mod channel;
mod crash;
#[cfg(target_os = "linux")]
mod disk;
mod fetch;
mod forged;
mod interop;
pub(crate) mod live;
mod prune;
mod publish;
mod renewal;
pub(crate) mod site;
mod versions;
