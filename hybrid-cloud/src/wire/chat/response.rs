//! What is answered.

use hybrid_core::{Digest, Note};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ToolCall, WireUsage};

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Completion {
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// Unix seconds.
    pub(crate) created: i64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    pub(crate) usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_tier: Option<String>,
    pub(crate) system_fingerprint: Option<String>,
    #[serde(flatten)]
    pub(crate) maker: Maker,
}

/// Which version answered and what the caller would not expect of the answer: no fields of OpenAI's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Maker {
    /// The registry's version number, where the model comes from a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "storefront", schemars(with = "Option<String>"))]
    pub(crate) manifest: Option<Digest>,
    /// A fallback, a cut, a cache: `[{"code", "detail"}]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "storefront", schemars(with = "Vec<NoteSchema>"))]
    pub(crate) notes: Vec<Note>,
}

#[cfg(feature = "storefront")]
#[derive(schemars::JsonSchema)]
#[schemars(rename = "Note")]
#[allow(dead_code, reason = "the schema of a type of hybrid-core")]
struct NoteSchema {
    code: String,
    detail: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CompletionChoice {
    pub(crate) index: u32,
    pub(crate) message: CompletionMessage,
    pub(crate) logprobs: Option<WireLogprobs>,
    /// `stop`, `length`, `tool_calls` or `content_filter`.
    pub(crate) finish_reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CompletionMessage {
    /// `assistant`.
    pub(crate) role: &'static str,
    pub(crate) content: Option<String>,
    pub(crate) refusal: Option<String>,
    pub(crate) annotations: Vec<Annotation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audio: Option<AudioAnswer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// A piece of an answer. A whole answer can be read as one piece.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Chunk {
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: String,
    /// Unix seconds.
    #[serde(deserialize_with = "any_number")]
    pub(crate) created: i64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<WireUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_tier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_fingerprint: Option<String>,
    /// What some servers answer with success.
    #[serde(skip_serializing)]
    #[cfg_attr(feature = "storefront", schemars(skip))]
    pub(crate) error: Option<Value>,
    /// As in a whole answer; in the last chunk of a choice.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "storefront", schemars(with = "Option<String>"))]
    pub(crate) manifest: Option<Digest>,
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "storefront", schemars(with = "Vec<NoteSchema>"))]
    pub(crate) notes: Vec<Note>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ChunkChoice {
    pub(crate) index: u32,
    #[serde(alias = "message")]
    pub(crate) delta: AnswerDelta,
    pub(crate) logprobs: Option<WireLogprobs>,
    pub(crate) finish_reason: Option<String>,
    /// The text that ended the answer; vLLM's own field.
    #[serde(skip_serializing)]
    #[cfg_attr(feature = "storefront", schemars(skip))]
    pub(crate) stop_reason: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct AnswerDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
    /// What the model thinks, in the name that most local servers use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// The same in the name that others use.
    #[serde(skip_serializing)]
    #[cfg_attr(feature = "storefront", schemars(skip))]
    pub(crate) reasoning: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audio: Option<AudioAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<Vec<Annotation>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct AudioAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// Base64; in a chunk, of a fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) transcript: Option<String>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<i64>,
}

/// `{"type": "url_citation", "url_citation": {…}}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Annotation {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url_citation: Option<UrlCitation>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct UrlCitation {
    pub(crate) start_index: u32,
    pub(crate) end_index: u32,
    pub(crate) title: String,
    pub(crate) url: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireLogprobs {
    pub(crate) content: Option<Vec<WireLogprob>>,
    pub(crate) refusal: Option<Vec<WireLogprob>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireLogprob {
    pub(crate) token: String,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) logprob: f32,
    pub(crate) top_logprobs: Vec<WireTopLogprob>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireTopLogprob {
    pub(crate) token: String,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) logprob: f32,
}

/// Some servers write the time with a fraction.
fn any_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    // As far as a time can be from 1970, `as` is exact enough.
    Ok(number.and_then(|number| number.as_i64().or_else(|| number.as_f64().map(|number| number as i64))).unwrap_or(0))
}
