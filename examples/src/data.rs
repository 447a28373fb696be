//! The bakery's messages, as files of JSON Lines.

use std::{collections::BTreeMap, path::Path};

use hybrid_core::{Digest, Error, Judgment, JudgmentId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The labels that the head baker uses.
pub const LABELS: [&str; 8] = ["allergy", "catering", "change", "complaint", "hours", "offtopic", "order", "wholesale"];

/// One customer message with the head baker's decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// What the customer wrote.
    pub text: String,
    /// What the head baker decided.
    pub label: String,
    /// `en` or `de`.
    pub language: String,
}

impl Decided {
    /// Reads a file of decided messages.
    ///
    /// # Errors
    /// The file's, or [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names file and line.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::invalid("read messages", "the file cannot be read as UTF-8 text")
                .with("file", path.display())
                .with_source(error)
        })?;
        text.lines()
            .enumerate()
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|error| {
                    Error::invalid("read messages", "expected {\"text\", \"label\", \"language\"}")
                        .with("file", path.display())
                        .with("line", index + 1)
                        .with_source(error)
                })
            })
            .collect()
    }

    /// An id that is the same whenever the same decision about the same text is sent, so that a repeat counts once.
    pub fn id(&self) -> JudgmentId {
        let digest = Digest::of(format!("{}\n{}", self.label, self.text).as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        JudgmentId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The judgment that a storefront would record of it.
    pub fn judgment(&self, at: Timestamp) -> Judgment {
        Judgment {
            by: Some("head-baker".to_owned()),
            tags: BTreeMap::from([("language".to_owned(), self.language.clone())]),
            ..Judgment::new(self.id(), "classify", json!({ "text": self.text }), json!({ "label": self.label }), at)
        }
    }
}
