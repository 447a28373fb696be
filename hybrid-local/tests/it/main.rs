//! The crate from outside.

// Clippy excuses functions marked as tests, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "classifier")]
mod classifier;
#[cfg(feature = "decoder")]
mod decoder;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(feature = "embedder")]
mod embedder;
#[cfg(feature = "evaluation")]
mod evaluation;
#[cfg(feature = "decoder")]
mod mutated;
#[cfg(any(feature = "classifier", feature = "decoder", feature = "embedder"))]
mod peers;
#[cfg(all(feature = "classifier", feature = "decoder", feature = "evaluation"))]
mod plan_set;
#[cfg(feature = "decoder")]
mod source;
