//! Files that customers carry to and from the bucket themselves, part by part, by signed links.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
};
use hybrid_core::{Digest, FILE_PART_BYTES, FilePart, NewFile, PartLink, SignedRequest, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    form::{EXPIRES, NAME_BYTES, refuse},
    named,
};
use crate::{
    storefront::{body::JsonText, error::ApiError, front::Admitted},
    wire::file::{FileObject, UPLOAD_PURPOSES, id_out},
};

/// How long a link holds.
pub(in crate::storefront) const LINK: Duration = Duration::from_secs(3600);

/// A file that is to be uploaded by links, and again when it is.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FileUploadRequest")]
pub(in crate::storefront) struct Body {
    filename: String,
    /// `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
    purpose: String,
    expires_after: Option<Expiry>,
    /// The file, cut into parts of 4194304 bytes of which the last may have fewer.
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FileExpiry")]
struct Expiry {
    /// `created_at`.
    anchor: String,
    /// From 3600 to 2592000.
    seconds: u64,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FilePart")]
struct Part {
    /// The SHA-256 of its bytes, in hexadecimal.
    #[schemars(with = "String")]
    sha256: Digest,
    bytes: u64,
}

/// Links to the parts of a file.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "FileLinks")]
pub(in crate::storefront) struct Links {
    /// `file.links`.
    object: &'static str,
    /// The file's id.
    id: String,
    /// Until when the links hold, in Unix seconds.
    expires_at: i64,
    /// One link for each part, in order; an upload's links have a part once that is in the file more than once.
    links: Vec<Link>,
}

/// A request that is signed already.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "FileLink")]
struct Link {
    #[serde(flatten)]
    part: Part,
    method: String,
    url: String,
    /// To be sent as they are. An upload that is answered 412 is there already.
    headers: BTreeMap<String, String>,
}

/// Begins a file: answers with the links that upload it.
pub(in crate::storefront) async fn begin(admitted: Admitted, json: JsonText) -> Result<Json<Links>, ApiError> {
    let body: Body = json.parse()?;
    // What could not be kept in the end is refused before anything is sent.
    let (_, parts) = body.checked(&admitted)?;
    let (id, links) = admitted.link_upload(&parts, LINK).await?;
    Ok(Json(Links::of(id_out(id), links, &admitted)))
}

/// Makes a file of what was uploaded by its links.
pub(in crate::storefront) async fn complete(
    admitted: Admitted,
    id: Result<Path<String>, PathRejection>,
    json: JsonText,
) -> Result<Json<FileObject>, ApiError> {
    let (id, _) = named(id)?;
    let body: Body = json.parse()?;
    let (new, parts) = body.checked(&admitted)?;
    let file = admitted.adopt_file(id, parts, new).await?;
    Ok(Json(FileObject::from(&file)))
}

/// Answers with the links that download a file.
pub(in crate::storefront) async fn download(
    admitted: Admitted,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Links>, ApiError> {
    let (id, sent) = named(id)?;
    let links = admitted.link_download(id, LINK).await?.ok_or_else(|| ApiError::unknown_file(&sent))?;
    Ok(Json(Links::of(sent, links, &admitted)))
}

impl Body {
    fn checked(self, admitted: &Admitted) -> Result<(NewFile, Vec<FilePart>), ApiError> {
        let Self { filename: name, purpose, expires_after, parts } = self;
        if !(1..=NAME_BYTES).contains(&name.len()) {
            return Err(refuse("filename", "must have 1 to 512 bytes"));
        }
        if !UPLOAD_PURPOSES.contains(&purpose.as_str()) {
            return Err(refuse("purpose", &format!("must be one of {}", UPLOAD_PURPOSES.join(", "))));
        }
        let limit = admitted.front().limits().file_bytes;
        let most = limit.div_ceil(FILE_PART_BYTES as u64);
        let bytes = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.bytes));
        if bytes > limit || parts.len() as u64 > most {
            return Err(ApiError::body_too_large(limit, Some(bytes)));
        }
        let expires = match expires_after {
            None => None,
            Some(Expiry { anchor, .. }) if anchor != "created_at" => {
                return Err(refuse("expires_after.anchor", "must be created_at"));
            }
            Some(Expiry { seconds, .. }) if !EXPIRES.contains(&seconds) => {
                return Err(refuse("expires_after.seconds", "must be a number from 3600 to 2592000"));
            }
            Some(Expiry { seconds, .. }) => Some(admitted.front().clock().now().plus(Duration::from_secs(seconds))),
        };
        let parts = parts.into_iter().map(|Part { sha256: digest, bytes }| FilePart { digest, bytes }).collect();
        Ok((NewFile { name, purpose, expires }, parts))
    }
}

impl Links {
    fn of(id: String, links: Vec<PartLink>, admitted: &Admitted) -> Self {
        let seconds = |time: Timestamp| time.unix_micros().div_euclid(1_000_000);
        let soonest = links.iter().map(|link| link.request.expires).min();
        let links = links.into_iter().map(|PartLink { part, request }| {
            let SignedRequest { method, url, headers, expires: _ } = request;
            let part = Part { sha256: part.digest, bytes: part.bytes };
            Link { part, method, url, headers: headers.into_iter().collect() }
        });
        let expires_at = seconds(soonest.unwrap_or_else(|| admitted.front().clock().now()));
        Self { object: "file.links", id, expires_at, links: links.collect() }
    }
}
