//! Whatever a stream's end is, the caller learns it.

use std::time::Duration;

use hybrid_cloud::testkit::bedrock::{Answer, BedrockServer, Fault, Reply, event_frame};
use hybrid_core::{
    ErrorKind, InferenceBackend, ManualClock,
    inference::collect_reply,
    task::{Chat, ChatRequest, StopReason},
};
use serde_json::json;

use super::rig;

async fn streamed(reply: Reply) -> hybrid_core::Result<hybrid_core::Reply<Chat>> {
    let server = BedrockServer::start().unwrap();
    server.otherwise(move |_| reply.clone());
    let backend = rig::chat_once(&server, rig::NOVA);
    let stream = InferenceBackend::<Chat>::stream(&backend, &rig::context(), ChatRequest::user("hi")).await?;
    collect_reply(stream).await
}

fn raw(frames: &[Vec<u8>]) -> Reply {
    Reply { body: hybrid_cloud::testkit::bedrock::Body::Stream(frames.concat()), ..Answer::text("").into() }
}

#[tokio::test]
async fn usage_that_comes_after_the_end_is_metered_and_priced() {
    let usage = json!({
        "inputTokens": 1_000_000, "outputTokens": 10, "totalTokens": 1_000_310,
        "cacheReadInputTokens": 200, "cacheWriteInputTokens": 100
    });
    let reply = streamed(Answer { usage, ..Answer::text("hi") }.into()).await.unwrap();
    let used = &reply.meta.usage;
    assert_eq!((used.input_tokens, used.output_tokens), (1_000_000, 10));
    assert_eq!((used.cache_read_tokens, used.cache_write_tokens), (200, 100));
    assert_eq!(used.total_input_tokens(), 1_000_300);
    // 0.06 + 10 × 0.24/M + 200 × 0.015/M + 100 × 0.06/M
    assert_eq!(reply.meta.cost.unwrap().to_string(), "0.0600114 USD");
    assert_eq!(reply.meta.notes, []);
}

#[tokio::test]
async fn an_answer_whose_bill_is_missing_is_whole_and_says_so() {
    let frames = Answer::text("Flour and water").frames();
    let all_but_last = frames[..frames.len() - 1].concat().len();
    for fault in [Fault::EndAt(all_but_last), Fault::CutAt(all_but_last), Fault::CutAt(all_but_last + 20)] {
        let reply = streamed(Reply::from(Answer::text("Flour and water")).with_fault(fault)).await.unwrap();
        assert_eq!(reply.response.text(), "Flour and water");
        assert_eq!(reply.meta.notes[0].code, "unmetered");
        assert_eq!(reply.meta.cost, None, "an unknown cost is not none");
    }
}

#[tokio::test]
async fn a_stream_that_stands_still_is_given_up() {
    let frames = Answer::text("Flour and water").frames();
    let begun = frames[..3].concat().len();
    let server = BedrockServer::start().unwrap();
    server.otherwise(move |_| Reply::from(Answer::text("Flour and water")).with_fault(Fault::StallAt(begun)));
    let backend = rig::chat_once(&server, rig::NOVA);
    let clock = ManualClock::default();
    let cx = rig::context_at(clock.clone());
    let stream = InferenceBackend::<Chat>::stream(&backend, &cx, ChatRequest::user("hi")).await.unwrap();
    let reading = tokio::spawn(collect_reply(stream));
    while clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(119));
    assert!(!reading.is_finished());
    // What was read meanwhile may have begun a new wait.
    while !reading.is_finished() {
        clock.advance(Duration::from_secs(120));
        tokio::task::yield_now().await;
    }
    let error = reading.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("120 s"), "{error}");
}

#[tokio::test]
async fn reasons_to_stop_are_handed_on_known_or_not() {
    for (reason, expected) in [
        ("end_turn", StopReason::EndTurn),
        ("tool_use", StopReason::ToolUse),
        ("max_tokens", StopReason::MaxTokens),
        ("stop_sequence", StopReason::StopSequence),
        ("guardrail_intervened", StopReason::GuardrailIntervened),
        ("content_filtered", StopReason::ContentFiltered),
        ("malformed_model_output", StopReason::MalformedOutput),
        ("malformed_tool_use", StopReason::MalformedToolUse),
        ("model_context_window_exceeded", StopReason::ContextWindowExceeded),
        ("a_reason_of_tomorrow", StopReason::Other("a_reason_of_tomorrow".into())),
    ] {
        let answer = Answer { stop_reason: reason.into(), ..Answer::text("hi") };
        let reply = streamed(answer.clone().into()).await.unwrap();
        assert_eq!(reply.response.choices[0].stop_reason, expected);
        let server = BedrockServer::start().unwrap();
        server.script([answer.into()]);
        let whole = rig::chat(&server, rig::NOVA).infer(&rig::context(), ChatRequest::user("hi")).await.unwrap();
        assert_eq!(whole.response, reply.response);
    }
}

#[tokio::test]
async fn an_end_without_a_reason_is_no_end() {
    let mut frames = Answer::text("hi").frames();
    let stop = frames.len() - 2;
    frames[stop] = event_frame("messageStop", &json!({}));
    let error = streamed(raw(&frames)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");

    frames.remove(stop);
    let error = streamed(raw(&frames)).await.unwrap_err();
    assert!(error.to_string().contains("usage came before"), "{error}");
}

#[tokio::test]
async fn a_call_of_a_tool_that_is_cut_is_an_error_unless_the_model_was_stopped() {
    let mut answer = Answer::tool_use("t-1", "weigh", json!({"what": "flour", "grams": 500}));
    answer.piece = 8;
    let mut frames = answer.frames();
    frames.remove(4);
    let error = streamed(raw(&frames)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("not JSON"), "{error}");

    answer.stop_reason = "max_tokens".into();
    let mut frames = answer.frames();
    frames.remove(frames.len() - 4);
    let reply = streamed(raw(&frames)).await.unwrap();
    let choice = &reply.response.choices[0];
    assert!(!choice.stop_reason.is_complete());
    assert!(choice.message.tool_uses().next().unwrap().input.is_string(), "unfinished, as its text");
}

#[tokio::test]
async fn what_a_later_version_sends_is_left_out_and_said() {
    let answer = Answer::new([json!({"text": "hi"}), json!({"hologram": {"x": 1}})]);
    let reply = streamed(answer.clone().into()).await.unwrap();
    assert_eq!(reply.response.text(), "hi");
    assert_eq!(reply.meta.notes[0].code, "unknown_content");

    let server = BedrockServer::start().unwrap();
    server.script([answer.into()]);
    let whole = rig::chat(&server, rig::NOVA).infer(&rig::context(), ChatRequest::user("hi")).await.unwrap();
    assert_eq!(whole.response, reply.response);
    assert_eq!(whole.meta.notes[0].code, "unknown_content");

    let mut frames = Answer::text("hi").frames();
    frames.insert(2, event_frame("weather", &json!({"sunny": true})));
    let reply = streamed(raw(&frames)).await.unwrap();
    assert_eq!((reply.response.text().as_str(), reply.meta.notes[0].code.as_str()), ("hi", "unknown_content"));
}
