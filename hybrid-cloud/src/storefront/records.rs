//! `/v1/records`: a customer's live data, such as conversations and judgments that await review.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, Query, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderValue, header},
    response::Response,
};
use hybrid_core::{
    CollectionName, NewRecord, PutCondition, Record, RecordKey, RecordOrder, RecordPage, RecordQuery, RecordVersion,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{body::JsonText, error::ApiError, files::download, front::Admitted};

/// The most records of one page; each may have 384 KiB.
const PAGE: usize = 100;
/// The last second of the year 9999: times beyond have no form that all readers know.
const LAST_SECOND: i64 = 253_402_300_799;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RecordRequest")]
pub(super) struct Put {
    /// 1 to 512 bytes without control characters.
    key: String,
    /// Any JSON of at most 393216 bytes without the blanks between its parts. It comes back as it was sent, to the digit.
    #[schemars(with = "Value")]
    value: Box<RawValue>,
    /// From when on the record is gone, in Unix seconds; never where left out.
    expires_at: Option<i64>,
    /// Write only where there is no record of this key.
    #[serde(default)]
    if_absent: bool,
    /// Write only over this version.
    if_version: Option<String>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RecordWritten")]
pub(super) struct Written {
    /// `record`.
    object: &'static str,
    #[schemars(with = "String")]
    collection: CollectionName,
    #[schemars(with = "String")]
    key: RecordKey,
    /// What to send as `if_version`, so that nobody's change is lost.
    #[schemars(with = "String")]
    version: RecordVersion,
}

/// A record.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Record")]
pub(super) struct Shown {
    /// `record`.
    object: &'static str,
    #[schemars(with = "String")]
    collection: CollectionName,
    #[schemars(with = "String")]
    key: RecordKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Value>")]
    value: Option<Box<RawValue>>,
    /// The value where it is no JSON, as the storefront's own programs may write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[schemars(with = "String")]
    version: RecordVersion,
    /// Unix seconds.
    written_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RecordList")]
pub(super) struct List {
    /// `list`.
    object: &'static str,
    data: Vec<Shown>,
    /// There may be more. A page may be empty although there are.
    has_more: bool,
    /// What to send as `after` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<String>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RecordDeleted")]
pub(super) struct Deleted {
    /// `record`.
    object: &'static str,
    #[schemars(with = "String")]
    collection: CollectionName,
    #[schemars(with = "String")]
    key: RecordKey,
    deleted: bool,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RecordsErased")]
pub(super) struct Erased {
    /// `records`.
    object: &'static str,
    deleted: bool,
}

/// What a list is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    prefix: String,
    after: Option<String>,
    order: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn put(
    admitted: Admitted,
    collection: Result<Path<String>, PathRejection>,
    json: JsonText,
) -> Result<Json<Written>, ApiError> {
    let collection = admitted.collection(&text(collection))?;
    let Put { key, value, expires_at, if_absent, if_version } = json.parse_keeping()?;
    let key = RecordKey::new(key).map_err(|error| refuse("key", error.message()))?;
    let now = admitted.front().clock().now();
    let expires = match expires_at {
        None => None,
        Some(at) if !(1..=LAST_SECOND).contains(&at) || second(at) <= now => {
            return Err(refuse("expires_at", "must be a time to come, in Unix seconds"));
        }
        Some(at) => Some(second(at)),
    };
    let condition = match (if_absent, if_version) {
        (false, None) => PutCondition::Always,
        (true, None) => PutCondition::Create,
        (false, Some(version)) => match version.parse() {
            Ok(version) => PutCondition::Version(version),
            Err(_) => return Err(refuse("if_version", "must be a record's version as it was answered")),
        },
        (true, Some(_)) => return Err(refuse("if_version", "and if_absent contradict each other; send one")),
    };
    let record = NewRecord { value: without_blanks(value.get()).into(), expires };
    let version = admitted.put_record(&collection, &key, record, condition).await?;
    Ok(Json(Written { object: "record", collection, key, version }))
}

pub(super) async fn list(
    admitted: Admitted,
    collection: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<List>, ApiError> {
    let collection = admitted.collection(&text(collection))?;
    let unread = |error: QueryRejection| ApiError::invalid("invalid_request", error.body_text());
    let Query(Asked { prefix, after, order, limit }) = asked.map_err(unread)?;
    let after = after.map(RecordKey::new).transpose().map_err(|error| refuse("after", error.message()))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=PAGE).contains(&limit) {
        return Err(refuse("limit", "must be a number from 1 to 100"));
    }
    let mut query = RecordQuery::prefix(prefix).limit(limit);
    match order.as_deref() {
        None | Some("asc") => query.after = after,
        Some("desc") => query = RecordQuery { before: after, order: RecordOrder::Descending, ..query },
        Some(_) => return Err(refuse("order", "must be asc or desc")),
    }
    let RecordPage { records, next } = admitted.query_records(&collection, query).await?;
    let next_after = next.as_ref().and_then(|next| match next.order {
        RecordOrder::Ascending => next.after.as_ref(),
        RecordOrder::Descending => next.before.as_ref(),
    });
    Ok(Json(List {
        object: "list",
        has_more: next.is_some(),
        next_after: next_after.map(ToString::to_string),
        data: records.into_iter().map(|record| Shown::new(collection.clone(), record)).collect(),
    }))
}

pub(super) async fn get(
    admitted: Admitted,
    place: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let (collection, key, sent) = place_of(&admitted, place)?;
    let record = admitted.get_record(&collection, &key).await?.ok_or_else(|| ApiError::unknown_record(&sent))?;
    Ok(Json(Shown::new(collection, record)))
}

/// The same for a record that is there and for one that is not: it is gone.
pub(super) async fn delete(
    admitted: Admitted,
    place: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let (collection, key, _) = place_of(&admitted, place)?;
    admitted.delete_record(&collection, &key).await?;
    Ok(Json(Deleted { object: "record", collection, key, deleted: true }))
}

/// Every record of the tenant, one a line, and a last line that says how many: without it the export is not whole.
pub(super) async fn export(admitted: Admitted) -> Result<Response, ApiError> {
    let line = |collection, record| line(&Shown::new(collection, record));
    let end = |records: u64| format!("{}\n", json!({ "object": "records.end", "records": records })).into();
    let sending = admitted.export_records(line, end).await?;
    let mut response = Response::new(Body::from_stream(download::start(&admitted, sending).await?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

pub(super) async fn erase(admitted: Admitted) -> Result<Json<Erased>, ApiError> {
    admitted.erase_records().await?;
    Ok(Json(Erased { object: "records", deleted: true }))
}

fn line(shown: &Shown) -> Bytes {
    // Plain structs always serialise; one that did not would be missed by the count.
    let Ok(mut line) = serde_json::to_vec(shown) else { return Bytes::new() };
    line.push(b'\n');
    line.into()
}

/// JSON on one line: without the blanks and line breaks between its parts.
fn without_blanks(json: &str) -> String {
    let (mut in_text, mut escaped) = (false, false);
    let kept = json.chars().filter(|char| {
        let is_blank = !in_text && matches!(char, ' ' | '\t' | '\n' | '\r');
        in_text ^= *char == '"' && !escaped;
        escaped = in_text && *char == '\\' && !escaped;
        !is_blank
    });
    kept.collect()
}

/// What a path names. A key that can be no record's is as unknown as one that is another's.
fn place_of(
    admitted: &Admitted,
    place: Result<Path<(String, String)>, PathRejection>,
) -> Result<(CollectionName, RecordKey, String), ApiError> {
    let (collection, sent) = place.map(|Path(place)| place).unwrap_or_default();
    let collection = admitted.collection(&collection)?;
    match RecordKey::new(sent.clone()) {
        Ok(key) => Ok((collection, key, sent)),
        Err(_) => Err(ApiError::unknown_record(&sent)),
    }
}

fn text(path: Result<Path<String>, PathRejection>) -> String {
    path.map(|Path(text)| text).unwrap_or_default()
}

fn refuse(field: &str, message: &str) -> ApiError {
    ApiError::invalid("invalid_request", format!("{field} {message}")).param(field)
}

fn second(unix: i64) -> Timestamp {
    Timestamp::from_unix_micros(unix.saturating_mul(1_000_000))
}

impl Shown {
    fn new(collection: CollectionName, record: Record) -> Self {
        use base64::Engine as _;

        let Record { key, value, version, written, expires } = record;
        let seconds = |time: Timestamp| time.unix_micros().div_euclid(1_000_000);
        // A program that shares the store may have written its values over several lines.
        let json = serde_json::from_slice::<&RawValue>(&value).ok();
        let json = json.and_then(|json| match json.get().contains(['\n', '\r']) {
            true => RawValue::from_string(without_blanks(json.get())).ok(),
            false => Some(json.to_owned()),
        });
        let value_base64 = json.is_none().then(|| base64::engine::general_purpose::STANDARD.encode(&value));
        Self {
            object: "record",
            collection,
            key,
            value: json,
            value_base64,
            version,
            written_at: seconds(written),
            expires_at: expires.map(seconds),
        }
    }
}
