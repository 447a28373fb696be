//! Stored JSON: every document says what it is and which major version it has.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// A type that is stored as JSON with a `"format": "<name>/<major>"` field.
///
/// A reader refuses another name or a higher major, and ignores fields that it does not know.
pub trait Document: Serialize + DeserializeOwned {
    /// The format's name, such as `hybrid.manifest`.
    const FORMAT: &'static str;
    /// The major version that this code writes and the highest that it reads.
    const MAJOR: u32;

    /// The JSON text, with the format as its first field.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if the value cannot be JSON, such as a map with keys that are not text.
    fn encode(&self) -> Result<Bytes> {
        let tagged = Tagged { format: format!("{}/{}", Self::FORMAT, Self::MAJOR), document: self };
        let json = serde_json::to_vec(&tagged).map_err(|error| {
            Error::internal("encode document", "the value cannot be written as JSON")
                .with("format", Self::FORMAT)
                .with_source(error)
        })?;
        Ok(json.into())
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for anything that is not such a document,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a higher major.
    fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |message: &'static str| Error::corrupt("decode document", message).with("expected", Self::FORMAT);
        // The tag first, so that a newer major is named as such however its fields have changed.
        let tag: Tag = serde_json::from_slice(bytes)
            .map_err(|error| corrupt("not JSON with a format field").with_source(error))?;
        let major = tag
            .format
            .rsplit_once('/')
            .filter(|(name, _)| *name == Self::FORMAT)
            .and_then(|(_, major)| major.parse::<u32>().ok())
            .ok_or_else(|| corrupt("another format").with("found", format_args!("{:?}", tag.format)))?;
        if major > Self::MAJOR {
            return Err(Error::unsupported("decode document", "a newer format than this version reads; upgrade first")
                .with("found", tag.format)
                .with("newest known", Self::MAJOR));
        }
        serde_json::from_slice(bytes).map_err(|error| corrupt("the fields do not fit the format").with_source(error))
    }
}

#[derive(Serialize)]
struct Tagged<'a, D> {
    format: String,
    #[serde(flatten)]
    document: &'a D,
}

#[derive(Deserialize)]
struct Tag {
    format: String,
}

/// Declares the format of a stored type.
macro_rules! document {
    ($type:ty, $format:literal, $major:literal) => {
        impl $crate::Document for $type {
            const FORMAT: &'static str = $format;
            const MAJOR: u32 = $major;
        }
    };
}
pub(crate) use document;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
    }
    document!(Note, "test.note", 2);

    #[test]
    fn a_document_says_what_it_is_and_refuses_what_it_cannot_read() {
        let note = Note { text: "hi".to_owned() };
        let bytes = note.encode().unwrap();
        assert_eq!(bytes, r#"{"format":"test.note/2","text":"hi"}"#.as_bytes());
        assert_eq!(Note::decode(&bytes).unwrap(), note);

        let kind = |text: &str| Note::decode(text.as_bytes()).unwrap_err().kind();
        assert_eq!(kind(r#"{"format":"test.note/3","body":1}"#), ErrorKind::Unsupported);
        assert_eq!(kind(r#"{"format":"test.other/1","text":"hi"}"#), ErrorKind::Corrupt);
        assert_eq!(kind(r#"{"text":"hi"}"#), ErrorKind::Corrupt);
        assert_eq!(kind(r#"{"format":"test.note/2","text":"h"#), ErrorKind::Corrupt);
        assert!(Note::decode(br#"{"format":"test.note/1","text":"hi","more":1}"#).is_ok());
    }
}
