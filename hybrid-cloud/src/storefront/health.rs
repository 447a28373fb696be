//! `GET /healthz` and `GET /readyz`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{error::ApiError, front::Front};

/// The process is alive: it answers. Nothing else is looked at, so that no restart follows from what a restart cannot mend.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether requests should come here.
pub(super) async fn ready(State(front): State<Arc<Front>>) -> Result<Json<Value>, ApiError> {
    let reasons = front.unready();
    if reasons.is_empty() { Ok(Json(json!({ "status": "ready" }))) } else { Err(ApiError::not_ready(&reasons)) }
}
