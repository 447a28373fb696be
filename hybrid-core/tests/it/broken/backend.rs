use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, DataPolicy, Error, Event, InferenceBackend, Locality, Reply,
    Result, Task,
    conformance::inference,
    inference::stream_reply,
    memory::ScriptedBackend,
    task::{Classify, ClassifyRequest},
};

use crate::conformance::Backends;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BackendFault {
    HasNoName,
    NeverAnswers,
    NamesAnother,
    ForgetsTheCost,
    AnswersByChance,
    SkipsValidation,
    IgnoresThePolicy,
    StreamIgnoresThePolicy,
    RefusesTooLate,
    TrustsNobody,
    IgnoresCancellation,
    IgnoresTheDeadline,
    FailsWhenStopped,
    StaysBusyWhenDropped,
    YieldsTwoDone,
    YieldsNoDone,
    GoesOnAfterDone,
    StreamNamesAnother,
    StreamsAnotherAnswer,
}

use BackendFault::*;

const PLANTED: &[super::Planted<BackendFault>] = &[
    (HasNoName, &["the_profile_names_the_backend"]),
    (NeverAnswers, &["requests_are_answered"]),
    (NamesAnother, &["replies_name_their_maker"]),
    (ForgetsTheCost, &["replies_cost_their_price"]),
    (AnswersByChance, &["the_same_request_has_the_same_response", "requests_side_by_side_do_not_mix"]),
    (SkipsValidation, &["invalid_requests_are_refused"]),
    (IgnoresThePolicy, &["forbidden_places_are_refused"]),
    (StreamIgnoresThePolicy, &["forbidden_places_are_refused"]),
    (RefusesTooLate, &["invalid_requests_are_refused", "forbidden_places_are_refused"]),
    (TrustsNobody, &["admitted_places_are_served"]),
    (IgnoresCancellation, &["cancelled_calls_end"]),
    (IgnoresTheDeadline, &["late_calls_end"]),
    (FailsWhenStopped, &["a_call_can_be_cancelled_on_its_way", "a_deadline_can_pass_on_the_way"]),
    (StaysBusyWhenDropped, &["dropped_calls_leave_the_backend_whole"]),
    (YieldsTwoDone, &["streams_end_with_one_done", "a_cancelled_stream_ends_once"]),
    (YieldsNoDone, &["streams_end_with_one_done"]),
    (GoesOnAfterDone, &["streams_end_with_one_done"]),
    (StreamNamesAnother, &["streams_name_their_maker"]),
    (StreamsAnotherAnswer, &["streams_fold_to_the_response"]),
];

#[tokio::test]
async fn the_suite_notices_broken_backends() {
    let run = |fault| async move {
        inference::run(&Backends::new(Locality::Region("eu-central-1".to_owned()), Some(fault))).await
    };
    super::check(PLANTED, run).await;
}

#[derive(Debug)]
pub(crate) struct BrokenBackend {
    scripted: Arc<ScriptedBackend<Classify>>,
    fault: BackendFault,
    busy: AtomicBool,
    calls: AtomicU64,
}

impl BrokenBackend {
    pub(crate) fn new(scripted: Arc<ScriptedBackend<Classify>>, fault: BackendFault) -> Self {
        Self { scripted, fault, busy: false.into(), calls: 0.into() }
    }

    async fn answer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        let (mut cx, mut request) = (cx.clone(), request);
        match self.fault {
            NeverAnswers => return Err(Error::unavailable("infer", "come back tomorrow")),
            SkipsValidation if Classify::validate(&request).is_err() => request = ClassifyRequest::one("nothing"),
            IgnoresThePolicy => cx.policy = DataPolicy::Anywhere,
            RefusesTooLate => {
                let (mut anywhere, anything) = (cx.clone(), ClassifyRequest::one("nothing"));
                anywhere.policy = DataPolicy::Anywhere;
                self.scripted.infer(&anywhere, anything).await?;
            }
            TrustsNobody if cx.policy != DataPolicy::Anywhere => cx.policy = DataPolicy::Device,
            IgnoresCancellation => cx.cancel = Cancellation::new(),
            IgnoresTheDeadline => cx.deadline = None,
            FailsWhenStopped => {
                cx.admit("infer", &self.profile().locality)?;
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                cx.check("infer").map_err(|_| Error::internal("infer", "the connection was reset"))?;
            }
            StaysBusyWhenDropped => {
                if self.busy.swap(true, Ordering::Relaxed) {
                    return Err(Error::unavailable("infer", "busy"));
                }
                tokio::task::yield_now().await;
                self.busy.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        let mut reply = self.scripted.infer(&cx, request).await?;
        match self.fault {
            NamesAnother => reply.meta.backend = "another".to_owned(),
            ForgetsTheCost => reply.meta.cost = None,
            AnswersByChance => reply.response.results[0].confidence = self.calls.fetch_add(1, Ordering::Relaxed) as f32,
            _ => {}
        }
        Ok(reply)
    }
}

#[async_trait]
impl InferenceBackend<Classify> for BrokenBackend {
    fn profile(&self) -> Arc<BackendProfile> {
        let mut profile = (*self.scripted.profile()).clone();
        if self.fault == HasNoName {
            profile.name.clear();
        }
        Arc::new(profile)
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        self.answer(cx, request).await
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        let mut cx = cx.clone();
        if self.fault == StreamIgnoresThePolicy {
            cx.policy = DataPolicy::Anywhere;
        }
        let mut reply = self.answer(&cx, request).await?;
        match self.fault {
            StreamNamesAnother => reply.meta.model.name = "another".to_owned(),
            StreamsAnotherAnswer => reply.response.results[0].label = "complaint".to_owned(),
            _ => {}
        }
        let once_more = reply.clone();
        let events = stream_reply::<Classify>(reply);
        Ok(match self.fault {
            YieldsTwoDone => events.chain(stream::once(async move { Ok(Event::Done(once_more.meta)) })).boxed(),
            GoesOnAfterDone => events.chain(stream::once(async move { Ok(Event::Delta(once_more.response)) })).boxed(),
            YieldsNoDone => events.filter(|event| std::future::ready(!matches!(event, Ok(Event::Done(_))))).boxed(),
            _ => events,
        })
    }
}
