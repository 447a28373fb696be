//! One attempt at a call, and how often it is repeated.

use std::{error::Error as StdError, pin::pin, time::Duration};

use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use futures_util::future::{Either, select};
use hybrid_core::{Error, Result};

use super::Inner;
use crate::aws::{aws_error, code_of, may_have_acted, status_of};

/// The wait before the second attempt.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Why an attempt failed, with what a creator must know.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The server may have done it all the same.
    pub(super) may_have_acted: bool,
    /// The condition of the put did not hold.
    pub(super) exists: bool,
    /// The range lies outside the object.
    pub(super) out_of_range: bool,
}

impl Failure {
    pub(super) fn of<E>(operation: &'static str, failed: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (status, code) = (status_of(&failed), code_of(&failed));
        let exists = status == Some(412) || code == Some("PreconditionFailed");
        let out_of_range = status == Some(416) || code == Some("InvalidRange");
        let no_bucket = code == Some("NoSuchBucket");
        let may_have_acted = may_have_acted(&failed);
        let mut error = aws_error("s3", operation, failed);
        if no_bucket {
            // Not to be taken for an object that does not exist.
            error = Error::invalid(operation, "the bucket does not exist; create it, or correct the URL")
                .with_source(error);
        }
        Self { error, may_have_acted, exists, out_of_range }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, may_have_acted: true, exists: false, out_of_range: false }
    }
}

impl Inner {
    /// Makes one call that moves up to `bytes` bytes: when its turn comes, and within its time.
    pub(super) async fn attempt<T, E>(
        &self,
        operation: &'static str,
        bytes: u64,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        self.in_turn(operation, bytes, async { call.await.map_err(|failed| Failure::of(operation, failed)) }).await
    }

    /// As [`attempt`](Self::attempt) for a call with more to it than one answer.
    pub(super) async fn in_turn<T>(
        &self,
        operation: &'static str,
        bytes: u64,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let permit = self.permits.acquire().await;
        // Nobody closes it.
        let _permit = permit.map_err(|closed| Error::internal(operation, "the store is closed").with_source(closed))?;
        let limit = self.options.answer_within.saturating_add(Duration::from_secs(bytes / self.options.slowest));
        match select(pin!(call), self.clock.sleep(limit)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(Error::timeout(operation, "the attempt took longer than its limit")
                .with("limit", format_args!("{limit:?}"))
                .into()),
        }
    }

    /// Repeats a call that may be repeated, while its failure is temporary and attempts are left.
    pub(super) async fn retried<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempt = 1;
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(failure) if failure.error.is_temporary() && attempt < self.attempts => {
                    self.pause(attempt, &failure.error).await;
                    attempt += 1;
                }
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Waits after attempt number `attempt`: twice as long each time, with jitter, and no less than the server asked for.
    pub(super) async fn pause(&self, attempt: u32, error: &Error) {
        let doubled = FIRST_BACKOFF.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        // The last bytes of an id are random: from half the wait to all of it.
        let jitter = f64::from(self.ids.next_uuid().as_bytes()[15]) / 510.0 + 0.5;
        let wait = doubled.min(self.max_backoff).mul_f64(jitter);
        let asked = error.retry_after().unwrap_or_default().min(self.max_backoff);
        self.clock.sleep(wait.max(asked)).await;
    }
}
