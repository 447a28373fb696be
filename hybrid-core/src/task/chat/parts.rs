use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{AudioPart, DocumentPart, ImagePart, SearchResult, VideoPart, base64_bytes, is_default};

/// The model's call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolUse {
    /// The call's id, to which the tool's answer refers.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments: usually an object that fits the tool's schema; a string for [`ToolUseKind::Custom`].
    ///
    /// A call that the model was stopped in the middle of (see [`StopReason::is_complete`](super::StopReason::is_complete)) has the
    /// unfinished JSON text here, as a string.
    pub input: Value,
    /// What kind of tool it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: ToolUseKind,
}

impl ToolUse {
    /// A call of a function with its arguments.
    pub fn new(id: impl Into<String>, name: impl Into<String>, input: Value) -> Self {
        Self { id: id.into(), name: name.into(), input, kind: ToolUseKind::Function }
    }
}

/// What kind of tool is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolUseKind {
    /// A function of the caller's, with JSON arguments.
    #[default]
    Function,
    /// A tool of the caller's, with free text.
    Custom,
    /// A tool of the provider's, which it has run already.
    Server,
}

/// What a tool answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The [`ToolUse::id`] that is answered.
    pub tool_use_id: String,
    /// The answer, in order.
    pub content: Vec<ToolResultPart>,
    /// Whether the tool did what it was called for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: ToolStatus,
    /// The provider's name for the kind of result, where one of its own tools answered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: Option<String>,
}

impl ToolResult {
    /// A text that the tool answered.
    pub fn text(tool_use_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { tool_use_id: tool_use_id.into(), content: vec![ToolResultPart::Text(text.into())], ..Self::default() }
    }

    /// A JSON value that the tool answered.
    pub fn json(tool_use_id: impl Into<String>, value: Value) -> Self {
        Self { tool_use_id: tool_use_id.into(), content: vec![ToolResultPart::Json(value)], ..Self::default() }
    }

    /// What the tool says of its failure.
    pub fn error(tool_use_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { status: ToolStatus::Error, ..Self::text(tool_use_id, text) }
    }
}

/// Whether a tool did what it was called for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolStatus {
    /// It did.
    #[default]
    Success,
    /// It failed; the content says why.
    Error,
}

/// A part of what a tool answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolResultPart {
    /// A text.
    Text(String),
    /// A JSON value.
    Json(Value),
    /// An image.
    Image(ImagePart),
    /// Sound.
    Audio(AudioPart),
    /// A video.
    Video(VideoPart),
    /// A document.
    Document(DocumentPart),
    /// A passage that a search found.
    SearchResult(SearchResult),
}

/// What the model thought before it answered. Send it back unchanged in the next request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reasoning {
    /// In the open.
    Text {
        /// The thoughts.
        text: String,
        /// The provider's proof that nobody changed them.
        #[serde(default, skip_serializing_if = "is_default")]
        signature: Option<String>,
    },
    /// Encrypted by the provider; a base64 string in JSON.
    Redacted(#[serde(with = "base64_bytes")] Bytes),
}

impl Reasoning {
    /// Thoughts without a signature.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into(), signature: None }
    }
}

/// A text with the sources of what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CitedText {
    /// The text.
    pub text: String,
    /// Its sources, in order.
    pub citations: Vec<Citation>,
}

/// A source of what a text says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Citation {
    /// The source's title.
    #[serde(skip_serializing_if = "is_default")]
    pub title: Option<String>,
    /// Where the source was found: an address or a name.
    #[serde(skip_serializing_if = "is_default")]
    pub source: Option<String>,
    /// The words of the source.
    #[serde(skip_serializing_if = "is_default")]
    pub source_content: Vec<String>,
    /// Where in the source.
    #[serde(skip_serializing_if = "is_default")]
    pub location: Option<CitationLocation>,
    /// Where in the text; `None` for all of it.
    #[serde(skip_serializing_if = "is_default")]
    pub span: Option<TextSpan>,
}

/// A part of a text, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TextSpan {
    /// The first character, from 0.
    pub start: u32,
    /// The character after the last.
    pub end: u32,
}

/// Where in a source a citation points, as the provider counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CitationLocation {
    /// A page on the web.
    Web {
        /// Its address.
        url: Option<String>,
        /// Its domain.
        domain: Option<String>,
    },
    /// Characters of a document.
    DocumentChar {
        /// Which document of the request, from 0.
        document: Option<u32>,
        /// The first character.
        start: Option<u32>,
        /// The end.
        end: Option<u32>,
    },
    /// Pages of a document.
    DocumentPage {
        /// Which document of the request, from 0.
        document: Option<u32>,
        /// The first page.
        start: Option<u32>,
        /// The end.
        end: Option<u32>,
    },
    /// Chunks of a document.
    DocumentChunk {
        /// Which document of the request, from 0.
        document: Option<u32>,
        /// The first chunk.
        start: Option<u32>,
        /// The end.
        end: Option<u32>,
    },
    /// Pieces of a search result.
    SearchResult {
        /// Which search result of the request, from 0.
        search_result: Option<u32>,
        /// The first piece.
        start: Option<u32>,
        /// The end.
        end: Option<u32>,
    },
}

/// Something for the guardrail to look at. Once a request has any, the guardrail may look at nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuardedContent {
    /// A text.
    Text {
        /// The text.
        text: String,
        /// What the text is to the guardrail; empty for the provider's own way.
        #[serde(default, skip_serializing_if = "is_default")]
        qualifiers: Vec<GuardQualifier>,
    },
    /// An image.
    Image(ImagePart),
}

/// What a text is to the guardrail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuardQualifier {
    /// What the answer must rest on.
    GroundingSource,
    /// What the answer must be about.
    Query,
    /// What is checked.
    GuardContent,
}

/// The end of what the provider should cache, from the beginning of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CachePoint {
    /// How long to keep it, as the provider writes it, such as `5m` or `1h`; `None` for the provider's own time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ttl: Option<String>,
}

/// Names a tool that the provider knows already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolReference {
    /// The kind of reference, as the provider writes it.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: Option<String>,
    /// The tool's name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// The name of the server that has the tool.
    #[serde(skip_serializing_if = "is_default")]
    pub server: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::check::testing::over_json, ContentPart},
        *,
    };

    #[test]
    fn every_part_comes_back() {
        let location = CitationLocation::DocumentPage { document: Some(0), start: Some(1), end: None };
        let span = Some(TextSpan { start: 0, end: 1 });
        let citation = Citation { title: Some("t".into()), location: Some(location), span, ..Citation::default() };
        let server = ToolUse { kind: ToolUseKind::Server, ..ToolUse::new("s", "search", Value::Null) };
        for part in [
            ContentPart::Refusal("no".into()),
            CitedText { text: "a".into(), citations: vec![citation, Citation::default()] }.into(),
            Reasoning::Text { text: "hm".into(), signature: Some("s".into()) }.into(),
            Reasoning::Redacted(Bytes::from_static(&[1, 2])).into(),
            server.into(),
            ToolResult::json("t", serde_json::json!([1, null, {"a": "b"}])).into(),
            ToolResult { kind: Some("web".into()), ..ToolResult::error("t", "broken") }.into(),
            GuardedContent::Text { text: "g".into(), qualifiers: vec![GuardQualifier::Query] }.into(),
            GuardedContent::Image(ImagePart::new("image/png", vec![1])).into(),
            CachePoint { ttl: Some("1h".into()) }.into(),
            ContentPart::ToolAddition(ToolReference { name: Some("x".into()), ..ToolReference::default() }),
            ContentPart::ToolRemoval(ToolReference::default()),
            DocumentPart::file("d", "application/pdf", vec![1]).into(),
            SearchResult { source: "s".into(), title: "t".into(), content: vec!["c".into()], citations: true }.into(),
        ] {
            assert_eq!(over_json(&part), part);
        }
    }
}
