//! From Converse's output to [`ChatResponse`]; the stream shares what both have.

use aws_sdk_bedrockruntime::{
    operation::converse::ConverseOutput,
    types::{
        self as converse, CacheTtl, CitationGeneratedContent, CitationsContentBlock, ContentBlock, ConversationRole,
        GuardrailConverseContentBlock, ReasoningContentBlock, SearchResultBlock, TokenUsage, ToolResultBlock,
        ToolResultContentBlock, ToolResultStatus, ToolUseBlock, ToolUseType,
    },
};
use aws_smithy_types::Document;
use hybrid_core::{
    Note, Usage,
    task::{
        ChatResponse, Choice, Citation, CitationLocation, CitedText, ContentPart, Latency, Message, Reasoning,
        ResponseDetails, Role, SearchResult, ServiceTier, StopReason, ToolResult, ToolResultPart, ToolStatus, ToolUse,
        ToolUseKind,
    },
};
use serde_json::{Map, Value};

use super::{
    super::{call::note, failure::Failure, json},
    media,
};

/// What a whole answer says.
pub(super) struct Answered {
    pub(super) response: ChatResponse,
    pub(super) usage: Usage,
}

pub(super) fn read(answer: ConverseOutput, trace: Option<Value>, notes: &mut Vec<Note>) -> Result<Answered, Failure> {
    let ConverseOutput {
        output,
        stop_reason,
        usage,
        metrics: _,
        additional_model_response_fields,
        trace: _,
        performance_config,
        service_tier,
        ..
    } = answer;
    let Some(converse::ConverseOutput::Message(message)) = output else {
        return Err(Failure::corrupt("the answer has no message"));
    };
    let stop_reason = self::stop_reason(&stop_reason)?;
    let mut content = Vec::with_capacity(message.content.len());
    for block in message.content {
        match part(block) {
            Some(part) => content.push(part),
            None => unknown(notes, "a block of the answer"),
        }
    }
    let message = Message { role: role(&message.role), name: None, content };
    let mut details = details(performance_config, service_tier, trace, notes);
    details.extra = extra(additional_model_response_fields);
    let usage = self::usage(usage.as_ref(), details.service_tier.as_ref(), notes);
    let response = ChatResponse { choices: vec![Choice::new(message, stop_reason)], details };
    Ok(Answered { response, usage })
}

/// Says once that something was left out.
pub(super) fn unknown(notes: &mut Vec<Note>, what: &str) {
    let note =
        note("unknown_content", format!("{what} is of a kind that this version does not know, and was left out"));
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// The SDK fills in a reason where the provider gave none.
pub(super) fn stop_reason(reason: &converse::StopReason) -> Result<StopReason, Failure> {
    match reason.as_str() {
        "no value was set" | "" => Err(Failure::corrupt("the answer does not say why it ended")),
        reason => Ok(StopReason::from(reason)),
    }
}

pub(super) fn role(role: &ConversationRole) -> Role {
    match role {
        ConversationRole::User => Role::User,
        ConversationRole::System => Role::System,
        _ => Role::Assistant,
    }
}

pub(super) fn extra(fields: Option<Document>) -> Map<String, Value> {
    match fields.map(json::value) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(fields)) => fields,
        Some(other) => Map::from_iter([("additionalModelResponseFields".to_owned(), other)]),
    }
}

pub(super) fn details(
    performance: Option<converse::PerformanceConfiguration>,
    tier: Option<converse::ServiceTier>,
    trace: Option<Value>,
    notes: &mut Vec<Note>,
) -> ResponseDetails {
    let router = trace.as_ref().and_then(|trace| trace.pointer("/promptRouter/invokedModelId"));
    if let Some(model) = router.and_then(Value::as_str) {
        notes.push(note("routed", format!("the prompt router chose {model}")));
    }
    ResponseDetails {
        service_tier: tier.map(|tier| ServiceTier::from(tier.r#type.as_str())),
        latency: performance.map(|config| Latency::from(config.latency.as_str())),
        trace,
        ..ResponseDetails::default()
    }
}

/// `inputTokens` is what was neither read from a cache nor written to one, as in core.
pub(super) fn usage(usage: Option<&TokenUsage>, tier: Option<&ServiceTier>, notes: &mut Vec<Note>) -> Usage {
    let Some(usage) = usage else { return Usage::default() };
    let count = |tokens: i32| u64::try_from(tokens).unwrap_or(0);
    let long = usage.cache_details().iter().filter(|detail| detail.ttl == CacheTtl::OneHour && detail.input_tokens > 0);
    if long.count() > 0 {
        notes.push(note("price", "tokens were cached for an hour, which costs more than the price says"));
    }
    if let Some(tier) = tier.filter(|tier| **tier != ServiceTier::Default) {
        notes.push(note("price", format!("served in tier {tier}, whose price is not the standard one")));
    }
    Usage {
        input_tokens: count(usage.input_tokens),
        output_tokens: count(usage.output_tokens),
        cache_read_tokens: count(usage.cache_read_input_tokens.unwrap_or(0)),
        cache_write_tokens: count(usage.cache_write_input_tokens.unwrap_or(0)),
        ..Usage::default()
    }
}

/// `None` for what this version does not know.
fn part(block: ContentBlock) -> Option<ContentPart> {
    Some(match block {
        ContentBlock::Text(text) => ContentPart::Text(text),
        ContentBlock::CitationsContent(block) => ContentPart::CitedText(cited(block)?),
        ContentBlock::ReasoningContent(ReasoningContentBlock::ReasoningText(block)) => {
            ContentPart::Reasoning(Reasoning::Text { text: block.text, signature: block.signature })
        }
        ContentBlock::ReasoningContent(ReasoningContentBlock::RedactedContent(bytes)) => {
            ContentPart::Reasoning(Reasoning::Redacted(bytes.into_inner().into()))
        }
        ContentBlock::Image(image) => ContentPart::Image(media::read_image(image)?),
        ContentBlock::Audio(audio) => ContentPart::Audio(media::read_audio(audio)?),
        ContentBlock::Video(video) => ContentPart::Video(media::read_video(video)?),
        ContentBlock::Document(document) => ContentPart::Document(media::read_document(document)?),
        ContentBlock::SearchResult(result) => ContentPart::SearchResult(search_result(result)),
        ContentBlock::ToolUse(block) => {
            let ToolUseBlock { tool_use_id, name, input, r#type, .. } = block;
            let kind = tool_use_kind(r#type.as_ref());
            ContentPart::ToolUse(ToolUse { id: tool_use_id, name, input: json::value(input), kind })
        }
        ContentBlock::ToolResult(block) => ContentPart::ToolResult(tool_result(block)?),
        ContentBlock::GuardContent(GuardrailConverseContentBlock::Text(text)) => ContentPart::Text(text.text),
        _ => return None,
    })
}

pub(super) fn tool_use_kind(kind: Option<&ToolUseType>) -> ToolUseKind {
    match kind {
        Some(ToolUseType::ServerToolUse) => ToolUseKind::Server,
        _ => ToolUseKind::Function,
    }
}

pub(super) fn tool_status(status: Option<&ToolResultStatus>) -> ToolStatus {
    match status {
        Some(ToolResultStatus::Error) => ToolStatus::Error,
        _ => ToolStatus::Success,
    }
}

fn tool_result(block: ToolResultBlock) -> Option<ToolResult> {
    let ToolResultBlock { tool_use_id, content, status, r#type, .. } = block;
    let content = content
        .into_iter()
        .map(|part| {
            Some(match part {
                ToolResultContentBlock::Text(text) => ToolResultPart::Text(text),
                ToolResultContentBlock::Json(value) => ToolResultPart::Json(json::value(value)),
                ToolResultContentBlock::Image(image) => ToolResultPart::Image(media::read_image(image)?),
                ToolResultContentBlock::Video(video) => ToolResultPart::Video(media::read_video(video)?),
                ToolResultContentBlock::Document(document) => ToolResultPart::Document(media::read_document(document)?),
                ToolResultContentBlock::SearchResult(result) => ToolResultPart::SearchResult(search_result(result)),
                _ => return None,
            })
        })
        .collect::<Option<_>>()?;
    Some(ToolResult { tool_use_id, content, status: tool_status(status.as_ref()), kind: r#type })
}

fn search_result(result: SearchResultBlock) -> SearchResult {
    let SearchResultBlock { source, title, content, citations, .. } = result;
    SearchResult {
        source,
        title,
        content: content.into_iter().map(|block| block.text).collect(),
        citations: citations.is_some_and(|citations| citations.enabled),
    }
}

fn cited(block: CitationsContentBlock) -> Option<CitedText> {
    let mut text = String::new();
    for piece in block.content.unwrap_or_default() {
        match piece {
            CitationGeneratedContent::Text(more) => text.push_str(&more),
            _ => return None,
        }
    }
    let citations = block.citations.unwrap_or_default().into_iter().map(|citation| {
        let converse::Citation { title, source, source_content, location, .. } = citation;
        let words = source_content.unwrap_or_default().into_iter().filter_map(|content| match content {
            converse::CitationSourceContent::Text(text) => Some(text),
            _ => None,
        });
        Citation {
            title,
            source,
            source_content: words.collect(),
            location: location.and_then(self::location),
            span: None,
        }
    });
    Some(CitedText { text, citations: citations.collect() })
}

pub(super) fn location(location: converse::CitationLocation) -> Option<CitationLocation> {
    let int = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
    Some(match location {
        converse::CitationLocation::Web(web) => CitationLocation::Web { url: web.url, domain: web.domain },
        converse::CitationLocation::DocumentChar(range) => CitationLocation::DocumentChar {
            document: int(range.document_index),
            start: int(range.start),
            end: int(range.end),
        },
        converse::CitationLocation::DocumentPage(range) => CitationLocation::DocumentPage {
            document: int(range.document_index),
            start: int(range.start),
            end: int(range.end),
        },
        converse::CitationLocation::DocumentChunk(range) => CitationLocation::DocumentChunk {
            document: int(range.document_index),
            start: int(range.start),
            end: int(range.end),
        },
        converse::CitationLocation::SearchResultLocation(range) => CitationLocation::SearchResult {
            search_result: int(range.search_result_index),
            start: int(range.start),
            end: int(range.end),
        },
        _ => return None,
    })
}
