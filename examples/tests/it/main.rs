//! The reference apps as a user runs them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod app;
mod bad_input;
mod corpus;
mod crash;
#[cfg(feature = "lambda")]
mod function;
mod quickstart;
