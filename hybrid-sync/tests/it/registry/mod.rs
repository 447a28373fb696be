//! The registry and the bucket protocol's promises, by their numbers.

mod channel;
mod crash;
mod fetch;
mod forged;
mod interop;
mod live;
mod publish;
pub(crate) mod site;
