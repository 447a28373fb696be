//! What can go wrong in a call of Bedrock, and the one place where it becomes [`Error`].

use std::{borrow::Cow, time::Duration};

use aws_sdk_bedrockruntime::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_types::event_stream::{Message, RawMessage};
use hybrid_core::{Error, ErrorKind};
use serde_json::Value;

use super::retry::Retry;
use crate::aws::may_have_acted;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// One failed call.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) retry: Retry,
    pub(super) message: Cow<'static, str>,
    /// The message is in the provider's words, which may quote what it was sent.
    pub(super) quotes: bool,
    /// The provider's name for it, such as `ThrottlingException`.
    pub(super) code: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// The model may have answered, and its answer is paid for.
    pub(super) in_doubt: bool,
    pub(super) context: Vec<(&'static str, String)>,
    pub(super) source: Option<Source>,
}

/// What the model behind Bedrock said, as the context has it.
const ORIGINAL: &str = "original_message";

/// What each of the provider's codes means here. The waits behind each [`Retry`] are the policy's.
const CODES: &[(&str, ErrorKind, Retry)] = &[
    ("ModelNotReadyException", ErrorKind::Unavailable, Retry::Cold),
    ("ServiceUnavailableException", ErrorKind::Unavailable, Retry::Transient),
    ("InternalServerException", ErrorKind::Unavailable, Retry::Transient),
    ("RequestTimeout", ErrorKind::Timeout, Retry::Transient),
    ("RequestTimeoutException", ErrorKind::Timeout, Retry::Transient),
    ("ModelTimeoutException", ErrorKind::Timeout, Retry::Once),
    ("ModelErrorException", ErrorKind::Unavailable, Retry::Once),
    ("ModelStreamErrorException", ErrorKind::Unavailable, Retry::Once),
    // The account's quota is used up: a retry at once finds it so again.
    ("ServiceQuotaExceededException", ErrorKind::RateLimited, Retry::Never),
    ("ValidationException", ErrorKind::InvalidInput, Retry::Never),
    ("ConflictException", ErrorKind::AlreadyExists, Retry::Never),
    ("ResourceInUseException", ErrorKind::AlreadyExists, Retry::Never),
    ("TooManyTagsException", ErrorKind::InvalidInput, Retry::Never),
    ("ResourceNotFoundException", ErrorKind::NotFound, Retry::Never),
    ("AccessDeniedException", ErrorKind::PermissionDenied, Retry::Never),
];

/// The SDKs' list of codes that say: too many calls.
const THROTTLING: &[&str] = &[
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottledException",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "TransactionInProgressException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "RequestThrottled",
    "SlowDown",
    "PriorRequestNotComplete",
    "EC2ThrottledException",
];

fn judge(code: Option<&str>, status: Option<u16>) -> (ErrorKind, Retry) {
    if let Some(code) = code {
        if THROTTLING.contains(&code) {
            return (ErrorKind::RateLimited, Retry::Throttled);
        }
        if let Some((_, kind, retry)) = CODES.iter().find(|(name, ..)| *name == code) {
            return (*kind, *retry);
        }
    }
    match status {
        Some(429) => (ErrorKind::RateLimited, Retry::Throttled),
        Some(500 | 502 | 503 | 504) => (ErrorKind::Unavailable, Retry::Transient),
        Some(408) => (ErrorKind::Timeout, Retry::Once),
        Some(424) => (ErrorKind::Unavailable, Retry::Once),
        Some(401 | 403) => (ErrorKind::PermissionDenied, Retry::Never),
        Some(404) => (ErrorKind::NotFound, Retry::Never),
        Some(413) => (ErrorKind::TooLarge, Retry::Never),
        Some(400..500) => (ErrorKind::InvalidInput, Retry::Never),
        _ => (ErrorKind::Internal, Retry::Never),
    }
}

impl Failure {
    fn new(kind: ErrorKind, retry: Retry, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self {
            kind,
            retry,
            message,
            quotes: false,
            code: None,
            retry_after: None,
            in_doubt: false,
            context: Vec::new(),
            source: None,
        }
    }

    /// The provider sent what is no answer.
    pub(super) fn corrupt(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, Retry::Never, message)
    }

    /// The answer stopped before its end.
    pub(super) fn cut(message: impl Into<Cow<'static, str>>) -> Self {
        Self { in_doubt: true, ..Self::new(ErrorKind::Unavailable, Retry::Transient, message) }
    }

    /// Nothing came for too long.
    pub(super) fn stalled(what: &'static str, limit: Duration) -> Self {
        let message = format!("{what} for {} s; the connection is given up", limit.as_secs());
        Self::new(ErrorKind::Timeout, Retry::Once, message)
    }

    pub(super) fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.context.push((name, value.to_string()));
        self
    }

    /// A call that got no answer, or an error for one.
    pub(super) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(failed) => {
                let (meta, raw) = (failed.err().meta(), failed.raw());
                if raw.status().is_success() {
                    return Self::corrupt("the provider's answer cannot be read").caused_by(chain(failed.err()));
                }
                let status = raw.status().as_u16();
                let body = raw.body().bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
                let mut failure = Self::told(meta.code(), meta.message(), Some(status), &body.unwrap_or(Value::Null));
                failure.retry_after = failure.retry_after.or_else(|| retry_after(raw));
                match raw.headers().get("x-amzn-requestid") {
                    Some(id) => failure.with("provider_request", id),
                    None => failure,
                }
            }
            SdkError::ResponseError(failed) => {
                // Bytes that came in full and are no answer come again; bytes that did not come may.
                let whole = failed.raw().body().bytes().is_some();
                let failure = if whole {
                    Self::corrupt("the provider's answer cannot be read")
                } else {
                    Self::cut("the connection broke before the answer's end")
                };
                failure.caused_by(chain(&SdkError::<E, _>::ResponseError(failed)))
            }
            SdkError::TimeoutError(_) => {
                Self::new(ErrorKind::Timeout, Retry::Transient, "no connection in time").caused_by(chain(&error))
            }
            SdkError::DispatchFailure(_) => {
                let in_doubt = may_have_acted(&error);
                let message = match in_doubt {
                    true => "the connection broke before an answer",
                    false => "the provider cannot be reached",
                };
                Self { in_doubt, ..Self::new(ErrorKind::Unavailable, Retry::Transient, message) }
                    .caused_by(chain(&error))
            }
            // Nothing was sent: most often there are no credentials, or they cannot be renewed.
            error => {
                let message = "the request could not be built or signed; check the credentials";
                Self::new(ErrorKind::PermissionDenied, Retry::Never, message).caused_by(chain(&error))
            }
        }
    }

    /// A stream that went wrong after it began.
    pub(super) fn in_stream<E>(error: SdkError<E, RawMessage>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (told, message) = match &error {
            SdkError::ServiceError(failed) => (message(failed.raw()), failed.err().meta().message()),
            SdkError::ResponseError(failed) => (message(failed.raw()), None),
            _ => (None, None),
        };
        if let Some(frame) = told
            && let Some(code) = header(frame, ":exception-type").or_else(|| header(frame, ":error-code"))
        {
            let message = message.or_else(|| header(frame, ":error-message"));
            let body = serde_json::from_slice(frame.payload()).unwrap_or(Value::Null);
            return Self::told(Some(&capitalised(code)), message, None, &body);
        }
        let failure = match &error {
            // Left over at the end are the bytes of half a frame.
            SdkError::ResponseError(failed) if matches!(failed.raw(), RawMessage::Invalid(Some(_))) => {
                Self::cut("the stream ended in the middle of a frame")
            }
            SdkError::ServiceError(_) | SdkError::ResponseError(_) => Self::corrupt("the stream cannot be read"),
            _ => Self::cut("the connection broke in the middle of the stream"),
        };
        failure.caused_by(chain(&error))
    }

    /// What the provider says went wrong.
    fn told(code: Option<&str>, message: Option<&str>, status: Option<u16>, body: &Value) -> Self {
        let (mut kind, mut retry) = judge(code, status);
        let text = |key: &str| body.get(key).and_then(Value::as_str);
        let message =
            message.or_else(|| text("message")).unwrap_or("the provider refused the call and did not say why");
        // What the model behind Bedrock said: its own refusal of an input stays a refusal.
        let original = body.get("originalStatusCode").and_then(Value::as_u64);
        if matches!(original, Some(400 | 413 | 422)) {
            (kind, retry) = (ErrorKind::InvalidInput, Retry::Never);
        }
        let mut failure = Self::new(kind, retry, message.trim_end_matches('.').to_owned());
        // Who may not call, calls too often or calls what is not there hears of that alone; anything else may quote the prompt.
        failure.quotes = !matches!(
            kind,
            ErrorKind::PermissionDenied | ErrorKind::RateLimited | ErrorKind::NotFound | ErrorKind::AlreadyExists
        );
        failure.code = code.map(str::to_owned);
        if code == Some("ServiceQuotaExceededException") {
            failure.retry_after = Some(Duration::from_secs(60));
        }
        for (name, value) in [
            ("status", status.map(|status| status.to_string())),
            ("original_status", original.map(|status| status.to_string())),
            (ORIGINAL, text("originalMessage").map(str::to_owned)),
            ("resource", text("resourceName").map(str::to_owned)),
        ] {
            if let Some(value) = value {
                failure = failure.with(name, value);
            }
        }
        failure
    }

    /// The only way out: nobody outside the adapter sees the SDK's errors.
    pub(super) fn into_error(self, operation: &'static str) -> Error {
        let Self { kind, retry: _, message, quotes, code, retry_after, in_doubt, context, source } = self;
        let mut error = Error::new(kind, operation, message);
        if quotes {
            error = error.quoting();
        }
        if in_doubt {
            error = error.in_doubt();
        }
        if let Some(code) = code {
            error = error.with("code", code);
        }
        for (name, value) in context {
            error = if name == ORIGINAL { error.quote(name, value) } else { error.with(name, value) };
        }
        if let Some(wait) = retry_after {
            error = error.with_retry_after(wait);
        }
        match source {
            // Whoever cannot read an answer says what it found in it.
            Some(source) if kind == ErrorKind::Corrupt => error.with_quoted_source(source),
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

/// The whole chain in one text: the SDK's errors say little on their first level.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn retry_after(raw: &HttpResponse) -> Option<Duration> {
    let seconds = raw.headers().get("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn message(raw: &RawMessage) -> Option<&Message> {
    match raw {
        RawMessage::Decoded(message) => Some(message),
        _ => None,
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let header = message.headers().iter().find(|header| header.name().as_str() == name)?;
    header.value().as_string().ok().map(|text| text.as_str())
}

/// Streams spell `throttlingException` what answers spell `ThrottlingException`.
fn capitalised(code: &str) -> String {
    let mut chars = code.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_code_decides_before_the_status() {
        assert_eq!(judge(Some("ModelNotReadyException"), Some(429)), (ErrorKind::Unavailable, Retry::Cold));
        assert_eq!(judge(Some("SlowDown"), Some(503)), (ErrorKind::RateLimited, Retry::Throttled));
        assert_eq!(judge(Some("SomethingNew"), Some(503)), (ErrorKind::Unavailable, Retry::Transient));
        assert_eq!(judge(None, Some(418)), (ErrorKind::InvalidInput, Retry::Never));
        assert_eq!(judge(None, None), (ErrorKind::Internal, Retry::Never));
    }

    #[test]
    fn a_model_that_refuses_its_input_is_not_asked_again() {
        let body = json!({"originalStatusCode": 400, "resourceName": "arn:x", "message": "bad input."});
        let failure = Failure::told(Some("ModelErrorException"), None, Some(424), &body);
        assert_eq!((failure.kind, failure.retry), (ErrorKind::InvalidInput, Retry::Never));
        let error = failure.into_error("converse");
        assert_eq!(error.message(), "bad input");
        assert_eq!(error.context("resource"), Some("arn:x"));
    }
}
