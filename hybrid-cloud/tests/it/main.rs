//! What the crate promises, seen from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should say where")]

#[cfg(feature = "bedrock")]
mod bedrock;
#[cfg(all(feature = "dynamodb", feature = "testkit"))]
mod dynamodb;
#[cfg(feature = "object-store")]
mod object_store;
#[cfg(all(feature = "openai", feature = "storefront", feature = "testkit"))]
mod openai;
#[cfg(feature = "s3")]
mod s3;
#[cfg(all(feature = "s3-vectors", feature = "testkit"))]
mod s3_vectors;
#[cfg(feature = "storefront")]
#[path = "../../../hybrid-core/tests/support/small_disk.rs"]
mod small_disk;
#[cfg(all(feature = "sqs", feature = "testkit"))]
mod sqs;
#[cfg(feature = "storefront")]
mod storefront;
#[cfg(all(feature = "storefront", feature = "telemetry", feature = "testkit"))]
mod telemetry;
#[cfg(feature = "testkit")]
mod testkit;
