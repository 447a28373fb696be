//! `GET /v1/models`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use hybrid_core::{BackendProfile, Digest, Locality, Task, task::Classify};
use serde::Serialize;

use super::{
    error::ApiError,
    front::{Front, Model},
};

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Entry>,
}

#[derive(Debug, Serialize)]
pub(super) struct Entry {
    id: String,
    object: &'static str,
    /// Unix seconds. A model's version says when it was made better than any time does; this is when the name began to be offered.
    created: i64,
    owned_by: String,
    task: &'static str,
    version: Option<u64>,
    manifest: Option<Digest>,
    locality: Locality,
}

pub(super) async fn list(State(front): State<Arc<Front>>) -> Json<List> {
    Json(List { object: "list", data: front.models.iter().map(|model| entry(&front, model)).collect() })
}

pub(super) async fn get(
    State(front): State<Arc<Front>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Entry>, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::invalid("invalid_request", "the model's name in the path is not UTF-8"));
    };
    Ok(Json(entry(&front, front.model(Some(&id))?)))
}

fn entry(front: &Front, Model { id, backend }: &Model) -> Entry {
    let profile = backend.profile();
    let BackendProfile { model, locality, .. } = &*profile;
    Entry {
        id: id.clone(),
        object: "model",
        created: front.opened.unix_micros().div_euclid(1_000_000),
        owned_by: front.tenant.to_string(),
        task: Classify::NAME,
        version: model.version,
        manifest: model.manifest,
        locality: locality.clone(),
    }
}
