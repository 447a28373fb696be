//! The scripted server's replies against the fields that AWS documents for them.

use std::collections::{HashMap, HashSet};

use hybrid_cloud::testkit::bedrock::{Answer, event_frame, exception_frame};
use serde_json::{Map, Value, json};

/// The shapes of `shapes.txt`, by name.
struct Shapes(HashMap<&'static str, Shape>);

enum Shape {
    Struct(Vec<Field>),
    Union(Vec<Field>),
    Enum(HashSet<&'static str>),
}

struct Field {
    name: &'static str,
    required: bool,
    kind: &'static str,
}

impl Shapes {
    fn read() -> Self {
        let lines = include_str!("shapes.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let shape = |line: &'static str| {
            let mut words = line.split(' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            let field = |word: &'static str| {
                let (name, kind) = word.split_once('=').unwrap();
                Field { name: name.trim_end_matches('*'), required: name.ends_with('*'), kind }
            };
            let shape = match kind {
                "struct" => Shape::Struct(words.map(field).collect()),
                "union" => Shape::Union(words.map(field).collect()),
                "enum" => Shape::Enum(words.collect()),
                other => panic!("a shape is no {other}"),
            };
            (name, shape)
        };
        Self(lines.map(shape).collect())
    }

    /// What is wrong with `value` as a `kind`, if anything, and where.
    fn check(&self, kind: &str, value: &Value) -> Result<(), String> {
        let inner = |open, close| kind.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        let within =
            |place: &str, kind: &str, value| self.check(kind, value).map_err(|wrong| format!("{place}.{wrong}"));
        if let Some(kind) = inner('[', ']') {
            let items = value.as_array().ok_or_else(|| format!(" is no list: {value}"))?;
            return items.iter().enumerate().try_for_each(|(at, item)| within(&at.to_string(), kind, item));
        }
        if let Some(kind) = inner('{', '}') {
            let items = value.as_object().ok_or_else(|| format!(" is no map: {value}"))?;
            return items.iter().try_for_each(|(name, item)| within(name, kind, item));
        }
        let holds = match kind {
            "any" => true,
            "text" => value.is_string(),
            "int" => value.is_u64(),
            "float" => value.is_f64(),
            "bool" => value.is_boolean(),
            "blob" => value.as_str().is_some_and(is_base64),
            name => match self.0.get(name).unwrap_or_else(|| panic!("no shape is called {name}")) {
                Shape::Enum(words) => value.as_str().is_some_and(|word| words.contains(word)),
                Shape::Struct(fields) => return self.check_fields(name, fields, value, false),
                Shape::Union(fields) => return self.check_fields(name, fields, value, true),
            },
        };
        if holds { Ok(()) } else { Err(format!(" is no {kind}: {value}")) }
    }

    fn check_fields(&self, shape: &str, fields: &[Field], value: &Value, one: bool) -> Result<(), String> {
        let object = value.as_object().ok_or_else(|| format!(" is no {shape}: {value}"))?;
        for (name, value) in object {
            let field = fields.iter().find(|field| field.name == name);
            let field = field.ok_or_else(|| format!(" is no {shape}: it has no field {name}"))?;
            self.check(field.kind, value).map_err(|wrong| format!("{name}.{wrong}"))?;
        }
        if let Some(missing) = fields.iter().find(|field| field.required && !object.contains_key(field.name)) {
            return Err(format!(" is no {shape}: {} is missing", missing.name));
        }
        if one && object.len() != 1 {
            return Err(format!(" is no {shape}: it has {} members", object.len()));
        }
        Ok(())
    }

    /// A stream's events, each as `{"its name": its fields}`, without the padding.
    fn check_stream(&self, stream: &[u8]) -> Result<Vec<Value>, String> {
        let events = events(stream);
        events.iter().try_for_each(|event| self.check("ConverseStreamOutput", event))?;
        Ok(events)
    }
}

fn is_base64(text: &str) -> bool {
    text.len().is_multiple_of(4)
        && text.trim_end_matches('=').bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
}

/// Reads frames: lengths, headers that are texts, and a body of JSON.
fn events(mut stream: &[u8]) -> Vec<Value> {
    let mut events = Vec::new();
    while !stream.is_empty() {
        let word = |at: usize| u32::from_be_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
        let (total, headers) = (word(0), word(4));
        let (mut headers, body) = (&stream[12..12 + headers], &stream[12 + headers..total - 4]);
        let mut said = HashMap::new();
        while let [length, rest @ ..] = headers {
            let (name, rest) = rest.split_at(usize::from(*length));
            assert_eq!(rest[0], 7, "a header that is a text");
            let (value, rest) = rest[3..].split_at(usize::from(u16::from_be_bytes([rest[1], rest[2]])));
            said.insert(std::str::from_utf8(name).unwrap(), std::str::from_utf8(value).unwrap());
            headers = rest;
        }
        assert_eq!(said[":content-type"], "application/json");
        let name = said[if said[":message-type"] == "exception" { ":exception-type" } else { ":event-type" }];
        let mut body: Value = serde_json::from_slice(body).unwrap();
        body.as_object_mut().unwrap().remove("p");
        events.push(json!({ name: body }));
        stream = &stream[total..];
    }
    events
}

fn everything() -> Answer {
    let location = json!({"searchResultLocation": {"searchResultIndex": 1, "start": 2, "end": 3}});
    let grounding = json!({"type": "GROUNDING", "threshold": 0.5, "score": 0.75, "action": "NONE"});
    let topic = json!({"name": "prices", "type": "DENY", "action": "BLOCKED", "detected": true});
    let assessment = json!({"topicPolicy": {"topics": [topic]}, "contextualGroundingPolicy": {"filters": [grounding]}});
    let guardrail =
        json!({"modelOutput": ["x"], "inputAssessment": {"g": assessment}, "outputAssessments": {"g": [assessment]}});
    let trace = json!({"guardrail": guardrail, "promptRouter": {"invokedModelId": "arn:model"}});
    let more = [
        ("trace", trace),
        ("serviceTier", json!({"type": "flex"})),
        ("performanceConfig", json!({"latency": "optimized"})),
    ];
    Answer {
        usage: json!({
            "inputTokens": 1, "outputTokens": 1, "totalTokens": 9, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 7,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 7}]
        }),
        additional: Some(json!({"stop_sequence": "###"})),
        more: more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>(),
        ..Answer::new([
            json!({"reasoningContent": {"reasoningText": {"text": "let me think", "signature": "sig"}}}),
            json!({"reasoningContent": {"redactedContent": "AQID"}}),
            json!({"text": "Weighing the süß 🍞 flour"}),
            json!({"toolUse": {"toolUseId": "t-1", "name": "weigh", "input": {"what": "flour"}, "type": "server_tool_use"}}),
            json!({"toolResult": {"toolUseId": "t-1", "type": "nova", "status": "error", "content": [{"json": {"n": 1}}, {"text": "no"}]}}),
            json!({"citationsContent": {"content": [{"text": "says the book"}], "citations": [
                {"title": "Bread", "source": "b", "sourceContent": [{"text": "flour"}], "location": {"web": {"url": "https://x", "domain": "x"}}},
                {"location": location}
            ]}}),
            json!({"image": {"format": "png", "source": {"bytes": "AQID"}}}),
        ])
    }
}

#[test]
fn every_kind_of_answer_has_the_documented_fields_whole_and_as_a_stream() {
    let shapes = Shapes::read();
    for answer in [everything(), Answer::text("Two loaves"), Answer::tool_use("t", "weigh", json!({}))] {
        assert_eq!(shapes.check("ConverseResponse", &answer.json()), Ok(()));
        let events = shapes.check_stream(&answer.stream()).unwrap();
        let names: Vec<_> =
            events.iter().map(|event| event.as_object().unwrap().keys().next().unwrap().as_str()).collect();
        assert_eq!((names[0], &names[names.len() - 2..]), ("messageStart", &["messageStop", "metadata"][..]));
        let starts = names.iter().filter(|name| **name == "contentBlockStop").count();
        assert_eq!(starts, answer.content.len(), "each block ends");
    }
}

#[test]
fn exceptions_on_a_stream_are_those_that_are_documented_there() {
    let shapes = Shapes::read();
    for name in ["throttlingException", "modelStreamErrorException", "internalServerException"] {
        assert_eq!(shapes.check_stream(&exception_frame(name, "slow down")).map(|events| events.len()), Ok(1));
    }
    // This one comes before a stream, never on it.
    assert!(shapes.check_stream(&exception_frame("modelNotReadyException", "loading")).is_err());
}

/// A check that lets everything through would prove nothing.
#[test]
fn what_is_not_documented_is_found_and_named() {
    let shapes = Shapes::read();
    let broken = |path: &str, value: Value| {
        let mut answer = everything().json();
        *answer.pointer_mut(path).unwrap() = value;
        shapes.check("ConverseResponse", &answer).unwrap_err()
    };
    for (path, value, named) in [
        ("/metrics", json!({}), "metrics. is no Metrics: latencyMs is missing"),
        ("/stopReason", json!("stop"), "stopReason. is no StopReason"),
        ("/usage/inputTokens", json!(-1), "usage.inputTokens. is no int"),
        (
            "/output/message/content/2",
            json!({"type": "text", "text": "x"}),
            "content.2. is no ContentBlock: it has no field type",
        ),
        (
            "/output/message/content/2",
            json!({"text": "x", "toolUse": {"toolUseId": "t", "name": "n", "input": 1}}),
            "it has 2 members",
        ),
        ("/output/message/content/1/reasoningContent/redactedContent", json!("not base64!"), "is no blob"),
        ("/trace/guardrail/inputAssessment/g/topicPolicy/topics/0/action", json!("HELD"), "is no Blocking"),
    ] {
        let wrong = broken(path, value);
        assert!(wrong.contains(named), "{wrong}");
    }
    assert!(shapes.check_stream(&event_frame("messageBegin", &json!({}))).is_err());
    assert!(
        shapes.check_stream(&event_frame("messageStop", &json!({}))).unwrap_err().contains("stopReason is missing")
    );
}
