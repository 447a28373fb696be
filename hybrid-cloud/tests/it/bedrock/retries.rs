use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hybrid_cloud::{
    bedrock::{Bedrock, ModelOptions},
    testkit::bedrock::{Answer, BedrockServer, Fault, Gate, Reply},
};
use hybrid_core::{
    BoxFuture, Clock, ErrorKind, InferenceBackend, ManualClock, Monotonic, Timestamp,
    inference::collect_reply,
    task::{Chat, ChatRequest},
};
use serde_json::json;

use super::rig::{self, Hasty};

/// How many calls a failure that goes on makes, both ways to ask, and what is left of it.
async fn calls(reply: impl Fn() -> Reply) -> (usize, ErrorKind) {
    let server = BedrockServer::start().unwrap();
    let reply = reply();
    server.otherwise(move |_| reply.clone());
    let backend = rig::chat(&server, rig::NOVA);
    let infer = backend.infer(&rig::context_at(Hasty::default()), ChatRequest::user("hi")).await.unwrap_err();
    let whole = server.calls();
    let request = ChatRequest::user("hi");
    let stream = InferenceBackend::<Chat>::stream(&backend, &rig::context_at(Hasty::default()), request).await;
    let Err(stream) = stream else { panic!("a stream of nothing but failure began") };
    assert_eq!(server.calls() - whole, whole, "streams are tried as often as whole answers");
    assert_eq!(infer.kind(), stream.kind(), "{infer} and {stream}");
    assert_eq!(infer.context("tries"), Some(whole.to_string().as_str()));
    assert_eq!(infer.context("model"), Some(rig::NOVA));
    (whole, infer.kind())
}

#[tokio::test]
async fn each_error_is_tried_as_often_as_the_table_says() {
    for (status, code, expected, kind) in [
        (429, "ThrottlingException", 3, ErrorKind::RateLimited),
        (429, "TooManyRequestsException", 3, ErrorKind::RateLimited),
        (429, "ModelNotReadyException", 5, ErrorKind::Unavailable),
        (503, "ServiceUnavailableException", 3, ErrorKind::Unavailable),
        (500, "InternalServerException", 3, ErrorKind::Unavailable),
        (502, "", 3, ErrorKind::Unavailable),
        (504, "", 3, ErrorKind::Unavailable),
        (408, "ModelTimeoutException", 2, ErrorKind::Timeout),
        (424, "ModelErrorException", 2, ErrorKind::Unavailable),
        (424, "ModelStreamErrorException", 2, ErrorKind::Unavailable),
        (400, "ServiceQuotaExceededException", 1, ErrorKind::RateLimited),
        (400, "ValidationException", 1, ErrorKind::InvalidInput),
        (403, "AccessDeniedException", 1, ErrorKind::PermissionDenied),
        (403, "ExpiredTokenException", 1, ErrorKind::PermissionDenied),
        (404, "ResourceNotFoundException", 1, ErrorKind::NotFound),
        (400, "ConflictException", 1, ErrorKind::AlreadyExists),
    ] {
        assert_eq!(calls(|| Reply::error(status, code, "no")).await, (expected, kind), "{status} {code}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_again_and_an_answer_that_cannot_be_read_is_not() {
    let broken = || Reply::from(Answer::text("hi")).with_fault(Fault::CutAt(9));
    assert_eq!(calls(broken).await, (3, ErrorKind::Unavailable));
    // A quotation mark of the whole answer, a checksum of the stream's first frame.
    let garbled = || Reply::from(Answer::text("hi")).with_fault(Fault::GarbleAt(11));
    assert_eq!(calls(garbled).await, (1, ErrorKind::Corrupt));
}

#[tokio::test]
async fn a_call_that_is_tried_again_succeeds_and_has_waited_as_the_policy_says() {
    let server = BedrockServer::start().unwrap();
    let slow_down = || Reply::error(429, "ThrottlingException", "slow down");
    server.script([slow_down(), Reply::error(503, "ServiceUnavailableException", "away"), Answer::text("hi").into()]);
    let clock = Hasty::default();
    let reply =
        rig::chat(&server, rig::NOVA).infer(&rig::context_at(clock.clone()), ChatRequest::user("hi")).await.unwrap();
    assert_eq!((reply.response.text().as_str(), server.calls()), ("hi", 3));
    let waits = clock.waits();
    assert_eq!(waits.len(), 2);
    assert!(waits[0] < Duration::from_millis(500) && waits[1] < Duration::from_secs(1), "{waits:?}");
    assert_eq!(reply.meta.elapsed, waits[0] + waits[1]);

    server.script([slow_down().with_header("retry-after", "7"), Answer::text("hi").into()]);
    let clock = Hasty::default();
    rig::chat(&server, rig::NOVA).infer(&rig::context_at(clock.clone()), ChatRequest::user("hi")).await.unwrap();
    assert_eq!(clock.waits(), [Duration::from_secs(7)]);
}

#[tokio::test]
async fn a_model_that_is_being_loaded_is_waited_for() {
    let server = BedrockServer::start().unwrap();
    let cold = || Reply::error(429, "ModelNotReadyException", "loading");
    server.script([cold(), cold(), cold(), cold(), Answer::text("hi").into()]);
    let clock = Hasty::default();
    rig::chat(&server, rig::NOVA).infer(&rig::context_at(clock.clone()), ChatRequest::user("hi")).await.unwrap();
    let total: Duration = clock.waits().iter().sum();
    assert!(total >= Duration::from_secs(5 + 10 + 20 + 30), "{total:?}");
}

#[tokio::test]
async fn nothing_waits_past_the_callers_deadline() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| Reply::error(429, "ModelNotReadyException", "loading"));
    let cx = rig::context_at(ManualClock::default()).with_timeout(Duration::from_secs(4));
    let error = rig::chat(&server, rig::NOVA).infer(&cx, ChatRequest::user("hi")).await.unwrap_err();
    assert_eq!((error.kind(), server.calls()), (ErrorKind::Unavailable, 1), "{error}");
}

#[tokio::test]
async fn a_stream_is_made_again_until_its_first_content_and_never_after() {
    let frames = Answer::text("Flour and water").frames();
    for begun in 0..frames.len() {
        let server = BedrockServer::start().unwrap();
        let at = frames[..begun].iter().map(Vec::len).sum();
        let exception = Fault::ExceptionAt(at, "modelStreamErrorException".into());
        server
            .script([Reply::from(Answer::text("Flour and water")).with_fault(exception), Answer::text("again").into()]);
        let backend = rig::chat(&server, rig::NOVA);
        let cx = rig::context_at(Hasty::default());
        let stream = InferenceBackend::<Chat>::stream(&backend, &cx, ChatRequest::user("hi")).await.unwrap();
        let outcome = collect_reply(stream).await;
        // The first frame only says that an answer begins.
        if begun <= 1 {
            assert_eq!((outcome.unwrap().response.text().as_str(), server.calls()), ("again", 2), "{begun} frames");
        } else {
            let error = outcome.unwrap_err();
            assert_eq!((error.kind(), server.calls()), (ErrorKind::Unavailable, 1), "{begun} frames: {error}");
            assert_eq!(error.context("code"), Some("ModelStreamErrorException"));
        }
    }
}

#[tokio::test]
async fn what_the_model_refuses_is_not_asked_again() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| {
        let body = json!({"message": "bad input", "originalStatusCode": 400, "resourceName": "arn:x"});
        let error = Reply::error(424, "ModelErrorException", "");
        Reply { body: hybrid_cloud::testkit::bedrock::Body::Json(424, body), ..error }
    });
    let error = rig::chat(&server, rig::NOVA).infer(&rig::context(), ChatRequest::user("hi")).await.unwrap_err();
    assert_eq!((error.kind(), server.calls()), (ErrorKind::InvalidInput, 1));
    assert_eq!((error.context("original_status"), error.context("resource")), (Some("400"), Some("arn:x")), "{error}");
}

/// A clock on which nothing ends, and that tells of the waits between tries.
#[derive(Clone, Debug, Default)]
struct Still(Arc<AtomicUsize>);

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Monotonic {
        ManualClock::default().monotonic()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // The limit of a call is longer.
        self.0.fetch_add(usize::from(duration < Duration::from_secs(90)), Ordering::Relaxed);
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_caller_cancels_and_forgets_no_cost() {
    for (reply, in_doubt) in [
        (Reply::error(503, "ServiceUnavailableException", "away"), false),
        (Reply::from(Answer::text("hi")).with_fault(Fault::HangUp), true),
    ] {
        let server = BedrockServer::start().unwrap();
        server.otherwise(move |_| reply.clone());
        let clock = Still::default();
        let cx = rig::context_at(clock.clone());
        let backend = rig::chat(&server, rig::NOVA);
        let cancel = cx.cancel.clone();
        let call = tokio::spawn(async move { backend.infer(&cx, ChatRequest::user("hi")).await });
        while clock.0.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.is_in_doubt()), (ErrorKind::Cancelled, in_doubt), "{error}");
        assert_eq!(server.calls(), 1);
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_though_the_service_says_nothing() {
    let server = BedrockServer::start().unwrap();
    let gate = Gate::default();
    let held = gate.clone();
    server.otherwise(move |_| Reply::from(Answer::text("late")).behind(&held));
    let clock = ManualClock::default();
    let cx = rig::context_at(clock.clone()).with_timeout(Duration::from_secs(30));
    let backend = rig::chat(&server, rig::NOVA);
    let call = tokio::spawn(async move { backend.infer(&cx, ChatRequest::user("hi")).await });
    while server.calls() == 0 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(30));
    assert_eq!(call.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    gate.open();
}

/// The failure that is left after these replies.
async fn left_after(replies: impl IntoIterator<Item = Reply>) -> hybrid_core::Error {
    let server = BedrockServer::start().unwrap();
    server.script(replies);
    let backend = rig::chat(&server, rig::NOVA);
    backend.infer(&rig::context_at(Hasty::default()), ChatRequest::user("hi")).await.unwrap_err()
}

#[tokio::test]
async fn what_a_try_may_have_cost_no_later_refusal_undoes() {
    let hang_up = || Reply::from(Answer::text("hi")).with_fault(Fault::HangUp);
    let throttled = || Reply::error(429, "ThrottlingException", "slow down");
    let late = || Reply::error(408, "ModelTimeoutException", "too slow");
    let refused = || Reply::error(400, "ValidationException", "no");
    for (replies, kind, in_doubt) in [
        (vec![throttled(), throttled(), throttled()], ErrorKind::RateLimited, false),
        (vec![throttled(), refused()], ErrorKind::InvalidInput, false),
        (vec![hang_up(), hang_up(), hang_up()], ErrorKind::Unavailable, true),
        (vec![hang_up(), throttled(), throttled()], ErrorKind::RateLimited, true),
        (vec![hang_up(), refused()], ErrorKind::InvalidInput, true),
        (vec![late(), refused()], ErrorKind::InvalidInput, true),
    ] {
        let error = left_after(replies.clone()).await;
        assert_eq!((error.kind(), error.is_in_doubt()), (kind, in_doubt), "{replies:?}: {error}");
    }
}

#[tokio::test]
async fn what_was_never_connected_costs_nothing() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bedrock = Bedrock::new(&rig::config(&format!("http://{nobody}")), rig::options()).unwrap();
    let backend = bedrock.chat(ModelOptions::new(rig::NOVA)).unwrap();
    let error = backend.infer(&rig::context_at(Hasty::default()), ChatRequest::user("hi")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_in_doubt()), (ErrorKind::Unavailable, false), "{error}");
}
