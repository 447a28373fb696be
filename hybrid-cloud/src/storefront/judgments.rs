//! `POST /v1/judgments`.

use std::{collections::BTreeMap, fmt};

use axum::{Json, http::StatusCode};
use hybrid_core::{Digest, Error, Judgment, JudgmentId, RequestId, ServedModel, Task, task::Classify};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, json};

use super::{
    body::JsonText,
    error::{ApiError, shorten},
    front::Admitted,
};

/// How deep an `answer` may be nested. Judgments travel inside other documents, whose readers have limits too.
const ANSWER_DEPTH: usize = 32;
const TAGS: usize = 32;
const SHORT_TEXT_BYTES: usize = 256;

/// Whether the body is a list; everything else is read strictly afterwards.
#[derive(Deserialize)]
struct Peek {
    judgments: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "JudgmentListRequest")]
pub(super) struct List {
    /// At least one.
    #[schemars(length(min = 1))]
    judgments: Vec<Body>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "JudgmentRequest")]
pub(super) struct Body {
    /// A text, as it is or as `{"text"}`.
    #[schemars(with = "Value")]
    input: Input,
    label: String,
    model: Option<String>,
    version: Option<u64>,
    #[schemars(with = "Option<String>")]
    manifest: Option<Digest>,
    answer: Option<Value>,
    #[schemars(with = "Option<String>")]
    request_id: Option<RequestId>,
    by: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[schemars(with = "Option<String>")]
    idempotency_key: Option<RequestId>,
}

/// A text, as it is or as `{"text": …}`.
#[derive(Debug)]
struct Input(String);

/// As was asked: of one judgment, or of a list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    One(Recorded),
    List(RecordedList),
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Judgment")]
pub(super) struct Recorded {
    object: &'static str,
    #[schemars(with = "String")]
    id: JudgmentId,
}

/// In the order in which the judgments were sent.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "JudgmentList")]
pub(super) struct RecordedList {
    object: &'static str,
    data: Vec<Recorded>,
}

pub(super) async fn judge(admitted: Admitted, json: JsonText) -> Result<(StatusCode, Json<Answer>), ApiError> {
    let list = json.parse::<Peek>()?.judgments.is_some();
    let bodies = if list { json.parse::<List>()?.judgments } else { vec![json.parse()?] };
    if list && bodies.is_empty() {
        return Err(ApiError::invalid("invalid_request", "judgments must hold at least one").param("judgments"));
    }
    let limit = admitted.front().limits().inputs;
    if bodies.len() > limit {
        return Err(ApiError::too_many("judgments", limit, bodies.len()));
    }
    let judgments = bodies
        .into_iter()
        .enumerate()
        .map(|(i, body)| body.check(&admitted, if list { format!("judgments[{i}].") } else { String::new() }))
        .collect::<Result<Vec<_>, _>>()?;

    let mut recorded: Vec<_> =
        judgments.iter().map(|judgment| Recorded { object: "judgment", id: judgment.id }).collect();
    record(&admitted, judgments).await?;
    let one = if list { None } else { recorded.pop() };
    let answer = one.map_or_else(|| Answer::List(RecordedList { object: "list", data: recorded }), Answer::One);
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn record(admitted: &Admitted, judgments: Vec<Judgment>) -> Result<(), ApiError> {
    let all = judgments.len();
    let results = admitted.record(judgments).await?;
    let recorded = results.iter().filter(|result| result.is_ok()).count();
    match results.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(error) if all == 1 => Err(error.into()),
        Some(error) => Err(ApiError::from(error)
            .led_by(&format!("{recorded} of {all} judgments are recorded, send all of them again"))),
    }
}

impl Body {
    /// The judgment, checked; `at` leads to it in the request.
    fn check(self, admitted: &Admitted, at: String) -> Result<Judgment, ApiError> {
        let Self { input: Input(text), label, model, version, manifest, answer, request_id, by, tags, idempotency_key } =
            self;
        let refuse = |field: &str, message: &str| {
            Err(ApiError::invalid("invalid_request", format!("{at}{field} {message}")).param(format!("{at}{field}")))
        };
        if text.trim().is_empty() {
            return refuse("input", "must not be blank");
        }
        if label.trim().is_empty() {
            return refuse("label", "must not be blank");
        }
        if label.len() > SHORT_TEXT_BYTES || by.as_ref().is_some_and(|by| by.len() > SHORT_TEXT_BYTES) {
            return refuse(if label.len() > SHORT_TEXT_BYTES { "label" } else { "by" }, "must have at most 256 bytes");
        }
        if let Some(known) = admitted.labels().filter(|known| !known.contains(&label)) {
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            let message = format!("there is no label {:?}; the labels are {}", shorten(label, 64), known.join(", "));
            return Err(ApiError::invalid("unknown_label", message).param(format!("{at}label")));
        }
        if tags.len() > TAGS
            || tags.iter().any(|(name, value)| name.is_empty() || name.len().max(value.len()) > SHORT_TEXT_BYTES)
        {
            return refuse("tags", "must be at most 32 with names and values of at most 256 bytes, no name empty");
        }
        if answer.as_ref().is_some_and(|answer| depth(answer) > ANSWER_DEPTH) {
            return refuse("answer", "must be nested at most 32 deep");
        }
        if model.is_none() && (version.is_some() || manifest.is_some()) {
            return refuse("model", "must be named with its version or manifest");
        }
        let model = match model {
            None => None,
            Some(id) => {
                let model = admitted.find(&id).map_err(|error| error.param(format!("{at}model")))?;
                let name = model.profile().model.name.clone();
                Some(ServedModel { name, version, manifest })
            }
        };
        let mut judgment = Judgment {
            id: JudgmentId::next(admitted.front().ids()),
            task: Classify::NAME.to_owned(),
            input: json!({ "text": text }),
            decision: json!({ "label": label }),
            answer,
            model,
            request: request_id,
            by,
            at: admitted.front().clock().now(),
            tags,
        };
        if let Some(key) = idempotency_key {
            judgment.id = id_of(admitted, &key, &judgment)?;
        }
        Ok(judgment)
    }
}

/// The id that a judgment has whenever it is sent under `key`: an RFC 9562 version 8 UUID of key and content.
///
/// The key alone would not do: a client that used one twice would put two events of one id into the dataset, which then could not be read.
fn id_of(admitted: &Admitted, key: &RequestId, judgment: &Judgment) -> Result<JudgmentId, ApiError> {
    let Judgment { id: _, task, input, decision, answer, model, request, by, at: _, tags } = judgment;
    let dataset = Some(admitted.dataset()?);
    let content =
        (&admitted.principal().tenant, dataset, key, (task, input, decision, answer, model, request, by, tags));
    let mut content = serde_json::to_value(content)
        .map_err(|error| Error::internal("identify judgment", "the judgment cannot be written").with_source(error))?;
    // Whoever sends it again may write its keys in another order.
    content.sort_all_objects();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Digest::of(content.to_string().as_bytes()).as_bytes()[..16]);
    Ok(JudgmentId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
}

/// How deep a value is nested. Its parser has bounded the recursion already.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or {\"text\": a text}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Input, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            text: String,
        }
        Fields::deserialize(de::value::MapAccessDeserializer::new(fields)).map(|fields| Input(fields.text))
    }
}
