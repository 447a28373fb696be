//! Models behind any server that speaks the OpenAI API: LM Studio, Ollama, mlx-lm, llama.cpp and vLLM on this site, OpenAI itself or Bedrock's
//! `/openai/v1` elsewhere.
//!
//! ```
//! use std::sync::Arc;
//! use hybrid_cloud::openai::{OpenAiCompatible, OpenAiConfig};
//! use hybrid_core::{InferenceBackend, Locality, task::Chat};
//!
//! # fn main() -> hybrid_core::Result<()> {
//! let config = OpenAiConfig::new("lm-studio", "http://127.0.0.1:1234/v1", "qwen3-8b", Locality::Device);
//! let backend: Arc<dyn InferenceBackend<Chat>> = Arc::new(OpenAiCompatible::new(config)?);
//! # drop(backend);
//! # Ok(())
//! # }
//! ```
//!
//! One [`OpenAiCompatible`] is a backend of [`Chat`](hybrid_core::task::Chat), [`Embed`](hybrid_core::task::Embed) and
//! [`Transcribe`](hybrid_core::task::Transcribe); which of them its model does is the user's to know.
//!
//! # What is promised
//! - Where the data goes is what [`OpenAiConfig::locality`] says: the address is called as it is, no redirect is followed, and no proxy of the
//!   environment is used for a server on this device or site.
//! - An answer is whole or an error. A stream counts as whole once every choice has its `finish_reason` and the server has said `[DONE]`.
//! - 408, 409, 429, 5xx and broken connections are tried again with back-off, as `retry-after`, `retry-after-ms` and `x-should-retry` ask,
//!   while the deadline allows it, and never once an answer has begun.
//! - What the API has no word for is refused with [`Unsupported`](hybrid_core::ErrorKind::Unsupported), or left out with a note where the
//!   answer is no worse for it.
//!
//! # Errors
//! | the server | kind |
//! |---|---|
//! | 400, 422 | [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput); [`TooLarge`](hybrid_core::ErrorKind::TooLarge) where the context is too small; [`Unsupported`](hybrid_core::ErrorKind::Unsupported) where it says so of a parameter |
//! | 401, 403 | [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied) |
//! | 404 | [`NotFound`](hybrid_core::ErrorKind::NotFound) |
//! | 405, 415, 501 | [`Unsupported`](hybrid_core::ErrorKind::Unsupported) |
//! | 408 | [`Timeout`](hybrid_core::ErrorKind::Timeout) |
//! | 413 | [`TooLarge`](hybrid_core::ErrorKind::TooLarge) |
//! | 429 | [`RateLimited`](hybrid_core::ErrorKind::RateLimited) |
//! | 409, 5xx, cannot be reached, broke off, stalled | [`Unavailable`](hybrid_core::ErrorKind::Unavailable) |
//! | an answer that is not whole or not in the API's form | [`Corrupt`](hybrid_core::ErrorKind::Corrupt) |

mod chat;
mod config;
mod embed;
mod failure;
mod http;
mod sse;
mod transcribe;

pub use config::{ApiKey, MaxTokensField, OpenAiConfig, RetryPolicy};

use std::{fmt, sync::Arc};

use hybrid_core::{BackendProfile, Result, ServedModel};

/// A model behind a server that speaks the OpenAI API. See the [module](self).
///
/// Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct OpenAiCompatible {
    inner: Arc<Inner>,
}

struct Inner {
    config: OpenAiConfig,
    profile: Arc<BackendProfile>,
    http: http::Http,
}

impl OpenAiCompatible {
    /// The backend that `config` describes. Nothing is sent yet.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names the setting.
    pub fn new(config: OpenAiConfig) -> Result<Self> {
        let http = http::Http::new(&config)?;
        let profile = BackendProfile {
            name: config.name.clone(),
            model: ServedModel::named(config.model.clone()),
            locality: config.locality.clone(),
            limits: config.limits.clone(),
            price: config.price.clone(),
        };
        Ok(Self { inner: Arc::new(Inner { config, profile: Arc::new(profile), http }) })
    }
}

impl fmt::Debug for OpenAiCompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenAiCompatible").field(&self.inner.config).finish()
    }
}
