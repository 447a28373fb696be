//! The provider's side of [`hybrid_core`]: what faces the customer, and adapters for what a cloud provider runs.
//!
//! This crate sees the ports of `hybrid-core` alone. It knows no tensor library, no embedded database and no kitchen: a model in this process and
//! a model across the world are both an [`InferenceBackend`](hybrid_core::InferenceBackend) here.
//!
//! # Features
//! | feature | default | what it adds |
//! |---|---|---|
//! | `storefront` | yes | [`storefront`]: the HTTP surface as an axum `Router` from a builder over ports, and a server for it |

#[cfg(feature = "storefront")]
pub mod storefront;
