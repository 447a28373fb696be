//! What is asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// The body of a request for a completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CompletionRequest {
    /// The model; the first one that chats where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<WireMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f32>,
    /// No field of OpenAI's own, but of most local servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<u32>,
    /// As `top_k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_p: Option<f32>,
    /// As `top_k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) n: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop: Option<OneOrMany>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_logprobs: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logit_bias: Option<BTreeMap<u32, f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tools: Option<Vec<WireTool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_choice: Option<WireToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) response_format: Option<WireFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) modalities: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audio: Option<WireAudioOutput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_effort: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verbosity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prediction: Option<WirePrediction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_tier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The newer name of `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) safety_identifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_cache_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<bool>,
    /// Refused where it is there: `tools` took its place.
    #[serde(skip_serializing)]
    pub(crate) functions: Option<Value>,
    /// Refused where it is there: `tool_choice` took its place.
    #[serde(skip_serializing)]
    pub(crate) function_call: Option<Value>,
    /// Refused where it is there.
    #[serde(skip_serializing)]
    pub(crate) web_search_options: Option<Value>,
    /// Refused where it is there.
    #[serde(skip_serializing)]
    pub(crate) moderation: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct StreamOptions {
    /// Whether one more chunk, without choices, tells what was used.
    pub(crate) include_usage: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub(crate) role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Content>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tool_call_id: Option<String>,
    /// No field of OpenAI's own: an earlier answer's reasoning, where it is sent back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audio: Option<AudioReference>,
    /// Refused where it is there: `tool_calls` took its place.
    #[serde(default, skip_serializing)]
    pub(crate) function_call: Option<Value>,
}

/// A text, or parts of several kinds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<WirePart>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOr("a text or a list of parts", Self::Text, Self::Parts))
    }
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOr("a text or a list of texts", Self::One, Self::Many))
    }
}

/// Reads a text or a list; an untagged enum would not say which item is wrong.
struct TextOr<T, I>(&'static str, fn(String) -> T, fn(Vec<I>) -> T);

impl<'de, T, I: Deserialize<'de>> de::Visitor<'de> for TextOr<T, I> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok((self.1)(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<T, E> {
        Ok((self.1)(text))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok((self.2)(list))
    }
}

/// A part of a message. Which field it has follows from its `type`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WirePart {
    /// `text`, `image_url`, `input_audio`, `file` or, in an answer sent back, `refusal`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_url: Option<ImageUrl>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) input_audio: Option<InputAudio>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<WireFile>,
}

impl WirePart {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { kind: "text".into(), text: Some(text.into()), ..Self::default() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ImageUrl {
    /// An `https:` or `data:` URL.
    pub(crate) url: String,
    /// `auto`, `low` or `high`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct InputAudio {
    /// Base64.
    pub(crate) data: String,
    /// `wav` or `mp3`.
    pub(crate) format: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_id: Option<String>,
    /// A `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filename: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct AudioReference {
    pub(crate) id: String,
}

/// The call of a tool: whole in a message, in fragments in a chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ToolCall {
    /// Which call of the message, in a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// `function` or `custom`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) function: Option<FunctionCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) custom: Option<CustomCall>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct FunctionCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// JSON text; some servers send the JSON itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "storefront", schemars(with = "Option<String>"))]
    pub(crate) arguments: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CustomCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input: Option<String>,
}

/// Something that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireTool {
    /// `function` or `custom`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) function: Option<WireFunction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) custom: Option<WireCustomTool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireFunction {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// The JSON Schema of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parameters: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireCustomTool {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<CustomFormat>,
}

/// `{"type": "text"}` or `{"type": "grammar", "grammar": {"syntax", "definition"}}`; in `/v1/responses` the grammar's fields stand beside `type`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CustomFormat {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grammar: Option<WireGrammar>,
    #[serde(default, skip_serializing)]
    pub(crate) syntax: Option<String>,
    #[serde(default, skip_serializing)]
    pub(crate) definition: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireGrammar {
    /// `lark` or `regex`.
    pub(crate) syntax: String,
    pub(crate) definition: String,
}

/// `none`, `auto` or `required`, or which tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) enum WireToolChoice {
    Mode(String),
    Tools(ChosenTools),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ChosenTools {
    /// `function`, `custom` or `allowed_tools`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) function: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) custom: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_tools: Option<AllowedTools>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Named {
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct AllowedTools {
    /// `auto` or `required`.
    pub(crate) mode: String,
    pub(crate) tools: Vec<ChosenTools>,
}

/// What form the text of the answer has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) json_schema: Option<WireSchema>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireSchema {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireAudioOutput {
    /// The provider's name for the voice.
    pub(crate) voice: String,
    /// `wav`, `mp3`, `flac`, `opus`, `aac` or `pcm16`.
    pub(crate) format: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WirePrediction {
    /// `content`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) content: Content,
}
