//! `GET /v1/models`.

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
};
use hybrid_core::{BackendProfile, Digest, Locality};
use serde::Serialize;

use super::{
    error::ApiError,
    front::{Admitted, Model},
};

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "ModelList")]
pub(super) struct List {
    object: &'static str,
    data: Vec<Entry>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Model")]
pub(super) struct Entry {
    id: String,
    object: &'static str,
    /// Unix seconds. A model's version says when it was made better than any time does; this is when the name began to be offered.
    created: i64,
    owned_by: String,
    task: &'static str,
    version: Option<u64>,
    #[schemars(with = "Option<String>")]
    manifest: Option<Digest>,
    /// `device`, `site` or `{"region"}`.
    #[schemars(with = "serde_json::Value")]
    locality: Locality,
}

pub(super) async fn list(admitted: Admitted) -> Json<List> {
    Json(List { object: "list", data: admitted.models().map(|model| entry(&admitted, model)).collect() })
}

pub(super) async fn get(admitted: Admitted, id: Result<Path<String>, PathRejection>) -> Result<Json<Entry>, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::invalid("invalid_request", "the model's name in the path is not UTF-8"));
    };
    Ok(Json(entry(&admitted, admitted.find(&id)?)))
}

fn entry(admitted: &Admitted, shown: &Model) -> Entry {
    let profile = shown.profile();
    let BackendProfile { model, locality, .. } = &*profile;
    Entry {
        id: shown.id().to_owned(),
        object: "model",
        created: admitted.opened().unix_micros().div_euclid(1_000_000),
        owned_by: admitted.principal().tenant.to_string(),
        task: shown.task(),
        version: model.version,
        manifest: model.manifest,
        locality: locality.clone(),
    }
}
