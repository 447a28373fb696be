//! `/v1/files`.

use hybrid_core::{FileId, StoredFile};
use serde::Serialize;

/// What a file may be uploaded for.
pub(crate) const UPLOAD_PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
/// What a file may be for: the kitchen's outputs too.
pub(crate) const PURPOSES: [&str; 9] = [
    "assistants",
    "batch",
    "fine-tune",
    "vision",
    "user_data",
    "evals",
    "assistants_output",
    "batch_output",
    "fine-tune-results",
];
const PREFIX: &str = "file-";

/// An id as customers see it: `file-` and a UUID.
pub(crate) fn id_out(id: FileId) -> String {
    format!("{PREFIX}{id}")
}

/// Reads what [`id_out`] wrote, in its one spelling.
pub(crate) fn id_in(id: &str) -> Option<FileId> {
    id.strip_prefix(PREFIX)?.parse().ok()
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "File")]
pub(crate) struct FileObject {
    pub(crate) id: String,
    /// `file`.
    pub(crate) object: &'static str,
    pub(crate) bytes: u64,
    /// Unix seconds.
    pub(crate) created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<i64>,
    pub(crate) filename: String,
    pub(crate) purpose: String,
    /// `processed`: a file is whole as soon as it is there.
    pub(crate) status: &'static str,
}

impl From<&StoredFile> for FileObject {
    fn from(file: &StoredFile) -> Self {
        let StoredFile { id, name, purpose, bytes, created, expires, nonce: _, parts: _ } = file;
        Self {
            id: id_out(*id),
            object: "file",
            bytes: *bytes,
            created_at: created.unix_micros().div_euclid(1_000_000),
            expires_at: expires.map(|expires| expires.unix_micros().div_euclid(1_000_000)),
            filename: name.clone(),
            purpose: purpose.clone(),
            status: "processed",
        }
    }
}

/// Some files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct FileList {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<FileObject>,
    pub(crate) first_id: Option<String>,
    /// What to send as `after` to get the next page.
    pub(crate) last_id: Option<String>,
    pub(crate) has_more: bool,
}

/// A file that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "FileDeleted")]
pub(crate) struct Deleted {
    pub(crate) id: String,
    /// `file`.
    pub(crate) object: &'static str,
    pub(crate) deleted: bool,
}

/// The form of an upload, for the document of the API.
#[derive(schemars::JsonSchema)]
#[allow(dead_code, reason = "a form is read field by field")]
pub(crate) struct FileForm {
    #[schemars(extend("contentMediaType" = "application/octet-stream"))]
    file: String,
    /// `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
    purpose: String,
    /// `created_at`.
    #[schemars(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    /// From 3600 to 2592000.
    #[schemars(rename = "expires_after[seconds]")]
    seconds: Option<u32>,
}
