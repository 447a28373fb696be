use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{super::is_default, CachePoint};

/// Something that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tool {
    /// A function of the caller's, with JSON arguments.
    Function(FunctionTool),
    /// A tool of the caller's, with free text.
    Custom(CustomTool),
    /// A tool of the provider's, by its name.
    System(String),
    /// The end of what the provider should cache.
    CachePoint(CachePoint),
}

impl Tool {
    /// The tool's name; a cache point has none.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Function(FunctionTool { name, .. }) | Self::Custom(CustomTool { name, .. }) | Self::System(name) => {
                Some(name)
            }
            Self::CachePoint(_) => None,
        }
    }
}

impl From<FunctionTool> for Tool {
    fn from(tool: FunctionTool) -> Self {
        Self::Function(tool)
    }
}

impl From<CustomTool> for Tool {
    fn from(tool: CustomTool) -> Self {
        Self::Custom(tool)
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionTool {
    /// The name, unique in the request. Letters, digits, `_` and `-`, at most 64 of them, please every provider.
    pub name: String,
    /// What it does and when to call it, for the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub description: Option<String>,
    /// The JSON Schema of its arguments: an object.
    pub input_schema: Value,
    /// Whether the arguments must fit the schema in every detail; `None` for the provider's own way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strict: Option<bool>,
}

impl FunctionTool {
    /// A function with the JSON Schema of its arguments.
    pub fn new(name: impl Into<String>, input_schema: Value) -> Self {
        Self { name: name.into(), description: None, input_schema, strict: None }
    }

    /// Says what it does and when to call it.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }
}

/// A tool that the model calls with free text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomTool {
    /// The name, unique in the request.
    pub name: String,
    /// What it does and when to call it, for the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub description: Option<String>,
    /// What the text may be; `None` for any text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grammar: Option<Grammar>,
}

/// What a text may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grammar {
    /// The language of the definition.
    pub syntax: GrammarSyntax,
    /// The grammar itself.
    pub definition: String,
}

/// The language of a grammar's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GrammarSyntax {
    /// A Lark grammar.
    Lark,
    /// A regular expression.
    Regex,
    /// A GBNF grammar, as llama.cpp reads it.
    Gbnf,
}

/// Whether the model must, may or must not call a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// It may.
    Auto,
    /// It must not.
    None,
    /// It must call one or more, whichever it likes.
    Required,
    /// It must call this one.
    Tool(String),
    /// It may call any of these.
    AutoAmong(Vec<String>),
    /// It must call one or more of these.
    RequiredAmong(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::{super::super::check::testing::over_json, *};

    #[test]
    fn tools_come_back_and_read_well() {
        let grammar = Grammar { syntax: GrammarSyntax::Regex, definition: "[a-z]+".into() };
        let tools = vec![
            FunctionTool::new("weigh", serde_json::json!({"type": "object"})).with_description("weighs").into(),
            CustomTool { name: "say".into(), grammar: Some(grammar), ..CustomTool::default() }.into(),
            Tool::System("code_interpreter".into()),
            Tool::CachePoint(CachePoint::default()),
        ];
        assert_eq!(over_json(&tools), tools);
        let names: Vec<_> = tools.iter().map(Tool::name).collect();
        assert_eq!(names, [Some("weigh"), Some("say"), Some("code_interpreter"), None]);
    }

    #[test]
    fn choices_come_back_and_read_well() {
        for (choice, text) in [
            (ToolChoice::Auto, r#""auto""#),
            (ToolChoice::None, r#""none""#),
            (ToolChoice::Required, r#""required""#),
            (ToolChoice::Tool("a".into()), r#"{"tool":"a"}"#),
            (ToolChoice::AutoAmong(vec!["a".into()]), r#"{"auto_among":["a"]}"#),
        ] {
            assert_eq!(serde_json::to_string(&choice).unwrap(), text);
            assert_eq!(over_json(&choice), choice);
        }
    }
}
