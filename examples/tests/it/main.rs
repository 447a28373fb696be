//! The reference apps as a user runs them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod app;
mod away;
#[cfg(feature = "aws")]
mod aws;
mod bad_input;
mod corpus;
mod crash;
#[cfg(feature = "aws")]
mod deploy;
#[cfg(feature = "lambda")]
mod function;
mod handlers;
mod kitchen_jobs;
mod policy;
mod programs;
mod quickstart;
mod seen;
#[path = "../../../hybrid-core/tests/support/small_disk.rs"]
mod small_disk;
mod surface;
#[cfg(feature = "telemetry")]
mod telemetry;
