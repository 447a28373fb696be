//! `POST /v1/jobs` and `GET /v1/jobs/{id}`.

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
    http::StatusCode,
};
use hybrid_core::{ErrorKind, FileId, JobEnd, JobFailure, JobId, JobKind, JobStatus, RequestId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    body::JsonText,
    error::{ApiError, shorten},
    front::Admitted,
};
use crate::wire::file::id_in;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "JobRequest")]
pub(super) struct Body {
    kind: String,
    #[serde(default)]
    payload: Value,
    /// The id of a file that it is about.
    input_file_id: Option<String>,
    #[schemars(with = "Option<String>")]
    idempotency_key: Option<RequestId>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Job")]
pub(super) struct Answer {
    object: &'static str,
    #[schemars(with = "String")]
    id: JobId,
    #[schemars(with = "String")]
    kind: JobKind,
    /// `queued`, `stalled` (it has failed too often, and someone has to look before it goes on), `succeeded` or `failed`.
    status: &'static str,
    /// The `x-request-id` of the order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    request_id: Option<RequestId>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "JobFailure")]
struct Failure {
    code: &'static str,
    message: String,
}

pub(super) async fn submit(admitted: Admitted, json: JsonText) -> Result<(StatusCode, Json<Answer>), ApiError> {
    let Body { kind, payload, input_file_id, idempotency_key } = json.parse()?;
    let kind = admitted.job_kind(&kind)?;
    let input = match &input_file_id {
        Some(id) => Some(file(&admitted, id).await?),
        None => None,
    };
    let id = admitted.submit_job(kind.clone(), payload, input, idempotency_key).await?;
    let answer = Answer {
        object: "job",
        id,
        kind,
        status: "queued",
        request_id: None,
        created_at: None,
        finished_at: None,
        output: None,
        error: None,
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// The caller's own file of that id: an order for one that is not there would fail late.
async fn file(admitted: &Admitted, id: &str) -> Result<FileId, ApiError> {
    let unknown = || ApiError::unknown_file(id).param("input_file_id");
    let parsed = id_in(id).ok_or_else(unknown)?;
    admitted.file(parsed).await?.map(|file| file.id).ok_or_else(unknown)
}

pub(super) async fn status(
    admitted: Admitted,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Answer>, ApiError> {
    let id = id.map(|Path(id)| id).unwrap_or_default();
    // An id that can be no job's is as unknown as one that is another's.
    let Ok(parsed) = id.parse::<JobId>() else { return Err(ApiError::unknown_job(&id)) };
    let JobStatus { kind, submitted, request, stalled, end } =
        admitted.job_status(parsed).await?.ok_or_else(|| ApiError::unknown_job(&id))?;
    let mut answer = Answer {
        object: "job",
        id: parsed,
        kind,
        status: if stalled.is_some() { "stalled" } else { "queued" },
        request_id: request,
        created_at: Some(submitted.unix_micros().div_euclid(1_000_000)),
        finished_at: None,
        output: None,
        error: None,
    };
    if let Some(JobEnd { finished, outcome }) = end {
        answer.finished_at = Some(finished.unix_micros().div_euclid(1_000_000));
        match outcome {
            Ok(output) => (answer.status, answer.output) = ("succeeded", Some(output)),
            Err(failure) => (answer.status, answer.error) = ("failed", Some(said_to_the_caller(failure))),
        }
    }
    Ok(Json(answer))
}

/// What is the order's own fault is told whole; anything else may name what is the kitchen's own.
fn said_to_the_caller(JobFailure { kind, message }: JobFailure) -> Failure {
    let code = match kind {
        ErrorKind::InvalidInput => "invalid_request",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::PolicyDenied => "policy_denied",
        _ => {
            let message = "the job failed; nothing is wrong with the order".to_owned();
            return Failure { code: "internal_error", message };
        }
    };
    Failure { code, message: shorten(message, 600) }
}
