//! What a server's refusal means.

use std::time::{Duration, SystemTime};

use hybrid_core::{Clock, Error, ErrorKind};
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::wire::error::{ErrorBody, ErrorObject};

/// A refusal: the error, and whether to ask again.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    pub(super) again: bool,
}

/// Reads the answer of a server that did not answer with success.
pub(super) fn refusal(
    operation: &'static str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    clock: &dyn Clock,
) -> Refusal {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let object = error_object(body);
    let again = match text("x-should-retry") {
        Some("true") => true,
        Some("false") => false,
        _ => {
            matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502..=599) && object.code() != Some("insufficient_quota")
        }
    };
    let mut error = refused(operation, Some(status.as_u16()), &object).with("status", status.as_u16());
    if let Some(wait) = retry_after(text("retry-after-ms"), text("retry-after"), clock) {
        error = error.with_retry_after(wait);
    }
    Refusal { error, again }
}

/// An error in a stream that had begun with success, or in the body of an answer that says it has.
pub(super) fn broken_off(operation: &'static str, object: &Value) -> Error {
    refused(operation, None, &object_of(object.clone()))
}

fn error_object(body: &[u8]) -> ErrorObject {
    if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
        return error;
    }
    // Some servers answer `{"error": "text"}`, `{"message": "text"}`, or the text itself.
    match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => match value.get_mut("error").map(Value::take) {
            Some(error) => object_of(error),
            None => object_of(value),
        },
        Err(_) => ErrorObject { message: String::from_utf8_lossy(body).into_owned(), ..ErrorObject::default() },
    }
}

fn object_of(value: Value) -> ErrorObject {
    match value {
        Value::String(message) => ErrorObject { message, ..ErrorObject::default() },
        value => serde_json::from_value(value).unwrap_or_default(),
    }
}

fn refused(operation: &'static str, status: Option<u16>, object: &ErrorObject) -> Error {
    let (kind, message) = kind(status, object);
    let mut error = Error::new(kind, operation, message);
    if let Some(code) = object.code().or(object.kind.as_deref()) {
        error = error.with("code", shorten(code, 100));
    }
    if let Some(param) = &object.param {
        error = error.with("field", shorten(param, 100));
    }
    // The words of a server that knows its caller may quote the key.
    if kind != ErrorKind::PermissionDenied && !object.message.is_empty() {
        error = error.quote("server_says", shorten(&object.message, 300));
    }
    error
}

fn kind(status: Option<u16>, object: &ErrorObject) -> (ErrorKind, &'static str) {
    let code = object.code().unwrap_or_default();
    let words = object.message.to_ascii_lowercase();
    let too_long = code == "context_length_exceeded"
        || object.kind.as_deref() == Some("exceed_context_size_error")
        || [
            "context length",
            "context window",
            "context size",
            "input length",
            "too many tokens",
            "prompt is too long",
        ]
        .iter()
        .any(|sign| words.contains(sign));
    match status {
        Some(400 | 422) | None if too_long => {
            (ErrorKind::TooLarge, "the request is longer than the model's context; send less")
        }
        Some(400 | 422) if code.starts_with("unsupported") => {
            (ErrorKind::Unsupported, "the server does not support a parameter")
        }
        Some(400 | 422) => (ErrorKind::InvalidInput, "the server refused the request"),
        Some(401) => (ErrorKind::PermissionDenied, "the server does not accept the API key"),
        Some(403) => (ErrorKind::PermissionDenied, "the API key may not do this"),
        Some(404) => (ErrorKind::NotFound, "the server has no such model or route"),
        Some(405 | 415 | 501) => (ErrorKind::Unsupported, "the server does not offer this"),
        Some(408) => (ErrorKind::Timeout, "the server took too long"),
        Some(413) => (ErrorKind::TooLarge, "the request is larger than the server takes; send less"),
        Some(429) => (ErrorKind::RateLimited, "too many calls"),
        Some(300..=399) => (ErrorKind::Unsupported, "the server redirects; set the base URL to where it is"),
        Some(409 | 500..) => (ErrorKind::Unavailable, "the server failed"),
        None if matches!(object.kind.as_deref(), Some("rate_limit_error")) => {
            (ErrorKind::RateLimited, "too many calls")
        }
        None if matches!(object.kind.as_deref(), Some("invalid_request_error")) => {
            (ErrorKind::InvalidInput, "the server refused the request")
        }
        None => (ErrorKind::Unavailable, "the server broke the answer off"),
        Some(_) => (ErrorKind::Internal, "the server answered with a status that means nothing here"),
    }
}

fn retry_after(millis: Option<&str>, after: Option<&str>, clock: &dyn Clock) -> Option<Duration> {
    if let Some(millis) = millis.and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let after = after?;
    if let Ok(seconds) = after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(after).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let now = Duration::from_micros(u64::try_from(clock.now().unix_micros()).ok()?);
    Some(date.saturating_sub(now))
}

fn shorten(text: &str, chars: usize) -> String {
    text.char_indices().nth(chars).map_or_else(|| text.to_owned(), |(end, _)| format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests {
    use hybrid_core::ManualClock;
    use serde_json::json;

    use super::*;

    fn refuse(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Refusal {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let clock = ManualClock::at("2026-03-01T12:00:00Z".parse().unwrap());
        refusal("chat", StatusCode::from_u16(status).unwrap(), &map, body.as_bytes(), &clock)
    }

    #[test]
    fn a_status_has_its_kind_and_says_whether_to_ask_again() {
        use ErrorKind as Kind;
        for (status, kind, again) in [
            (302, Kind::Unsupported, false),
            (400, Kind::InvalidInput, false),
            (401, Kind::PermissionDenied, false),
            (403, Kind::PermissionDenied, false),
            (404, Kind::NotFound, false),
            (405, Kind::Unsupported, false),
            (408, Kind::Timeout, true),
            (409, Kind::Unavailable, true),
            (413, Kind::TooLarge, false),
            (418, Kind::Internal, false),
            (422, Kind::InvalidInput, false),
            (429, Kind::RateLimited, true),
            (500, Kind::Unavailable, true),
            (501, Kind::Unsupported, false),
            (503, Kind::Unavailable, true),
        ] {
            let Refusal { error, again: asked } = refuse(status, &[], r#"{"error":{"message":"no","code":null}}"#);
            assert_eq!((error.kind(), asked), (kind, again), "{status}");
        }
        assert!(!refuse(503, &[("x-should-retry", "false")], "").again);
        assert!(refuse(400, &[("x-should-retry", "true")], "").again);
        assert!(!refuse(429, &[], r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#).again);
    }

    #[test]
    fn a_context_that_is_too_small_is_a_request_too_large_whoever_says_it() {
        for body in [
            r#"{"error":{"message":"no","code":"context_length_exceeded"}}"#,
            r#"{"error":{"code":400,"message":"request (9000 tokens) exceeds the available context size (4096 tokens)","type":"exceed_context_size_error"}}"#,
            r#"{"error":"the input length exceeds the context length"}"#,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens","code":400}"#,
        ] {
            assert_eq!(refuse(400, &[], body).error.kind(), ErrorKind::TooLarge, "{body}");
        }
    }

    #[test]
    fn what_the_server_says_is_kept_for_the_log_and_no_key_is() {
        let error = refuse(400, &[], r#"{"error":{"message":"bad n","param":"n","code":"invalid_value"}}"#).error;
        assert_eq!((error.context("field"), error.context("server_says")), (Some("n"), Some("bad n")));
        let denied = refuse(401, &[], r#"{"error":{"message":"Incorrect API key: sk-123"}}"#).error;
        assert!(!denied.to_string().contains("sk-123"), "{denied}");
        let html = refuse(502, &[], "<html>bad gateway").error;
        assert_eq!(html.context("server_says"), Some("<html>bad gateway"));
    }

    #[test]
    fn a_wait_is_read_in_each_of_its_forms() {
        for (headers, wait) in [
            (&[("retry-after-ms", "1500"), ("retry-after", "9")][..], Some(1500)),
            (&[("retry-after", "7")], Some(7000)),
            (&[("retry-after", "Sun, 01 Mar 2026 12:00:05 GMT")], Some(5000)),
            (&[("retry-after", "Sun, 01 Mar 2026 11:00:00 GMT")], Some(0)),
            (&[("retry-after", "soon")], None),
            (&[], None),
        ] {
            let error = refuse(429, headers, "").error;
            assert_eq!(error.retry_after(), wait.map(Duration::from_millis), "{headers:?}");
        }
    }

    #[test]
    fn an_error_inside_a_stream_has_a_kind_too() {
        let kind = |error: Value| broken_off("chat", &error).kind();
        assert_eq!(kind(json!({"message": "boom"})), ErrorKind::Unavailable);
        assert_eq!(kind(json!("boom")), ErrorKind::Unavailable);
        assert_eq!(kind(json!({"message": "slow down", "type": "rate_limit_error"})), ErrorKind::RateLimited);
        assert_eq!(kind(json!({"message": "x", "code": "context_length_exceeded"})), ErrorKind::TooLarge);
    }
}
