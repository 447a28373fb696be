//! What servers do differently, and what both sides of the wire agree on. The whole round trip is in the integration tests.

use hybrid_core::{
    Error, ErrorKind, Result, Task, Usage,
    task::{BlockDelta, Chat, ChatDelta, ChatResponse, ContentPart, StopReason, ToolUse},
};
use serde_json::{Value, json};

use super::{AnswerReader, AnswerWriter, Chunk, CompletionRequest, Heading, caller_words, read_request};

fn read(chunks: impl IntoIterator<Item = Value>) -> Result<(ChatResponse, Option<Usage>)> {
    let mut reader = AnswerReader::new("r-1", None);
    let mut deltas = Vec::new();
    for chunk in chunks {
        let chunk: Chunk = serde_json::from_value(chunk).unwrap();
        deltas.extend(reader.read(chunk)?);
    }
    let usage = reader.finish()?;
    Ok((Chat::fold(deltas)?, usage))
}

fn delta(delta: Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta }] })
}

fn end(reason: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] })
}

fn calls(response: &ChatResponse) -> Vec<(String, String, Value)> {
    let calls = response.choices[0].message.tool_uses();
    calls.map(|ToolUse { id, name, input, .. }| (id.clone(), name.clone(), input.clone())).collect()
}

fn fragment(call: Value) -> Value {
    delta(json!({ "tool_calls": [call] }))
}

#[test]
fn calls_are_told_apart_however_a_server_numbers_them() {
    let function = |name: &str, arguments: &str| json!({ "name": name, "arguments": arguments });
    let expected = |a: &str, b: &str| {
        vec![(a.to_owned(), "f".to_owned(), json!({ "a": 1 })), (b.to_owned(), "g".to_owned(), json!({}))]
    };
    // OpenAI: an index in every fragment, the id in the first.
    let (response, _) = read([
        fragment(json!({ "index": 0, "id": "x", "type": "function", "function": function("f", "") })),
        fragment(json!({ "index": 0, "function": { "arguments": "{\"a\"" } })),
        fragment(json!({ "index": 1, "id": "y", "type": "function", "function": function("g", "") })),
        fragment(json!({ "index": 0, "function": { "arguments": ":1}" } })),
        fragment(json!({ "index": 1, "function": { "arguments": "{}" } })),
        end("tool_calls"),
    ])
    .unwrap();
    assert_eq!(calls(&response), expected("x", "y"));
    // Every call whole and with the index 0.
    let (response, _) = read([
        fragment(json!({ "index": 0, "id": "x", "function": function("f", "{\"a\":1}") })),
        fragment(json!({ "index": 0, "id": "y", "function": function("g", "{}") })),
        end("stop"),
    ])
    .unwrap();
    assert_eq!(calls(&response), expected("x", "y"));
    assert_eq!(response.choices[0].stop_reason, StopReason::ToolUse);
    // No indices, no ids, arguments as JSON: the ids are made up.
    let (response, _) = read([
        fragment(json!({ "function": { "name": "f", "arguments": { "a": 1 } } })),
        fragment(json!({ "function": function("g", "") })),
        end("tool_calls"),
    ])
    .unwrap();
    assert_eq!(calls(&response), expected("call_r-1_0_0", "call_r-1_0_1"));
    // A call without a name cannot be carried out.
    let nameless = read([fragment(json!({ "index": 0, "id": "x" })), end("tool_calls")]).unwrap_err();
    assert_eq!(nameless.kind(), ErrorKind::Corrupt);
}

#[test]
fn arguments_that_are_no_json_are_corrupt_unless_the_model_was_cut_off() {
    let cut = |reason: &str| {
        let call = json!({ "index": 0, "id": "x", "function": { "name": "f", "arguments": "{\"a\":" } });
        read([fragment(call), end(reason)])
    };
    assert_eq!(cut("tool_calls").unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(calls(&cut("length").unwrap().0)[0].2, json!("{\"a\":"));
}

#[test]
fn a_whole_answer_and_its_stream_are_one_message_whatever_comes_first() {
    let whole = json!({
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "yes", "reasoning_content": "hm" },
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 10, "completion_tokens": 3,
            "prompt_tokens_details": { "cached_tokens": 4 },
            "completion_tokens_details": { "reasoning_tokens": 2 },
        },
    });
    let (first, usage) = read([whole]).unwrap();
    let usage = usage.unwrap();
    assert_eq!((usage.input_tokens, usage.cache_read_tokens, usage.output_tokens), (6, 4, 3));
    assert_eq!(usage.reasoning_tokens, 2);
    let (second, none) = read([
        delta(json!({ "role": "assistant", "content": "" })),
        delta(json!({ "content": "yes" })),
        delta(json!({ "reasoning": "hm" })),
        end("stop"),
    ])
    .unwrap();
    assert_eq!((second, none), (first, None));
}

#[test]
fn an_answer_that_says_nothing_can_be_sent_back() {
    let (response, _) = read([delta(json!({ "role": "assistant" })), end("stop")]).unwrap();
    assert_eq!(response.choices[0].message.content, [ContentPart::Text(String::new())]);
}

#[test]
fn harmless_extras_after_the_end_are_passed_over_and_others_are_not() {
    let usage = json!({
        "choices": [{ "index": 0, "delta": { "content": "" }, "finish_reason": null }],
        "usage": { "prompt_tokens": 1 },
    });
    assert!(read([delta(json!({ "content": "a" })), end("stop"), usage]).is_ok());
    assert!(read([delta(json!({ "content": "a" })), end("stop"), delta(json!({ "content": "b" }))]).is_err());
    // An empty reason is no reason.
    assert!(read([delta(json!({ "content": "a" })), end("")]).is_err());
}

#[test]
fn arguments_of_earlier_calls_come_in_as_they_were_written() {
    let call = |arguments: &str| {
        let calls = json!([{ "id": "c", "type": "function", "function": { "name": "f", "arguments": arguments } }]);
        let body =
            json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "tool_calls": calls }] });
        let request = read_request(serde_json::from_value::<CompletionRequest>(body).unwrap()).unwrap().request;
        request.messages[1].tool_uses().next().unwrap().input.clone()
    };
    assert_eq!(call("{\"a\": 1}"), json!({ "a": 1 }));
    assert_eq!(call(""), json!({}));
    assert_eq!(call("{\"a\":"), json!("{\"a\":"));
}

#[test]
fn refusals_name_what_the_caller_sent() {
    let renamed = |field: &str, lead: usize| {
        let error = caller_words(Error::invalid("validate", "is bad").with("field", field), lead);
        error.context("field").unwrap().to_owned()
    };
    assert_eq!(renamed("messages[1].content[0]", 2), "messages[3].content[0]");
    assert_eq!(renamed("messages[1].content[0]", 0), "messages[1].content[0]");
    assert_eq!(renamed("sampling.top_p", 0), "top_p");
    assert_eq!(renamed("sampling.max_tokens", 0), "max_completion_tokens");
    assert_eq!(renamed("tools[2].input_schema", 0), "tools[2].function.parameters");
    assert_eq!(renamed("response_format.schema", 0), "response_format.json_schema.schema");
}

#[test]
fn a_streamed_call_without_arguments_ends_with_an_empty_object() {
    let start = |block, id: &str| ChatDelta::BlockStart {
        choice: 0,
        block,
        part: ToolUse { input: Value::Null, ..ToolUse::new(id, "now", json!({})) }.into(),
    };
    let input = ChatDelta::Block { choice: 0, block: 1, delta: BlockDelta::ToolInput("{\"at\":1}".to_owned()) };
    let heading = Heading { id: "c".to_owned(), created: 0, model: "m".to_owned() };
    let mut writer = AnswerWriter::new(heading, false);
    let deltas = [
        start(0, "a"),
        ChatDelta::BlockStop { choice: 0, block: 0 },
        start(1, "b"),
        input,
        ChatDelta::BlockStop { choice: 0, block: 1 },
        // One that nobody said was whole.
        start(2, "c"),
        ChatDelta::Stop { choice: 0, reason: StopReason::ToolUse, sequence: None },
    ];
    let mut arguments = [String::new(), String::new(), String::new()];
    for chunk in deltas.into_iter().flat_map(|delta| writer.write(delta)) {
        let calls = chunk.choices.into_iter().flat_map(|choice| choice.delta.tool_calls.unwrap_or_default());
        for call in calls {
            let told = call.function.unwrap().arguments.unwrap();
            arguments[call.index.unwrap() as usize].push_str(told.as_str().unwrap());
        }
    }
    assert_eq!(arguments, ["{}", "{\"at\":1}", "{}"]);
}
