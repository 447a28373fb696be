//! The crate from outside: the memory adapters keep their contracts, and the suites notice adapters that do not.

#![allow(clippy::unwrap_used)]

mod broken;
mod conformance;
mod toy;
