//! The suite of [`InferenceBackend`], for any [`Task`].

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, future::join_all, poll};

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, equal, fail, refused, skip, within},
};
use crate::{
    BackendProfile, CallContext, DataPolicy, ErrorKind, Event, InferenceBackend, Locality, ManualClock, Reply,
    ReplyMeta, Result, SeededIds, Task, TenantId, Usage,
};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait InferenceHarness<T: Task>: Debug + Send + Sync {
    /// A backend that is ready to answer; every case asks for one, and the same may be given each time.
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<T>>>;

    /// Requests that the backend answers, at least one; small ones, since each is asked some dozen times.
    fn requests(&self) -> Vec<T::Request>;

    /// A request that [`Task::validate`] refuses.
    fn invalid(&self) -> T::Request;

    /// Whether the same request always has the same response, which is then asked for. By default it has.
    fn deterministic(&self) -> bool {
        true
    }

    /// How many requests have reached the backend's model, or left this process on their way to it, where that can be counted: proves that a refusal comes before any work.
    fn reached(&self) -> Option<u64> {
        None
    }
}

/// Runs all cases against an adapter.
pub async fn run<T: Task>(harness: &dyn InferenceHarness<T>) -> Report {
    let mut report = Report::new("inference backend");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        cases::the_profile_names_the_backend => "the profile says what the backend is: it names backend and model",
        cases::requests_are_answered => "`infer` answers a request, and splitting and folding the answer gives it again",
        cases::replies_name_their_maker => "every reply names the backend, the model version and the place that made it",
        cases::replies_cost_their_price => "a reply costs what the profile's price says, unless a note tells why not",
        cases::the_same_request_has_the_same_response => "what the harness declares: the same request has the same response",
        cases::requests_side_by_side_do_not_mix => "concurrent requests get each its own answer",
        cases::invalid_requests_are_refused => "`infer` and `stream` refuse what `Task::validate` refuses, before any work",
        cases::forbidden_places_are_refused => "a data policy that does not admit the backend's locality is refused with `PolicyDenied`, before a byte leaves",
        cases::admitted_places_are_served => "a data policy that admits the backend's locality is served",
        cases::cancelled_calls_end => "a cancelled context ends the call with `Cancelled`",
        cases::late_calls_end => "a passed deadline ends the call with `Timeout`",
        cases::a_call_can_be_cancelled_on_its_way => "a context cancelled during the call ends it",
        cases::a_deadline_can_pass_on_the_way => "a deadline that passes during the call ends it",
        cases::dropped_calls_leave_the_backend_whole => "dropping the future or the stream needs nothing else to be done",
        cases::streams_end_with_one_done => "a stream that succeeds yields deltas, then exactly one `Done`, then ends",
        cases::streams_name_their_maker => "the reply of a stream names the backend, the model version and the place, and costs its price",
        cases::streams_fold_to_the_response => "folding a stream's deltas gives what `infer` would have returned",
        cases::a_cancelled_stream_ends_once => "a stream that fails yields one error and ends; no `Done` comes before or after it",
    ]);
    report
}

/// How long a call that was told to stop may go on, in real time.
const SOON: Duration = Duration::from_secs(30);

mod cases {
    use super::*;

    type Harness<'a, T> = &'a dyn InferenceHarness<T>;

    fn context() -> (CallContext, ManualClock) {
        let clock = ManualClock::default();
        let mut cx = CallContext::new(TenantId::single(), crate::RequestId::next(&SeededIds::default()));
        cx.clock = Arc::new(clock.clone());
        (cx, clock)
    }

    fn first_request<T: Task>(harness: Harness<'_, T>) -> CaseResult<T::Request> {
        harness.requests().into_iter().next().map_or_else(|| fail("the harness has no request to ask"), Ok)
    }

    /// A stream read to its end, past whatever should have been its end.
    struct Read<T: Task> {
        deltas: Vec<T::Delta>,
        done: Vec<ReplyMeta>,
        errors: Vec<crate::Error>,
        /// What came after the first `Done` or error.
        after_end: usize,
    }

    async fn read<T: Task>(mut events: crate::BoxStream<'static, Result<Event<T>>>) -> Read<T> {
        let mut read = Read { deltas: Vec::new(), done: Vec::new(), errors: Vec::new(), after_end: 0 };
        while let Some(event) = events.next().await {
            read.after_end += usize::from(!read.done.is_empty() || !read.errors.is_empty());
            match event {
                Ok(Event::Delta(delta)) => read.deltas.push(delta),
                Ok(Event::Done(meta)) => read.done.push(meta),
                Err(error) => read.errors.push(error),
            }
        }
        read
    }

    async fn read_whole<T: Task>(
        backend: &dyn InferenceBackend<T>,
        request: T::Request,
    ) -> CaseResult<(Vec<T::Delta>, ReplyMeta)> {
        let Read { deltas, mut done, errors, after_end } = read(backend.stream(&context().0, request).await?).await;
        ensure!(errors.is_empty(), "a stream of a request that can be answered failed: {errors:?}");
        ensure!(done.len() == 1, "the stream yielded {} times `Done` after {} deltas", done.len(), deltas.len());
        ensure!(after_end == 0, "the stream went on for {after_end} events after `Done`");
        match done.pop() {
            Some(meta) => Ok((deltas, meta)),
            None => fail("the stream ended without `Done`"),
        }
    }

    /// The outcome of both ways to ask, without their answers.
    async fn ask_both<T: Task>(
        backend: &dyn InferenceBackend<T>,
        cx: &CallContext,
        request: &T::Request,
    ) -> [(&'static str, Result<()>); 2] {
        let infer = backend.infer(cx, request.clone()).await.map(drop);
        // A backend may refuse at once or as the stream's first item.
        let stream = match backend.stream(cx, request.clone()).await {
            Ok(mut events) => match events.next().await {
                Some(Err(error)) => Err(error),
                Some(Ok(_)) | None => Ok(()),
            },
            Err(error) => Err(error),
        };
        [("infer", infer), ("stream", stream)]
    }

    /// What would have been used had no prompt been read before: the first request fills the cache that the second reads from.
    fn uncached(usage: &Usage) -> Usage {
        let input_tokens = usage.total_input_tokens();
        Usage { input_tokens, cache_read_tokens: 0, cache_write_tokens: 0, ..usage.clone() }
    }

    fn check_maker(what: &str, meta: &ReplyMeta, profile: &BackendProfile) -> CaseResult {
        equal(&format!("{what}: the backend's name"), &meta.backend, &profile.name)?;
        equal(&format!("{what}: the model"), &meta.model, &profile.model)?;
        equal(&format!("{what}: the locality"), &meta.locality, &profile.locality)
    }

    fn check_cost(what: &str, meta: &ReplyMeta, profile: &BackendProfile) -> CaseResult {
        let expected = profile.price.as_ref().map(|price| price.of(&meta.usage)).transpose()?;
        ensure!(
            meta.cost == expected || !meta.notes.is_empty(),
            "{what}: it cost {:?} with no note, and the profile's price makes {expected:?} of {:?}",
            meta.cost,
            meta.usage
        );
        Ok(())
    }

    pub(super) async fn the_profile_names_the_backend<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let profile = harness.backend().await?.profile();
        ensure!(!profile.name.is_empty(), "the backend has no name");
        ensure!(!profile.model.name.is_empty(), "the model has no name");
        Ok(())
    }

    pub(super) async fn requests_are_answered<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        first_request(harness)?;
        for request in harness.requests() {
            let Reply { response, meta: _ } = backend.infer(&context().0, request).await?;
            equal("the response after a split and a fold", &T::fold(T::split(response.clone()))?, &response)?;
        }
        Ok(())
    }

    pub(super) async fn replies_name_their_maker<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let meta = backend.infer(&context().0, first_request(harness)?).await?.meta;
        check_maker("infer", &meta, &backend.profile())
    }

    pub(super) async fn replies_cost_their_price<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        for request in harness.requests() {
            check_cost("infer", &backend.infer(&context().0, request).await?.meta, &backend.profile())?;
        }
        Ok(())
    }

    pub(super) async fn the_same_request_has_the_same_response<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        if !harness.deterministic() {
            return skip("not declared deterministic");
        }
        let backend = harness.backend().await?;
        for request in harness.requests() {
            let first = backend.infer(&context().0, request.clone()).await?;
            let second = backend.infer(&context().0, request).await?;
            equal("the second response", &second.response, &first.response)?;
            equal("the second usage", &uncached(&second.meta.usage), &uncached(&first.meta.usage))?;
        }
        Ok(())
    }

    pub(super) async fn requests_side_by_side_do_not_mix<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let requests = harness.requests();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(backend.infer(&context().0, request.clone()).await?.response);
        }
        let (backend, requests) = (&backend, &requests);
        let calls = (0..8).flat_map(|_| requests).map(|request| async move {
            let (cx, _clock) = context();
            backend.infer(&cx, request.clone()).await
        });
        for (i, reply) in join_all(calls).await.into_iter().enumerate() {
            let response = reply?.response;
            let request = i % requests.len();
            ensure!(
                !harness.deterministic() || response == alone[request],
                "request {request} got {response:?} beside others, and {:?} alone",
                alone[request]
            );
        }
        Ok(())
    }

    pub(super) async fn invalid_requests_are_refused<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let invalid = harness.invalid();
        refused("the harness's invalid request, by Task::validate", ErrorKind::InvalidInput, T::validate(&invalid))?;
        let backend = harness.backend().await?;
        let before = harness.reached();
        for (way, outcome) in ask_both(&*backend, &context().0, &invalid).await {
            refused(way, ErrorKind::InvalidInput, outcome)?;
        }
        equal("the count of requests that reached the model", &harness.reached(), &before)
    }

    /// Policies with whether each admits a place, spelled out apart from `DataPolicy::admits`.
    fn policies(locality: &Locality) -> (Vec<DataPolicy>, Vec<DataPolicy>) {
        let elsewhere = DataPolicy::Regions(vec!["conformance-nowhere-1".to_owned()]);
        match locality {
            Locality::Device => (vec![DataPolicy::Device, DataPolicy::Site, elsewhere, DataPolicy::Anywhere], vec![]),
            Locality::Site => (vec![DataPolicy::Site, elsewhere, DataPolicy::Anywhere], vec![DataPolicy::Device]),
            Locality::Region(region) => {
                let here = DataPolicy::Regions(vec!["conformance-nowhere-1".to_owned(), region.clone()]);
                let none = DataPolicy::Regions(vec![]);
                (vec![here, DataPolicy::Anywhere], vec![DataPolicy::Device, DataPolicy::Site, elsewhere, none])
            }
            Locality::Regions(regions) => {
                let none = DataPolicy::Regions(vec![]);
                let mut admitted = vec![DataPolicy::Anywhere];
                let mut forbidden = vec![DataPolicy::Device, DataPolicy::Site, elsewhere, none];
                if let Some((_, all_but_one)) = regions.split_first() {
                    admitted.push(DataPolicy::Regions(regions.clone()));
                    forbidden.push(DataPolicy::Regions(all_but_one.to_vec()));
                }
                (admitted, forbidden)
            }
        }
    }

    pub(super) async fn forbidden_places_are_refused<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let (_, forbidden) = policies(&backend.profile().locality);
        if forbidden.is_empty() {
            return skip("every policy admits a backend on this device");
        }
        let request = first_request(harness)?;
        let before = harness.reached();
        for policy in forbidden {
            for (way, outcome) in ask_both(&*backend, &context().0.with_policy(policy.clone()), &request).await {
                refused(&format!("{way} under {policy:?}"), ErrorKind::PolicyDenied, outcome)?;
            }
        }
        equal("the count of requests that reached the model", &harness.reached(), &before)
    }

    pub(super) async fn admitted_places_are_served<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let request = first_request(harness)?;
        for policy in policies(&backend.profile().locality).0 {
            for (way, outcome) in ask_both(&*backend, &context().0.with_policy(policy.clone()), &request).await {
                if let Err(error) = outcome {
                    return fail(format!("{way} under {policy:?}: {error:?}"));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn cancelled_calls_end<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let (cx, _clock) = context();
        cx.cancel.cancel();
        for (way, outcome) in ask_both(&*backend, &cx, &first_request(harness)?).await {
            refused(way, ErrorKind::Cancelled, outcome)?;
        }
        Ok(())
    }

    pub(super) async fn late_calls_end<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let (cx, clock) = context();
        let cx = cx.with_timeout(Duration::from_secs(1));
        clock.advance(Duration::from_secs(1));
        for (way, outcome) in ask_both(&*backend, &cx, &first_request(harness)?).await {
            refused(way, ErrorKind::Timeout, outcome)?;
        }
        Ok(())
    }

    /// Lets a call get under way, stops it, and checks that it ends: with the kind expected, or with an answer that was made already.
    async fn stopped_on_the_way<T: Task>(
        harness: Harness<'_, T>,
        expected: ErrorKind,
        stop: fn(&CallContext, &ManualClock),
    ) -> CaseResult {
        let backend = harness.backend().await?;
        let request = first_request(harness)?;
        for polls in [1, 2, 8] {
            let (cx, clock) = context();
            let cx = cx.with_timeout(Duration::from_secs(60));
            let mut call = pin!(ask_both(&*backend, &cx, &request));
            for _ in 0..polls {
                if poll!(&mut call).is_ready() {
                    return skip("the backend answers at once, so that nothing can come in between");
                }
            }
            stop(&cx, &clock);
            let Some(outcomes) = within(SOON, call).await else {
                return fail(format!("the call still ran {SOON:?} after it was to end"));
            };
            for (way, outcome) in outcomes {
                if let Err(error) = outcome
                    && error.kind() != expected
                {
                    return fail(format!("{way}: expected {expected:?}, got {error:?}"));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn a_call_can_be_cancelled_on_its_way<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        stopped_on_the_way(harness, ErrorKind::Cancelled, |cx, _| cx.cancel.cancel()).await
    }

    pub(super) async fn a_deadline_can_pass_on_the_way<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        stopped_on_the_way(harness, ErrorKind::Timeout, |_, clock| clock.advance(Duration::from_secs(60))).await
    }

    pub(super) async fn dropped_calls_leave_the_backend_whole<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let request = first_request(harness)?;
        let (cx, _clock) = context();
        let whole = backend.infer(&cx, request.clone()).await?.response;
        for polls in 0..3 {
            {
                let mut call = pin!(backend.infer(&cx, request.clone()));
                for _ in 0..polls {
                    if poll!(&mut call).is_ready() {
                        break;
                    }
                }
            }
            let mut events = backend.stream(&cx, request.clone()).await?;
            for _ in 0..polls {
                if events.next().await.is_none() {
                    break;
                }
            }
            drop(events);
        }
        let after = backend.infer(&cx, request).await?.response;
        ensure!(
            !harness.deterministic() || after == whole,
            "after dropped calls the answer is {after:?}, before it was {whole:?}"
        );
        Ok(())
    }

    pub(super) async fn streams_end_with_one_done<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        for request in harness.requests() {
            read_whole(&*backend, request).await?;
        }
        Ok(())
    }

    pub(super) async fn streams_name_their_maker<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let (_, meta) = read_whole(&*backend, first_request(harness)?).await?;
        check_maker("stream", &meta, &backend.profile())?;
        check_cost("stream", &meta, &backend.profile())
    }

    pub(super) async fn streams_fold_to_the_response<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        for request in harness.requests() {
            let whole = backend.infer(&context().0, request.clone()).await?;
            let (deltas, meta) = read_whole(&*backend, request).await?;
            let folded = T::fold(deltas)?;
            if harness.deterministic() {
                equal("the folded stream", &folded, &whole.response)?;
                equal("the stream's usage", &uncached(&meta.usage), &uncached(&whole.meta.usage))?;
            }
        }
        Ok(())
    }

    pub(super) async fn a_cancelled_stream_ends_once<T: Task>(harness: Harness<'_, T>) -> CaseResult {
        let backend = harness.backend().await?;
        let (cx, _clock) = context();
        let events = backend.stream(&cx, first_request(harness)?).await?;
        cx.cancel.cancel();
        let Some(read) = within(SOON, read(events)).await else {
            return fail(format!("the stream still ran {SOON:?} after it was cancelled"));
        };
        let Read { deltas: _, done, errors, after_end } = read;
        ensure!(
            done.len() + errors.len() == 1,
            "the stream yielded {} times `Done` and the errors {errors:?}",
            done.len()
        );
        ensure!(after_end == 0, "the stream went on for {after_end} events after its end");
        if let Some(error) = errors.first() {
            equal("the kind of the error", &error.kind(), &ErrorKind::Cancelled)?;
        }
        Ok(())
    }
}
