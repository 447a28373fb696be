//! An answer as it is written.

use std::collections::BTreeMap;

use hybrid_core::{
    Error, ReplyMeta, Result,
    task::{
        AudioPart, BlockDelta, ChatDelta, ChatResponse, Choice, Citation, CitationLocation, CitedText, ContentPart,
        Logprobs, MediaSource, Reasoning, ResponseDetails, StopReason, TokenLogprob, ToolUse, ToolUseKind,
    },
};
use serde_json::Value;

use super::{
    super::media, Annotation, AnswerDelta, AudioAnswer, Chunk, ChunkChoice, Completion, CompletionChoice,
    CompletionMessage, CustomCall, FunctionCall, Maker, ToolCall, UrlCitation, WireLogprob, WireLogprobs,
    WireTopLogprob, WireUsage,
};

const WRITE: &str = "write chat answer";

/// What every piece of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) created: i64,
    /// The name by which the caller asked.
    pub(crate) model: String,
}

/// Writes a whole answer.
///
/// # Errors
/// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) if the model was stopped because nobody could read what it wrote.
pub(crate) fn write_completion(heading: Heading, response: ChatResponse, meta: &ReplyMeta) -> Result<Completion> {
    let ChatResponse { choices, details } = response;
    let Heading { id, created, model } = heading;
    Ok(Completion {
        id,
        object: "chat.completion",
        created,
        model,
        choices: (0..).zip(choices).map(|(index, choice)| write_choice(index, choice)).collect::<Result<_>>()?,
        usage: WireUsage::from(&meta.usage),
        service_tier: details.service_tier.map(|tier| tier.as_str().to_owned()),
        system_fingerprint: details.system_fingerprint,
        maker: Maker { version: meta.model.version, manifest: meta.model.manifest, notes: meta.notes.clone() },
    })
}

fn write_choice(index: u32, choice: Choice) -> Result<CompletionChoice> {
    let Choice { message, stop_reason, logprobs, .. } = choice;
    let mut wire = CompletionMessage { role: "assistant", ..CompletionMessage::default() };
    for part in message.content {
        match part {
            ContentPart::Text(text) => wire.content.get_or_insert_default().push_str(&text),
            ContentPart::CitedText(CitedText { text, citations }) => {
                let content = wire.content.get_or_insert_default();
                let start = content.chars().count();
                content.push_str(&text);
                wire.annotations.extend(citations.iter().filter_map(|cited| citation(cited, start, &text)));
            }
            ContentPart::Refusal(text) => wire.refusal.get_or_insert_default().push_str(&text),
            ContentPart::Reasoning(Reasoning::Text { text, .. }) => {
                wire.reasoning_content.get_or_insert_default().push_str(&text);
            }
            ContentPart::Audio(audio) => wire.audio = Some(write_audio(audio)),
            ContentPart::ToolUse(tool_use) => {
                let text = input_text(&tool_use);
                wire.tool_calls.extend(begin_call(tool_use, None, text));
            }
            // What a provider's own tools did on the way, and what this API has no place for.
            _ => {}
        }
    }
    let finish_reason = finish_reason(&stop_reason, wire.refusal.is_some())?;
    Ok(CompletionChoice { index, message: wire, logprobs: logprobs.map(write_logprobs), finish_reason })
}

/// Why the model stopped, as this API says it. A reason that it has no word for goes out as it is: nobody takes it for a whole answer.
pub(crate) fn finish_reason(reason: &StopReason, refused: bool) -> Result<String> {
    Ok(match reason {
        StopReason::EndTurn | StopReason::StopSequence => "stop",
        StopReason::Refusal if refused => "stop",
        StopReason::ToolUse => "tool_calls",
        StopReason::MaxTokens | StopReason::ContextWindowExceeded => "length",
        StopReason::GuardrailIntervened | StopReason::ContentFiltered | StopReason::Refusal => "content_filter",
        StopReason::MalformedOutput | StopReason::MalformedToolUse => {
            let error = Error::corrupt(WRITE, "the model wrote what its provider could not read");
            return Err(error.with("reason", reason));
        }
        other => other.as_str(),
    }
    .to_owned())
}

/// A tool's input as its model wrote it.
pub(crate) fn input_text(tool_use: &ToolUse) -> String {
    match (&tool_use.input, tool_use.kind) {
        (Value::String(text), ToolUseKind::Custom) => text.clone(),
        // What is no JSON is an unfinished text.
        (Value::String(text), _) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() => text.clone(),
        (Value::Null, _) => "{}".to_owned(),
        (input, _) => input.to_string(),
    }
}

/// The citation, where it is of a page on the web; `start` is where its text begins.
pub(crate) fn citation(cited: &Citation, start: usize, text: &str) -> Option<Annotation> {
    let url = match &cited.location {
        Some(CitationLocation::Web { url, .. }) => url.clone(),
        _ => None,
    }
    .or_else(|| cited.source.clone().filter(|source| source.starts_with("http")))?;
    let start = u32::try_from(start).unwrap_or(u32::MAX);
    let end = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
    let (from, to) = cited.span.map_or((0, end), |span| (span.start, span.end));
    let url_citation = Some(UrlCitation {
        start_index: start.saturating_add(from),
        end_index: start.saturating_add(to),
        title: cited.title.clone().unwrap_or_default(),
        url,
    });
    Some(Annotation { kind: "url_citation".into(), url_citation })
}

fn begin_call(tool_use: ToolUse, index: Option<u32>, text: String) -> Option<ToolCall> {
    let (id, name) = (Some(tool_use.id), Some(tool_use.name));
    match tool_use.kind {
        ToolUseKind::Function => {
            let function = Some(FunctionCall { name, arguments: Some(Value::String(text)) });
            Some(ToolCall { index, id, kind: Some("function".into()), function, custom: None })
        }
        ToolUseKind::Custom => {
            let custom = Some(CustomCall { name, input: Some(text) });
            Some(ToolCall { index, id, kind: Some("custom".into()), function: None, custom })
        }
        _ => None,
    }
}

fn write_audio(audio: AudioPart) -> AudioAnswer {
    let data = match &audio.source {
        MediaSource::Bytes(bytes) => Some(media::encode(bytes)),
        _ => None,
    };
    let seconds = |time: String| Some(time.parse::<hybrid_core::Timestamp>().ok()?.unix_micros().div_euclid(1_000_000));
    AudioAnswer { id: audio.id, data, transcript: audio.transcript, expires_at: audio.expires_at.and_then(seconds) }
}

pub(crate) fn write_logprobs(logprobs: Logprobs) -> WireLogprobs {
    let write = |tokens: Vec<TokenLogprob>| {
        let bytes = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.to_vec());
        let write = |token: TokenLogprob| WireLogprob {
            bytes: bytes(&token.bytes),
            token: token.token,
            logprob: token.logprob,
            top_logprobs: token
                .top
                .into_iter()
                .map(|top| WireTopLogprob { bytes: bytes(&top.bytes), token: top.token, logprob: top.logprob })
                .collect(),
        };
        tokens.into_iter().map(write).collect::<Vec<_>>()
    };
    let refusal = (!logprobs.refusal.is_empty()).then(|| write(logprobs.refusal));
    WireLogprobs { content: Some(write(logprobs.content)), refusal }
}

/// Writes deltas as chunks.
///
/// The chunk that ends a choice is kept back until [`finish`](Self::finish): what fails after the model has stopped must not look complete.
#[derive(Debug)]
pub(crate) struct AnswerWriter {
    heading: Heading,
    include_usage: bool,
    choices: BTreeMap<u32, ChoiceWriter>,
    details: ResponseDetails,
}

#[derive(Debug, Default)]
struct ChoiceWriter {
    begun: bool,
    blocks: BTreeMap<u32, Block>,
    calls: u32,
    /// Characters of text so far, where citations count from.
    chars: usize,
    refused: bool,
    stopped: Option<StopReason>,
}

#[derive(Debug)]
enum Block {
    Text {
        start: usize,
    },
    Refusal,
    Reasoning,
    Audio,
    Call {
        index: u32,
        kind: ToolUseKind,
        /// Whether any of its arguments were told.
        told: bool,
    },
    /// Nothing that this API has a place for.
    Hidden,
}

impl AnswerWriter {
    pub(crate) fn new(heading: Heading, include_usage: bool) -> Self {
        Self { heading, include_usage, choices: BTreeMap::new(), details: ResponseDetails::default() }
    }

    /// The chunks that a delta makes.
    pub(crate) fn write(&mut self, delta: ChatDelta) -> Vec<Chunk> {
        let mut out = Vec::new();
        let index = match &delta {
            ChatDelta::Start { choice, .. }
            | ChatDelta::BlockStart { choice, .. }
            | ChatDelta::Block { choice, .. }
            | ChatDelta::BlockStop { choice, .. }
            | ChatDelta::Logprobs { choice, .. }
            | ChatDelta::Stop { choice, .. } => *choice,
            ChatDelta::Details(details) => {
                self.details.service_tier = details.service_tier.clone().or(self.details.service_tier.take());
                self.details.system_fingerprint =
                    details.system_fingerprint.clone().or(self.details.system_fingerprint.take());
                return out;
            }
            _ => return out,
        };
        let choice = self.choices.entry(index).or_default();
        let first = !std::mem::replace(&mut choice.begun, true);
        let (delta, logprobs) = match delta {
            ChatDelta::BlockStart { block, part, .. } => (choice.begin(block, part), None),
            ChatDelta::Block { block, delta, .. } => (choice.add(block, delta), None),
            ChatDelta::Logprobs { logprobs, .. } => (Some(AnswerDelta::default()), Some(write_logprobs(logprobs))),
            ChatDelta::BlockStop { block, .. } => (choice.end(|ended| ended == block), None),
            ChatDelta::Stop { reason, .. } => {
                choice.stopped = Some(reason);
                (choice.end(|_| true), None)
            }
            _ => (None, None),
        };
        if first {
            let delta =
                AnswerDelta { role: Some("assistant".into()), content: Some(String::new()), ..AnswerDelta::default() };
            out.push(self.chunk(ChunkChoice { index, delta, ..ChunkChoice::default() }));
        }
        if let Some(delta) = delta {
            out.push(self.chunk(ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() }));
        }
        out
    }

    /// The chunks that end the answer.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) if a choice has not come to its end, or to one that nobody can read.
    pub(crate) fn finish(&self, meta: &ReplyMeta) -> Result<Vec<Chunk>> {
        let mut out = Vec::new();
        for (&index, choice) in &self.choices {
            let Some(reason) = &choice.stopped else {
                return Err(Error::corrupt(WRITE, "the answer ended without a reason").with("choice", index));
            };
            let finish_reason = Some(finish_reason(reason, choice.refused)?);
            out.push(Chunk {
                version: meta.model.version,
                manifest: meta.model.manifest,
                notes: meta.notes.clone(),
                ..self.chunk(ChunkChoice { index, finish_reason, ..ChunkChoice::default() })
            });
        }
        if out.is_empty() {
            return Err(Error::corrupt(WRITE, "the answer has no choice"));
        }
        if self.include_usage {
            out.push(Chunk { usage: Some((&meta.usage).into()), ..self.chunk_of(Vec::new()) });
        }
        Ok(out)
    }

    fn chunk(&self, choice: ChunkChoice) -> Chunk {
        self.chunk_of(vec![choice])
    }

    fn chunk_of(&self, choices: Vec<ChunkChoice>) -> Chunk {
        let Heading { id, created, model } = self.heading.clone();
        Chunk {
            id,
            object: "chat.completion.chunk".into(),
            created,
            model,
            choices,
            service_tier: self.details.service_tier.as_ref().map(|tier| tier.as_str().to_owned()),
            system_fingerprint: self.details.system_fingerprint.clone(),
            ..Chunk::default()
        }
    }
}

impl ChoiceWriter {
    fn begin(&mut self, block: u32, part: ContentPart) -> Option<AnswerDelta> {
        let mut delta = AnswerDelta::default();
        let begun = match part {
            ContentPart::Text(text) | ContentPart::CitedText(CitedText { text, .. }) => {
                let start = self.chars;
                delta.content = self.text(text);
                Block::Text { start }
            }
            ContentPart::Refusal(text) => {
                self.refused = true;
                delta.refusal = (!text.is_empty()).then_some(text);
                Block::Refusal
            }
            ContentPart::Reasoning(Reasoning::Text { text, .. }) => {
                delta.reasoning_content = (!text.is_empty()).then_some(text);
                Block::Reasoning
            }
            ContentPart::Audio(audio) => {
                let mut begun = write_audio(audio);
                begun.data = begun.data.filter(|data| !data.is_empty());
                delta.audio = Some(begun);
                Block::Audio
            }
            ContentPart::ToolUse(tool_use) => {
                let (index, kind) = (self.calls, tool_use.kind);
                let text = if tool_use.input.is_null() { String::new() } else { input_text(&tool_use) };
                let told = !text.is_empty();
                match begin_call(tool_use, Some(index), text) {
                    Some(call) => {
                        self.calls += 1;
                        delta.tool_calls = Some(vec![call]);
                        Block::Call { index, kind, told }
                    }
                    None => Block::Hidden,
                }
            }
            _ => Block::Hidden,
        };
        self.blocks.insert(block, begun);
        (delta != AnswerDelta::default()).then_some(delta)
    }

    fn text(&mut self, text: String) -> Option<String> {
        self.chars += text.chars().count();
        (!text.is_empty()).then_some(text)
    }

    fn add(&mut self, block: u32, more: BlockDelta) -> Option<AnswerDelta> {
        let chars = self.chars;
        // A block that was not announced is what its first delta tells.
        let known = self.blocks.entry(block).or_insert_with(|| match &more {
            BlockDelta::Text(_) | BlockDelta::Citation(_) => Block::Text { start: chars },
            BlockDelta::Reasoning(_) | BlockDelta::Signature(_) => Block::Reasoning,
            _ => Block::Hidden,
        });
        let mut delta = AnswerDelta::default();
        match (known, more) {
            (Block::Text { .. }, BlockDelta::Text(text)) => delta.content = self.text(text),
            (Block::Text { start }, BlockDelta::Citation(cited)) => {
                let length = chars - *start;
                let cited = citation(&cited, *start, "").map(|mut annotation| {
                    if let (None, Some(url)) = (cited.span, &mut annotation.url_citation) {
                        url.end_index = url.start_index.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
                    }
                    vec![annotation]
                });
                delta.annotations = cited;
            }
            (Block::Refusal, BlockDelta::Text(text)) => delta.refusal = Some(text),
            (Block::Reasoning, BlockDelta::Reasoning(text)) => delta.reasoning_content = Some(text),
            (Block::Audio, BlockDelta::Media(MediaSource::Bytes(bytes))) => {
                delta.audio = Some(AudioAnswer { data: Some(media::encode(&bytes)), ..AudioAnswer::default() });
            }
            (Block::Audio, BlockDelta::Transcript(text)) => {
                delta.audio = Some(AudioAnswer { transcript: Some(text), ..AudioAnswer::default() });
            }
            (Block::Audio, BlockDelta::ExpiresAt(time)) => {
                let audio = AudioPart { expires_at: Some(time), ..AudioPart::default() };
                delta.audio = Some(AudioAnswer { data: None, ..write_audio(audio) });
            }
            (Block::Call { index, kind, told }, BlockDelta::ToolInput(text)) => {
                *told |= !text.is_empty();
                let (function, custom) = match kind {
                    ToolUseKind::Custom => (None, Some(CustomCall { name: None, input: Some(text) })),
                    _ => (Some(FunctionCall { name: None, arguments: Some(Value::String(text)) }), None),
                };
                delta.tool_calls =
                    Some(vec![ToolCall { index: Some(*index), function, custom, ..ToolCall::default() }]);
            }
            _ => {}
        }
        (delta != AnswerDelta::default()).then_some(delta)
    }

    /// What is left to say of calls that have ended: providers send nothing for a tool without arguments, and nothing is no JSON.
    fn end(&mut self, ends: impl Fn(u32) -> bool) -> Option<AnswerDelta> {
        let mut calls = Vec::new();
        for (block, begun) in &mut self.blocks {
            if let Block::Call { index, kind: ToolUseKind::Function, told: told @ false } = begun
                && ends(*block)
            {
                *told = true;
                let function = FunctionCall { name: None, arguments: Some(Value::String("{}".to_owned())) };
                calls.push(ToolCall { index: Some(*index), function: Some(function), ..ToolCall::default() });
            }
        }
        (!calls.is_empty()).then(|| AnswerDelta { tool_calls: Some(calls), ..AnswerDelta::default() })
    }
}
