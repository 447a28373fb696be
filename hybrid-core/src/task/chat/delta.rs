use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    super::{MediaSource, base64_bytes, is_default},
    Citation, ContentPart, Logprobs, ResponseDetails, Role, StopReason, ToolResultPart,
};

/// A piece of the answers of a model.
///
/// # Behavior
/// For each choice come `Start`, then its blocks, then `Stop`, and nothing of it after that; choices may interleave. A block is
/// one [`ContentPart`] of the message: `BlockStart` gives the part as it begins, each `Block` adds to it, and `BlockStop` says that
/// it is whole. Blocks stand in the message by their numbers, which may have gaps. `Start`, `BlockStart` of text and reasoning, and
/// `BlockStop` may be missing where a provider has none. `Details` may come at any time, also after the last `Stop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatDelta {
    /// An answer begins.
    Start {
        /// Which answer, from 0.
        choice: u32,
        /// Who speaks.
        role: Role,
        /// The speaker's name.
        #[serde(default, skip_serializing_if = "is_default")]
        name: Option<String>,
    },
    /// A block begins.
    BlockStart {
        /// Which answer, from 0.
        choice: u32,
        /// Which block of the answer.
        block: u32,
        /// What it is, with what is known of it already. The input of a tool use is null here, and comes as fragments.
        part: ContentPart,
    },
    /// A block goes on.
    Block {
        /// Which answer, from 0.
        choice: u32,
        /// Which block of the answer.
        block: u32,
        /// What is added to it.
        delta: BlockDelta,
    },
    /// A block is whole.
    BlockStop {
        /// Which answer, from 0.
        choice: u32,
        /// Which block of the answer.
        block: u32,
    },
    /// How likely more tokens of an answer were.
    Logprobs {
        /// Which answer, from 0.
        choice: u32,
        /// What is added.
        logprobs: Logprobs,
    },
    /// An answer is whole.
    Stop {
        /// Which answer, from 0.
        choice: u32,
        /// Why the model stopped.
        reason: StopReason,
        /// Before which text it stopped.
        #[serde(default, skip_serializing_if = "is_default")]
        sequence: Option<String>,
    },
    /// What the provider tells about all answers. Where it comes more than once, the later one adds to the earlier.
    Details(ResponseDetails),
}

impl ChatDelta {
    /// More text of the first answer, in the given block.
    pub fn text(block: u32, text: impl Into<String>) -> Self {
        Self::Block { choice: 0, block, delta: BlockDelta::Text(text.into()) }
    }

    /// The text that it adds to a block of text, for showing it as it comes.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Block { delta: BlockDelta::Text(text), .. } => Some(text),
            _ => None,
        }
    }
}

/// What is added to a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BlockDelta {
    /// More text of a text, a cited text or a refusal.
    Text(String),
    /// A source of the text; makes a text a cited text.
    Citation(Citation),
    /// A fragment of a tool's input. All of a block together are one JSON text, or the free text of a custom tool.
    ToolInput(String),
    /// More of what a tool answered. A text after a text continues it.
    ToolResult(ToolResultPart),
    /// More thoughts.
    Reasoning(String),
    /// More of the signature under the thoughts.
    Signature(String),
    /// More encrypted thoughts, a base64 string in JSON.
    Redacted(#[serde(with = "base64_bytes")] Bytes),
    /// More bytes of an image, sound or video, or where else it is.
    Media(MediaSource),
    /// More words of what is said in the sound.
    Transcript(String),
    /// When the provider forgets the sound's id, RFC 3339 in UTC.
    ExpiresAt(String),
    /// Why there is no image or sound.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::{super::super::check::testing::over_json, *};

    #[test]
    fn deltas_come_back_and_read_well() {
        let delta = ChatDelta::text(1, "hi");
        assert_eq!(delta.as_text(), Some("hi"));
        let text = serde_json::to_string(&delta).unwrap();
        assert_eq!(text, r#"{"block":{"choice":0,"block":1,"delta":{"text":"hi"}}}"#);
        for delta in [
            delta,
            ChatDelta::Start { choice: 1, role: Role::Assistant, name: None },
            ChatDelta::BlockStop { choice: 0, block: 2 },
            ChatDelta::Stop { choice: 0, reason: StopReason::MaxTokens, sequence: Some("###".into()) },
            ChatDelta::Block { choice: 0, block: 0, delta: BlockDelta::Redacted(Bytes::from_static(&[1])) },
            ChatDelta::Block { choice: 0, block: 0, delta: BlockDelta::Media(vec![2].into()) },
        ] {
            assert_eq!(over_json(&delta), delta);
        }
    }
}
