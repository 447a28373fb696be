//! Errors in the OpenAI API's shape.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hybrid_core::{Error, ErrorKind, JobKind, RequestId};
use serde_json::json;

use super::{identity::Scope, quota::Limited};

use crate::wire::error::{ErrorBody, ErrorObject};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
/// How long a caller waits where the failing side did not say.
const RETRY: Duration = Duration::from_secs(1);

/// A request that failed. Handlers return it; [`edge`](super::edge::edge) writes it, because it alone knows the request's id at every failure.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// The rest of the body is not read: the connection cannot be used again.
    close: bool,
    /// What `x-should-retry` says to clients that ask it.
    should_retry: Option<bool>,
    /// The answer says how to authenticate.
    challenge: bool,
    /// Which of the tenant's quotas refused it.
    quota: Option<Limited>,
    /// For the log alone.
    detail: Option<Arc<Error>>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let message = shorten(message.into(), 600);
        Self {
            status,
            kind,
            code,
            message,
            param: None,
            retry_after: None,
            close: false,
            should_retry: None,
            challenge: false,
            quota: None,
            detail: None,
        }
    }

    /// A request that can never succeed as it is.
    pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// Names the field at fault.
    pub(super) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(shorten(param.into(), 100));
        self
    }

    /// Calls the field at fault by another name, in the message too.
    pub(super) fn of_field(mut self, name: impl FnOnce(&str) -> String) -> Self {
        if let Some(param) = self.param.take() {
            let named = name(&param);
            if let Some(said) = self.message.strip_prefix(&param) {
                self.message = format!("{named}{said}");
            }
            self.param = Some(named);
        }
        self
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", "no such route; see GET /v1/models for what is offered")
    }

    pub(super) fn method_not_allowed(method: &str) -> Self {
        let message = format!(
            "this route does not take {}; the allow header lists what it takes",
            shorten(method.to_owned(), 20)
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    /// Nobody that the storefront knows.
    pub(super) fn unauthenticated(code: &'static str, message: impl Into<String>) -> Self {
        let refused = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message);
        // Nobody's body is read.
        Self { challenge: true, close: true, ..refused }
    }

    /// It could not be found out who sends the request.
    pub(super) fn cannot_authenticate(error: Error) -> Self {
        let message = "the credentials cannot be checked for now; try again";
        let away = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "unavailable", message);
        Self { retry_after: Some(error.retry_after().unwrap_or(RETRY)), detail: Some(Arc::new(error)), ..away }
    }

    pub(super) fn missing_scope(scope: Scope) -> Self {
        let message = format!("these credentials do not have the scope {scope}");
        Self { close: true, ..Self::new(StatusCode::FORBIDDEN, "permission_error", "missing_scope", message) }
    }

    /// More of something than a tenant may have in a minute.
    pub(super) fn rate_limited(what: Limited, limit: u64, wait: Duration) -> Self {
        let message = format!("over the limit of {limit} {}; try again in {} s", what.as_str(), whole_seconds(wait));
        let limited = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        Self { retry_after: Some(wait), should_retry: Some(true), quota: Some(what), ..limited }
    }

    pub(super) fn too_many_streams(limit: u32) -> Self {
        let message = format!("over the limit of {limit} streamed answers at one time; try again when one has ended");
        let limited = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        Self { retry_after: Some(RETRY), should_retry: Some(true), quota: Some(Limited::Streams), ..limited }
    }

    /// The tenant's money is spent for today. Clients try again by themselves unless they are told not to.
    pub(super) fn budget_spent(error: Error) -> Self {
        let message = "the day's budget is used up; it begins anew at midnight UTC";
        let spent = Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota", message);
        let retry_after = error.retry_after();
        let quota = Some(Limited::Money);
        Self { retry_after, should_retry: Some(false), quota, detail: Some(Arc::new(error)), ..spent }
    }

    /// Nothing of this task is offered to the caller.
    pub(super) fn no_model(task: &str) -> Self {
        let message = format!("there is no model for {task}; see GET /v1/models");
        Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message).param("model")
    }

    pub(super) fn wrong_task(id: &str, does: &str, asked: &str) -> Self {
        let message =
            format!("the model {:?} does {does}, not {asked}; see GET /v1/models", shorten(id.to_owned(), 64));
        Self::invalid("unsupported", message).param("model")
    }

    pub(super) fn unknown_model(id: &str) -> Self {
        let message = format!("there is no model {:?}; see GET /v1/models", shorten(id.to_owned(), 64));
        Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message).param("model")
    }

    /// The same for a job that does not exist and for another's.
    pub(super) fn unknown_job(id: &str) -> Self {
        let message = format!("there is no job {:?}", shorten(id.to_owned(), 64));
        Self::new(StatusCode::NOT_FOUND, INVALID, "job_not_found", message)
    }

    /// The same for a file that does not exist, one that is gone, and another's.
    pub(super) fn unknown_file(id: &str) -> Self {
        let message = format!("there is no file {:?}", shorten(id.to_owned(), 64));
        Self::new(StatusCode::NOT_FOUND, INVALID, "file_not_found", message)
    }

    /// The same for a record that does not exist, one that has expired, and another's.
    pub(super) fn unknown_record(key: &str) -> Self {
        let message = format!("there is no record {:?}", shorten(key.to_owned(), 64));
        Self::new(StatusCode::NOT_FOUND, INVALID, "record_not_found", message)
    }

    pub(super) fn unknown_collection(name: &str) -> Self {
        let message = format!("there is no collection {:?} for you", shorten(name.to_owned(), 64));
        Self::new(StatusCode::NOT_FOUND, INVALID, "collection_not_found", message)
    }

    /// Somebody else has written first.
    pub(super) fn conflict(error: &Error) -> Self {
        Self::new(StatusCode::CONFLICT, INVALID, "conflict", error.public_message())
    }

    /// A range that lies beyond a file's end.
    pub(super) fn range_not_satisfiable(bytes: u64) -> Self {
        let message = format!("the file has {bytes} bytes, and none of them lies in the range");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, INVALID, "range_not_satisfiable", message).param("range")
    }

    /// A tenant has as many files as it may have.
    pub(super) fn too_many_files(limit: usize) -> Self {
        let message = format!("over the limit of {limit} files; delete some");
        Self { close: true, ..Self::invalid("too_many_files", message) }
    }

    pub(super) fn unknown_kind(kind: &str, kinds: &BTreeSet<JobKind>) -> Self {
        let known: Vec<_> = kinds.iter().map(JobKind::as_str).collect();
        let kind = shorten(kind.to_owned(), 64);
        Self::invalid("unknown_kind", format!("there is no kind {kind:?}; the kinds are {}", known.join(", ")))
            .param("kind")
    }

    pub(super) fn media_type(code: &'static str, message: impl Into<String>) -> Self {
        Self { close: true, ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, code, message) }
    }

    pub(super) fn body_too_large(limit: u64, announced: Option<u64>) -> Self {
        let found = announced.map_or_else(|| "more".to_owned(), |bytes| bytes.to_string());
        let message = format!("the body may have {limit} bytes and has {found}; send less at once");
        Self { close: true, ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", message) }
    }

    pub(super) fn too_many(param: &'static str, limit: usize, found: usize) -> Self {
        let message = format!("{param} may have {limit} items and has {found}; send them in several requests");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "too_large", message).param(param)
    }

    pub(super) fn body_timeout(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {limit:?}");
        Self { close: true, ..Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", "body_timeout", message) }
    }

    pub(super) fn overloaded() -> Self {
        let message = "too many requests are at work; try again";
        Self { retry_after: Some(RETRY), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "overloaded", message) }
    }

    pub(super) fn not_ready(reasons: &[String]) -> Self {
        let message = format!("not ready: {}", reasons.join("; "));
        Self { retry_after: Some(RETRY), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "not_ready", message) }
    }

    pub(super) fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text =
            payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
        // The library's own panics quote texts that are sliced in the middle of a character.
        Error::internal("serve request", "a handler panicked").quote("panic", text.unwrap_or("no message")).into()
    }

    /// Puts `lead` before the message.
    pub(super) fn led_by(mut self, lead: &str) -> Self {
        self.message = format!("{lead}: {}", self.message);
        self
    }

    /// The cause, which the log alone may see.
    pub(super) fn detail(&self) -> Option<&Error> {
        self.detail.as_deref()
    }

    /// The cause as the log may see it: with what others said of it, and so perhaps what a customer wrote, where that is `wanted` there.
    pub(super) fn told(&self, wanted: bool) -> Option<String> {
        self.detail().map(|detail| if wanted { format!("{detail:#}") } else { detail.to_string() })
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The quota that refused the request, if one did.
    pub(super) fn quota(&self) -> Option<&'static str> {
        self.quota.map(Limited::as_str)
    }

    /// The error as the caller sees it, in an answer or in a stream.
    pub(super) fn body(&self, request: &RequestId) -> ErrorBody {
        let message = match self.status.is_server_error() {
            true => format!("{} (request id: {request})", self.message),
            false => self.message.clone(),
        };
        let (kind, code) = (Some(self.kind.to_owned()), Some(self.code.into()));
        ErrorBody { error: ErrorObject { message, kind, param: self.param.clone(), code } }
    }

    /// Writes the error into the answer that carried it, whose other headers stay.
    pub(super) fn write(self, request: &RequestId, carrier: Response) -> Response {
        let body = json!(self.body(request)).to_string();
        let (mut parts, _) = carrier.into_parts();
        parts.status = self.status;
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some(retry) = self.should_retry {
            let retry = HeaderValue::from_static(if retry { "true" } else { "false" });
            parts.headers.insert(HeaderName::from_static("x-should-retry"), retry);
        }
        if self.challenge {
            parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Response::from_parts(parts, body.into())
    }
}

impl From<Error> for ApiError {
    /// The table in [`storefront`](super)'s documentation.
    fn from(error: Error) -> Self {
        let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (status, kind, code, generic) = match error.kind() {
            ErrorKind::InvalidInput => (StatusCode::BAD_REQUEST, INVALID, "invalid_request", None),
            ErrorKind::Unsupported => (StatusCode::BAD_REQUEST, INVALID, "unsupported", None),
            ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "too_large", None),
            ErrorKind::PolicyDenied => (StatusCode::FORBIDDEN, "permission_error", "policy_denied", None),
            // It was the storefront that asked too often; 429 tells a customer that the customer did.
            ErrorKind::RateLimited => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, "overloaded", Some("too many requests at once; try again"))
            }
            ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::Cancelled => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, "unavailable", Some("the service is away for now; try again"))
            }
            ErrorKind::Timeout => {
                (StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", Some("the request took too long; try again"))
            }
            ErrorKind::StorageFull => {
                (status(507), SERVER, "storage_full", Some("there is no room to keep this; nothing was lost"))
            }
            _ => (
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                "internal_error",
                Some("the storefront failed; nothing is wrong with the request"),
            ),
        };
        let message = generic.map_or_else(|| error.public_message(), str::to_owned);
        let retry_after = error.retry_after().or_else(|| error.is_temporary().then_some(RETRY));
        let param = error.context("field").filter(|_| generic.is_none()).map(str::to_owned);
        Self { param, retry_after, detail: Some(Arc::new(error)), ..Self::new(status, kind, code, message) }
    }
}

impl From<Error> for Box<ApiError> {
    fn from(error: Error) -> Self {
        Self::new(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whole seconds, rounded up: a caller that obeys is never early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// The first `chars` characters, so that an error never sends a large request back.
pub(super) fn shorten(mut text: String, chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(chars) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_documented_status_and_secrets_stay_inside() {
        let cases = [
            (ErrorKind::InvalidInput, 400, "invalid_request"),
            (ErrorKind::Unsupported, 400, "unsupported"),
            (ErrorKind::TooLarge, 413, "too_large"),
            (ErrorKind::PolicyDenied, 403, "policy_denied"),
            (ErrorKind::RateLimited, 503, "overloaded"),
            (ErrorKind::Unavailable, 503, "unavailable"),
            (ErrorKind::ResourceExhausted, 503, "unavailable"),
            (ErrorKind::Cancelled, 503, "unavailable"),
            (ErrorKind::Timeout, 504, "timeout"),
            (ErrorKind::StorageFull, 507, "storage_full"),
            (ErrorKind::NotFound, 500, "internal_error"),
            (ErrorKind::AlreadyExists, 500, "internal_error"),
            (ErrorKind::Corrupt, 500, "internal_error"),
            (ErrorKind::Untrusted, 500, "internal_error"),
            (ErrorKind::PermissionDenied, 500, "internal_error"),
            (ErrorKind::LeaseLost, 500, "internal_error"),
            (ErrorKind::Internal, 500, "internal_error"),
        ];
        for (kind, status, code) in cases {
            let error = Error::new(kind, "infer", "said").with("path", "/etc/secret").with_source("key sk-123");
            let api = ApiError::from(error);
            assert_eq!((api.status.as_u16(), api.code), (status, code), "{kind:?}");
            assert!(!api.message.contains("secret") && !api.message.contains("sk-123"), "{kind:?}: {}", api.message);
            assert_eq!(api.message.contains("said"), status < 429, "{kind:?}: {}", api.message);
            let temporary = matches!(kind, ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::Timeout);
            assert_eq!(api.retry_after.is_some(), temporary, "{kind:?}");
        }
    }

    #[test]
    fn a_caller_that_obeys_retry_after_is_never_early() {
        let request: RequestId = "r".parse().unwrap();
        for (wait, header) in
            [(Duration::from_millis(1), "1"), (Duration::from_millis(2001), "3"), (Duration::from_secs(7), "7")]
        {
            let error = Error::new(ErrorKind::RateLimited, "infer", "busy").with_retry_after(wait);
            let response = ApiError::from(error).write(&request, Response::default());
            assert_eq!(response.headers()["retry-after"], header);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("äöü".into(), 2), "äö…");
        assert_eq!(shorten("äöü".into(), 3), "äöü");
    }
}
