//! `POST /v1/embeddings`.

use axum::Json;
use hybrid_core::{
    Error, Result, Task,
    task::{Embed, EmbedKind, EmbedRequest},
};
use serde_json::Value;

use super::{body::JsonText, error::ApiError, front::Admitted};
use crate::wire::{
    embed::{Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, Vector},
    refuse, unsupported,
};

const READ: &str = "read embedding request";

pub(super) async fn embed(admitted: Admitted, json: JsonText) -> Result<Json<EmbeddingList>, ApiError> {
    let EmbeddingRequest { model, input, dimensions, input_type, encoding_format, user: _ } = json.parse()?;
    let kind = input_type.as_deref().map(read_kind).transpose()?;
    let base64 = match encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(refuse(READ, "encoding_format", "must be float or base64").into()),
    };
    let (texts, several) = read_input(input)?;
    let limit = admitted.front().limits().inputs;
    if texts.len() > limit {
        return Err(ApiError::too_many("input", limit, texts.len()));
    }
    let model = admitted.model::<Embed>(model.as_deref())?;
    let asked = texts.len();
    let request = EmbedRequest { dimensions, kind, ..EmbedRequest::many(texts) };
    Embed::validate(&request).map_err(|error| in_our_words(error, several))?;

    let answered = admitted.infer(&model, request).await;
    let reply = answered.map_err(|error| error.of_field(|field| our_field(field, several)))?;
    let vectors = reply.response.embeddings;
    if vectors.len() != asked {
        return Err(Error::corrupt("embed", "the backend answered another number of texts than was asked")
            .with("backend", &reply.meta.backend)
            .with("asked", asked)
            .with("answered", vectors.len())
            .into());
    }
    let write = |(index, vector): (usize, Vec<f32>)| Embedding {
        object: "embedding".into(),
        index,
        embedding: if base64 { Vector::base64(&vector) } else { Vector::Floats(vector) },
    };
    let prompt_tokens = reply.meta.usage.total_input_tokens();
    Ok(Json(EmbeddingList {
        object: "list".into(),
        data: vectors.into_iter().enumerate().map(write).collect(),
        model: model.id().to_owned(),
        usage: Some(EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens }),
    }))
}

/// The texts, and whether they came as a list.
fn read_input(input: Value) -> Result<(Vec<String>, bool)> {
    let text = |(i, item): (usize, Value)| match item {
        Value::String(text) => Ok(text),
        Value::Number(_) | Value::Array(_) => Err(unsupported(
            READ,
            "input",
            "must be a text or a list of texts; tokens depend on the model, so send text",
        )),
        _ => Err(refuse(READ, format!("input[{i}]"), "must be a text")),
    };
    match input {
        Value::String(text) => Ok((vec![text], false)),
        Value::Array(items) => Ok((items.into_iter().enumerate().map(text).collect::<Result<_>>()?, true)),
        _ => Err(refuse(READ, "input", "must be a text or a list of texts")),
    }
}

fn read_kind(input_type: &str) -> Result<EmbedKind> {
    Ok(match input_type {
        "search_query" | "query" => EmbedKind::Query,
        "search_document" | "document" | "passage" => EmbedKind::Document,
        "classification" => EmbedKind::Classification,
        "clustering" => EmbedKind::Clustering,
        _ => {
            let message = "must be search_query, search_document, classification or clustering";
            return Err(refuse(READ, "input_type", message));
        }
    })
}

/// The task's own words about its fields, said of the body's.
fn in_our_words(error: Error, several: bool) -> Error {
    let field = our_field(error.context("field").unwrap_or_default(), several);
    Error::new(error.kind(), READ, error.message().to_owned()).with("field", field)
}

/// What a field of the task is called in the body.
fn our_field(field: &str, several: bool) -> String {
    match field.strip_prefix("inputs") {
        Some(at) if several => format!("input{at}"),
        Some(_) => "input".to_owned(),
        None if field == "kind" => "input_type".to_owned(),
        None => field.to_owned(),
    }
}
