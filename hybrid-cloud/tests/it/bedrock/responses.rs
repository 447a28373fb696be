//! Answers become what core has for them, the same from a stream as whole.

use hybrid_cloud::testkit::bedrock::{Answer, BedrockServer};
use hybrid_core::{
    InferenceBackend, Reply,
    inference::collect_reply,
    task::{
        Chat, ChatRequest, Citation, CitationLocation, CitedText, ContentPart, ImagePart, Latency, Reasoning,
        ServiceTier, StopReason, ToolResult, ToolResultPart, ToolUse, ToolUseKind,
    },
};
use serde_json::{Map, Value, json};

use super::rig;

/// The reply to an answer told whole, which is the reply to the same answer as a stream.
async fn reply(answer: Answer) -> Reply<Chat> {
    let server = BedrockServer::start().unwrap();
    server.otherwise(move |_| answer.clone().into());
    let backend = rig::chat(&server, rig::NOVA);
    let whole = backend.infer(&rig::context(), ChatRequest::user("hi")).await.unwrap();
    let stream = InferenceBackend::<Chat>::stream(&backend, &rig::context(), ChatRequest::user("hi")).await.unwrap();
    let streamed = collect_reply(stream).await.unwrap();
    assert_eq!(streamed.response, whole.response);
    assert_eq!((&streamed.meta.usage, &streamed.meta.cost), (&whole.meta.usage, &whole.meta.cost));
    assert_eq!(streamed.meta.notes, whole.meta.notes);
    whole
}

async fn content(blocks: impl IntoIterator<Item = Value>) -> Vec<ContentPart> {
    let reply = reply(Answer::new(blocks)).await;
    assert_eq!(reply.meta.notes, []);
    reply.response.choices[0].message.content.clone()
}

#[tokio::test]
async fn every_kind_of_content_comes_back_both_ways() {
    let blocks = [
        json!({"reasoningContent": {"reasoningText": {"text": "let me think", "signature": "sig"}}}),
        json!({"reasoningContent": {"redactedContent": "AQID"}}),
        json!({"text": "Weighing the süß 🍞 flour"}),
        json!({"toolUse": {"toolUseId": "t-1", "name": "weigh", "input": {"what": "flour", "deep": [null, -1, 0.1, {"a": "\"}"}]}}}),
        json!({"toolUse": {"toolUseId": "t-2", "name": "search", "input": {}, "type": "server_tool_use"}}),
        json!({"toolResult": {"toolUseId": "t-2", "type": "nova", "status": "error", "content": [{"json": {"n": 1}}]}}),
        json!({"citationsContent": {"content": [{"text": "says the book"}], "citations": [
            {"title": "Bread", "source": "b", "sourceContent": [{"text": "flour"}], "location": {"web": {"url": "https://x", "domain": "x"}}},
            {"location": {"searchResultLocation": {"searchResultIndex": 1, "start": 2, "end": 3}}}
        ]}}),
        json!({"image": {"format": "png", "source": {"bytes": "AQID"}}}),
    ];
    let input = json!({"what": "flour", "deep": [null, -1, 0.1, {"a": "\"}"}]});
    let search = CitationLocation::SearchResult { search_result: Some(1), start: Some(2), end: Some(3) };
    let citations = vec![
        Citation {
            title: Some("Bread".into()),
            source: Some("b".into()),
            source_content: vec!["flour".into()],
            location: Some(CitationLocation::Web { url: Some("https://x".into()), domain: Some("x".into()) }),
            span: None,
        },
        Citation { location: Some(search), ..Citation::default() },
    ];
    let result = ToolResult {
        content: vec![ToolResultPart::Json(json!({"n": 1}))],
        kind: Some("nova".into()),
        ..ToolResult::error("t-2", "")
    };
    let expected: [ContentPart; 8] = [
        Reasoning::Text { text: "let me think".into(), signature: Some("sig".into()) }.into(),
        Reasoning::Redacted(vec![1, 2, 3].into()).into(),
        "Weighing the süß 🍞 flour".into(),
        ToolUse::new("t-1", "weigh", input).into(),
        ToolUse { kind: ToolUseKind::Server, ..ToolUse::new("t-2", "search", json!({})) }.into(),
        result.into(),
        CitedText { text: "says the book".into(), citations }.into(),
        ImagePart::new("image/png", vec![1, 2, 3]).into(),
    ];
    assert_eq!(content(blocks).await, expected);
}

#[tokio::test]
async fn the_input_of_a_tool_is_read_once_whatever_its_pieces() {
    let input = json!({"grams": 1.25, "names": ["süß", "a\\b"], "on": true});
    for piece in 1..=12 {
        let answer = Answer { piece, ..Answer::tool_use("t", "weigh", input.clone()) };
        let reply = reply(answer).await;
        let choice = &reply.response.choices[0];
        assert_eq!(choice.stop_reason, StopReason::ToolUse);
        assert_eq!(choice.message.tool_uses().next().unwrap().input, input, "pieces of {piece}");
    }
}

#[tokio::test]
async fn what_is_told_beside_the_answer_is_kept() {
    let guardrail = json!({"modelOutput": ["x"], "actionReason": "new to this version", "inputAssessment": {"g": {"topicPolicy": {"topics": []}}}});
    let trace = json!({"guardrail": guardrail, "promptRouter": {"invokedModelId": "arn:model"}});
    let more = json!({"trace": trace, "serviceTier": {"type": "flex"}, "performanceConfig": {"latency": "optimized"}});
    let Value::Object(more) = more else { unreachable!() };
    let additional = Some(json!({"stop_sequence": "###"}));
    let reply = reply(Answer { more, additional, ..Answer::text("hi") }).await;
    let details = &reply.response.details;
    assert_eq!(details.trace, Some(trace), "in the provider's own form, whole");
    assert_eq!((&details.service_tier, &details.latency), (&Some(ServiceTier::Flex), &Some(Latency::Optimized)));
    assert_eq!(details.extra, Map::from_iter([("stop_sequence".into(), json!("###"))]));
    let codes: Vec<_> = reply.meta.notes.iter().map(|note| note.code.as_str()).collect();
    assert_eq!(codes, ["routed", "price"]);
}

#[tokio::test]
async fn tokens_cached_for_an_hour_are_noted_to_cost_more() {
    let usage = json!({
        "inputTokens": 1, "outputTokens": 1, "totalTokens": 9, "cacheWriteInputTokens": 7,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 7}]
    });
    let reply = reply(Answer { usage, ..Answer::text("hi") }).await;
    assert_eq!(reply.meta.usage.cache_write_tokens, 7);
    assert_eq!(reply.meta.notes[0].code, "price");
}
