//! Bedrock's adapters against a scripted server that speaks the true wire.

mod conformance;
mod embed;
mod ends;
mod faults;
mod places;
mod requests;
mod responses;
mod retries;
mod rig;
mod shapes;
mod wire;
