//! The plumbing of a case: how it stops, and how it checks.

use std::{fmt::Debug, future::poll_fn, pin::pin, task::Poll, time::Duration};

use futures_util::future::{Either, select};

use crate::{Clock, Error, ErrorKind, Result, SystemClock};

/// Why a case ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Skipped(String),
    Failed(String),
}

pub(crate) type CaseResult<T = ()> = std::result::Result<T, Stop>;

/// In a case, an error that no check looks at is an error that the contract does not know.
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(format!("unexpected error, {error:?}"))
    }
}

/// How long a case may take in real time before it counts as hung.
pub(crate) const CASE_LIMIT: Duration = Duration::from_secs(300);

/// Fails the case with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::case::Stop::Failed(format!($($message)+)));
        }
    };
}

/// Runs cases one after the other, each named after its function.
macro_rules! run_cases {
    ($report:ident, $limit:expr, |$name:ident| $context:expr, [$($module:ident :: $case:ident => $clause:literal,)*]) => {$({
        let $name = stringify!($case);
        let case = Box::pin(async { $module::$case($context).await });
        $report.run($name, $clause, $limit, case).await;
    })*};
}

pub(crate) fn skip<T>(reason: impl Into<String>) -> CaseResult<T> {
    Err(Stop::Skipped(reason.into()))
}

pub(crate) fn fail<T>(seen: impl Into<String>) -> CaseResult<T> {
    Err(Stop::Failed(seen.into()))
}

/// Checks that a call was refused with an error of the kind expected.
pub(crate) fn refused<T>(what: &str, expected: ErrorKind, result: Result<T>) -> CaseResult {
    match result {
        Err(error) if error.kind() == expected => Ok(()),
        Err(error) => fail(format!("{what}: expected {expected:?}, got {error:?}")),
        Ok(_) => fail(format!("{what}: expected {expected:?}, but it was accepted")),
    }
}

pub(crate) fn equal<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> CaseResult {
    ensure!(found == expected, "{what}: expected {expected:?}, found {found:?}");
    Ok(())
}

/// As [`equal`] for contents too long to print.
pub(crate) fn same_bytes(what: &str, found: &[u8], expected: &[u8]) -> CaseResult {
    ensure!(found.len() == expected.len(), "{what}: expected {} bytes, found {}", expected.len(), found.len());
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap_or(0);
    fail(format!("{what}: byte {at} is {:#04x} where {:#04x} was expected", found[at], expected[at]))
}

/// The one answer of a call about one item.
pub(crate) fn only<T>(what: &str, mut answers: Vec<Result<T>>) -> CaseResult<Result<T>> {
    match (answers.pop(), answers.len()) {
        (Some(answer), 0) => Ok(answer),
        (Some(_), more) => fail(format!("{what}: one item got {} answers", more + 1)),
        (None, _) => fail(format!("{what}: one item got no answer")),
    }
}

/// Runs a future for at most `limit` of real time.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    match select(pin!(future), SystemClock.sleep(limit)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// Lets the other futures of the task have a turn.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Bytes that look like nothing in particular, the same for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}
