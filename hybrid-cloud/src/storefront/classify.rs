//! `POST /v1/classify`.

use std::fmt;

use axum::Json;
use hybrid_core::{
    Digest, Error, Note, Task,
    task::{Classification, Classify, ClassifyRequest},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};

use super::{body::JsonText, error::ApiError, front::Admitted};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ClassifyRequest")]
pub(super) struct Body {
    model: Option<String>,
    #[schemars(with = "crate::wire::chat::OneOrMany")]
    input: Input,
    top_k: Option<usize>,
}

/// One text or several.
#[derive(Debug)]
struct Input {
    texts: Vec<String>,
    several: bool,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "ClassificationList")]
pub(super) struct Answer {
    object: &'static str,
    model: String,
    version: Option<u64>,
    #[schemars(with = "Option<String>")]
    manifest: Option<Digest>,
    /// `[{"label", "confidence", "scores": [{"label", "score"}]}]`
    #[schemars(with = "Vec<serde_json::Value>")]
    results: Vec<Classification>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    /// `[{"code", "detail"}]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<serde_json::Value>")]
    notes: Vec<Note>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "ClassifyUsage")]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

pub(super) async fn classify(admitted: Admitted, json: JsonText) -> Result<Json<Answer>, ApiError> {
    let Body { model, input, top_k } = json.parse()?;
    let model = admitted.model::<Classify>(model.as_deref())?;
    let limit = admitted.front().limits().inputs;
    if input.texts.len() > limit {
        return Err(ApiError::too_many("input", limit, input.texts.len()));
    }
    let (asked, several) = (input.texts.len(), input.several);
    let request = ClassifyRequest { inputs: input.texts, top_k };
    Classify::validate(&request).map_err(|error| in_our_words(&error, several))?;

    let reply = admitted.infer(&model, request).await?;
    if reply.response.results.len() != asked {
        return Err(Error::corrupt("classify", "the backend answered another number of texts than was asked")
            .with("backend", &reply.meta.backend)
            .with("asked", asked)
            .with("answered", reply.response.results.len())
            .into());
    }
    let meta = reply.meta;
    tracing::debug!(backend = meta.backend, model = meta.model.name, version = meta.model.version, elapsed = ?meta.elapsed, cost = ?meta.cost, "classified");
    let (input, output) = (meta.usage.total_input_tokens(), meta.usage.output_tokens);
    let usage = Usage { prompt_tokens: input, total_tokens: input.saturating_add(output) };
    Ok(Json(Answer {
        object: "classification.list",
        model: model.id().to_owned(),
        version: meta.model.version,
        manifest: meta.model.manifest,
        results: reply.response.results,
        usage: (usage.total_tokens > 0).then_some(usage),
        notes: meta.notes,
    }))
}

/// The task's own words about its `inputs`, said of the body's `input`.
fn in_our_words(error: &Error, several: bool) -> ApiError {
    let field = error.context("field").unwrap_or_default();
    let param = match field.strip_prefix("inputs") {
        Some(at) if several => format!("input{at}"),
        Some(_) => "input".to_owned(),
        None => field.to_owned(),
    };
    ApiError::invalid("invalid_request", format!("{param} {}", error.message())).param(param)
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
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input { texts: vec![text.to_owned()], several: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(Input { texts, several: true })
    }
}
