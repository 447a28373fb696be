//! Answers of random weights that have to have a form: what they say has no meaning, its form is right.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::quantized::GgmlDType;
use hybrid_core::{
    ErrorKind, Task, Timestamp,
    task::{
        Chat, ChatRequest, ChatResponse, ContentPart, FunctionTool, ReasoningEffort, ResponseFormat, Sampling,
        StopReason, ToolChoice,
    },
};
use serde_json::{Value, json};

use super::{fixture, gguf::Source, network};
use crate::decoder::{
    codec::Codec,
    constraint::Constraint,
    files::ModelFiles,
    network::{Cache, Network, Part, Wanted},
    template::Templates,
    tokens::Tokens,
    writer::Writer,
};

struct Model {
    network: Network,
    codec: Codec,
}

fn model(path: &Path, change: impl FnOnce(&mut ModelFiles)) -> Model {
    let mut files = ModelFiles::open(path).unwrap();
    files.config.context = 1_000;
    change(&mut files);
    let network = network(&files);
    let ModelFiles { config, tokenizer, templates, defaults, .. } = files;
    let tokens = Tokens::new(tokenizer, config.vocabulary).unwrap();
    Model { network, codec: Codec::new(tokens, Templates::compile(templates).unwrap(), defaults, config.context) }
}

impl Model {
    fn answer(&self, request: ChatRequest) -> ChatResponse {
        let seed = request.sampling.seed.unwrap();
        let prepared = Arc::new(self.codec.prepare(request, Timestamp::UNIX_EPOCH).unwrap());
        let (mut cache, mut deltas): (Cache, _) = (self.network.cache(self.codec.context()), Vec::new());
        let mut writer = Writer::new(&self.codec, &prepared, seed, 0);
        let mut next = prepared.prompt.clone();
        loop {
            let part = Part { tokens: &next, cache: &mut cache, wanted: Wanted::Last, adapter: None };
            let logits = self.network.forward(&mut [part]).unwrap().remove(0);
            match writer.write(&self.codec, logits, &mut deltas).unwrap() {
                Some(token) => next = vec![token],
                None => return Chat::fold(deltas).unwrap(),
            }
        }
    }
}

fn request(seed: u64) -> ChatRequest {
    let sampling = Sampling { temperature: Some(1.0), seed: Some(seed), max_tokens: Some(150), ..Sampling::default() };
    ChatRequest { sampling, ..ChatRequest::user("rolls?") }
}

fn order() -> Value {
    json!({
        "type": "object",
        "properties": {
            "what": {"enum": ["roll", "loaf", "zwölf \"Brötchen\""]},
            "count": {"type": "integer", "minimum": 1, "maximum": 40},
            "fresh": {"type": "boolean"},
        },
        "required": ["what", "count", "fresh"],
        "additionalProperties": false,
    })
}

/// Schemas whose texts are short, so that most end by themselves.
fn schemas() -> Vec<Value> {
    let note = json!({"type": "string", "maxLength": 8});
    vec![
        order(),
        json!({"type": "array", "items": {"$ref": "#/$defs/order"}, "minItems": 1, "maxItems": 2, "$defs": {"order": order()}}),
        json!({
            "type": "object",
            "properties": {"note": note, "by": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]{2,5}$"}]}},
            "required": ["note"],
            "additionalProperties": false,
        }),
        json!({"type": "string", "format": "date"}),
        json!({"oneOf": [{"const": "closed"}, {"type": "object", "properties": {"hour": {"type": "integer", "minimum": 6, "maximum": 20}}, "required": ["hour"], "additionalProperties": false}]}),
    ]
}

#[test]
fn two_hundred_answers_of_several_schemas_fit_them() {
    let models = ["qwen2", "llama", "mistral", "qwen3"].map(|name| model(&fixture(name), |_| {}));
    let schemas = schemas();
    let mut by_end = BTreeMap::<bool, usize>::new();
    for seed in 0..200 {
        let schema = &schemas[seed % schemas.len()];
        let model = &models[seed / schemas.len() % models.len()];
        let mut request = request(seed as u64);
        request.response_format = ResponseFormat::json_schema("order", schema.clone());
        request.sampling.temperature = Some([0.0, 0.7, 1.5][seed % 3]);
        let choice = model.answer(request).choices.remove(0);
        let text = choice.message.text();
        let ended = choice.stop_reason == StopReason::EndTurn;
        *by_end.entry(ended).or_default() += 1;
        if ended {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert!(jsonschema::is_valid(schema, &value), "{schema}: {text}");
        } else {
            assert_eq!(choice.stop_reason, StopReason::MaxTokens, "{text:?}");
        }
    }
    assert!(by_end[&true] >= 150, "{by_end:?}");
}

#[test]
fn tokenizers_that_fall_back_to_bytes_keep_to_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = |name: &'static str| {
        let path = folder.path().join(format!("{name}.gguf"));
        Source::fixture(name).write(&path, GgmlDType::F32, |_| {});
        model(&path, |_| {})
    };
    let models = [gguf("gemma2"), gguf("phi3"), model(&fixture("gemma3"), |_| {}), model(&fixture("phi3"), |_| {})];
    let schemas = [
        order(),
        json!({"enum": ["a  b", "zwölf  🥐", "漢字"]}),
        json!({"type": "string", "pattern": "^[äöü漢]{2,3}$"}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 3}),
    ];
    let (mut ended, mut in_bytes) = (0, 0);
    for seed in 0..96 {
        let (schema, model) = (&schemas[seed / models.len() % schemas.len()], &models[seed % models.len()]);
        let mut request = request(seed as u64);
        request.response_format = ResponseFormat::json_schema("order", schema.clone());
        request.sampling.temperature = Some([0.0, 0.7, 1.5][seed % 3]);
        let choice = model.answer(request).choices.remove(0);
        let text = choice.message.text();
        assert!(!text.contains(char::REPLACEMENT_CHARACTER), "{text:?}");
        if choice.stop_reason == StopReason::EndTurn {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert!(jsonschema::is_valid(schema, &value), "{schema}: {text}");
            assert!(!text.starts_with(' '), "{text:?}");
            ended += 1;
            in_bytes += usize::from(!text.is_ascii());
        } else {
            assert_eq!(choice.stop_reason, StopReason::MaxTokens, "{text:?}");
        }
    }
    assert!(ended >= 80 && in_bytes >= 20, "{ended} {in_bytes}");
}

#[test]
fn an_answer_may_begin_with_the_space_that_its_tokenizer_takes_away() {
    for (name, strips) in [("phi3", true), ("gemma2", false)] {
        let model = model(&fixture(name), |_| {});
        let request = ChatRequest { response_format: ResponseFormat::json_schema("order", order()), ..request(0) };
        let mut prepared = model.codec.prepare(request, Timestamp::UNIX_EPOCH).unwrap();
        let constraint = prepared.constraint.as_mut().unwrap();
        let id = |text: &str| model.codec.tokens.id(text).unwrap();
        let allowed = |constraint: &mut Constraint, text: &str| {
            let mut logits = vec![0.0; 400];
            constraint.mask(&mut logits, &Default::default()).unwrap();
            logits[id(text) as usize].is_finite()
        };
        assert!(allowed(constraint, "<0x7B>") && !allowed(constraint, "<0x7D>"));
        assert_eq!(allowed(constraint, "▁"), strips, "{name}");
        if strips {
            constraint.accept(id("▁")).unwrap();
            assert!(allowed(constraint, "<0x7B>") && !allowed(constraint, "▁"), "one space and no more");
        }
    }
}

#[test]
fn any_object_is_json() {
    let model = model(&fixture("qwen2"), |_| {});
    let mut ended = 0;
    for seed in 0..20 {
        let mut request = request(seed);
        request.response_format = ResponseFormat::Json;
        // Towards an end: random weights see none in an object that may go on.
        let braces = ["{", "}", "\"}", "\""].iter().flat_map(|text| model.codec.tokens.id(text));
        request.sampling.logit_bias = braces.map(|token| (token, 6.0)).collect();
        let choice = model.answer(request).choices.remove(0);
        let value: Result<Value, _> = serde_json::from_str(&choice.message.text());
        match choice.stop_reason {
            StopReason::EndTurn => {
                assert!(value.unwrap().is_object());
                ended += 1;
            }
            reason => assert_eq!(reason, StopReason::MaxTokens),
        }
    }
    assert!(ended > 10, "{ended}");
}

#[test]
fn a_required_call_is_made_with_arguments_that_fit() {
    let take = || FunctionTool { strict: Some(true), ..FunctionTool::new("take_order", order()) };
    let open = || FunctionTool::new("opening \"hours\"", json!({"additionalProperties": false}));
    for (name, format) in [("qwen2", "<tool_call>"), ("llama", "\"parameters\"")] {
        let model = model(&fixture(name), |files| {
            let template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}";
            files.templates.default = Some(format!("{template} Write {format}"));
            files.templates.tool_use = None;
        });
        for seed in 0..12 {
            let mut request = request(seed).with_tool(take()).with_tool(open());
            let choice = match seed % 3 {
                0 => ToolChoice::Required,
                1 => ToolChoice::Tool("take_order".to_owned()),
                _ => ToolChoice::RequiredAmong(vec![open().name]),
            };
            request.tool_choice = Some(choice);
            request.parallel_tool_calls = Some(seed % 2 == 0);
            request.reasoning.effort = Some(ReasoningEffort::None);
            request.sampling.max_tokens = Some(200);
            let answer = model.answer(request).choices.remove(0);
            let calls: Vec<_> = answer.message.tool_uses().collect();
            if answer.stop_reason == StopReason::MaxTokens {
                assert!(seed % 2 == 0 && format == "<tool_call>", "only many calls have no end: {answer:?}");
                continue;
            }
            assert_eq!(answer.stop_reason, StopReason::ToolUse, "{name} {seed}: {answer:?}");
            assert!(!calls.is_empty() && (seed % 2 == 0 || calls.len() == 1), "{calls:?}");
            assert!(answer.message.content.iter().all(|part| matches!(part, ContentPart::ToolUse(_))), "{answer:?}");
            for call in calls {
                let tool = [take(), open()].into_iter().find(|tool| tool.name == call.name).unwrap();
                assert!(jsonschema::is_valid(&tool.input_schema, &call.input), "{call:?}");
                assert!(seed % 3 != 1 || call.name == "take_order");
                assert!(seed % 3 != 2 || call.name == open().name);
            }
        }
    }
}

#[test]
fn stops_and_limits_hold_within_a_form() {
    let model = model(&fixture("qwen2"), |_| {});
    let formed = |change: fn(&mut Sampling)| {
        let mut request = request(4);
        request.response_format = ResponseFormat::json_schema("order", order());
        change(&mut request.sampling);
        let choice = model.answer(request).choices.remove(0);
        (choice.stop_reason.clone(), choice.message.text())
    };
    let (reason, text) = formed(|_| {});
    assert!(reason == StopReason::EndTurn && text.starts_with("{\"what\": \""), "{text}");
    assert_eq!(formed(|s| s.max_tokens = Some(3)).0, StopReason::MaxTokens);
    let (reason, cut) = formed(|s| s.stop = vec![", \"fresh".to_owned()]);
    assert!(reason == StopReason::StopSequence && text.starts_with(&cut) && !cut.contains("fresh"), "{cut}");
    // No liking for another token leads out of the form.
    let (reason, liked) = formed(|s| s.logit_bias = (0..40).map(|token| (token, 100.0)).collect());
    assert!(reason == StopReason::MaxTokens || jsonschema::is_valid(&order(), &serde_json::from_str(&liked).unwrap()));
}

#[test]
fn thoughts_come_before_the_form() {
    let model = model(&fixture("qwen3"), |files| {
        files.templates.default = Some("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n".to_owned());
    });
    let close = model.codec.tokens.id("</think>").unwrap();
    let mut thought = 0;
    for seed in 0..10 {
        let mut request = request(seed);
        request.response_format = ResponseFormat::json_schema("order", order());
        request.sampling.logit_bias = [(close, 4.0)].into();
        let choice = model.answer(request).choices.remove(0);
        if choice.stop_reason != StopReason::EndTurn {
            continue;
        }
        let value: Value = serde_json::from_str(&choice.message.text()).unwrap();
        assert!(jsonschema::is_valid(&order(), &value), "{choice:?}");
        thought += usize::from(matches!(choice.message.content[0], ContentPart::Reasoning(_)));
    }
    assert!(thought > 2, "{thought}");
}

#[test]
fn schemas_that_cannot_be_kept_to_are_refused_by_name_with_the_reason() {
    let model = model(&fixture("qwen2"), |_| {});
    let refused = |request: ChatRequest, field: &str, reason: &str| {
        let error = model.codec.prepare(request, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!((error.kind(), error.context("field")), (ErrorKind::Unsupported, Some(field)), "{error}");
        assert!(error.context("reason").unwrap().contains(reason), "{error}");
    };
    let text = |schema: Value| ChatRequest {
        response_format: ResponseFormat::json_schema("x", schema),
        ..ChatRequest::user("hi")
    };
    refused(text(json!({"not": {"type": "object"}})), "response_format.schema", "not");
    refused(text(json!({"type": "nonesuch"})), "response_format.schema", "nonesuch");
    refused(text(json!({"$ref": "https://example.com/schema"})), "response_format.schema", "example.com");
    refused(text(json!({"x-guidance": {"lenient": true}, "not": {}})), "response_format.schema", "not");
    let call = |schema: Value| ChatRequest {
        tool_choice: Some(ToolChoice::Required),
        ..ChatRequest::user("hi").with_tool(FunctionTool::new("a", json!({}))).with_tool(FunctionTool::new("b", schema))
    };
    refused(call(json!({"properties": {"x": {"pattern": "(?=a)b"}}})), "tools[1].input_schema", "");
}
