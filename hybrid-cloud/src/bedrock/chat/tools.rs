//! What the model may call.

use aws_sdk_bedrockruntime::types::{
    AnyToolChoice, AutoToolChoice, SpecificToolChoice, SystemTool, Tool as ConverseTool, ToolChoice as ConverseChoice,
    ToolConfiguration, ToolInputSchema, ToolSpecification,
};
use hybrid_core::{
    Result,
    task::{FunctionTool, Tool, ToolChoice},
};

use super::{super::json, content, request::Mapper};

/// `history_has_tools` is whether the conversation has calls or results of tools: Bedrock takes none without the tools themselves.
pub(super) fn map(
    mapper: &mut Mapper<'_>,
    mut tools: Vec<Tool>,
    choice: Option<ToolChoice>,
    history_has_tools: bool,
) -> Result<Option<ToolConfiguration>> {
    let choice = match choice {
        Some(ToolChoice::None) if history_has_tools => {
            let message = "Converse has no `none`, and takes no conversation with tool calls without its tools";
            return Err(mapper.unsupported("tool_choice", message));
        }
        // A model that knows no tool calls none.
        Some(ToolChoice::None) => return Ok(None),
        None => None,
        Some(ToolChoice::Auto) => Some(auto()),
        Some(ToolChoice::Required) => Some(any()),
        Some(ToolChoice::Tool(name)) => {
            Some(ConverseChoice::Tool(mapper.built(SpecificToolChoice::builder().name(name).build())?))
        }
        // A model that knows these tools alone calls no other.
        Some(ToolChoice::AutoAmong(names)) => {
            keep(&mut tools, &names);
            Some(auto())
        }
        Some(ToolChoice::RequiredAmong(names)) => {
            keep(&mut tools, &names);
            Some(any())
        }
        Some(_) => return Err(mapper.unsupported("tool_choice", "not a choice that this adapter knows")),
    };
    if tools.is_empty() {
        return Ok(None);
    }
    let mut mapped = Vec::with_capacity(tools.len());
    for (i, tool) in tools.into_iter().enumerate() {
        mapped.push(self::tool(mapper, i, tool)?);
    }
    mapper.built(ToolConfiguration::builder().set_tools(Some(mapped)).set_tool_choice(choice).build()).map(Some)
}

fn auto() -> ConverseChoice {
    ConverseChoice::Auto(AutoToolChoice::builder().build())
}

fn any() -> ConverseChoice {
    ConverseChoice::Any(AnyToolChoice::builder().build())
}

fn keep(tools: &mut Vec<Tool>, names: &[String]) {
    tools.retain(|tool| tool.name().is_none_or(|name| names.iter().any(|kept| kept == name)));
}

fn tool(mapper: &mut Mapper<'_>, i: usize, tool: Tool) -> Result<ConverseTool> {
    let field = format!("tools[{i}]");
    if let Some(name) = tool.name() {
        check_name(mapper, &format!("{field}.name"), name)?;
    }
    match tool {
        Tool::Function(FunctionTool { name, description, input_schema, strict }) => {
            let spec = ToolSpecification::builder()
                .name(name)
                .set_description(description.filter(|text| !text.is_empty()))
                .input_schema(ToolInputSchema::Json(json::document(input_schema)))
                .set_strict(strict)
                .build();
            mapper.built(spec).map(ConverseTool::ToolSpec)
        }
        Tool::System(name) => mapper.built(SystemTool::builder().name(name).build()).map(ConverseTool::SystemTool),
        Tool::CachePoint(point) => content::cache_point(mapper, point).map(ConverseTool::CachePoint),
        _ => {
            let message = "Converse knows functions with JSON arguments and its own tools alone";
            Err(mapper.unsupported(field, message))
        }
    }
}

pub(super) fn check_name(mapper: &Mapper<'_>, field: &str, name: &str) -> Result<()> {
    let fits = name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(mapper.invalid(field, "Converse takes at most 64 letters, digits, _ and -").with("found", name))
}
