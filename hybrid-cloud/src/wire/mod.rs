//! The OpenAI API's wire form and its translation from and to [`hybrid_core::task`], for the storefront that serves it and the backends
//! that call it.
//!
//! Reading is lenient: fields that nobody here knows are ignored, since servers and clients add them all the time, and what a server may leave
//! out is optional. What would change an answer's meaning and has no counterpart in [`hybrid_core::task`] is refused by name. Writing is exact.
//! The form is that of the official client's types, `openai` 3.52 for Python.
#![cfg_attr(
    not(all(feature = "openai", feature = "storefront")),
    allow(dead_code, reason = "what one feature writes the other reads")
)]

pub(crate) mod chat;
#[cfg(any(feature = "openai", feature = "storefront"))]
pub(crate) mod embed;
#[cfg(any(feature = "openai", feature = "storefront"))]
pub(crate) mod error;
pub(crate) mod media;
#[cfg(any(feature = "openai", feature = "storefront"))]
pub(crate) mod transcribe;

#[cfg(feature = "storefront")]
pub(crate) mod file;
#[cfg(feature = "storefront")]
pub(crate) mod image;
#[cfg(feature = "storefront")]
pub(crate) mod responses;

use std::fmt::Display;

use hybrid_core::Error;

/// Begins a refusal of the field called so in the wire form.
pub(crate) fn refuse(operation: &'static str, field: impl Display, message: &'static str) -> Error {
    Error::invalid(operation, message).with("field", field)
}

/// Begins a refusal of a field that is well formed, but that nothing here can honour.
pub(crate) fn unsupported(operation: &'static str, field: impl Display, message: &'static str) -> Error {
    Error::unsupported(operation, message).with("field", field)
}
