//! What a server is.

use std::{collections::BTreeMap, fmt, time::Duration};

use hybrid_core::{Limits, Locality, Price};

/// A server, a model on it, and how to call it.
#[derive(Clone, Debug)]
pub struct OpenAiConfig {
    /// The backend's name in this deployment.
    pub name: String,
    /// Where the API begins, such as `http://127.0.0.1:1234/v1`.
    pub base_url: String,
    /// Sent as `authorization: Bearer …`; most local servers need none.
    pub api_key: Option<ApiKey>,
    /// The model's name, as the server spells it.
    pub model: String,
    /// Where the data goes that the server is given.
    pub locality: Locality,
    /// What the model accepts.
    pub limits: Limits,
    /// What the server charges; `None` where nothing is charged per call.
    pub price: Option<Price>,
    /// More headers to send, such as `openai-organization`.
    pub headers: BTreeMap<String, String>,
    /// What to do when the server is away or busy.
    pub retry: RetryPolicy,
    /// For a connection to come about. 5 s by default.
    pub connect_timeout: Duration,
    /// Between two pieces of an answer that has begun. How long the beginning may take is the call's deadline. 60 s by default.
    pub stall_timeout: Duration,
    /// An answer, or one event of a stream, in bytes. 64 MiB by default.
    pub answer_bytes: usize,
    /// Which field holds the most tokens to write.
    pub max_tokens_field: MaxTokensField,
    /// Whether a stream is asked to end with what it used. On by default; a server that refuses the option cannot be metered.
    pub stream_usage: bool,
    /// Whether the reasoning of earlier answers is sent back, as `reasoning_content`. Off by default: some servers refuse it.
    pub send_reasoning: bool,
}

impl OpenAiConfig {
    /// A server without key, price and limits.
    pub fn new(
        name: impl Into<String>,
        base_url: impl Into<String>,
        model: impl Into<String>,
        locality: Locality,
    ) -> Self {
        let max_tokens_field = match locality {
            Locality::Region(_) => MaxTokensField::MaxCompletionTokens,
            _ => MaxTokensField::MaxTokens,
        };
        Self {
            name: name.into(),
            base_url: base_url.into(),
            api_key: None,
            model: model.into(),
            locality,
            limits: Limits::default(),
            price: None,
            headers: BTreeMap::new(),
            retry: RetryPolicy::default(),
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(60),
            answer_bytes: 64 * 1024 * 1024,
            max_tokens_field,
            stream_usage: true,
            send_reasoning: false,
        }
    }

    /// The same with an API key.
    #[must_use]
    pub fn with_api_key(mut self, key: impl Into<ApiKey>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// The same with a price.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }
}

/// A secret that no log shows.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl<S: Into<String>> From<S> for ApiKey {
    fn from(key: S) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What to do when a server is away or busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a call is tried in all. 3 by default, 1 for no retry.
    pub attempts: u32,
    /// The longest wait before the second try; it doubles with each one after. 500 ms by default.
    pub first_wait: Duration,
    /// The longest wait. A server that asks for a longer one ends the call with what it asked for. 30 s by default.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, first_wait: Duration::from_millis(500), longest_wait: Duration::from_secs(30) }
    }
}

/// Which field holds the most tokens to write: servers know one or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MaxTokensField {
    /// `max_completion_tokens`: OpenAI's reasoning models refuse the other one. The default for a provider in a region.
    MaxCompletionTokens,
    /// `max_tokens`: every local server knows it. The default for a server on this device or site.
    MaxTokens,
}
