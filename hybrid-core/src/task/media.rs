//! Images, audio, video and documents inside requests and answers.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{base64_bytes, check::Check, is_default};
use crate::Result;

/// Where the bytes of a medium are.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MediaSource {
    /// Here; a base64 string in JSON.
    Bytes(#[serde(with = "base64_bytes")] Bytes),
    /// Where the backend can fetch them.
    Uri {
        /// The address, such as `s3://bucket/key` or `https://…`.
        uri: String,
        /// The account that owns the bucket, where it is not the caller's.
        #[serde(default, skip_serializing_if = "is_default")]
        owner: Option<String>,
    },
    /// With the provider already, under this id of its own.
    Id(String),
}

impl MediaSource {
    /// Bytes behind an address.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self::Uri { uri: uri.into(), owner: None }
    }

    pub(super) fn check(&self, check: Check, field: impl fmt::Display) -> Result<()> {
        match self {
            Self::Bytes(bytes) => check.that(!bytes.is_empty(), field, "must not be empty"),
            Self::Uri { uri, .. } => check.not_blank(format_args!("{field}.uri"), uri),
            Self::Id(id) => check.not_blank(format_args!("{field}.id"), id),
        }
    }
}

/// No bytes yet: what a stream of bytes begins with. Requests refuse it.
impl Default for MediaSource {
    fn default() -> Self {
        Self::Bytes(Bytes::new())
    }
}

impl From<Bytes> for MediaSource {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for MediaSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

// Logs get the length: a derived impl would print megabytes of a customer's data.
impl fmt::Debug for MediaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Uri { uri, owner } => f.debug_struct("Uri").field("uri", uri).field("owner", owner).finish(),
            Self::Id(id) => f.debug_tuple("Id").field(id).finish(),
        }
    }
}

/// An image in a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePart {
    /// The IANA media type, such as `image/png`.
    pub media_type: String,
    /// The encoded image.
    pub source: MediaSource,
    /// How closely the model should look; `None` leaves it to the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detail: Option<ImageDetail>,
    /// Why the model made no image, in an answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub error: Option<String>,
}

impl ImagePart {
    /// An image of the given IANA media type.
    pub fn new(media_type: impl Into<String>, source: impl Into<MediaSource>) -> Self {
        Self { media_type: media_type.into(), source: source.into(), ..Self::default() }
    }

    pub(super) fn check(&self, check: Check, field: impl fmt::Display) -> Result<()> {
        check_media(check, field, &self.media_type, &self.source)
    }
}

/// How many tokens a model should spend on looking at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageDetail {
    /// As the model sees fit.
    Auto,
    /// A small version of the image.
    Low,
    /// The image in full.
    High,
}

/// Sound in a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioPart {
    /// The IANA media type, such as `audio/wav`.
    pub media_type: String,
    /// The encoded sound.
    pub source: MediaSource,
    /// The provider's id of sound that a model made, by which a later request can name it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub id: Option<String>,
    /// When the provider forgets the id, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expires_at: Option<String>,
    /// What is said in it, where the model wrote it down.
    #[serde(default, skip_serializing_if = "is_default")]
    pub transcript: Option<String>,
    /// Why the model made no sound, in an answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub error: Option<String>,
}

impl AudioPart {
    /// Sound of the given IANA media type.
    pub fn new(media_type: impl Into<String>, source: impl Into<MediaSource>) -> Self {
        Self { media_type: media_type.into(), source: source.into(), ..Self::default() }
    }

    pub(super) fn check(&self, check: Check, field: impl fmt::Display) -> Result<()> {
        check_media(check, field, &self.media_type, &self.source)
    }
}

/// A video in a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoPart {
    /// The IANA media type, such as `video/mp4`.
    pub media_type: String,
    /// The encoded video.
    pub source: MediaSource,
}

impl VideoPart {
    /// A video of the given IANA media type.
    pub fn new(media_type: impl Into<String>, source: impl Into<MediaSource>) -> Self {
        Self { media_type: media_type.into(), source: source.into() }
    }

    pub(super) fn check(&self, check: Check, field: impl fmt::Display) -> Result<()> {
        check_media(check, field, &self.media_type, &self.source)
    }
}

/// A document in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentPart {
    /// The name by which the conversation can mention it.
    pub name: String,
    /// The IANA media type, such as `application/pdf`; `None` for plain text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub media_type: Option<String>,
    /// What it contains.
    pub source: DocumentSource,
    /// What the model should know about it besides its contents.
    #[serde(default, skip_serializing_if = "is_default")]
    pub context: Option<String>,
    /// Whether the answer should cite it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub citations: bool,
}

impl DocumentPart {
    /// A document in a file format of the given IANA media type.
    pub fn file(name: impl Into<String>, media_type: impl Into<String>, source: impl Into<MediaSource>) -> Self {
        let source = DocumentSource::File(source.into());
        Self { name: name.into(), media_type: Some(media_type.into()), source, context: None, citations: false }
    }

    /// A document of plain text.
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Self {
        let source = DocumentSource::Text(text.into());
        Self { name: name.into(), media_type: None, source, context: None, citations: false }
    }

    pub(super) fn check(&self, check: Check, field: impl fmt::Display) -> Result<()> {
        check.not_blank(format_args!("{field}.name"), &self.name)?;
        check.not_blank_if_set(format_args!("{field}.media_type"), self.media_type.as_deref())?;
        match &self.source {
            DocumentSource::File(source) => source.check(check, format_args!("{field}.source")),
            DocumentSource::Text(text) => check.not_blank(format_args!("{field}.source"), text),
            DocumentSource::Chunks(chunks) => {
                check.that(!chunks.is_empty(), format_args!("{field}.source"), "must hold at least one chunk")
            }
        }
    }
}

/// What a document contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DocumentSource {
    /// A file in the document's media type.
    File(MediaSource),
    /// Its text.
    Text(String),
    /// Its text, cut into chunks that citations can name.
    Chunks(Vec<String>),
}

/// A passage that a search found, for the model to use and cite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Where it was found: an address or a name.
    pub source: String,
    /// Its title.
    pub title: String,
    /// Its text, in pieces that citations can name.
    pub content: Vec<String>,
    /// Whether the answer should cite it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub citations: bool,
}

fn check_media(check: Check, field: impl fmt::Display, media_type: &str, source: &MediaSource) -> Result<()> {
    // What the provider holds already needs no type.
    if !matches!(source, MediaSource::Id(_)) {
        check.not_blank(format_args!("{field}.media_type"), media_type)?;
    }
    source.check(check, format_args!("{field}.source"))
}

#[cfg(test)]
mod tests {
    use super::{super::check::testing::over_json, *};

    #[test]
    fn sources_come_back_and_read_well() {
        let bytes = MediaSource::from(vec![1, 2, 3]);
        assert_eq!(serde_json::to_string(&bytes).unwrap(), r#"{"bytes":"AQID"}"#);
        for source in [bytes, MediaSource::uri("s3://b/k"), MediaSource::Id("file-1".into())] {
            assert_eq!(over_json(&source), source);
        }
        let document = DocumentPart { citations: true, ..DocumentPart::text("a", "b") };
        assert_eq!(over_json(&document), document);
    }

    #[test]
    fn debug_output_does_not_show_the_bytes() {
        assert_eq!(format!("{:?}", MediaSource::from(vec![7; 9])), "Bytes(9 bytes)");
    }

    #[test]
    fn empty_media_are_refused() {
        let check = Check("check");
        assert!(ImagePart::new("image/png", vec![1]).check(check, "image").is_ok());
        assert!(ImagePart::new("", MediaSource::Id("file-1".into())).check(check, "image").is_ok());
        for bad in [ImagePart::new("image/png", vec![]), ImagePart::new(" ", vec![1]), ImagePart::default()] {
            assert!(bad.check(check, "image").is_err(), "{bad:?}");
        }
        assert!(DocumentPart::text("", "x").check(check, "document").is_err());
        assert!(VideoPart::new("video/mp4", MediaSource::uri("")).check(check, "video").is_err());
    }
}
