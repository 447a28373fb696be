//! `POST /v1/responses`, stateless by translation to chat.

use std::sync::Arc;

use axum::Router;
use http_body_util::BodyExt;
use hybrid_core::{
    memory::ScriptedBackend,
    task::{
        Chat, ChatRequest, ChatResponse, Choice, ContentPart, FunctionTool, Message, Reasoning, ResponseFormat, Role,
        StopReason, ToolChoice, ToolUse,
    },
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{
    media::says,
    rig::{builder, call, noon, post, soon},
};

const PATH: &str = "/v1/responses";

fn app(backend: Arc<ScriptedBackend<Chat>>) -> Router {
    builder(&noon()).chat("loaf-1", backend).build().unwrap().router()
}

fn answers(message: Message, reason: StopReason) -> Arc<ScriptedBackend<Chat>> {
    let answer = ChatResponse { choices: vec![Choice::new(message, reason)], ..ChatResponse::default() };
    Arc::new(ScriptedBackend::new("scripted", [Ok(answer.clone()), Ok(answer)]))
}

async fn events(router: &Router, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let response = soon(router.clone().oneshot(post(PATH, body.to_string()))).await.unwrap();
    assert_eq!(response.status(), 200);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_conversation_arrives_as_chat() {
    let backend = says("yes");
    let router = app(backend.clone());
    let body = json!({
        "model": "loaf-1",
        "instructions": "Be brief.",
        "input": [
            { "role": "developer", "content": "You bake." },
            { "role": "user", "content": [{ "type": "input_text", "text": "hi" }, { "type": "input_image", "image_url": "data:image/png;base64,AQID", "detail": "auto" }] },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "hm" }] },
            { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "weighing", "annotations": [] }] },
            { "type": "function_call", "call_id": "c1", "name": "weigh", "arguments": "{\"grams\":5}" },
            { "type": "function_call_output", "call_id": "c1", "output": "5 g" },
            { "role": "user", "content": "go on" },
        ],
        "tools": [{ "type": "function", "name": "weigh", "parameters": { "type": "object" }, "strict": true }],
        "tool_choice": { "type": "function", "name": "weigh" },
        "text": { "format": { "type": "json_schema", "name": "loaf", "schema": {}, "strict": true } },
        "max_output_tokens": 9,
        "store": false,
        "include": ["reasoning.encrypted_content"],
    });
    let answer = call(&router, post(PATH, body.to_string())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let turn = Message::new(Role::Assistant, [ContentPart::from(Reasoning::text("hm")), "weighing".into()]);
    let expected = ChatRequest {
        messages: vec![
            Message::user("hi").with(hybrid_core::task::ImagePart::new("image/png", vec![1, 2, 3])),
            turn.with(ToolUse::new("c1", "weigh", json!({ "grams": 5 }))),
            Message::tool_result("c1", "5 g"),
            Message::user("go on"),
        ],
        tools: vec![
            FunctionTool { strict: Some(true), ..FunctionTool::new("weigh", json!({ "type": "object" })) }.into(),
        ],
        tool_choice: Some(ToolChoice::Tool("weigh".into())),
        response_format: ResponseFormat::json_schema("loaf", json!({})),
        ..ChatRequest::default()
    };
    let mut expected = expected.with_system("Be brief.").with_system("You bake.");
    expected.sampling.max_tokens = Some(9);
    assert_eq!(backend.asked(), [expected]);
}

#[tokio::test]
async fn an_answer_has_the_apis_form() {
    let mut request = post(PATH, json!({ "model": "loaf-1", "input": "hi" }).to_string());
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    let answer = call(&app(says("Two loaves.")), request).await.body;
    let message = json!({
        "type": "message", "id": "msg_r-1_0", "status": "completed", "role": "assistant",
        "content": [{ "type": "output_text", "text": "Two loaves.", "annotations": [], "logprobs": [] }],
    });
    assert_eq!(answer["output"], json!([message]));
    for (field, value) in [
        ("id", json!("resp_r-1")),
        ("object", json!("response")),
        ("status", json!("completed")),
        ("store", json!(false)),
        ("error", Value::Null),
        ("previous_response_id", Value::Null),
        ("tool_choice", json!("auto")),
        ("text", json!({ "format": { "type": "text" } })),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }
    assert_eq!(answer["usage"]["input_tokens_details"], json!({ "cached_tokens": 0, "cache_write_tokens": 0 }));
}

#[tokio::test]
async fn a_stream_names_its_events_in_order_and_ends_as_the_whole_answer() {
    let message = Message::new(Role::Assistant, [ContentPart::from(Reasoning::text("hm")), "weighing".into()])
        .with(ToolUse::new("c1", "weigh", json!({ "grams": 5 })));
    let router = app(answers(message, StopReason::ToolUse));
    let whole = call(&router, post(PATH, json!({ "input": "hi" }).to_string())).await.body;
    let events = events(&router, json!({ "input": "hi" })).await;
    let names: Vec<_> =
        events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect();
    assert_eq!(
        names,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    // The same answer both ways, but for the ids, which are made of the request's.
    let plain = |response: &Value| {
        response["output"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| {
                let mut item = item.clone();
                item["id"] = Value::Null;
                item
            })
            .collect::<Vec<_>>()
    };
    let last = &events.last().unwrap()["response"];
    assert_eq!((plain(last), &last["status"]), (plain(&whole), &json!("completed")));
    let items: Vec<_> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
    assert_eq!(
        items.iter().map(|event| event["item"].clone()).collect::<Vec<_>>(),
        *last["output"].as_array().unwrap()
    );
}

#[tokio::test]
async fn an_answer_that_is_not_whole_says_so() {
    for (reason, status, why) in [
        (StopReason::MaxTokens, "incomplete", "max_output_tokens"),
        (StopReason::ContentFiltered, "incomplete", "content_filter"),
    ] {
        let router = app(answers(Message::assistant("cut"), reason));
        let whole = call(&router, post(PATH, json!({ "input": "hi" }).to_string())).await.body;
        let events = events(&router, json!({ "input": "hi" })).await;
        for response in [&whole, &events.last().unwrap()["response"]] {
            assert_eq!((&response["status"], &response["incomplete_details"]["reason"]), (&json!(status), &json!(why)));
            assert_eq!(response["output"][0]["status"], "incomplete");
        }
        assert_eq!(events.last().unwrap()["type"], "response.incomplete");
    }
    let router = app(answers(Message::assistant("?"), StopReason::MalformedToolUse));
    assert_eq!(call(&router, post(PATH, json!({ "input": "hi" }).to_string())).await.status, 500);
    assert_eq!(events(&router, json!({ "input": "hi" })).await.last().unwrap()["type"], "response.failed");
}

#[tokio::test]
async fn what_needs_a_memory_or_a_provider_is_refused_by_name() {
    let backend = says("yes");
    let router = app(backend.clone());
    for (field, value, param) in [
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("conversation", json!("conv_1"), "conversation"),
        ("store", json!(true), "store"),
        ("background", json!(true), "background"),
        ("prompt", json!({ "id": "p" }), "prompt"),
        ("truncation", json!("auto"), "truncation"),
        ("tools", json!([{ "type": "web_search" }]), "tools[0].type"),
        ("tool_choice", json!({ "type": "file_search" }), "tool_choice.type"),
        ("input", json!([{ "type": "item_reference", "id": "msg_1" }]), "input[0]"),
        ("input", json!([{ "type": "computer_call" }]), "input[0].type"),
        (
            "input",
            json!([{ "role": "user", "content": [{ "type": "input_file", "file_url": "http://a" }] }]),
            "input[0].content[0].file_url",
        ),
        ("input", json!([]), "input"),
        ("input", Value::Null, "input"),
        ("max_output_tokens", json!(0), "max_output_tokens"),
        ("temperature", json!(-1), "temperature"),
    ] {
        let mut body = json!({ "input": "hi" });
        body[field] = value;
        let answer = call(&router, post(PATH, body.to_string())).await;
        assert_eq!((answer.status, answer.error("param")), (400, param), "{answer:?}");
    }
    assert!(backend.asked().is_empty());
}
