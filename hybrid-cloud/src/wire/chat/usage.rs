//! What was used.

use hybrid_core::Usage;
use serde::{Deserialize, Serialize};

/// Token counts. `prompt_tokens` holds all input, also what came from a cache or went into one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct WireUsage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) total_tokens: u64,
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
    pub(crate) completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) cache_write_tokens: Option<u64>,
    pub(crate) audio_tokens: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: Option<u64>,
    pub(crate) audio_tokens: Option<u64>,
}

impl From<&Usage> for WireUsage {
    fn from(usage: &Usage) -> Self {
        let prompt_tokens = usage.total_input_tokens();
        Self {
            prompt_tokens,
            completion_tokens: usage.output_tokens,
            total_tokens: prompt_tokens.saturating_add(usage.output_tokens),
            prompt_tokens_details: Some(PromptDetails {
                cached_tokens: Some(usage.cache_read_tokens),
                cache_write_tokens: Some(usage.cache_write_tokens),
                audio_tokens: Some(0),
            }),
            completion_tokens_details: Some(CompletionDetails {
                reasoning_tokens: Some(usage.reasoning_tokens),
                audio_tokens: Some(0),
            }),
        }
    }
}

impl From<&WireUsage> for Usage {
    fn from(wire: &WireUsage) -> Self {
        let details = wire.prompt_tokens_details.clone().unwrap_or_default();
        let (read, written) =
            (details.cached_tokens.unwrap_or_default(), details.cache_write_tokens.unwrap_or_default());
        let reasoning = wire.completion_tokens_details.as_ref().and_then(|details| details.reasoning_tokens);
        Self {
            input_tokens: wire.prompt_tokens.saturating_sub(read).saturating_sub(written),
            output_tokens: wire.completion_tokens,
            cache_read_tokens: read,
            cache_write_tokens: written,
            reasoning_tokens: reasoning.unwrap_or_default(),
            ..Self::default()
        }
    }
}
