use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::{base64_bytes, is_default, open_enum::open_enum},
    Latency, Message, ServiceTier,
};

/// The answers of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// The answers: as many as [`Sampling::n`](super::Sampling::n) asks for, at least one.
    pub choices: Vec<Choice>,
    /// What the provider tells about all of them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub details: ResponseDetails,
}

impl ChatResponse {
    /// One answer that the model ended on its own.
    pub fn one(message: Message) -> Self {
        Self { choices: vec![Choice::new(message, StopReason::EndTurn)], details: ResponseDetails::default() }
    }

    /// The text of the first answer, without reasoning, tools and media.
    pub fn text(&self) -> String {
        self.choices.first().map(|choice| choice.message.text()).unwrap_or_default()
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What the model says.
    pub message: Message,
    /// Why it stopped.
    pub stop_reason: StopReason,
    /// Before which text of [`Sampling::stop`](super::Sampling::stop) it stopped, where the backend says so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop_sequence: Option<String>,
    /// How likely its tokens were, where it was asked for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logprobs: Option<Logprobs>,
}

impl Choice {
    /// An answer and why it ended.
    pub fn new(message: Message, stop_reason: StopReason) -> Self {
        Self { message, stop_reason, stop_sequence: None, logprobs: None }
    }
}

open_enum! {
    /// Why a model stopped.
    pub enum StopReason {
        /// It had said all.
        EndTurn = "end_turn",
        /// It waits for the answers of the tools that it called.
        ToolUse = "tool_use",
        /// It came to one of the texts before which to stop.
        StopSequence = "stop_sequence",
        /// It wrote as many tokens as it was allowed to.
        MaxTokens = "max_tokens",
        /// Request and answer filled the model's context.
        ContextWindowExceeded = "model_context_window_exceeded",
        /// The guardrail stepped in.
        GuardrailIntervened = "guardrail_intervened",
        /// The provider's own content filter stepped in.
        ContentFiltered = "content_filtered",
        /// It declined to answer.
        Refusal = "refusal",
        /// The provider paused a long turn; send the answer back to let it go on.
        PauseTurn = "pause_turn",
        /// It wrote something that the provider could not read.
        MalformedOutput = "malformed_model_output",
        /// It called a tool in a way that the provider could not read.
        MalformedToolUse = "malformed_tool_use",
    }
}

impl StopReason {
    /// Whether the model came to an end of its own, so that nothing of the answer is missing.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::EndTurn | Self::ToolUse | Self::StopSequence | Self::Refusal)
    }
}

/// How likely the tokens of an answer were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Logprobs {
    /// The tokens of the text.
    pub content: Vec<TokenLogprob>,
    /// The tokens of the refusal.
    #[serde(skip_serializing_if = "is_default")]
    pub refusal: Vec<TokenLogprob>,
}

/// How likely a token was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token as text; a token that is no whole text has replacement characters here.
    pub token: String,
    /// The token's bytes, a base64 string in JSON; empty where the backend does not say.
    #[serde(default, with = "base64_bytes", skip_serializing_if = "is_default")]
    pub bytes: Bytes,
    /// The natural logarithm of its probability: finite, at most 0.
    pub logprob: f32,
    /// What could have stood in its place, likeliest first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub top: Vec<TopLogprob>,
}

impl TokenLogprob {
    /// A token with the natural logarithm of its probability.
    pub fn new(token: impl Into<String>, logprob: f32) -> Self {
        Self { token: token.into(), logprob, ..Self::default() }
    }
}

/// How likely a token was that could have stood in another's place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token as text.
    pub token: String,
    /// The token's bytes, a base64 string in JSON; empty where the backend does not say.
    #[serde(default, with = "base64_bytes", skip_serializing_if = "is_default")]
    pub bytes: Bytes,
    /// The natural logarithm of its probability: finite, at most 0.
    pub logprob: f32,
}

/// What a provider tells about an answer besides the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponseDetails {
    /// The provider's id of the answer.
    #[serde(skip_serializing_if = "is_default")]
    pub id: Option<String>,
    /// The class of service that it was given.
    #[serde(skip_serializing_if = "is_default")]
    pub service_tier: Option<ServiceTier>,
    /// The hardware that it ran on.
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Option<Latency>,
    /// Changes when the provider changes what the same seed gives.
    #[serde(skip_serializing_if = "is_default")]
    pub system_fingerprint: Option<String>,
    /// What guardrail and prompt router did, in the provider's own form.
    #[serde(skip_serializing_if = "is_default")]
    pub trace: Option<Value>,
    /// What [`ChatRequest::extra_response_fields`](super::ChatRequest::extra_response_fields) asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub extra: Map<String, Value>,
}

impl ResponseDetails {
    /// Adds what is told later; where both tell the same, the later one holds.
    pub(super) fn merge(&mut self, later: Self) {
        let Self { id, service_tier, latency, system_fingerprint, trace, extra } = later;
        self.id = id.or(self.id.take());
        self.service_tier = service_tier.or(self.service_tier.take());
        self.latency = latency.or(self.latency.take());
        self.system_fingerprint = system_fingerprint.or(self.system_fingerprint.take());
        self.trace = trace.or(self.trace.take());
        self.extra.extend(extra);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::check::testing::over_json, *};

    #[test]
    fn responses_come_back_and_read_well() {
        let mut response = ChatResponse::one(Message::assistant("hi"));
        let expected =
            r#"{"choices":[{"message":{"role":"assistant","content":[{"text":"hi"}]},"stop_reason":"end_turn"}]}"#;
        assert_eq!(serde_json::to_string(&response).unwrap(), expected);
        let top = vec![TopLogprob { token: "ho".into(), bytes: Bytes::from_static(b"ho"), logprob: -2.5 }];
        let token = TokenLogprob { bytes: Bytes::from_static(b"hi"), top, ..TokenLogprob::new("hi", -0.1) };
        response.choices[0].logprobs = Some(Logprobs { content: vec![token], refusal: vec![] });
        response.choices[0].stop_reason = "resting".into();
        response.choices[0].stop_sequence = Some("###".into());
        response.details.trace = Some(serde_json::json!({"guardrail": {}}));
        assert_eq!(over_json(&response), response);
        assert_eq!(response.text(), "hi");
    }

    #[test]
    fn later_details_add_to_earlier_ones() {
        let mut details = ResponseDetails { id: Some("a".into()), ..ResponseDetails::default() };
        details.extra.insert("x".into(), 1.into());
        let mut later = ResponseDetails { latency: Some(Latency::Standard), ..ResponseDetails::default() };
        later.extra.insert("y".into(), 2.into());
        details.merge(later);
        assert_eq!((details.id.as_deref(), details.latency.is_some(), details.extra.len()), (Some("a"), true, 2));
    }

    #[test]
    fn only_an_answer_that_was_not_cut_off_is_complete() {
        assert!(StopReason::EndTurn.is_complete());
        assert!(!StopReason::MaxTokens.is_complete());
        assert!(!StopReason::from("resting").is_complete());
    }
}
