use serde::{Deserialize, Serialize};

use super::{
    super::{AudioPart, DocumentPart, ImagePart, SearchResult, VideoPart, is_default},
    CachePoint, CitedText, GuardedContent, Reasoning, ToolReference, ToolResult, ToolUse,
};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The speaker's name, where several share a role.
    #[serde(default, skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// What is said, in order.
    pub content: Vec<ContentPart>,
}

impl Message {
    /// A message of the given parts.
    pub fn new(role: Role, content: impl IntoIterator<Item = impl Into<ContentPart>>) -> Self {
        Self { role, name: None, content: content.into_iter().map(Into::into).collect() }
    }

    /// A text from the user.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, [text.into()])
    }

    /// A text from the model.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, [text.into()])
    }

    /// What a tool answered to the call with this id.
    pub fn tool_result(tool_use_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Role::Tool, [ToolResult::text(tool_use_id, text)])
    }

    /// Adds a part at the end.
    #[must_use]
    pub fn with(mut self, part: impl Into<ContentPart>) -> Self {
        self.content.push(part.into());
        self
    }

    /// The texts of the message without reasoning, tools and media, one after the other.
    pub fn text(&self) -> String {
        self.content.iter().filter_map(ContentPart::as_text).collect()
    }

    /// The tools that the message calls, in order.
    pub fn tool_uses(&self) -> impl Iterator<Item = &ToolUse> {
        self.content.iter().filter_map(|part| match part {
            ContentPart::ToolUse(tool_use) => Some(tool_use),
            _ => None,
        })
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The product, in the middle of a conversation; [`ChatRequest::system`](super::ChatRequest::system) is what comes before it.
    System,
    /// The product, to models that rank it below their provider.
    Developer,
    /// The person, or whatever stands in for one.
    User,
    /// The model.
    Assistant,
    /// The tools that the model called. Backends without this role send its messages as the user's.
    Tool,
}

/// A part of what the model is told before the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SystemPart {
    /// A text.
    Text(String),
    /// Something for the guardrail to look at.
    Guarded(GuardedContent),
    /// The end of what the provider should cache.
    CachePoint(CachePoint),
}

impl From<&str> for SystemPart {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A part of a message. Answers call it a block: a stream fills one block after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContentPart {
    /// A text.
    Text(String),
    /// The model's words when it declines to answer.
    Refusal(String),
    /// A text with the sources of what it says.
    CitedText(CitedText),
    /// What the model thought before it answered.
    Reasoning(Reasoning),
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
    /// The model's call of a tool.
    ToolUse(ToolUse),
    /// What a tool answered.
    ToolResult(ToolResult),
    /// From here on the model may call this tool too.
    ToolAddition(ToolReference),
    /// From here on the model may not call this tool any more.
    ToolRemoval(ToolReference),
    /// Something for the guardrail to look at.
    Guarded(GuardedContent),
    /// The end of what the provider should cache.
    CachePoint(CachePoint),
}

impl ContentPart {
    /// The text, where the part is one, cited or not.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::CitedText(CitedText { text, .. }) => Some(text),
            _ => None,
        }
    }
}

impl From<&str> for ContentPart {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

macro_rules! into_content_part {
    ($($part:ident($from:ty),)*) => {$(
        impl From<$from> for ContentPart {
            fn from(part: $from) -> Self {
                Self::$part(part)
            }
        }
    )*};
}

into_content_part! {
    Text(String),
    CitedText(CitedText),
    Reasoning(Reasoning),
    Image(ImagePart),
    Audio(AudioPart),
    Video(VideoPart),
    Document(DocumentPart),
    SearchResult(SearchResult),
    ToolUse(ToolUse),
    ToolResult(ToolResult),
    Guarded(GuardedContent),
    CachePoint(CachePoint),
}

#[cfg(test)]
mod tests {
    use super::{super::super::check::testing::over_json, *};

    #[test]
    fn messages_come_back_and_read_well() {
        let message = Message::assistant("weighing")
            .with(ToolUse::new("t1", "weigh", serde_json::json!({"grams": 5})))
            .with(ImagePart::new("image/png", vec![1]));
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            concat!(
                r#"{"role":"assistant","content":[{"text":"weighing"},"#,
                r#"{"tool_use":{"id":"t1","name":"weigh","input":{"grams":5}}},"#,
                r#"{"image":{"media_type":"image/png","source":{"bytes":"AQ=="}}}]}"#,
            )
        );
        assert_eq!(over_json(&message), message);
        let result = Message::tool_result("t1", "5 g");
        assert_eq!(over_json(&result), result);
    }

    #[test]
    fn the_text_of_a_message_leaves_out_what_is_not_said() {
        let cited = CitedText { text: " b".into(), citations: vec![] };
        let message = Message::assistant("a").with(Reasoning::text("hm")).with(cited);
        assert_eq!(message.text(), "a b");
        assert_eq!(message.tool_uses().count(), 0);
    }
}
