//! The one way from the crate's errors to [`hybrid_core::Error`].

use std::error::Error as StdError;

use ::object_store::{
    Error as StoreError,
    client::{HttpError, HttpErrorKind},
};
use hybrid_core::{Error, ErrorKind};

pub(super) fn convert(operation: &'static str, error: StoreError) -> Error {
    let (kind, message) = match &error {
        StoreError::NotFound { .. } => (ErrorKind::NotFound, "no such object"),
        StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => {
            (ErrorKind::AlreadyExists, "the object exists")
        }
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            (ErrorKind::PermissionDenied, "the credentials in use may not do this")
        }
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
            (ErrorKind::Unsupported, "the store cannot do this")
        }
        StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. } => {
            (ErrorKind::InvalidInput, "the store does not take this")
        }
        // Where the crate gives up after its retries it keeps the status to itself; what is left are mostly a server's failures.
        _ => match http_error(&error) {
            Some(HttpErrorKind::Timeout) => (ErrorKind::Timeout, "the server did not answer in time"),
            _ => (ErrorKind::Unavailable, "the store is away for now"),
        },
    };
    Error::new(kind, operation, message).with_source(error.to_string())
}

fn http_error(error: &StoreError) -> Option<HttpErrorKind> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(layer) = next {
        if let Some(http) = layer.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        next = layer.source();
    }
    None
}
