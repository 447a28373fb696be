//! `POST /v1/responses`, stateless: its requests and answers as chat.

mod read;
mod write;

use std::collections::BTreeMap;

use hybrid_core::Note;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

pub(crate) use read::{ParsedResponse, caller_words, read_request};
pub(crate) use write::{Named, ResponseWriter};

use super::chat::{CustomFormat, UrlCitation, WireLogprob, WireUsage};

/// The body of a request for a response.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[derive(schemars::JsonSchema)]
pub(crate) struct ResponseRequest {
    /// The model; the first one that chats where none is named.
    pub(crate) model: Option<String>,
    /// A text from the user, or the items of a conversation.
    pub(crate) input: Option<Input>,
    /// What the model is told before the conversation.
    pub(crate) instructions: Option<String>,
    /// Functions and custom tools.
    pub(crate) tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required`, or an object that names a tool.
    pub(crate) tool_choice: Option<Value>,
    pub(crate) parallel_tool_calls: Option<bool>,
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_logprobs: Option<u8>,
    pub(crate) reasoning: Option<ReasoningSettings>,
    pub(crate) text: Option<TextSettings>,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    pub(crate) user: Option<String>,
    pub(crate) safety_identifier: Option<String>,
    pub(crate) prompt_cache_key: Option<String>,
    pub(crate) service_tier: Option<String>,
    pub(crate) include: Option<Vec<String>>,
    pub(crate) stream: Option<bool>,
    /// `disabled`; nothing is cut here.
    pub(crate) truncation: Option<String>,
    /// Refused where it is true: nothing is kept here.
    pub(crate) store: Option<bool>,
    /// Refused where it is there: nothing is kept here.
    pub(crate) previous_response_id: Option<Value>,
    /// Refused where it is there: nothing is kept here.
    pub(crate) conversation: Option<Value>,
    /// Refused where it is true.
    pub(crate) background: Option<bool>,
    /// Refused where it is there.
    pub(crate) prompt: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, schemars::JsonSchema)]
#[schemars(untagged)]
pub(crate) enum Input {
    Text(String),
    Items(Vec<InputItem>),
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOr("a text or a list of items", Self::Text, Self::Items))
    }
}

/// An item of a conversation. Which fields it has follows from its `type`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(crate) struct InputItem {
    /// `message` (which may be left out), `function_call`, `function_call_output`, `custom_tool_call`, `custom_tool_call_output` or `reasoning`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// `user`, `assistant`, `system` or `developer`.
    pub(crate) role: Option<String>,
    pub(crate) content: Option<ItemContent>,
    pub(crate) call_id: Option<String>,
    pub(crate) name: Option<String>,
    /// JSON text.
    pub(crate) arguments: Option<String>,
    pub(crate) input: Option<String>,
    /// A text, or parts.
    pub(crate) output: Option<ItemContent>,
}

#[derive(Clone, Debug, PartialEq, schemars::JsonSchema)]
#[schemars(untagged)]
pub(crate) enum ItemContent {
    Text(String),
    Parts(Vec<ItemPart>),
}

impl<'de> Deserialize<'de> for ItemContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOr("a text or a list of parts", Self::Text, Self::Parts))
    }
}

/// A part of an item. Which fields it has follows from its `type`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(crate) struct ItemPart {
    /// `input_text`, `input_image`, `input_file`, `input_audio`, `output_text`, `refusal` or `reasoning_text`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) text: Option<String>,
    pub(crate) refusal: Option<String>,
    /// An `https:` or `data:` URL.
    pub(crate) image_url: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) file_id: Option<String>,
    /// A `data:` URL.
    pub(crate) file_data: Option<String>,
    pub(crate) file_url: Option<String>,
    pub(crate) filename: Option<String>,
    pub(crate) input_audio: Option<super::chat::InputAudio>,
}

struct TextOr<T, I>(&'static str, fn(String) -> T, fn(Vec<I>) -> T);

impl<'de, T, I: Deserialize<'de>> de::Visitor<'de> for TextOr<T, I> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok((self.1)(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok((self.2)(list))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(crate) struct ReasoningSettings {
    pub(crate) effort: Option<String>,
    /// Not honoured, and null in the answer: reasoning is given as it is.
    pub(crate) summary: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(crate) struct TextSettings {
    pub(crate) format: Option<FormatSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verbosity: Option<String>,
}

/// As in chat, but with the schema's fields beside `type`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub(crate) struct FormatSettings {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

/// A tool: as in chat, but with its fields beside `type`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ResponseTool {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) parameters: Option<Value>,
    pub(crate) strict: Option<bool>,
    pub(crate) format: Option<CustomFormat>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub(crate) struct ResponseObject {
    pub(crate) id: String,
    /// `response`.
    pub(crate) object: &'static str,
    /// Unix seconds.
    pub(crate) created_at: i64,
    /// `completed`, `incomplete` or `failed`; `in_progress` while it streams.
    pub(crate) status: &'static str,
    pub(crate) background: bool,
    pub(crate) error: Option<ResponseError>,
    pub(crate) incomplete_details: Option<Incomplete>,
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) model: String,
    pub(crate) output: Vec<OutputItem>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) previous_response_id: Option<String>,
    pub(crate) reasoning: ReasoningSettings,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_tier: Option<String>,
    pub(crate) store: bool,
    pub(crate) temperature: Option<f32>,
    pub(crate) text: TextSettings,
    pub(crate) tool_choice: Value,
    pub(crate) tools: Vec<Value>,
    pub(crate) top_p: Option<f32>,
    pub(crate) truncation: &'static str,
    pub(crate) usage: Option<ResponseUsage>,
    pub(crate) user: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// What the caller would not expect of the answer, such as a fallback: no field of OpenAI's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Value>")]
    pub(crate) notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct ResponseError {
    pub(crate) code: String,
    pub(crate) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct Incomplete {
    /// `max_output_tokens` or `content_filter`.
    pub(crate) reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    Message { id: String, status: &'static str, role: &'static str, content: Vec<OutputContent> },
    FunctionCall { id: String, status: &'static str, call_id: String, name: String, arguments: String },
    CustomToolCall { id: String, status: &'static str, call_id: String, name: String, input: String },
    Reasoning { id: String, status: &'static str, summary: Vec<Value>, content: Vec<OutputContent> },
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputContent {
    OutputText { text: String, annotations: Vec<ResponseAnnotation>, logprobs: Vec<WireLogprob> },
    Refusal { refusal: String },
    ReasoningText { text: String },
}

/// As in chat, but with the citation's fields beside `type`.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub(crate) struct ResponseAnnotation {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) cited: UrlCitation,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct ResponseUsage {
    pub(crate) input_tokens: u64,
    pub(crate) input_tokens_details: InputDetails,
    pub(crate) output_tokens: u64,
    pub(crate) output_tokens_details: OutputDetails,
    pub(crate) total_tokens: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct InputDetails {
    pub(crate) cached_tokens: u64,
    pub(crate) cache_write_tokens: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct OutputDetails {
    pub(crate) reasoning_tokens: u64,
}

impl From<&hybrid_core::Usage> for ResponseUsage {
    fn from(usage: &hybrid_core::Usage) -> Self {
        let WireUsage { prompt_tokens, completion_tokens, total_tokens, .. } = usage.into();
        Self {
            input_tokens: prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: usage.cache_read_tokens,
                cache_write_tokens: usage.cache_write_tokens,
            },
            output_tokens: completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning_tokens },
            total_tokens,
        }
    }
}
