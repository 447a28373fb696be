//! Calls over HTTP, with their retries.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    time::Duration,
};

use futures_util::future::{Either, select};
use hybrid_core::{CallContext, Error, Locality, Result};
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};

use super::{
    OpenAiConfig, RetryPolicy,
    failure::{Refusal, refusal},
};

const CONFIGURE: &str = "configure openai-compatible backend";
/// How much of an error's body is read.
const ERROR_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    base: String,
    retry: RetryPolicy,
    answer_bytes: usize,
    stall: Duration,
}

impl Http {
    pub(super) fn new(config: &OpenAiConfig) -> Result<Self> {
        let invalid =
            |field: &'static str, message: &'static str| Error::invalid(CONFIGURE, message).with("field", field);
        for (field, text) in [("name", &config.name), ("model", &config.model)] {
            if text.trim().is_empty() {
                return Err(invalid(field, "must not be blank"));
            }
        }
        let url =
            Url::parse(&config.base_url).map_err(|error| invalid("base_url", "must be a URL").with_source(error))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
            return Err(invalid("base_url", "must be an http or https URL without a query"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("base_url", "must hold no credentials; set the API key"));
        }
        if config.retry.attempts == 0 {
            return Err(invalid("retry.attempts", "must be at least 1"));
        }
        let mut client = Client::builder()
            .user_agent(concat!("hybrid/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(config)?)
            .connect_timeout(config.connect_timeout)
            // The data policy was asked about this server and no other.
            .redirect(Policy::none());
        if matches!(config.locality, Locality::Device | Locality::Site) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| {
            Error::internal(CONFIGURE, "the HTTP client cannot be set up").with_source(error.without_url())
        })?;
        Ok(Self {
            client,
            base: url.as_str().trim_end_matches('/').to_owned(),
            retry: config.retry.clone(),
            answer_bytes: config.answer_bytes,
            stall: config.stall_timeout,
        })
    }

    /// Sends a request until the server answers with success or nothing is left to try. The error that is left is in doubt if any try was: a later
    /// refusal does not undo what an earlier one may have cost.
    pub(super) async fn post(
        &self,
        cx: &CallContext,
        operation: &'static str,
        path: &str,
        fill: impl Fn(RequestBuilder) -> Result<RequestBuilder> + Send + Sync,
    ) -> Result<Response> {
        let url = format!("{}/{path}", self.base);
        let mut attempt = 1;
        let mut in_doubt = false;
        let told = |error: Error, in_doubt: bool| if in_doubt { error.in_doubt() } else { error };
        loop {
            let mut request = self.client.post(&url).header("x-request-id", cx.request.as_str());
            if let Some(trace) = &cx.trace {
                request = request.header("traceparent", trace);
            }
            let request = fill(request)?;
            let sent = cx.run(operation, async { Ok(request.send().await) }).await;
            let refused = match sent.map_err(|error| told(error, in_doubt))? {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => self.refusal(cx, operation, response).await,
                Err(error) => Ok(Refusal { error: transport(operation, error), again: true }),
            };
            let Refusal { error, again } = refused.map_err(|error| told(error, in_doubt))?;
            in_doubt |= error.is_in_doubt();
            if !again || attempt >= self.retry.attempts {
                return Err(told(error.with("attempts", attempt), in_doubt));
            }
            let wait = error.retry_after().unwrap_or_else(|| self.back_off(cx, attempt));
            let late = cx.deadline.is_some_and(|deadline| wait >= deadline.since(cx.clock.monotonic()));
            if wait > self.retry.longest_wait || late {
                return Err(told(error.with("attempts", attempt), in_doubt));
            }
            tracing::debug!(%error, attempt, ?wait, "a call is tried again");
            let waited = cx.run(operation, async {
                cx.clock.sleep(wait).await;
                Ok(())
            });
            waited.await.map_err(|error| told(error, in_doubt))?;
            attempt += 1;
        }
    }

    /// Half of the longest wait of this attempt and a part of the other half, which the request's id decides: calls that failed together do not
    /// come back together.
    fn back_off(&self, cx: &CallContext, attempt: u32) -> Duration {
        let longest = self.retry.first_wait.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let longest = longest.min(self.retry.longest_wait);
        let mut hasher = DefaultHasher::new();
        (cx.request.as_str(), attempt).hash(&mut hasher);
        let share = (hasher.finish() % 1024) as f64 / 1024.0;
        longest.mul_f64(0.5 + share / 2.0)
    }

    async fn refusal(&self, cx: &CallContext, operation: &'static str, response: Response) -> Result<Refusal> {
        let (status, headers) = (response.status(), response.headers().clone());
        let read = self.read(cx, operation, response, ERROR_BYTES);
        let body = cx.run(operation, async { Ok(read.await.unwrap_or_default()) }).await?;
        Ok(refusal(operation, status, &headers, body.as_deref().unwrap_or_default(), &*cx.clock))
    }

    /// The whole body of an answer.
    pub(super) async fn body(&self, cx: &CallContext, operation: &'static str, response: Response) -> Result<Vec<u8>> {
        let limit = self.answer_bytes;
        cx.run(operation, self.read(cx, operation, response, limit))
            .await?
            .ok_or_else(|| Error::corrupt(operation, "the server's answer is over the limit").with("limit", limit))
    }

    /// The body, or `None` if it is over the limit.
    async fn read(
        &self,
        cx: &CallContext,
        operation: &'static str,
        mut response: Response,
        limit: usize,
    ) -> Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let chunk = match select(pin!(response.chunk()), cx.clock.sleep(self.stall)).await {
                Either::Left((chunk, _)) => chunk.map_err(|error| transport(operation, error))?,
                Either::Right(_) => return Err(stalled(operation, "the answer stalled", self.stall)),
            };
            match chunk {
                None => return Ok(Some(body)),
                Some(chunk) if chunk.len() > limit - body.len() => return Ok(None),
                Some(chunk) => body.extend_from_slice(&chunk),
            }
        }
    }
}

/// An answer of which nothing more has come.
pub(super) fn stalled(operation: &'static str, message: &'static str, limit: Duration) -> Error {
    Error::unavailable(operation, message).in_doubt().with("limit", format_args!("{limit:?}"))
}

fn headers(config: &OpenAiConfig) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let invalid = |name: &str| Error::invalid(CONFIGURE, "is no header that can be sent").with("field", name);
    for (name, value) in &config.headers {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid(name))?;
        headers.insert(header, HeaderValue::from_str(value).map_err(|_| invalid(name))?);
    }
    if let Some(key) = &config.api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal())).map_err(|_| invalid("api_key"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// A call that got no answer, or not all of it.
pub(super) fn transport(operation: &'static str, error: reqwest::Error) -> Error {
    let (message, asked) = if error.is_connect() {
        ("the server cannot be reached", false)
    } else if error.is_timeout() {
        ("the server took too long", true)
    } else {
        ("the connection broke off", true)
    };
    // The address may hold a name that is nobody's business.
    let error = Error::unavailable(operation, message).with_source(error.without_url());
    if asked { error.in_doubt() } else { error }
}
