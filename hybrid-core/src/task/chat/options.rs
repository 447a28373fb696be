use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{is_default, open_enum::open_enum};

/// How tokens are drawn, how many, and when to stop. `None` leaves a value to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The most tokens to write, reasoning included.
    #[serde(skip_serializing_if = "is_default")]
    pub max_tokens: Option<u32>,
    /// How freely tokens are drawn, from 0 (always the likeliest).
    #[serde(skip_serializing_if = "is_default")]
    pub temperature: Option<f32>,
    /// Draw from the likeliest tokens that together have this probability, from 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub top_p: Option<f32>,
    /// Draw from this many of the likeliest tokens.
    #[serde(skip_serializing_if = "is_default")]
    pub top_k: Option<u32>,
    /// Draw from tokens at least this likely, as a share of the likeliest one's probability, from 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub min_p: Option<f32>,
    /// Taken off a token's logit for each time it has been written.
    #[serde(skip_serializing_if = "is_default")]
    pub frequency_penalty: Option<f32>,
    /// Taken off a token's logit once it has been written.
    #[serde(skip_serializing_if = "is_default")]
    pub presence_penalty: Option<f32>,
    /// What the logit of a token that has been read or written is divided by (multiplied with, if negative); 1 changes nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub repetition_penalty: Option<f32>,
    /// The seed; the same seed and request give the same answer where the backend can promise it.
    ///
    /// A provider with signed seeds gets the same 64 bits.
    #[serde(skip_serializing_if = "is_default")]
    pub seed: Option<u64>,
    /// Texts before which to stop.
    #[serde(skip_serializing_if = "is_default")]
    pub stop: Vec<String>,
    /// Give the log probability of each token, and of this many alternatives to it (0 for none).
    #[serde(skip_serializing_if = "is_default")]
    pub logprobs: Option<u8>,
    /// Added to the logits of tokens, by their ids in the model's vocabulary.
    #[serde(skip_serializing_if = "is_default")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// How many answers; `None` for one.
    #[serde(skip_serializing_if = "is_default")]
    pub n: Option<u32>,
}

/// What form the text of an answer has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    Json,
    /// JSON that fits a schema.
    JsonSchema {
        /// What the schema is called.
        #[serde(default, skip_serializing_if = "is_default")]
        name: Option<String>,
        /// What it describes, for the model.
        #[serde(default, skip_serializing_if = "is_default")]
        description: Option<String>,
        /// The JSON Schema: an object.
        schema: Value,
        /// Whether the text must fit in every detail; `None` for the provider's own way.
        #[serde(default, skip_serializing_if = "is_default")]
        strict: Option<bool>,
    },
}

impl ResponseFormat {
    /// JSON that fits the schema in every detail.
    pub fn json_schema(name: impl Into<String>, schema: Value) -> Self {
        Self::JsonSchema { name: Some(name.into()), description: None, schema, strict: Some(true) }
    }
}

/// How much the model thinks before it answers. `None` leaves it to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReasoningOptions {
    /// How hard.
    #[serde(skip_serializing_if = "is_default")]
    pub effort: Option<ReasoningEffort>,
    /// The most tokens to spend on it; 0 for no reasoning.
    #[serde(skip_serializing_if = "is_default")]
    pub budget_tokens: Option<u32>,
}

open_enum! {
    /// How hard the model thinks before it answers.
    pub enum ReasoningEffort {
        /// Not at all.
        None = "none",
        /// As little as the model can.
        Minimal = "minimal",
        /// A little.
        Low = "low",
        /// In between.
        Medium = "medium",
        /// Long.
        High = "high",
        /// Longer than that.
        Xhigh = "xhigh",
        /// As long as the model can.
        Max = "max",
    }
}

open_enum! {
    /// How long-winded an answer is.
    pub enum Verbosity {
        /// Short.
        Low = "low",
        /// In between.
        Medium = "medium",
        /// Long.
        High = "high",
    }
}

open_enum! {
    /// A kind of output.
    pub enum Modality {
        /// Text.
        Text = "text",
        /// Sound.
        Audio = "audio",
        /// Images.
        Image = "image",
    }
}

/// How an answer sounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioOutput {
    /// The provider's name for the voice.
    pub voice: String,
    /// The IANA media type wanted, such as `audio/wav`.
    pub media_type: String,
}

open_enum! {
    /// A provider's class of service.
    pub enum ServiceTier {
        /// As the account is set up.
        Auto = "auto",
        /// The normal one.
        Default = "default",
        /// Slower and cheaper.
        Flex = "flex",
        /// Faster and dearer.
        Priority = "priority",
        /// Capacity that the account has bought ahead.
        Reserved = "reserved",
        /// Capacity that the account has bought ahead, in units of scale.
        Scale = "scale",
    }
}

open_enum! {
    /// What hardware to run on.
    pub enum Latency {
        /// The normal one.
        Standard = "standard",
        /// The one tuned for latency.
        Optimized = "optimized",
    }
}

/// A content filter that the provider keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guardrail {
    /// The provider's id of it.
    pub id: String,
    /// Which version of it.
    pub version: String,
    /// Whether the answer tells what it found; `None` for the provider's own way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trace: Option<GuardrailTrace>,
    /// Whether a stream waits for it; `None` for the provider's own way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub streaming: Option<GuardrailStreaming>,
}

impl Guardrail {
    /// The given version of a guardrail.
    pub fn new(id: impl Into<String>, version: impl Into<String>) -> Self {
        Self { id: id.into(), version: version.into(), trace: None, streaming: None }
    }
}

/// Whether an answer tells what the guardrail found, in [`ResponseDetails::trace`](super::ResponseDetails::trace).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuardrailTrace {
    /// What it acted on.
    Enabled,
    /// Nothing.
    Disabled,
    /// All that it looked at.
    EnabledFull,
}

/// Whether a stream waits for the guardrail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuardrailStreaming {
    /// Text comes once it is checked.
    Sync,
    /// Text comes at once and is checked behind; what should not be seen may be seen.
    Async,
}

#[cfg(test)]
mod tests {
    use super::{super::super::check::testing::over_json, *};

    #[test]
    fn sampling_comes_back_and_reads_well() {
        let sampling = Sampling {
            temperature: Some(0.7),
            seed: Some(u64::MAX),
            stop: vec!["\n".into()],
            logprobs: Some(0),
            logit_bias: [(7, -1.5)].into(),
            ..Sampling::default()
        };
        let text = serde_json::to_string(&sampling).unwrap();
        let expected =
            r#"{"temperature":0.7,"seed":18446744073709551615,"stop":["\n"],"logprobs":0,"logit_bias":{"7":-1.5}}"#;
        assert_eq!(text, expected);
        assert_eq!(over_json(&sampling), sampling);
    }

    #[test]
    fn formats_and_guardrails_come_back() {
        let schema = serde_json::json!({"type": "object"});
        for format in [ResponseFormat::Text, ResponseFormat::Json, ResponseFormat::json_schema("a", schema)] {
            assert_eq!(over_json(&format), format);
        }
        let streaming = Some(GuardrailStreaming::Async);
        let guardrail = Guardrail { streaming, trace: Some(GuardrailTrace::EnabledFull), ..Guardrail::new("g", "1") };
        assert_eq!(over_json(&guardrail), guardrail);
        assert_eq!(over_json(&ServiceTier::Other("spot".into())), ServiceTier::Other("spot".into()));
    }
}
