//! Ten at a time, with an answer for each.

use aws_sdk_sqs::types::BatchResultErrorEntry;
use futures_util::{StreamExt, stream};
use hybrid_core::{Error, ErrorKind, Result};

/// The most entries of one call.
pub(super) const BATCH: usize = 10;

/// The answers to items, some of which are known before the server is asked.
pub(super) struct Gaps<A>(Vec<Option<Result<A>>>);

impl<A> Gaps<A> {
    /// Parts items into those that the server is asked about and the answers of the others.
    pub(super) fn split<T>(items: impl IntoIterator<Item = Result<T, Result<A>>>) -> (Vec<T>, Self) {
        let mut open = Vec::new();
        let answers = items.into_iter().map(|item| item.map(|item| open.push(item)).err()).collect();
        (open, Self(answers))
    }

    /// All answers, the late ones in the gaps, in order.
    pub(super) fn fill(mut self, late: impl IntoIterator<Item = Result<A>>) -> Vec<Result<A>> {
        for (gap, answer) in self.0.iter_mut().filter(|answer| answer.is_none()).zip(late) {
            *gap = Some(answer);
        }
        self.0.into_iter().flatten().collect()
    }
}

/// Makes calls side by side, at most `at_once`; each comes with the number of its entries. A call that failed answers for each of its entries,
/// unless all of them did: then nothing is known about any.
pub(super) async fn join_calls<A, F>(calls: Vec<(usize, F)>, at_once: usize) -> Result<Vec<Result<A>>>
where
    F: Future<Output = Result<Vec<Result<A>>>>,
{
    let calls = calls.into_iter().map(|(entries, call)| async move { (entries, call.await) });
    let answers: Vec<_> = stream::iter(calls).buffered(at_once).collect().await;
    let all_failed = answers.iter().all(|(_, answer): &(usize, Result<_>)| answer.is_err());
    let mut outcomes = Vec::new();
    for (entries, answer) in answers {
        match answer {
            Ok(answer) => outcomes.extend(answer),
            Err(error) if all_failed => return Err(error),
            Err(error) => outcomes.extend((0..entries).map(|_| Err(copy(&error)))),
        }
    }
    Ok(outcomes)
}

/// The outcomes of one call's entries, in their order: an entry's id is its number.
pub(super) fn collate<A>(
    operation: &'static str,
    entries: usize,
    done: impl IntoIterator<Item = (String, A)>,
    failed: &[BatchResultErrorEntry],
) -> Vec<Result<A>> {
    let mut outcomes: Vec<Option<Result<A>>> = (0..entries).map(|_| None).collect();
    let mut set = |id: &str, outcome| {
        if let Some(slot) = id.parse().ok().and_then(|number: usize| outcomes.get_mut(number)) {
            *slot = Some(outcome);
        }
    };
    for (id, answer) in done {
        set(&id, Ok(answer));
    }
    for entry in failed {
        set(&entry.id, Err(refusal(operation, entry)));
    }
    let unknown = || Err(Error::unavailable(operation, "the server's answer leaves this entry out"));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unknown)).collect()
}

/// What the server said about one entry of a call that it answered with success.
fn refusal(operation: &'static str, entry: &BatchResultErrorEntry) -> Error {
    let (kind, message) = match plain_code(&entry.code) {
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => (ErrorKind::LeaseLost, "the lease has ended"),
        "RequestThrottled" | "ThrottlingException" | "KmsThrottled" | "OverLimit" => {
            (ErrorKind::RateLimited, "too many calls")
        }
        "BatchRequestTooLong" | "MessageTooLong" => (ErrorKind::TooLarge, "the message is over the queue's limit"),
        "AccessDenied" | "AccessDeniedException" | "KmsAccessDenied" => {
            (ErrorKind::PermissionDenied, "the credentials in use may not do this")
        }
        // The queue's key cannot be used, for whatever reason: nothing is wrong with the entry.
        code if code.starts_with("Kms") => (ErrorKind::PermissionDenied, "the queue's key cannot be used"),
        _ if entry.sender_fault => (ErrorKind::InvalidInput, "the queue refuses the entry"),
        _ => (ErrorKind::Unavailable, "the queue could not take the entry"),
    };
    let error = Error::new(kind, operation, message).with("service", "sqs").with("code", &entry.code);
    match entry.message() {
        Some(message) => error.with_source(message.to_owned()),
        None => error,
    }
}

/// A code without the service's name, which some servers put before it, as the older protocol did.
pub(super) fn plain_code(code: &str) -> &str {
    code.rsplit(['.', '#']).next().unwrap_or(code)
}

/// The same failure for another entry of the call.
fn copy(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.operation(), "the call for a part of the batch failed")
        .with_source(error.to_string());
    match error.retry_after() {
        Some(wait) => copy.with_retry_after(wait),
        None => copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(id: &str, code: &str, sender_fault: bool) -> BatchResultErrorEntry {
        BatchResultErrorEntry::builder().id(id).code(code).sender_fault(sender_fault).build().unwrap()
    }

    fn kinds<A>(outcomes: &[Result<A>]) -> Vec<Option<ErrorKind>> {
        outcomes.iter().map(|outcome| outcome.as_ref().err().map(Error::kind)).collect()
    }

    #[test]
    fn entries_are_told_apart_by_their_number_whatever_the_order() {
        let failures = [failed("1", "InternalError", false), failed("9", "x", true), failed("no number", "x", true)];
        let done = [("3".to_owned(), 'd'), ("0".to_owned(), 'a')];
        let outcomes = collate("test", 4, done, &failures);
        let unavailable = Some(ErrorKind::Unavailable);
        assert_eq!(kinds(&outcomes), [None, unavailable, unavailable, None]);
        assert_eq!((outcomes[0].as_ref().ok(), outcomes[3].as_ref().ok()), (Some(&'a'), Some(&'d')));
    }

    #[test]
    fn a_refusal_says_what_the_caller_can_do() {
        for (code, sender_fault, expected) in [
            ("AWS.SimpleQueueService.MessageNotInflight", true, ErrorKind::LeaseLost),
            ("RequestThrottled", true, ErrorKind::RateLimited),
            ("InvalidMessageContents", true, ErrorKind::InvalidInput),
            ("KmsDisabled", true, ErrorKind::PermissionDenied),
            ("SomethingNew", false, ErrorKind::Unavailable),
        ] {
            assert_eq!(refusal("test", &failed("0", code, sender_fault)).kind(), expected, "{code}");
        }
    }

    #[tokio::test]
    async fn a_call_that_failed_answers_for_its_own_entries_alone() {
        let call = |entries: usize, fails: bool| async move {
            if fails {
                return Err(Error::timeout("test", "no answer"));
            }
            Ok((0..entries).map(Ok).collect())
        };
        let outcomes = join_calls(vec![(2, call(2, false)), (1, call(1, true)), (1, call(1, false))], 2).await.unwrap();
        assert_eq!(kinds(&outcomes), [None, None, Some(ErrorKind::Timeout), None]);
        let error = join_calls(vec![(2, call(2, true)), (1, call(1, true))], 2).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(
            join_calls(Vec::<(usize, std::future::Ready<Result<Vec<Result<()>>>>)>::new(), 1).await.unwrap().is_empty()
        );
    }
}
