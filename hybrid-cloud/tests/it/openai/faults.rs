//! A stream that goes wrong at any byte is an error: never an answer that looks whole, never a call that hangs.

use std::time::Duration;

use futures_util::StreamExt;
use hybrid_cloud::{
    openai::OpenAiCompatible,
    testkit::openai::{Answer, Fault, chat_completion},
};
use hybrid_core::{
    BoxStream, CallContext, ErrorKind, Event, InferenceBackend, ManualClock, Result,
    inference::collect_reply,
    task::{Chat, ChatRequest, ChatResponse, StopReason},
};
use serde_json::json;
use tokio::task::JoinHandle;

use super::rig::{backend, context};
use crate::storefront::rig::soon;

/// A stream short enough to be broken at each of its bytes.
const STREAM: &str = concat!(
    ": hi\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Bröt\"}}]}\r\n\r\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}\n\n",
    "data: [DONE]\n\n",
);

async fn stream(backend: &OpenAiCompatible, cx: &CallContext) -> Result<BoxStream<'static, Result<Event<Chat>>>> {
    InferenceBackend::<Chat>::stream(backend, cx, ChatRequest::user("hi")).await
}

async fn whole(backend: &OpenAiCompatible, cx: &CallContext) -> Result<ChatResponse> {
    Ok(collect_reply(stream(backend, cx).await?).await?.response)
}

#[tokio::test]
async fn a_whole_stream_is_a_whole_answer() {
    let (server, backend) = backend().await;
    server.answer(Answer::sse(STREAM));
    let reply = collect_reply(stream(&backend, &context().0).await.unwrap()).await.unwrap();
    let choice = &reply.response.choices[0];
    assert_eq!((choice.message.text().as_str(), &choice.stop_reason), ("Bröt", &StopReason::ToolUse));
    assert_eq!(choice.message.tool_uses().next().unwrap().input, json!({}));
    assert_eq!((reply.meta.usage.input_tokens, reply.meta.usage.output_tokens), (2, 1));
    assert!(reply.meta.notes.is_empty());
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_is_an_error() {
    let (server, backend) = backend().await;
    let said_done = STREAM.trim_end().len();
    for fault in [Fault::Cut, Fault::End] {
        for at in 0..=STREAM.len() {
            server.answer_now(Answer::sse(STREAM).with_fault(at, fault));
            let outcome = soon(whole(&backend, &context().0)).await;
            // The server said that it was done; what is missing is the empty line after it, or the end of the framing.
            let complete = match fault {
                Fault::End => at >= said_done,
                _ => at >= STREAM.len(),
            };
            match outcome {
                Ok(answer) => assert!(at >= said_done, "cut at {at} of {}: {answer:?}", STREAM.len()),
                Err(error) => {
                    assert!(!complete, "{fault:?} at {at}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?} at {at}: {error}");
                    assert!(error.is_in_doubt(), "what was answered may be paid for: {fault:?} at {at}: {error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_byte_that_is_no_text_is_an_error_wherever_it_stands() {
    let (server, backend) = backend().await;
    for at in 0..STREAM.len() {
        server.answer_now(Answer::sse(STREAM).with_fault(at, Fault::Garbage));
        let error = soon(whole(&backend, &context().0)).await.expect_err(&format!("garbage at {at}"));
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{at}: {error}");
    }
}

/// What a call ends with while time passes whenever it waits.
async fn stalled<T>(call: JoinHandle<T>, clock: &ManualClock) -> T {
    soon(async {
        while !call.is_finished() {
            // Whatever the call waits for, it waits no longer than this.
            if clock.sleepers() > 0 {
                clock.advance(Duration::from_secs(60));
            }
            tokio::task::yield_now().await;
        }
        call.await.unwrap()
    })
    .await
}

#[tokio::test]
async fn a_stream_that_stalls_at_any_byte_ends_at_the_stall_limit() {
    let (server, backend) = backend().await;
    let done = STREAM.len() - 1;
    for at in (0..done).step_by(7) {
        server.answer_now(Answer::sse(STREAM).with_fault(at, Fault::Stall));
        let (cx, clock) = context();
        let backend = backend.clone();
        let call = tokio::spawn(async move { whole(&backend, &cx).await });
        let error = stalled(call, &clock).await.expect_err("a stalled stream was taken for whole");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{at}: {error}");
        assert!(error.to_string().contains("stalled"), "{error}");
    }
}

#[tokio::test]
async fn a_whole_answer_and_a_refusal_that_stall_end_at_the_stall_limit() {
    let (server, backend) = backend().await;
    let refusal = || Answer::error(400, "invalid_request_error", "too much salt");
    for (answer, kind) in [
        (
            Answer::json(200, &chat_completion("loaf", "Two loaves.")).with_fault(20, Fault::Stall),
            ErrorKind::Unavailable,
        ),
        (refusal().with_fault(10, Fault::Stall), ErrorKind::InvalidInput),
    ] {
        server.answer_now(answer);
        let (cx, clock) = context();
        let backend = backend.clone();
        let call =
            tokio::spawn(async move { InferenceBackend::<Chat>::infer(&backend, &cx, ChatRequest::user("hi")).await });
        let error = stalled(call, &clock).await.expect_err("half an answer was taken for whole");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn dropping_a_stream_hangs_up() {
    let (server, backend) = backend().await;
    server.answer(Answer::sse(STREAM).with_fault(STREAM.len() / 2, Fault::Stall));
    let mut events = stream(&backend, &context().0).await.unwrap();
    assert!(matches!(events.next().await, Some(Ok(Event::Delta(_)))));
    drop(events);
    soon(server.until_hung_up(1)).await;
}

#[tokio::test]
async fn a_cancelled_call_hangs_up_while_it_waits_for_a_beginning() {
    let (server, backend) = backend().await;
    server.answer(Answer::sse(STREAM).with_fault(0, Fault::Stall));
    let (cx, _clock) = context();
    let waiting = cx.clone();
    let call = tokio::spawn(async move { whole(&backend, &waiting).await });
    soon(server.until_requests(1)).await;
    cx.cancel.cancel();
    assert_eq!(soon(call).await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    soon(server.until_hung_up(1)).await;
}

#[tokio::test]
async fn a_stream_that_ends_in_the_wrong_way_is_corrupt() {
    let chunk = |text: &str| format!("data: {text}\n\n");
    let text = chunk(r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#);
    let stop = chunk(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#);
    let done = chunk("[DONE]");
    for (body, kind) in [
        (text.clone() + &done, ErrorKind::Corrupt),
        (done.clone(), ErrorKind::Corrupt),
        (text.clone() + &stop + &text + &done, ErrorKind::Corrupt),
        (text.clone() + &chunk("{not json}") + &done, ErrorKind::Corrupt),
        (text.clone() + &chunk("[1]") + &done, ErrorKind::Corrupt),
        (text.clone() + &stop, ErrorKind::Unavailable),
        (text.clone() + &chunk(r#"{"error":{"message":"boom","type":"server_error"}}"#), ErrorKind::Unavailable),
        (text.clone() + &chunk(r#"{"error":"boom"}"#) + &stop + &done, ErrorKind::Unavailable),
    ] {
        let (server, backend) = backend().await;
        server.answer(Answer::sse(body.clone()));
        let mut events = stream(&backend, &context().0).await.unwrap();
        let mut outcome = Vec::new();
        while let Some(event) = soon(events.next()).await {
            outcome.push(event.map(|event| matches!(event, Event::Done(_))));
        }
        let error = outcome.pop().unwrap().expect_err(&body);
        assert_eq!(error.kind(), kind, "{body}: {error}");
        assert!(outcome.iter().all(|event| matches!(event, Ok(false))), "{body}: something came before the error");
    }
}

#[tokio::test]
async fn a_whole_answer_that_is_cut_or_not_in_form_is_an_error() {
    for (body, kind) in [
        ("{\"choices\":", ErrorKind::Corrupt),
        ("<html>", ErrorKind::Corrupt),
        ("{}", ErrorKind::Corrupt),
        (r#"{"choices":[{"message":{"content":"a"}}]}"#, ErrorKind::Corrupt),
        (r#"{"error":{"message":"boom"}}"#, ErrorKind::Unavailable),
    ] {
        let (server, backend) = backend().await;
        server.answer(Answer::new(200, "application/json", body));
        let reply = InferenceBackend::<Chat>::infer(&*backend, &context().0, ChatRequest::user("hi")).await;
        assert_eq!(reply.unwrap_err().kind(), kind, "{body}");
    }
}

#[tokio::test]
async fn what_a_try_may_have_cost_no_later_refusal_undoes() {
    for (first, in_doubt) in [(429, false), (408, true)] {
        let (server, backend) = backend().await;
        server.answer(Answer::error(first, "later", "not now"));
        server.answer(Answer::error(400, "no", "never"));
        let (cx, clock) = context();
        let call = tokio::spawn(async move { whole(&backend, &cx).await });
        let error = soon(async {
            while !call.is_finished() {
                if clock.sleepers() > 0 {
                    clock.advance(Duration::from_secs(60));
                }
                tokio::task::yield_now().await;
            }
            call.await.unwrap().unwrap_err()
        })
        .await;
        assert_eq!((error.kind(), error.is_in_doubt()), (ErrorKind::InvalidInput, in_doubt), "{first}: {error}");
    }
}
