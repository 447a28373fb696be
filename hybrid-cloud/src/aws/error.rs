//! The one way from the SDK's errors to [`hybrid_core::Error`].

use std::{error::Error as StdError, time::Duration};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use hybrid_core::{Error, ErrorKind};

/// What an SDK call of `service` (`"s3"`, `"sqs"`, …) failed with, as our error for `operation`.
///
/// The context has `service`, and where known `code`, `status` and `request_id`; the caller adds what the call was about (`bucket`, `key`, `queue`).
/// An adapter that knows better what a code of its service means looks at [`code_of`] first.
pub(crate) fn aws_error<E>(service: &'static str, operation: &'static str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let (kind, message) = kind_of(&error);
    let header = |name| error.raw_response().and_then(|raw| raw.headers().get(name)).map(str::to_owned);
    let mut ours = Error::new(kind, operation, message).with("service", service);
    if let Some(code) = code_of(&error) {
        ours = ours.with("code", code);
    }
    if let Some(status) = status_of(&error) {
        ours = ours.with("status", status);
    }
    if let Some(id) = header("x-amzn-requestid").or_else(|| header("x-amz-request-id")) {
        ours = ours.with("request_id", id);
    }
    if let Some(wait) = retry_after(header("x-amz-retry-after"), header("retry-after")) {
        ours = ours.with_retry_after(wait);
    }
    match said(&error) {
        // Of what is wrong with a request, a service's words may quote the request.
        Some(text) if matches!(kind, ErrorKind::InvalidInput | ErrorKind::TooLarge) => ours.with_quoted_source(text),
        Some(text) => ours.with_source(text),
        None => ours,
    }
}

/// The service's own name for the failure, such as `NoSuchKey`.
pub(crate) fn code_of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

/// The HTTP status of the answer, if there was one.
pub(crate) fn status_of<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|raw| raw.status().as_u16())
}

/// Whether the service may have done what was asked although the call failed: no answer, half an answer, or an answer that comes from something
/// that does not know. Who made a thing must look before it says that the thing is not there. What is judged is one attempt: of a call that the SDK
/// has made several times, the last failure says nothing about those before.
pub(crate) fn may_have_acted<E>(error: &SdkError<E, HttpResponse>) -> bool {
    match error {
        SdkError::ConstructionFailure(_) => false,
        // What was never signed or connected was never asked. The rest, such as a connection that is reset, may have broken after the request was out.
        SdkError::DispatchFailure(failure) => {
            let unsent = failure.is_user()
                || find::<CredentialsError>(failure_source(failure)).is_some()
                || find::<hyper_util::client::legacy::Error>(failure_source(failure)).is_some_and(|e| e.is_connect());
            !unsent
        }
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            status >= 500 || status == 408
        }
        _ => true,
    }
}

fn failure_source(
    failure: &aws_smithy_runtime_api::client::result::DispatchFailure,
) -> Option<&(dyn StdError + 'static)> {
    failure.as_connector_error().map(|error| error as &(dyn StdError + 'static))
}

fn kind_of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> (ErrorKind, &'static str) {
    match error {
        SdkError::ConstructionFailure(_) => (ErrorKind::InvalidInput, "the request could not be made"),
        SdkError::TimeoutError(_) => (ErrorKind::Timeout, "the call took longer than its limit"),
        SdkError::DispatchFailure(failure) => match find::<CredentialsError>(failure_source(failure)) {
            Some(CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_)) => {
                (ErrorKind::Unavailable, "the credentials could not be fetched")
            }
            Some(_) => (ErrorKind::PermissionDenied, "there are no credentials; log in, or configure them"),
            None if failure.is_timeout() => (ErrorKind::Timeout, "the service did not answer in time"),
            None if failure.is_user() => (ErrorKind::InvalidInput, "the request could not be sent"),
            None => (ErrorKind::Unavailable, "the service could not be reached"),
        },
        SdkError::ServiceError(answer) => {
            let code = code_of(error).unwrap_or_default();
            by_code(code).unwrap_or_else(|| by_status(answer.raw().status().as_u16()))
        }
        // The answer broke off, or is in no form that the service uses.
        _ => match status_of(error) {
            Some(status @ (300..=499)) => by_status(status),
            _ => (ErrorKind::Unavailable, "the answer was cut short or cannot be read"),
        },
    }
}

/// Codes whose meaning does not follow from the status, as the services use them (botocore's `retryhandler` and the services' error lists).
fn by_code(code: &str) -> Option<(ErrorKind, &'static str)> {
    // The older protocols prefix a code with the service: `AWS.SimpleQueueService.NonExistentQueue`.
    let name = code.rsplit(['.', '#']).next().unwrap_or(code);
    Some(match name {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "PriorRequestNotComplete"
        | "KmsThrottled"
        // As many messages are in flight as a queue may have.
        | "OverLimit"
        | "SlowDown" => (ErrorKind::RateLimited, "too many calls"),
        "AccessDenied"
        | "AccessDeniedException"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "InvalidToken"
        | "KmsAccessDenied"
        | "KmsDisabled"
        | "KmsInvalidKeyUsage"
        | "KmsInvalidState"
        | "KmsNotFound"
        | "KmsOptInRequired"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException" => (ErrorKind::PermissionDenied, "the credentials in use may not do this"),
        "RequestExpired" | "RequestTimeTooSkewed" => {
            (ErrorKind::PermissionDenied, "the request's time is refused; set this machine's clock")
        }
        "NoSuchKey"
        | "NoSuchBucket"
        | "NoSuchUpload"
        | "NotFound"
        | "ResourceNotFoundException"
        | "QueueDoesNotExist"
        | "NonExistentQueue" => (ErrorKind::NotFound, "there is no such thing"),
        "RequestTimeout" | "RequestTimeoutException" | "ModelTimeoutException" => {
            (ErrorKind::Timeout, "the service gave up waiting")
        }
        "EntityTooLarge" | "RequestEntityTooLarge" | "BatchRequestTooLong" | "MessageTooLong" => {
            (ErrorKind::TooLarge, "the request is over the service's limit")
        }
        "ConditionalRequestConflict"
        | "OperationAborted"
        | "ConflictException"
        | "InternalError"
        | "InternalFailure"
        | "InternalServerException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => (ErrorKind::Unavailable, "the service is away for now"),
        _ => return None,
    })
}

fn by_status(status: u16) -> (ErrorKind, &'static str) {
    match status {
        301 | 307 | 308 => (ErrorKind::InvalidInput, "the thing is in another region; configure that one"),
        304 | 412 => (ErrorKind::AlreadyExists, "the condition does not hold"),
        401 | 403 => (ErrorKind::PermissionDenied, "the credentials in use may not do this"),
        404 => (ErrorKind::NotFound, "there is no such thing"),
        408 | 504 => (ErrorKind::Timeout, "the service gave up waiting"),
        409 => (ErrorKind::Unavailable, "another call is in the way"),
        413 => (ErrorKind::TooLarge, "the request is over the service's limit"),
        429 => (ErrorKind::RateLimited, "too many calls"),
        501 => (ErrorKind::Unsupported, "the service cannot do this"),
        500..=599 => (ErrorKind::Unavailable, "the service is away for now"),
        _ => (ErrorKind::InvalidInput, "the service refuses the request"),
    }
}

/// Milliseconds in AWS's own header, seconds in HTTP's. A date there is rare and left to the caller's own back-off.
fn retry_after(millis: Option<String>, seconds: Option<String>) -> Option<Duration> {
    let number = |text: Option<String>| text?.trim().parse::<u32>().ok().map(u64::from);
    number(millis).map(Duration::from_millis).or_else(|| number(seconds).map(Duration::from_secs))
}

/// What was said about the failure: the service's message, or what went wrong below, each layer once.
fn said<E>(error: &SdkError<E, HttpResponse>) -> Option<String>
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    if let Some(message) = error.as_service_error().and_then(ProvideErrorMetadata::message) {
        return Some(message.to_owned());
    }
    if error.as_service_error().is_some() {
        return None;
    }
    let mut layers: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(layer) = next {
        let text = layer.to_string();
        if !text.is_empty() && layers.last().is_none_or(|last| !last.contains(&text)) {
            layers.push(text);
        }
        next = layer.source();
    }
    (!layers.is_empty()).then(|| layers.join(": "))
}

fn find<'a, T: StdError + 'static>(mut error: Option<&'a (dyn StdError + 'static)>) -> Option<&'a T> {
    while let Some(layer) = error {
        if let Some(found) = layer.downcast_ref() {
            return Some(found);
        }
        error = layer.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use aws_smithy_runtime_api::{
        client::result::{ConnectorError, SdkError},
        http::StatusCode,
    };
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    #[derive(Debug)]
    struct Refused(ErrorMetadata);

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("refused")
        }
    }

    impl StdError for Refused {}

    impl ProvideErrorMetadata for Refused {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    fn answer(status: u16, code: &str, headers: &[(&'static str, &'static str)]) -> SdkError<Refused, HttpResponse> {
        let mut raw = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
        for &(name, value) in headers {
            raw.headers_mut().insert(name, value);
        }
        let meta = ErrorMetadata::builder().code(code).message("the service's words").build();
        SdkError::service_error(Refused(meta), raw)
    }

    #[test]
    fn a_code_says_more_than_its_status() {
        let kind = |status, code| aws_error("s3", "create object", answer(status, code, &[])).kind();
        for (status, code, expected) in [
            (503, "SlowDown", ErrorKind::RateLimited),
            (400, "ThrottlingException", ErrorKind::RateLimited),
            (403, "RequestThrottled", ErrorKind::RateLimited),
            (403, "Forbidden", ErrorKind::PermissionDenied),
            (400, "ExpiredToken", ErrorKind::PermissionDenied),
            (400, "com.amazonaws.sqs#QueueDoesNotExist", ErrorKind::NotFound),
            (400, "AWS.SimpleQueueService.NonExistentQueue", ErrorKind::NotFound),
            (409, "ConditionalRequestConflict", ErrorKind::Unavailable),
            (412, "PreconditionFailed", ErrorKind::AlreadyExists),
            (400, "EntityTooLarge", ErrorKind::TooLarge),
            (400, "RequestTimeout", ErrorKind::Timeout),
            (404, "", ErrorKind::NotFound),
            (429, "", ErrorKind::RateLimited),
            (500, "", ErrorKind::Unavailable),
            (400, "MalformedXML", ErrorKind::InvalidInput),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn an_error_names_what_a_person_needs_to_ask_aws() {
        let headers = [("x-amz-request-id", "4442587FB7D0A2F9"), ("retry-after", "7")];
        let error = aws_error("s3", "create object", answer(503, "SlowDown", &headers)).with("key", "a/b");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(
            error.to_string(),
            "create object: too many calls (service: s3, code: SlowDown, status: 503, request_id: 4442587FB7D0A2F9, key: a/b): the service's words"
        );
        let error = aws_error("s3", "x", answer(503, "SlowDown", &[("x-amz-retry-after", "1500")]));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn what_never_got_an_answer_may_have_been_done() {
        let io = || ConnectorError::io("connection reset".into());
        let dispatch: SdkError<Refused, HttpResponse> = SdkError::dispatch_failure(io());
        assert!(may_have_acted(&dispatch));
        let error = aws_error("s3", "create object", dispatch);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("connection reset"), "{error}");
        let timeout: SdkError<Refused, HttpResponse> = SdkError::timeout_error("60 s");
        assert!(may_have_acted(&timeout));
        assert_eq!(aws_error("s3", "x", timeout).kind(), ErrorKind::Timeout);
        assert!(may_have_acted(&answer(500, "InternalError", &[])));
        assert!(!may_have_acted(&answer(412, "PreconditionFailed", &[])));
        assert!(!may_have_acted(&answer(409, "ConditionalRequestConflict", &[])));
    }

    #[test]
    fn missing_credentials_are_nothing_to_retry() {
        let failure = |error: CredentialsError| {
            let dispatch: SdkError<Refused, HttpResponse> =
                SdkError::dispatch_failure(ConnectorError::other(error.into(), None));
            assert!(!may_have_acted(&dispatch));
            aws_error("s3", "x", dispatch)
        };
        assert_eq!(failure(CredentialsError::not_loaded("none")).kind(), ErrorKind::PermissionDenied);
        assert_eq!(failure(CredentialsError::provider_error("STS answered 503")).kind(), ErrorKind::Unavailable);
    }
}
