//! Requests become what Converse takes, field by field, or are refused by name.

use hybrid_cloud::{
    bedrock::ModelOptions,
    testkit::bedrock::{Answer, BedrockServer},
};
use hybrid_core::{
    ErrorKind, InferenceBackend,
    task::{
        AudioOutput, AudioPart, CachePoint, Chat, ChatRequest, Citation, CitationLocation, CitedText, ContentPart,
        CustomTool, DocumentPart, DocumentSource, FunctionTool, GuardQualifier, GuardedContent, Guardrail,
        GuardrailStreaming, GuardrailTrace, ImageDetail, ImagePart, Latency, MediaSource, Message, Modality, Reasoning,
        ReasoningOptions, ResponseFormat, Role, Sampling, SearchResult, ServiceTier, SystemPart, TextSpan, Tool,
        ToolChoice, ToolReference, ToolResult, ToolResultPart, ToolUse, ToolUseKind, Verbosity, VideoPart,
    },
};
use serde_json::{Map, Value, json};

use super::rig;

/// What the server is asked, both ways, and the notes of the reply.
async fn asked(model: ModelOptions, request: ChatRequest) -> hybrid_core::Result<(Value, Value, Vec<String>)> {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| Answer::text("hi").into());
    let backend = rig::connect(&server, rig::options()).chat(model).unwrap();
    let reply = backend.infer(&rig::context(), request.clone()).await?;
    let stream = InferenceBackend::<Chat>::stream(&backend, &rig::context(), request).await?;
    hybrid_core::inference::collect_reply(stream).await?;
    let bodies: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
    let notes = reply.meta.notes.into_iter().map(|note| format!("{} {}", note.code, note.detail)).collect();
    Ok((bodies[0].clone(), bodies[1].clone(), notes))
}

#[track_caller]
fn asks(model: &str, request: ChatRequest, expected: Value) -> impl Future<Output = ()> {
    let (model, place) = (ModelOptions::new(model), std::panic::Location::caller());
    async move {
        let (whole, streamed, notes) = asked(model, request).await.unwrap_or_else(|e| panic!("{place}: {e}"));
        assert_eq!(whole, expected, "{place}");
        assert_eq!(streamed, expected, "{place}");
        assert_eq!(notes, [""; 0], "{place}");
    }
}

/// The one message that is asked, whatever else is.
async fn message(role: Role, parts: Vec<ContentPart>) -> Value {
    let request = ChatRequest::new([Message::new(role, parts)]);
    asked(ModelOptions::new(rig::NOVA), request).await.unwrap().0["messages"][0].clone()
}

async fn refusal(model: &str, request: ChatRequest) -> String {
    let error = asked(ModelOptions::new(model), request).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput), "{error:?}");
    error.context("field").unwrap_or_else(|| panic!("no field is named: {error}")).to_owned()
}

#[tokio::test]
async fn a_short_request_is_short() {
    let expected = json!({"messages": [{"role": "user", "content": [{"text": "hi"}]}]});
    asks(rig::NOVA, ChatRequest::user("hi"), expected).await;
}

#[tokio::test]
async fn every_field_that_converse_has_is_filled() {
    let point = |ttl: Option<&str>| CachePoint { ttl: ttl.map(str::to_owned) };
    let weigh = FunctionTool { strict: Some(true), ..FunctionTool::new("weigh", json!({"type": "object"})) };
    let request = ChatRequest {
        system: vec!["be brief".into(), SystemPart::CachePoint(point(Some("1h")))],
        prompt_variables: Some([("name".into(), "Ada".into())].into()),
        tools: vec![
            weigh.with_description("weighs").into(),
            Tool::System("nova_grounding".into()),
            Tool::CachePoint(point(None)),
        ],
        tool_choice: Some(ToolChoice::Tool("weigh".into())),
        response_format: ResponseFormat::json_schema("bread", json!({"type": "object"})),
        sampling: Sampling {
            max_tokens: Some(200),
            temperature: Some(0.25),
            top_p: Some(0.75),
            top_k: Some(40),
            stop: vec!["###".into()],
            ..Sampling::default()
        },
        reasoning: ReasoningOptions { effort: Some("low".into()), budget_tokens: None },
        service_tier: Some(ServiceTier::Flex),
        latency: Some(Latency::Optimized),
        metadata: [("tenant".into(), "t1".into())].into(),
        store: Some(false),
        parallel_tool_calls: Some(true),
        extra: Map::from_iter([("inferenceConfig".into(), json!({"x": 0.5})), ("y".into(), json!([1]))]),
        extra_response_fields: vec!["/stop_sequence".into()],
        ..ChatRequest::user("hi")
    };
    let expected = json!({
        "system": [{"text": "be brief"}, {"cachePoint": {"type": "default", "ttl": "1h"}}],
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
        "promptVariables": {"name": {"text": "Ada"}},
        "toolConfig": {
            "tools": [
                {"toolSpec": {"name": "weigh", "description": "weighs", "inputSchema": {"json": {"type": "object"}}, "strict": true}},
                {"systemTool": {"name": "nova_grounding"}},
                {"cachePoint": {"type": "default"}}
            ],
            "toolChoice": {"tool": {"name": "weigh"}}
        },
        "outputConfig": {
            "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{\"type\":\"object\"}", "name": "bread"}}},
            "effort": "low"
        },
        "inferenceConfig": {"maxTokens": 200, "temperature": 0.25, "topP": 0.75, "stopSequences": ["###"]},
        "serviceTier": {"type": "flex"},
        "performanceConfig": {"latency": "optimized"},
        "requestMetadata": {"tenant": "t1"},
        "additionalModelRequestFields": {"inferenceConfig": {"topK": 40, "x": 0.5}, "y": [1]},
        "additionalModelResponseFieldPaths": ["/stop_sequence"]
    });
    asks(rig::NOVA, request, expected).await;
}

#[tokio::test]
async fn a_guardrail_goes_along_and_says_how_streams_wait_for_it() {
    let guardrail = Guardrail {
        trace: Some(GuardrailTrace::EnabledFull),
        streaming: Some(GuardrailStreaming::Async),
        ..Guardrail::new("abc", "1")
    };
    let request = ChatRequest { guardrail: Some(guardrail), ..ChatRequest::user("hi") };
    let (whole, streamed, _) = asked(ModelOptions::new(rig::NOVA), request).await.unwrap();
    let mut expected = json!({"guardrailIdentifier": "abc", "guardrailVersion": "1", "trace": "enabled_full"});
    assert_eq!(whole["guardrailConfig"], expected);
    expected["streamProcessingMode"] = "async".into();
    assert_eq!(streamed["guardrailConfig"], expected);
}

#[tokio::test]
async fn every_kind_of_content_has_its_block() {
    let image = || ImagePart::new("image/png", vec![1, 2]);
    let s3 = MediaSource::Uri { uri: "s3://bucket/key".into(), owner: Some("123456789012".into()) };
    let citation = Citation {
        title: Some("Bread".into()),
        source: Some("book".into()),
        source_content: vec!["flour".into()],
        location: Some(CitationLocation::DocumentPage { document: Some(0), start: Some(3), end: None }),
        span: None,
    };
    let result = SearchResult { source: "a".into(), title: "b".into(), content: vec!["c".into()], citations: true };
    let server = ToolUse { kind: ToolUseKind::Server, ..ToolUse::new("s-1", "search", json!({"q": 1.5})) };
    let chunks = DocumentPart {
        source: DocumentSource::Chunks(vec!["x".into(), "y".into()]),
        context: Some("old".into()),
        citations: true,
        ..DocumentPart::text("notes", "-")
    };
    let guarded = GuardedContent::Text { text: "g".into(), qualifiers: vec![GuardQualifier::Query] };
    let reference = ToolReference { kind: None, name: Some("weigh".into()), server: Some("s".into()) };
    let results = ToolResult {
        content: vec![
            ToolResultPart::Text("ok".into()),
            ToolResultPart::Json(json!({"grams": 5})),
            ToolResultPart::Image(image()),
            ToolResultPart::SearchResult(SearchResult { citations: false, ..result.clone() }),
        ],
        ..ToolResult::error("t-1", "")
    };
    for (part, block) in [
        (ContentPart::Text("a".into()), json!({"text": "a"})),
        (ContentPart::Refusal("no".into()), json!({"text": "no"})),
        (image().into(), json!({"image": {"format": "png", "source": {"bytes": "AQI="}}})),
        (
            ImagePart::new("image/jpeg", s3.clone()).into(),
            json!({"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket/key", "bucketOwner": "123456789012"}}}}),
        ),
        (
            AudioPart::new("audio/mpeg", vec![1]).into(),
            json!({"audio": {"format": "mp3", "source": {"bytes": "AQ=="}}}),
        ),
        (
            VideoPart::new("video/3gpp", vec![1]).into(),
            json!({"video": {"format": "three_gp", "source": {"bytes": "AQ=="}}}),
        ),
        (
            DocumentPart::file("recipe", "application/pdf", vec![1]).into(),
            json!({"document": {"format": "pdf", "name": "recipe", "source": {"bytes": "AQ=="}}}),
        ),
        (
            DocumentPart::file("recipe", "text/plain; charset=utf-8", s3).into(),
            json!({"document": {"format": "txt", "name": "recipe", "source": {"s3Location": {"uri": "s3://bucket/key", "bucketOwner": "123456789012"}}}}),
        ),
        (
            chunks.into(),
            json!({"document": {"format": "txt", "name": "notes", "source": {"content": [{"text": "x"}, {"text": "y"}]}, "context": "old", "citations": {"enabled": true}}}),
        ),
        (
            result.into(),
            json!({"searchResult": {"source": "a", "title": "b", "content": [{"text": "c"}], "citations": {"enabled": true}}}),
        ),
        (
            Reasoning::Text { text: "hm".into(), signature: Some("sig".into()) }.into(),
            json!({"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}}),
        ),
        (Reasoning::Redacted(vec![1].into()).into(), json!({"reasoningContent": {"redactedContent": "AQ=="}})),
        (
            ToolUse::new("t-1", "weigh", json!({"grams": 500, "deep": [null, -1, 0.5]})).into(),
            json!({"toolUse": {"toolUseId": "t-1", "name": "weigh", "input": {"grams": 500, "deep": [null, -1, 0.5]}}}),
        ),
        (
            server.into(),
            json!({"toolUse": {"toolUseId": "s-1", "name": "search", "input": {"q": 1.5}, "type": "server_tool_use"}}),
        ),
        (
            results.into(),
            json!({"toolResult": {"toolUseId": "t-1", "status": "error", "content": [
                {"text": "ok"}, {"json": {"grams": 5}}, {"image": {"format": "png", "source": {"bytes": "AQI="}}},
                {"searchResult": {"source": "a", "title": "b", "content": [{"text": "c"}]}}
            ]}}),
        ),
        (
            CitedText { text: "bread".into(), citations: vec![citation] }.into(),
            json!({"citationsContent": {"content": [{"text": "bread"}], "citations": [{
                "title": "Bread", "source": "book", "sourceContent": [{"text": "flour"}],
                "location": {"documentPage": {"documentIndex": 0, "start": 3}}
            }]}}),
        ),
        (guarded.into(), json!({"guardContent": {"text": {"text": "g", "qualifiers": ["query"]}}})),
        (
            GuardedContent::Image(image()).into(),
            json!({"guardContent": {"image": {"format": "png", "source": {"bytes": "AQI="}}}}),
        ),
        (CachePoint::default().into(), json!({"cachePoint": {"type": "default"}})),
        (
            ContentPart::ToolAddition(reference.clone()),
            json!({"toolAddition": {"tool": {"name": "weigh", "serverName": "s"}}}),
        ),
        (ContentPart::ToolRemoval(reference), json!({"toolRemoval": {"tool": {"name": "weigh", "serverName": "s"}}})),
    ] {
        assert_eq!(message(Role::User, vec![part]).await["content"][0], block);
    }
}

#[tokio::test]
async fn roles_become_those_that_converse_has() {
    for (role, expected) in [
        (Role::User, "user"),
        (Role::Tool, "user"),
        (Role::Assistant, "assistant"),
        (Role::System, "system"),
        (Role::Developer, "system"),
    ] {
        assert_eq!(message(role, vec!["hi".into()]).await["role"], expected);
    }
}

#[tokio::test]
async fn neighbours_of_one_role_are_one_turn() {
    let call = |id| ToolUse::new(id, "weigh", json!({}));
    let request = ChatRequest::new([
        Message::user("hello?"),
        Message::user("two loaves"),
        Message::new(Role::Assistant, [call("a"), call("b")]),
        Message::tool_result("a", "5"),
        Message::tool_result("b", "7"),
        Message::user(" "),
    ]);
    let turns = asked(ModelOptions::new(rig::NOVA), request).await.unwrap().0["messages"].take();
    let roles: Vec<_> = turns.as_array().unwrap().iter().map(|turn| turn["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user"], "{turns}");
    assert_eq!(turns[0]["content"], json!([{"text": "hello?"}, {"text": "two loaves"}]));
    let results: Vec<_> = turns[2]["content"].as_array().unwrap().iter().map(|part| &part["toolResult"]).collect();
    assert_eq!((results.len(), &results[0]["toolUseId"], &results[1]["toolUseId"]), (2, &json!("a"), &json!("b")));
}

#[tokio::test]
async fn documents_have_names_that_converse_takes() {
    for (given, expected) in [
        ("invoice.pdf", "invoice"),
        ("Angebot für Müller  & Söhne (neu).docx", "Angebot f-r M-ller - S-hne (neu)"),
        ("v1.2 notes", "v1-2 notes"),
        ("報告.pdf", "--"),
        (".pdf", "document"),
        (&"n".repeat(300), &"n".repeat(200)),
    ] {
        let part = DocumentPart::file(given, "application/pdf", vec![1]);
        assert_eq!(message(Role::User, vec![part.into()]).await["content"][0]["document"]["name"], expected);
    }
}

#[tokio::test]
async fn what_is_no_object_goes_where_converse_takes_objects_alone() {
    let request = ChatRequest::new([
        Message::user("hi"),
        Message::new(Role::Assistant, [ToolUse::new("t", "weigh", json!("{\"loaf\": "))]),
        Message::new(Role::Tool, [ToolResult::json("t", json!([1, 2]))]),
    ]);
    let (body, _, notes) = asked(ModelOptions::new(rig::NOVA), request).await.unwrap();
    assert_eq!(body["messages"][1]["content"][0]["toolUse"]["input"], json!({ "raw": "{\"loaf\": " }));
    assert_eq!(body["messages"][2]["content"][0]["toolResult"]["content"], json!([{ "text": "[1,2]" }]));
    assert!(notes.len() == 1 && notes[0].contains("messages[1].content[0].input"), "{notes:?}");
}

#[tokio::test]
async fn choices_of_tools_are_kept() {
    let tools = || ["a", "b", "c"].map(|name| Tool::from(FunctionTool::new(name, json!({"type": "object"})))).to_vec();
    let config = async |choice: Option<ToolChoice>| {
        let request = ChatRequest { tools: tools(), tool_choice: choice, ..ChatRequest::user("hi") };
        asked(ModelOptions::new(rig::NOVA), request).await.unwrap().0["toolConfig"].clone()
    };
    let names = |config: &Value| -> String {
        let tools = config["tools"].as_array().cloned().unwrap_or_default();
        tools.iter().map(|tool| tool["toolSpec"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(config(None).await["toolChoice"], Value::Null);
    assert_eq!(config(Some(ToolChoice::Auto)).await["toolChoice"], json!({"auto": {}}));
    assert_eq!(config(Some(ToolChoice::Required)).await["toolChoice"], json!({"any": {}}));
    assert_eq!(config(Some(ToolChoice::None)).await, Value::Null, "a model that knows no tool calls none");
    let among = vec!["a".to_owned(), "c".to_owned()];
    let some = config(Some(ToolChoice::RequiredAmong(among.clone()))).await;
    assert_eq!((names(&some).as_str(), &some["toolChoice"]), ("ac", &json!({"any": {}})));
    let some = config(Some(ToolChoice::AutoAmong(among))).await;
    assert_eq!((names(&some).as_str(), &some["toolChoice"]), ("ac", &json!({"auto": {}})));
}

#[tokio::test]
async fn what_a_model_has_beside_converse_goes_where_it_has_it() {
    let sampling = Sampling { top_k: Some(5), ..Sampling::default() };
    let reasoning = ReasoningOptions { budget_tokens: Some(2048), effort: None };
    let request = ChatRequest { sampling, reasoning, ..ChatRequest::user("hi") };
    let body = asked(ModelOptions::new(rig::CLAUDE), request.clone()).await.unwrap().0;
    let expected = json!({"top_k": 5, "thinking": {"type": "enabled", "budget_tokens": 2048}});
    assert_eq!(body["additionalModelRequestFields"], expected);

    let additional =
        [("top_k", "/k"), ("reasoning_budget", "/think/tokens")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let own = ModelOptions { additional: additional.into(), ..ModelOptions::new("somebody.model-v1") };
    let body = asked(own, request).await.unwrap().0;
    assert_eq!(body["additionalModelRequestFields"], json!({"k": 5, "think": {"tokens": 2048}}));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_by_name() {
    let base = || ChatRequest::user("hi");
    let sampling = |sampling| ChatRequest { sampling, ..base() };
    let says = |part: ContentPart| ChatRequest::new([Message::new(Role::User, [part])]);
    let with_history = ChatRequest::new([
        Message::user("hi"),
        Message::new(Role::Assistant, [ToolUse::new("t", "weigh", json!({}))]),
        Message::tool_result("t", "5"),
    ]);
    let tool = || Tool::from(FunctionTool::new("weigh", json!({"type": "object"})));
    let s = Sampling::default;
    for (field, request) in [
        ("sampling.n", sampling(Sampling { n: Some(2), ..s() })),
        ("sampling.logprobs", sampling(Sampling { logprobs: Some(0), ..s() })),
        ("sampling.temperature", sampling(Sampling { temperature: Some(1.5), ..s() })),
        ("sampling.top_k", sampling(Sampling { top_k: Some(5), ..s() })),
        ("sampling.min_p", sampling(Sampling { min_p: Some(0.1), ..s() })),
        ("sampling.frequency_penalty", sampling(Sampling { frequency_penalty: Some(0.1), ..s() })),
        ("sampling.presence_penalty", sampling(Sampling { presence_penalty: Some(0.1), ..s() })),
        ("sampling.repetition_penalty", sampling(Sampling { repetition_penalty: Some(1.1), ..s() })),
        ("sampling.seed", sampling(Sampling { seed: Some(1), ..s() })),
        ("sampling.logit_bias", sampling(Sampling { logit_bias: [(1, 1.0)].into(), ..s() })),
        ("sampling.max_tokens", sampling(Sampling { max_tokens: Some(u32::MAX), ..s() })),
        (
            "reasoning.budget_tokens",
            ChatRequest { reasoning: ReasoningOptions { budget_tokens: Some(1), effort: None }, ..base() },
        ),
        ("modalities", ChatRequest { modalities: vec![Modality::Text, Modality::Image], ..base() }),
        (
            "audio",
            ChatRequest { audio: Some(AudioOutput { voice: "a".into(), media_type: "audio/wav".into() }), ..base() },
        ),
        ("store", ChatRequest { store: Some(true), ..base() }),
        ("parallel_tool_calls", ChatRequest { parallel_tool_calls: Some(false), ..base() }),
        ("verbosity", ChatRequest { verbosity: Some(Verbosity::Low), ..base() }),
        ("response_format", ChatRequest { response_format: ResponseFormat::Json, ..base() }),
        ("service_tier", ChatRequest { service_tier: Some(ServiceTier::Scale), ..base() }),
        ("tool_choice", ChatRequest { tools: vec![tool()], tool_choice: Some(ToolChoice::None), ..with_history }),
        (
            "tools[0]",
            ChatRequest { tools: vec![CustomTool { name: "say".into(), ..CustomTool::default() }.into()], ..base() },
        ),
        ("tools[0].name", ChatRequest { tools: vec![Tool::System("a.b".into())], ..base() }),
        ("metadata", ChatRequest { metadata: [("a".into(), "ö".into())].into(), ..base() }),
        ("metadata", ChatRequest { metadata: (0..17).map(|i| (i.to_string(), String::new())).collect(), ..base() }),
        ("extra_response_fields", ChatRequest { extra_response_fields: vec!["x".into()], ..base() }),
        ("messages[0].content[0].media_type", says(ImagePart::new("image/tiff", vec![1]).into())),
        ("messages[0].content[0].source", says(ImagePart::new("image/png", MediaSource::uri("https://x/y")).into())),
        ("messages[0].content[0].source", says(ImagePart::new("image/png", MediaSource::Id("f".into())).into())),
        ("messages[0].content[0].id", says(ToolUse::new("a b", "weigh", json!({})).into())),
        (
            "messages[0].content[0].kind",
            says(ToolUse { kind: ToolUseKind::Custom, ..ToolUse::new("a", "weigh", json!("x")) }.into()),
        ),
        (
            "messages[0].content[0].content[0]",
            says(
                ToolResult {
                    content: vec![ToolResultPart::Audio(AudioPart::new("audio/wav", vec![1]))],
                    ..ToolResult::text("t", "")
                }
                .into(),
            ),
        ),
        ("messages[0].content", says(" ".into())),
    ] {
        assert_eq!(refusal("somebody.model-v1", request).await, field);
    }
    let twice = ChatRequest {
        extra: Map::from_iter([("top_k".into(), json!(6))]),
        ..sampling(Sampling { top_k: Some(5), ..s() })
    };
    assert_eq!(refusal(rig::CLAUDE, twice).await, "extra.top_k");
}

#[tokio::test]
async fn hints_that_are_left_out_are_noted() {
    let named = Message { name: Some("Ada".into()), ..Message::user("hi") };
    let closely = ImagePart { detail: Some(ImageDetail::High), ..ImagePart::new("image/png", vec![1]) };
    let spanned = Citation { span: Some(TextSpan { start: 0, end: 1 }), ..Citation::default() };
    let cited = CitedText { text: "x".into(), citations: vec![spanned] };
    let request = ChatRequest {
        prediction: Some("the same".into()),
        prompt_cache_key: Some("k".into()),
        user: Some("u".into()),
        ..ChatRequest::new([named.with(closely).with(cited).with(" ")])
    };
    let notes = asked(ModelOptions::new(rig::NOVA), request).await.unwrap().2;
    let fields: Vec<_> = notes.iter().map(|note| note.split(':').next().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "ignored prediction",
            "ignored prompt_cache_key",
            "ignored user",
            "ignored messages[0].name",
            "ignored messages[0].content[1].detail",
            "ignored messages[0].content[2].citations[0].span",
            "ignored messages[0].content[3]",
        ]
    );
}

#[tokio::test]
async fn a_models_arn_reaches_its_path_whole() {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| Answer::text("hi").into());
    let arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdef123456";
    rig::chat(&server, arn).infer(&rig::context(), ChatRequest::user("hi")).await.unwrap();
    let request = &server.requests()[0];
    assert_eq!((request.model(), request.operation()), (arn, "converse"));
    assert!(request.header("authorization").unwrap().contains("/us-east-1/bedrock/aws4_request"));
}
