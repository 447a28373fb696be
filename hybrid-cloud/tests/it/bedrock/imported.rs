//! Imported models, called by InvokeModel in the form of the OpenAI API.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hybrid_cloud::{
    bedrock::{BedrockImportedChat, BedrockOptions, ModelOptions, RetryPolicy},
    testkit::bedrock::{BedrockServer, Fault, Reply, Request, chunk_frame},
};
use hybrid_core::{
    ErrorKind, InferenceBackend, Locality, Reply as CoreReply, Result,
    conformance::inference::{self, InferenceHarness},
    inference::collect_reply,
    task::{Chat, ChatRequest, FunctionTool, Sampling, StopReason},
};
use serde_json::{Value, json};

use super::rig::{self, Hasty};

const MODEL: &str = "arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdef123456";

fn imported(server: &BedrockServer, options: BedrockOptions) -> BedrockImportedChat {
    rig::connect(server, options).imported_chat(ModelOptions::new(MODEL)).unwrap()
}

fn completion(text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    })
}

/// The same answer in pieces; Bedrock adds its own count to the last.
fn chunks(text: &str) -> Vec<Vec<u8>> {
    let chunk = |delta: Value, finish: Value| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        })
    };
    let mut all = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    let letters: Vec<_> = text.chars().collect();
    all.extend(letters.chunks(3).map(|piece| chunk(json!({"content": piece.iter().collect::<String>()}), Value::Null)));
    all.push(chunk(json!({}), "stop".into()));
    all.push(json!({"choices": [], "amazon-bedrock-invocationMetrics": {"inputTokenCount": 7, "outputTokenCount": 3}}));
    all.iter().map(chunk_frame).collect()
}

fn answer(request: &Request, text: &str) -> Reply {
    match request.operation() {
        "invoke" => Reply::json(completion(text)),
        _ => Reply::frames(chunks(text)),
    }
}

async fn streamed(backend: &BedrockImportedChat, request: ChatRequest) -> Result<CoreReply<Chat>> {
    collect_reply(InferenceBackend::<Chat>::stream(backend, &rig::context(), request).await?).await
}

#[tokio::test]
async fn an_imported_model_is_asked_in_the_form_of_the_openai_api() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|request| answer(request, "Flour, süß"));
    let backend = imported(&server, rig::options());
    let sampling = Sampling { max_tokens: Some(20), temperature: Some(0.5), ..Sampling::default() };
    let request = ChatRequest {
        sampling,
        extra: [("repetition_penalty_range".to_owned(), json!(64))].into_iter().collect(),
        ..ChatRequest::user("hi").with_system("be brief")
    };
    let whole = backend.infer(&rig::context(), request.clone()).await.unwrap();
    let streamed = streamed(&backend, request).await.unwrap();
    assert_eq!(whole.response.text(), "Flour, süß");
    assert_eq!(streamed.response, whole.response);
    for meta in [&whole.meta, &streamed.meta] {
        assert_eq!((meta.usage.input_tokens, meta.usage.output_tokens), (7, 3));
        assert_eq!(meta.locality, Locality::Region("us-east-1".into()));
        assert!(meta.cost.is_none() && meta.notes.is_empty(), "{meta:?}");
    }
    let requests = server.requests();
    let operations: Vec<_> = requests.iter().map(Request::operation).collect();
    assert_eq!(operations, ["invoke", "invoke-with-response-stream"]);
    let expected = json!({
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 20, "temperature": 0.5, "repetition_penalty_range": 64,
    });
    for request in &requests {
        assert_eq!(request.model(), MODEL);
        assert_eq!(request.body, expected);
    }
}

#[tokio::test]
async fn tools_are_called_whole_and_in_pieces() {
    let server = BedrockServer::start().unwrap();
    let call = |arguments: &str| json!([{"index": 0, "id": "t-1", "type": "function", "function": {"name": "weigh", "arguments": arguments}}]);
    let whole = json!({"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": call("{\"g\":5}")}, "finish_reason": "tool_calls"}]});
    let pieces = [
        json!({"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": call("{\"g\"")}}]}),
        json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":5}"}}]}}]}),
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
    ];
    server.script([Reply::json(whole), Reply::frames(pieces.iter().map(chunk_frame))]);
    let backend = imported(&server, rig::options());
    let request = ChatRequest::user("weigh").with_tool(FunctionTool::new("weigh", json!({"type": "object"})));
    let whole = backend.infer(&rig::context(), request.clone()).await.unwrap();
    let streamed = streamed(&backend, request).await.unwrap();
    for reply in [&whole, &streamed] {
        let choice = &reply.response.choices[0];
        assert_eq!(choice.stop_reason, StopReason::ToolUse);
        assert_eq!(choice.message.tool_uses().next().unwrap().input, json!({"g": 5}));
        assert_eq!(reply.meta.notes[0].code, "unmetered", "nobody said what was used");
    }
}

#[tokio::test]
async fn a_model_that_must_be_loaded_first_is_waited_for() {
    let server = BedrockServer::start().unwrap();
    let not_ready = || Reply::error(429, "ModelNotReadyException", "loading");
    server.script([not_ready(), not_ready(), not_ready()]);
    server.otherwise(|request| answer(request, "here"));
    let clock = Hasty::default();
    let backend = imported(&server, rig::options());
    let reply = backend.infer(&rig::context_at(clock.clone()), ChatRequest::user("hi")).await.unwrap();
    assert_eq!(reply.response.text(), "here");
    let waits = clock.waits();
    assert_eq!(waits.len(), 3);
    assert!(waits.iter().all(|wait| *wait >= Duration::from_secs(5)), "{waits:?}");
}

#[tokio::test]
async fn a_stream_that_breaks_at_any_byte_is_an_error_or_the_whole_answer() {
    let frames = chunks("Flour");
    let bytes = frames.concat();
    let stopped = frames[..frames.len() - 1].concat().len();
    let faults: [fn(usize) -> Fault; 3] =
        [Fault::EndAt, Fault::CutAt, |at| Fault::ExceptionAt(at, "throttlingException".into())];
    for fault in faults {
        let server = BedrockServer::start().unwrap();
        let frames = frames.clone();
        server.otherwise(move |request| {
            let at = request.body["at"].as_u64().unwrap() as usize;
            Reply::frames(frames.clone()).with_fault(fault(at))
        });
        let once = BedrockOptions { retry: RetryPolicy::never(), ..rig::options() };
        let backend = &imported(&server, once);
        let outcomes: Vec<_> = stream::iter(0..=bytes.len())
            .map(|at| async move {
                let extra = [("at".to_owned(), json!(at))].into_iter().collect();
                streamed(backend, ChatRequest { extra, ..ChatRequest::user("hi") }).await
            })
            .buffered(8)
            .collect()
            .await;
        for (at, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(reply) => {
                    assert!(at >= stopped, "an answer that was cut at {at} of {stopped} looks whole");
                    assert_eq!(reply.response.text(), "Flour");
                    assert!(reply.meta.usage.output_tokens == 3 || reply.meta.notes[0].code == "unmetered");
                }
                Err(error) => {
                    // An exception after the last chunk is the stream's end all the same.
                    let is_told = error.context("code").is_some();
                    assert!(at < bytes.len() || is_told, "a whole stream failed: {error}");
                    let kinds = [ErrorKind::Unavailable, ErrorKind::Corrupt, ErrorKind::RateLimited];
                    assert!(kinds.contains(&error.kind()), "{at}: {error:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_and_no_byte_leaves() {
    let server = BedrockServer::start().unwrap();
    let backend = imported(&server, rig::options());
    let long = ChatRequest::user("x".repeat(25_000_001));
    let error = backend.infer(&rig::context(), long).await.unwrap_err();
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::TooLarge, Some("25000000")), "{error}");
    let twice =
        ChatRequest { extra: [("messages".to_owned(), json!([]))].into_iter().collect(), ..ChatRequest::user("hi") };
    let error = backend.infer(&rig::context(), twice).await.unwrap_err();
    assert_eq!(error.context("field"), Some("extra.messages"), "{error}");
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn an_answer_in_another_form_is_corrupt() {
    let server = BedrockServer::start().unwrap();
    // What a model answers that was imported before the form was known.
    server.script([Reply::json(json!({"generation": "hi", "stop_reason": "stop"}))]);
    let error = imported(&server, rig::options()).infer(&rig::context(), ChatRequest::user("hi")).await.unwrap_err();
    assert_eq!((error.kind(), error.context("model")), (ErrorKind::Corrupt, Some(MODEL)), "{error}");
}

#[derive(Debug)]
struct Harness {
    server: BedrockServer,
    backend: Arc<dyn InferenceBackend<Chat>>,
}

#[async_trait]
impl InferenceHarness<Chat> for Harness {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Ok(Arc::clone(&self.backend))
    }

    fn requests(&self) -> Vec<ChatRequest> {
        vec![ChatRequest::user("What is in a sourdough starter?"), ChatRequest::user("Und auf Deutsch, süß?")]
    }

    fn invalid(&self) -> ChatRequest {
        ChatRequest::default()
    }

    fn reached(&self) -> Option<u64> {
        Some(self.server.calls() as u64)
    }
}

#[tokio::test]
async fn the_contract_is_kept() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|request| {
        let text = request.body["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
        answer(request, &format!("You said: {text}"))
    });
    let backend = Arc::new(imported(&server, rig::options()));
    inference::run(&Harness { server, backend }).await.assert();
}
