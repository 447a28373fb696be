//! Reading a request's JSON, or its form.

use std::{pin::pin, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header, request::Parts},
};
use futures_util::{
    StreamExt,
    future::{Either, select},
};
use hybrid_core::Error;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{edge::Edge, error::ApiError, front::Front};

/// How much of a body over the limit is read and thrown away, so that a client that is still sending gets to read why it was refused: a
/// connection closed on unread bytes is reset, and the answer lost with it.
const DISCARD_BYTES: u64 = 64 * 1024 * 1024;

/// A request's body as UTF-8 text with a JSON content type, within the limit.
#[derive(Debug)]
pub(super) struct JsonText {
    text: String,
}

impl JsonText {
    /// As [`parse`](Self::parse), for a `T` that keeps a part of the text as it came: the part is held to what all other JSON here is.
    pub(super) fn parse_keeping<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_str::<Walked>(&self.text).map_err(|error| unfit(&error))?;
        self.parse()
    }

    /// Reads the text, a JSON object, as a `T`.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // Without this a list of a struct's values in their order would pass for the struct.
        if !self.text.trim_start().starts_with('{') {
            serde_json::from_str::<IgnoredAny>(&self.text).map_err(|error| unfit(&error))?;
            return Err(ApiError::invalid("invalid_body", "the body must be a JSON object"));
        }
        let mut json = serde_json::Deserializer::from_str(&self.text);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let (path, error) = (error.path().to_string(), error.into_inner());
            // Where the text is no JSON, line and column say where; the path so far names nothing.
            let named = error.is_data() && path != ".";
            if named { unfit(&error).param(path) } else { unfit(&error) }
        })?;
        json.end().map_err(|error| unfit(&error))?;
        Ok(value)
    }
}

fn unfit(error: &serde_json::Error) -> ApiError {
    match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::invalid("invalid_body", format!("the body does not fit: {error}"))
        }
        _ => ApiError::invalid("invalid_json", format!("the body is not valid JSON: {error}")),
    }
}

/// Any JSON, read and not kept: nested no deeper than the parser goes, with numbers and characters that there are. To pass over a value looks at none of this.
struct Walked;

impl<'de> Deserialize<'de> for Walked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Walked {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

impl FromRequest<Arc<Front>> for JsonText {
    type Rejection = ApiError;

    async fn from_request(request: Request, front: &Arc<Front>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_headers(&parts.headers)?;
        let bytes = read_in_time(&parts, body, front, front.limits().body_bytes).await?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            ApiError::invalid("invalid_utf8", format!("the body must be UTF-8 and is not at byte {at}"))
        })?;
        Ok(Self { text })
    }
}

/// The body of a `multipart/form-data` request, within the limit of uploads.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) boundary: String,
    pub(super) bytes: Bytes,
}

impl FromRequest<Arc<Front>> for Upload {
    type Rejection = ApiError;

    async fn from_request(request: Request, front: &Arc<Front>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let boundary = boundary(&parts.headers)?;
        // What it has to do comes next and takes a place among the requests at work, or is refused one.
        let place = front.upload().ok_or_else(ApiError::overloaded)?;
        let bytes = read_in_time(&parts, body, front, front.limits().upload_bytes).await?.into();
        drop(place);
        Ok(Self { boundary, bytes })
    }
}

/// What lies between the fields of a form with these headers.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = multer::parse_boundary(media_type.unwrap_or_default()).map_err(|_| {
        let message = "the content-type must be multipart/form-data with a boundary";
        ApiError::media_type("unsupported_media_type", message)
    })?;
    check_coding(headers)?;
    Ok(boundary)
}

/// Refuses a body that is larger than `limit` as it says itself, after its sender had time to hear it.
pub(super) async fn refuse_announced(parts: &Parts, body: Body, front: &Front, limit: u64) -> ApiError {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match read_in_time(parts, body, front, limit).await {
        Ok(_) => ApiError::body_too_large(limit as u64, None),
        Err(refused) => refused,
    }
}

async fn read_in_time(parts: &Parts, body: Body, front: &Front, limit: usize) -> Result<Vec<u8>, ApiError> {
    let edge = parts.extensions.get::<Edge>();
    let edge = edge.ok_or_else(|| Error::internal("read body", "the request came past the edge"))?;
    let too_late = front.clock().sleep(edge.deadline.since(front.clock().monotonic()));
    match select(pin!(read(&parts.headers, body, limit)), too_late).await {
        Either::Left((read, _)) => read,
        Either::Right(_) => Err(ApiError::body_timeout(front.limits().request_timeout)),
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(Some(""), |value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media_type != "application/json" && !(media_type.starts_with("application/") && media_type.ends_with("+json")) {
        return Err(ApiError::media_type("unsupported_media_type", "the content-type must be application/json"));
    }
    check_coding(headers)
}

fn check_coding(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING).map_or(Some(""), |value| value.to_str().ok()) {
        Some(coding) if coding.is_empty() || coding.eq_ignore_ascii_case("identity") => Ok(()),
        _ => Err(ApiError::media_type("unsupported_encoding", "the body must have no content-encoding")),
    }
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let too_large = announced.filter(|&bytes| u64::try_from(limit).is_ok_and(|limit| bytes > limit));
    // A client that asks before it sends is told at once, and sends nothing.
    if too_large.is_some() && headers.contains_key(header::EXPECT) {
        return Err(ApiError::body_too_large(limit as u64, too_large));
    }
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    if too_large.is_none() {
        // No more than was announced is taken at once, and no announcement is believed beyond the first pages.
        bytes.reserve(announced.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default().min(64 * 1024));
    }
    let (mut discarded, mut over) = (0u64, too_large.is_some());
    while let Some(chunk) = chunks.next().await {
        let chunk: Bytes =
            chunk.map_err(|_| ApiError::invalid("invalid_body", "the body broke off or is framed wrongly"))?;
        over |= chunk.len() > limit - bytes.len();
        if !over {
            bytes.extend_from_slice(&chunk);
            continue;
        }
        bytes = Vec::new();
        discarded = discarded.saturating_add(chunk.len() as u64);
        if discarded > DISCARD_BYTES {
            break;
        }
    }
    if over { Err(ApiError::body_too_large(limit as u64, too_large)) } else { Ok(bytes) }
}
