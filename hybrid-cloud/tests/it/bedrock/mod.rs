//! Bedrock's adapters against a scripted server that speaks the true wire.

mod conformance;
#[cfg(all(feature = "bedrock-trainer", feature = "s3"))]
mod custom;
mod embed;
mod ends;
mod faults;
mod imported;
mod places;
mod requests;
mod responses;
mod retries;
pub(crate) mod rig;
mod shapes;
mod wire;
