//! Chat: the next message of a conversation.

mod block;
mod delta;
mod fold;
mod message;
mod options;
mod parts;
mod response;
mod tools;
mod validate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    delta::{BlockDelta, ChatDelta},
    message::{ContentPart, Message, Role, SystemPart},
    options::{
        AudioOutput, Guardrail, GuardrailStreaming, GuardrailTrace, Latency, Modality, ReasoningEffort,
        ReasoningOptions, ResponseFormat, Sampling, ServiceTier, Verbosity,
    },
    parts::{
        CachePoint, Citation, CitationLocation, CitedText, GuardQualifier, GuardedContent, Reasoning, TextSpan,
        ToolReference, ToolResult, ToolResultPart, ToolStatus, ToolUse, ToolUseKind,
    },
    response::{ChatResponse, Choice, Logprobs, ResponseDetails, StopReason, TokenLogprob, TopLogprob},
    tools::{CustomTool, FunctionTool, Grammar, GrammarSyntax, Tool, ToolChoice},
};
use super::is_default;
use crate::{Result, Task};

/// The task of writing the next message of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chat;

impl Task for Chat {
    const NAME: &'static str = "chat";
    type Request = ChatRequest;
    type Response = ChatResponse;
    type Delta = ChatDelta;

    fn validate(request: &ChatRequest) -> Result<()> {
        validate::request(request)
    }

    fn split(response: ChatResponse) -> Vec<ChatDelta> {
        fold::split(response)
    }

    fn fold(deltas: impl IntoIterator<Item = ChatDelta>) -> Result<ChatResponse> {
        fold::fold(deltas)
    }
}

/// A conversation so far, with how to go on.
///
/// ```
/// use hybrid_core::task::{ChatRequest, Sampling};
///
/// let request = ChatRequest {
///     sampling: Sampling { temperature: Some(0.2), max_tokens: Some(200), ..Sampling::default() },
///     ..ChatRequest::user("What is in a sourdough starter?").with_system("Answer in one sentence.")
/// };
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatRequest {
    /// What the model is told before the conversation.
    #[serde(skip_serializing_if = "is_default")]
    pub system: Vec<SystemPart>,
    /// The messages so far, oldest first. Empty only with [`prompt_variables`](Self::prompt_variables).
    pub messages: Vec<Message>,
    /// The values of the variables in a prompt that is stored with the provider; `None` where there is no such prompt.
    #[serde(skip_serializing_if = "is_default")]
    pub prompt_variables: Option<BTreeMap<String, String>>,
    /// What the model may call.
    #[serde(skip_serializing_if = "is_default")]
    pub tools: Vec<Tool>,
    /// Whether the model must, may or must not call a tool; `None` for the backend's own way, usually [`ToolChoice::Auto`].
    #[serde(skip_serializing_if = "is_default")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether one message may call several tools; `None` for the backend's own way.
    #[serde(skip_serializing_if = "is_default")]
    pub parallel_tool_calls: Option<bool>,
    /// What form the text of the answer has.
    #[serde(skip_serializing_if = "is_default")]
    pub response_format: ResponseFormat,
    /// What kinds of output are wanted; empty for text.
    #[serde(skip_serializing_if = "is_default")]
    pub modalities: Vec<Modality>,
    /// How the answer sounds, where audio is among the [`modalities`](Self::modalities).
    #[serde(skip_serializing_if = "is_default")]
    pub audio: Option<AudioOutput>,
    /// How tokens are drawn, how many, and when to stop.
    #[serde(skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// How much the model thinks before it answers.
    #[serde(skip_serializing_if = "is_default")]
    pub reasoning: ReasoningOptions,
    /// How long-winded the answer is.
    #[serde(skip_serializing_if = "is_default")]
    pub verbosity: Option<Verbosity>,
    /// Text that the answer will mostly repeat, such as a file to be edited, so that it comes faster.
    #[serde(skip_serializing_if = "is_default")]
    pub prediction: Option<String>,
    /// The provider's class of service.
    #[serde(skip_serializing_if = "is_default")]
    pub service_tier: Option<ServiceTier>,
    /// Whether to run on hardware tuned for latency.
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Option<Latency>,
    /// The provider's content filter.
    #[serde(skip_serializing_if = "is_default")]
    pub guardrail: Option<Guardrail>,
    /// Tags that the provider keeps with the request, such as tenant and product, for its logs and bills.
    #[serde(skip_serializing_if = "is_default")]
    pub metadata: BTreeMap<String, String>,
    /// The provider's id for the customer on whose behalf this is asked.
    #[serde(skip_serializing_if = "is_default")]
    pub user: Option<String>,
    /// Requests with one key are sent to one prompt cache where the provider can.
    #[serde(skip_serializing_if = "is_default")]
    pub prompt_cache_key: Option<String>,
    /// Whether the provider may keep the conversation; `None` for its own way.
    #[serde(skip_serializing_if = "is_default")]
    pub store: Option<bool>,
    /// Fields that only the provider knows, put into its request as they are.
    #[serde(skip_serializing_if = "is_default")]
    pub extra: Map<String, Value>,
    /// Fields of the provider's answer to be handed back in [`ResponseDetails::extra`], as JSON pointers.
    #[serde(skip_serializing_if = "is_default")]
    pub extra_response_fields: Vec<String>,
}

impl ChatRequest {
    /// A conversation of the given messages, oldest first.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect(), ..Self::default() }
    }

    /// A conversation that begins with this text from the user.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new([Message::user(text)])
    }

    /// Adds a text to what the model is told before the conversation.
    #[must_use]
    pub fn with_system(mut self, text: impl Into<String>) -> Self {
        self.system.push(SystemPart::Text(text.into()));
        self
    }

    /// Adds a message at the end.
    #[must_use]
    pub fn with_message(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// Adds a tool that the model may call.
    #[must_use]
    pub fn with_tool(mut self, tool: impl Into<Tool>) -> Self {
        self.tools.push(tool.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{super::check::testing::over_json, *};

    #[test]
    fn a_short_request_is_short_in_json() {
        let request = ChatRequest::user("hi").with_system("be brief");
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"system":[{"text":"be brief"}],"messages":[{"role":"user","content":[{"text":"hi"}]}]}"#);
    }

    #[test]
    fn every_field_comes_back() {
        let request = ChatRequest {
            prompt_variables: Some([("name".into(), "Ada".into())].into()),
            tool_choice: Some(ToolChoice::Tool("weigh".into())),
            parallel_tool_calls: Some(false),
            modalities: vec![Modality::Text, Modality::Audio],
            audio: Some(AudioOutput { voice: "alloy".into(), media_type: "audio/wav".into() }),
            reasoning: ReasoningOptions { effort: Some("low".into()), budget_tokens: Some(9) },
            verbosity: Some(Verbosity::Low),
            prediction: Some("the same".into()),
            service_tier: Some(ServiceTier::Flex),
            latency: Some(Latency::Optimized),
            guardrail: Some(Guardrail::new("g", "1")),
            metadata: [("tenant".into(), "t".into())].into(),
            user: Some("u".into()),
            prompt_cache_key: Some("k".into()),
            store: Some(false),
            extra: Map::from_iter([("typical_p".into(), 1.into())]),
            extra_response_fields: vec!["/x".into()],
            ..ChatRequest::user("hi").with_tool(FunctionTool::new("weigh", serde_json::json!({"type": "object"})))
        };
        assert_eq!(over_json(&request), request);
    }

    #[test]
    fn a_newer_request_is_refused_and_not_half_read() {
        assert!(serde_json::from_str::<ChatRequest>(r#"{"messages":[],"mood":"good"}"#).is_err());
        assert!(serde_json::from_str::<ChatRequest>(r#"{"messages":[],"sampling":{"mood":1}}"#).is_err());
    }
}
