//! `/v1/files`: what customers give the kitchen to work on, and get back from it.

use std::ops::Range;

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hybrid_core::{Error, FileId, FilePage, FileQuery, RecordOrder, StoredFile};

use super::{error::ApiError, front::Admitted};
use crate::wire::file::{Deleted, FileList, FileObject, PURPOSES, id_in, id_out};

pub(super) mod download;
mod form;
pub(super) mod links;
mod range;

use form::UploadForm;
use range::Asked;

/// What a page has at most.
const PAGE: usize = 10_000;

pub(super) async fn upload(admitted: Admitted, form: UploadForm) -> Result<Json<FileObject>, ApiError> {
    form.store(&admitted).await.map(|file| Json(FileObject::from(&file)))
}

pub(super) async fn list(admitted: Admitted, RawQuery(query): RawQuery) -> Result<Json<FileList>, ApiError> {
    let FilePage { files, more } = admitted.list_files(asked(query.as_deref().unwrap_or_default())?).await?;
    let data: Vec<_> = files.iter().map(FileObject::from).collect();
    let id = |file: Option<&FileObject>| file.map(|file| file.id.clone());
    Ok(Json(FileList { object: "list", first_id: id(data.first()), last_id: id(data.last()), has_more: more, data }))
}

pub(super) async fn get(
    admitted: Admitted,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FileObject>, ApiError> {
    let (id, sent) = named(id)?;
    let file = admitted.file(id).await?.ok_or_else(|| ApiError::unknown_file(&sent))?;
    Ok(Json(FileObject::from(&file)))
}

pub(super) async fn delete(
    admitted: Admitted,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let (id, sent) = named(id)?;
    if !admitted.erase_file(id).await? {
        return Err(ApiError::unknown_file(&sent));
    }
    Ok(Json(Deleted { id: id_out(id), object: "file", deleted: true }))
}

pub(super) async fn content(
    admitted: Admitted,
    asked: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (id, sent) = named(id)?;
    // A file never changes, so its id names its content.
    let internal = |error| Error::internal("send file", "an id is no header").with_source(error);
    let tag = HeaderValue::try_from(format!("\"{sent}\"")).map_err(internal)?;
    let mut chosen = None;
    let choose = |file: &StoredFile| match chosen.insert((Asked::of(&asked, file.bytes, &tag), file.bytes)) {
        (Asked::Whole, bytes) => Ok(0..*bytes),
        (Asked::Part(range), _) => Ok(range.clone()),
        (Asked::Beyond, bytes) => Err(ApiError::range_not_satisfiable(*bytes)),
    };
    let reading = admitted.read_file(id, choose).await;
    let part = match chosen {
        Some((Asked::Beyond, bytes)) => {
            let refused = reading.err().unwrap_or_else(|| ApiError::range_not_satisfiable(bytes));
            let mut refused = refused.into_response();
            let size = HeaderValue::try_from(format!("bytes */{bytes}")).map_err(internal)?;
            refused.headers_mut().insert(header::CONTENT_RANGE, size);
            return Ok(refused);
        }
        Some((Asked::Part(range), _)) => Some(range),
        _ => None,
    };
    let reading = reading?.ok_or_else(|| ApiError::unknown_file(&sent))?;
    let StoredFile { bytes, .. } = *reading.file();
    let sending = reading.into_sending();
    let mut response = Response::new(Body::from_stream(download::start(&admitted, sending).await?));
    let mut length = bytes;
    if let Some(Range { start, end }) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        length = end - start;
        let place = HeaderValue::try_from(format!("bytes {start}-{}/{bytes}", end - 1)).map_err(internal)?;
        response.headers_mut().insert(header::CONTENT_RANGE, place);
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, tag);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // A customer's file is data: no browser shall run it in the storefront's name.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// The id in a path, with how it was spelt. One that can be no file's is as unknown as one that is another's.
fn named(id: Result<Path<String>, PathRejection>) -> Result<(FileId, String), ApiError> {
    let sent = id.map(|Path(id)| id).unwrap_or_default();
    match id_in(&sent) {
        Some(id) => Ok((id, sent)),
        None => Err(ApiError::unknown_file(&sent)),
    }
}

/// What a query string asks for. No value that is allowed needs to be decoded.
fn asked(query: &str) -> Result<FileQuery, ApiError> {
    let mut asked = FileQuery { limit: PAGE, ..FileQuery::default() };
    let refuse = |name: &str, message: &str| {
        Err(ApiError::invalid("invalid_request", format!("{name} {message}")).param(name.to_owned()))
    };
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "after" => match id_in(value) {
                Some(id) => asked.after = Some(id),
                None => return refuse(name, "must be the id of a file"),
            },
            "limit" => match value.parse() {
                Ok(limit) if (1..=PAGE).contains(&limit) => asked.limit = limit,
                _ => return refuse(name, "must be a number from 1 to 10000"),
            },
            "order" => match value {
                "asc" => asked.order = RecordOrder::Ascending,
                "desc" => asked.order = RecordOrder::Descending,
                _ => return refuse(name, "must be asc or desc"),
            },
            "purpose" if PURPOSES.contains(&value) => asked.purpose = Some(value.to_owned()),
            "purpose" => return refuse(name, &format!("must be one of {}", PURPOSES.join(", "))),
            // What newer clients send.
            _ => {}
        }
    }
    Ok(asked)
}
