//! The backend for servers that speak the OpenAI API: against a scripted one, and against our own storefront.

mod conformance;
mod faults;
mod refusals;
pub(crate) mod rig;
mod round_trip;
