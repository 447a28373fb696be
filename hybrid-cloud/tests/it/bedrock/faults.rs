//! A stream that breaks at any byte ends in a clear error or in the whole answer; never in half an answer that looks whole.

use futures_util::{StreamExt, stream};
use hybrid_cloud::testkit::bedrock::{Answer, BedrockServer, Fault, Reply};
use hybrid_core::{
    ErrorKind, InferenceBackend, Reply as CoreReply,
    inference::collect_reply,
    task::{Chat, ChatRequest},
};
use serde_json::json;

use super::rig;

fn answer() -> Answer {
    let call = json!({"toolUse": {"toolUseId": "t-1", "name": "weigh", "input": {"g": 5}}});
    Answer {
        stop_reason: "tool_use".into(),
        piece: 4,
        padded: false,
        ..Answer::new([json!({"text": "Weighing"}), call])
    }
}

/// Asks once for each byte of the stream, with the fault there. Each request carries its own fault.
async fn at_every_byte(fault: fn(usize) -> Fault) -> Vec<hybrid_core::Result<CoreReply<Chat>>> {
    let server = BedrockServer::start().unwrap();
    server.otherwise(move |request| {
        let at = request.body["requestMetadata"]["at"].as_str().unwrap().parse().unwrap();
        Reply::from(answer()).with_fault(fault(at))
    });
    let backend = &rig::chat_once(&server, rig::NOVA);
    stream::iter(0..=answer().stream().len())
        .map(|at| async move {
            let metadata = [("at".to_owned(), at.to_string())].into();
            let request = ChatRequest { metadata, ..ChatRequest::user("hi") };
            collect_reply(InferenceBackend::<Chat>::stream(backend, &rig::context(), request).await?).await
        })
        .buffered(8)
        .collect()
        .await
}

/// The bytes up to the end of the frame that ends the answer.
fn answered() -> usize {
    let frames = answer().frames();
    frames[..frames.len() - 1].concat().len()
}

async fn whole() -> CoreReply<Chat> {
    let mut all = at_every_byte(|_| Fault::EndAt(usize::MAX)).await;
    all.pop().unwrap().unwrap()
}

#[track_caller]
fn check(outcomes: &[hybrid_core::Result<CoreReply<Chat>>], whole: &CoreReply<Chat>, kinds: &[ErrorKind]) {
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(reply) => {
                assert_eq!(reply.response, whole.response, "byte {at}");
                let metered = reply.meta.usage == whole.meta.usage && reply.meta.notes.is_empty();
                assert!(metered || reply.meta.notes[0].code == "unmetered", "byte {at}: {:?}", reply.meta);
            }
            Err(error) => assert!(kinds.contains(&error.kind()), "byte {at}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_is_no_answer_before_its_end() {
    let whole = whole().await;
    for fault in [Fault::EndAt as fn(usize) -> Fault, Fault::CutAt] {
        let outcomes = at_every_byte(fault).await;
        check(&outcomes, &whole, &[ErrorKind::Unavailable]);
        for (at, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_ok(), at >= answered(), "byte {at}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_garbled_at_any_byte_is_no_answer() {
    let whole = whole().await;
    let outcomes = at_every_byte(Fault::GarbleAt).await;
    check(&outcomes, &whole, &[ErrorKind::Corrupt, ErrorKind::Unavailable]);
    let (last, before) = outcomes.split_last().unwrap();
    assert!(last.is_ok(), "nothing is garbled after the last byte");
    for (at, outcome) in before.iter().enumerate().take(answered()) {
        assert!(outcome.is_err(), "byte {at}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_exception_at_any_byte_is_an_error() {
    let whole = whole().await;
    let exception = |at| Fault::ExceptionAt(at, "throttlingException".into());
    let outcomes = at_every_byte(exception).await;
    check(&outcomes, &whole, &[ErrorKind::RateLimited, ErrorKind::Corrupt, ErrorKind::Unavailable]);
    let mut boundary = 0;
    for frame in answer().frames() {
        let kind = outcomes[boundary].as_ref().unwrap_err().kind();
        assert_eq!(kind, ErrorKind::RateLimited, "an exception in order at byte {boundary}");
        boundary += frame.len();
    }
    for (at, outcome) in outcomes.iter().enumerate().take(answered()) {
        assert!(outcome.is_err(), "byte {at}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_whole_answer_cut_at_any_byte_is_no_answer() {
    let body = answer().json().to_string().len();
    let server = BedrockServer::start().unwrap();
    server.otherwise(|request| {
        let at = request.body["requestMetadata"]["at"].as_str().unwrap().parse().unwrap();
        Reply::from(answer()).with_fault(Fault::CutAt(at))
    });
    let backend = &rig::chat_once(&server, rig::NOVA);
    for at in 0..body {
        let request = ChatRequest { metadata: [("at".to_owned(), at.to_string())].into(), ..ChatRequest::user("hi") };
        let error = backend.infer(&rig::context(), request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "byte {at}: {error}");
    }
}
