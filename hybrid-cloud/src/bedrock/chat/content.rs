//! What is said: system and messages.

use aws_sdk_bedrockruntime::types::{
    self as converse, CachePointBlock, CachePointType, CacheTtl, CitationGeneratedContent, CitationsContentBlock,
    ContentBlock, ConversationRole, GuardrailConverseContentBlock, GuardrailConverseContentQualifier,
    GuardrailConverseTextBlock, ReasoningContentBlock, ReasoningTextBlock, SearchResultBlock, SearchResultContentBlock,
    SystemContentBlock, ToolAdditionBlock, ToolRemovalBlock, ToolResultBlock, ToolResultContentBlock, ToolResultStatus,
    ToolUseBlock, ToolUseType,
};
use aws_smithy_types::Blob;
use hybrid_core::{
    Result,
    task::{
        CachePoint, Citation, CitationLocation, CitedText, ContentPart, GuardQualifier, GuardedContent, Message,
        Reasoning, Role, SearchResult, SystemPart, ToolReference, ToolResult, ToolResultPart, ToolStatus, ToolUse,
        ToolUseKind,
    },
};
use serde_json::{Value, json};

use super::{super::json, media, request::Mapper, tools};

/// Whether a message calls tools or gives their results.
pub(super) fn has_tools(message: &Message) -> bool {
    message.content.iter().any(|part| matches!(part, ContentPart::ToolUse(_) | ContentPart::ToolResult(_)))
}

pub(super) fn system(mapper: &mut Mapper<'_>, parts: Vec<SystemPart>) -> Result<Option<Vec<SystemContentBlock>>> {
    let mut blocks = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let field = format!("system[{i}]");
        blocks.push(match part {
            SystemPart::Text(text) => SystemContentBlock::Text(text),
            SystemPart::Guarded(content) => SystemContentBlock::GuardContent(guarded(mapper, &field, content)?),
            SystemPart::CachePoint(point) => SystemContentBlock::CachePoint(cache_point(mapper, point)?),
            _ => return Err(unknown_part(mapper, &field)),
        });
    }
    Ok((!blocks.is_empty()).then_some(blocks))
}

pub(super) fn messages(mapper: &mut Mapper<'_>, messages: Vec<Message>) -> Result<Vec<converse::Message>> {
    // Each with the field that it came from first: Bedrock wants turns, and the results of one turn's calls in one message.
    let mut turns: Vec<(String, ConversationRole, Vec<ContentBlock>)> = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let field = format!("messages[{i}]");
        let Message { role, name, content } = message;
        if name.is_some() {
            mapper.ignore(format_args!("{field}.name"), "Converse has no names");
        }
        let role = match role {
            Role::User | Role::Tool => ConversationRole::User,
            Role::Assistant => ConversationRole::Assistant,
            // Converse ranks what the product says alike, whoever says it.
            Role::System | Role::Developer => ConversationRole::System,
            _ => return Err(mapper.unsupported(format_args!("{field}.role"), "not a role that this adapter knows")),
        };
        let mut blocks = Vec::with_capacity(content.len());
        for (j, part) in content.into_iter().enumerate() {
            let field = format!("{field}.content[{j}]");
            if part.as_text().is_some_and(|text| text.trim().is_empty()) {
                // Bedrock refuses what says nothing, and models write it.
                mapper.ignore(field, "a blank text");
                continue;
            }
            blocks.push(self::part(mapper, &field, part)?);
        }
        match turns.last_mut() {
            Some((_, last, said)) if *last == role => said.append(&mut blocks),
            _ => turns.push((field, role, blocks)),
        }
    }
    let message = |(field, role, blocks): (String, ConversationRole, Vec<ContentBlock>)| {
        if blocks.is_empty() {
            // Without a word a turn cannot be left out either: Bedrock wants user and assistant in turns.
            return Err(
                mapper.invalid(format_args!("{field}.content"), "holds blank texts alone, which Bedrock refuses")
            );
        }
        mapper.built(converse::Message::builder().role(role).set_content(Some(blocks)).build())
    };
    turns.into_iter().map(message).collect()
}

fn part(mapper: &mut Mapper<'_>, field: &str, part: ContentPart) -> Result<ContentBlock> {
    Ok(match part {
        ContentPart::Text(text) | ContentPart::Refusal(text) => ContentBlock::Text(text),
        ContentPart::CitedText(text) => ContentBlock::CitationsContent(cited(mapper, field, text)?),
        ContentPart::Reasoning(reasoning) => ContentBlock::ReasoningContent(self::reasoning(mapper, reasoning)?),
        ContentPart::Image(image) => ContentBlock::Image(media::image(mapper, field, image)?),
        ContentPart::Audio(audio) => ContentBlock::Audio(media::audio(mapper, field, audio)?),
        ContentPart::Video(video) => ContentBlock::Video(media::video(mapper, field, video)?),
        ContentPart::Document(document) => ContentBlock::Document(media::document(mapper, field, document)?),
        ContentPart::SearchResult(result) => ContentBlock::SearchResult(search_result(mapper, result)?),
        ContentPart::ToolUse(tool_use) => ContentBlock::ToolUse(self::tool_use(mapper, field, tool_use)?),
        ContentPart::ToolResult(result) => ContentBlock::ToolResult(tool_result(mapper, field, result)?),
        ContentPart::ToolAddition(tool) => {
            ContentBlock::ToolAddition(ToolAdditionBlock::builder().tool(reference(tool)).build())
        }
        ContentPart::ToolRemoval(tool) => {
            ContentBlock::ToolRemoval(ToolRemovalBlock::builder().tool(reference(tool)).build())
        }
        ContentPart::Guarded(content) => ContentBlock::GuardContent(guarded(mapper, field, content)?),
        ContentPart::CachePoint(point) => ContentBlock::CachePoint(cache_point(mapper, point)?),
        _ => return Err(unknown_part(mapper, field)),
    })
}

fn unknown_part(mapper: &Mapper<'_>, field: &str) -> hybrid_core::Error {
    mapper.unsupported(field, "not a kind of content that this adapter knows")
}

pub(super) fn cache_point(mapper: &Mapper<'_>, point: CachePoint) -> Result<CachePointBlock> {
    let ttl = point.ttl.map(|ttl| CacheTtl::from(ttl.as_str()));
    mapper.built(CachePointBlock::builder().r#type(CachePointType::Default).set_ttl(ttl).build())
}

fn guarded(mapper: &Mapper<'_>, field: &str, content: GuardedContent) -> Result<GuardrailConverseContentBlock> {
    let (text, qualifiers) = match content {
        GuardedContent::Text { text, qualifiers } => (text, qualifiers),
        GuardedContent::Image(image) => {
            return media::guarded_image(mapper, field, image).map(GuardrailConverseContentBlock::Image);
        }
        _ => return Err(unknown_part(mapper, field)),
    };
    let qualifiers: Vec<_> = qualifiers
        .into_iter()
        .map(|qualifier| match qualifier {
            GuardQualifier::GroundingSource => Ok(GuardrailConverseContentQualifier::GroundingSource),
            GuardQualifier::Query => Ok(GuardrailConverseContentQualifier::Query),
            GuardQualifier::GuardContent => Ok(GuardrailConverseContentQualifier::GuardContent),
            _ => Err(mapper.unsupported(format_args!("{field}.qualifiers"), "not a qualifier that this adapter knows")),
        })
        .collect::<Result<_>>()?;
    let qualifiers = (!qualifiers.is_empty()).then_some(qualifiers);
    let block = GuardrailConverseTextBlock::builder().text(text).set_qualifiers(qualifiers).build();
    mapper.built(block).map(GuardrailConverseContentBlock::Text)
}

fn reasoning(mapper: &Mapper<'_>, reasoning: Reasoning) -> Result<ReasoningContentBlock> {
    match reasoning {
        Reasoning::Text { text, signature } => {
            let block = ReasoningTextBlock::builder().text(text).set_signature(signature).build();
            mapper.built(block).map(ReasoningContentBlock::ReasoningText)
        }
        Reasoning::Redacted(bytes) => Ok(ReasoningContentBlock::RedactedContent(Blob::new(bytes))),
        _ => Err(unknown_part(mapper, "reasoning")),
    }
}

fn cited(mapper: &mut Mapper<'_>, field: &str, text: CitedText) -> Result<CitationsContentBlock> {
    let CitedText { text, citations } = text;
    let mut mapped = Vec::with_capacity(citations.len());
    for (i, citation) in citations.into_iter().enumerate() {
        let Citation { title, source, source_content, location, span } = citation;
        if span.is_some() {
            mapper.ignore(format_args!("{field}.citations[{i}].span"), "Converse has no field for it");
        }
        let words: Vec<_> = source_content.into_iter().map(converse::CitationSourceContent::Text).collect();
        mapped.push(
            converse::Citation::builder()
                .set_title(title)
                .set_source(source)
                .set_source_content((!words.is_empty()).then_some(words))
                .set_location(location.map(|location| self::location(mapper, field, location)).transpose()?)
                .build(),
        );
    }
    Ok(CitationsContentBlock::builder()
        .content(CitationGeneratedContent::Text(text))
        .set_citations(Some(mapped))
        .build())
}

/// Builds one of the four ranges, which differ in their type alone.
macro_rules! range {
    ($kind:ident, $set_index:ident, $index:expr, $start:expr, $end:expr) => {
        converse::$kind::builder().$set_index($index).set_start($start).set_end($end).build()
    };
}

fn location(mapper: &Mapper<'_>, field: &str, location: CitationLocation) -> Result<converse::CitationLocation> {
    let int = |number: Option<u32>| {
        let fits = number.map(i32::try_from).transpose();
        fits.map_err(|_| mapper.invalid(format_args!("{field}.citations"), "a place is beyond what Converse counts"))
    };
    Ok(match location {
        CitationLocation::Web { url, domain } => {
            let web = converse::WebLocation::builder().set_url(url).set_domain(domain).build();
            converse::CitationLocation::Web(web)
        }
        CitationLocation::DocumentChar { document, start, end } => converse::CitationLocation::DocumentChar(range!(
            DocumentCharLocation,
            set_document_index,
            int(document)?,
            int(start)?,
            int(end)?
        )),
        CitationLocation::DocumentPage { document, start, end } => converse::CitationLocation::DocumentPage(range!(
            DocumentPageLocation,
            set_document_index,
            int(document)?,
            int(start)?,
            int(end)?
        )),
        CitationLocation::DocumentChunk { document, start, end } => converse::CitationLocation::DocumentChunk(range!(
            DocumentChunkLocation,
            set_document_index,
            int(document)?,
            int(start)?,
            int(end)?
        )),
        CitationLocation::SearchResult { search_result, start, end } => {
            converse::CitationLocation::SearchResultLocation(range!(
                SearchResultLocation,
                set_search_result_index,
                int(search_result)?,
                int(start)?,
                int(end)?
            ))
        }
        _ => return Err(unknown_part(mapper, field)),
    })
}

fn search_result(mapper: &Mapper<'_>, result: SearchResult) -> Result<SearchResultBlock> {
    let SearchResult { source, title, content, citations } = result;
    let content = content
        .into_iter()
        .map(|text| mapper.built(SearchResultContentBlock::builder().text(text).build()))
        .collect::<Result<_>>()?;
    let block = SearchResultBlock::builder()
        .source(source)
        .title(title)
        .set_content(Some(content))
        .set_citations(media::cite(mapper, citations)?)
        .build();
    mapper.built(block)
}

fn tool_use(mapper: &mut Mapper<'_>, field: &str, tool_use: ToolUse) -> Result<ToolUseBlock> {
    let ToolUse { id, name, input, kind } = tool_use;
    check_id(mapper, &format!("{field}.id"), &id)?;
    tools::check_name(mapper, &format!("{field}.name"), &name)?;
    let kind = match kind {
        ToolUseKind::Function => None,
        ToolUseKind::Server => Some(ToolUseType::ServerToolUse),
        _ => {
            return Err(
                mapper.unsupported(format_args!("{field}.kind"), "Converse knows tools with JSON arguments alone")
            );
        }
    };
    let input = match input {
        Value::Object(_) => input,
        // Such as the half of the arguments of a call that was cut off: with anything but an object every turn that follows would be refused.
        other => {
            mapper.ignore(format_args!("{field}.input"), "no JSON object, so it is given as the field raw of one");
            json!({ "raw": other })
        }
    };
    let block = ToolUseBlock::builder().tool_use_id(id).name(name).input(json::document(input)).set_type(kind).build();
    mapper.built(block)
}

fn tool_result(mapper: &mut Mapper<'_>, field: &str, result: ToolResult) -> Result<ToolResultBlock> {
    let ToolResult { tool_use_id, content, status, kind } = result;
    check_id(mapper, &format!("{field}.tool_use_id"), &tool_use_id)?;
    let mut blocks = Vec::with_capacity(content.len());
    for (k, part) in content.into_iter().enumerate() {
        let field = format!("{field}.content[{k}]");
        blocks.push(match part {
            ToolResultPart::Text(text) => ToolResultContentBlock::Text(text),
            ToolResultPart::Json(value) if value.is_object() => ToolResultContentBlock::Json(json::document(value)),
            // As JSON Converse takes objects alone.
            ToolResultPart::Json(value) => ToolResultContentBlock::Text(value.to_string()),
            ToolResultPart::Image(image) => ToolResultContentBlock::Image(media::image(mapper, &field, image)?),
            ToolResultPart::Video(video) => ToolResultContentBlock::Video(media::video(mapper, &field, video)?),
            ToolResultPart::Document(document) => {
                ToolResultContentBlock::Document(media::document(mapper, &field, document)?)
            }
            ToolResultPart::SearchResult(result) => {
                ToolResultContentBlock::SearchResult(search_result(mapper, result)?)
            }
            _ => return Err(mapper.unsupported(field, "Converse takes no such content in a tool's result")),
        });
    }
    let status = match status {
        ToolStatus::Success => None,
        _ => Some(ToolResultStatus::Error),
    };
    let block = ToolResultBlock::builder()
        .tool_use_id(tool_use_id)
        .set_content(Some(blocks))
        .set_status(status)
        .set_type(kind)
        .build();
    mapper.built(block)
}

fn check_id(mapper: &Mapper<'_>, field: &str, id: &str) -> Result<()> {
    let fits = id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(mapper.invalid(field, "Converse takes at most 64 letters, digits and _.:-").with("found", id))
}

fn reference(tool: ToolReference) -> converse::ToolReference {
    let ToolReference { kind, name, server } = tool;
    converse::ToolReference::builder().set_type(kind).set_name(name).set_server_name(server).build()
}
