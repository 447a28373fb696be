//! An answer as it is read.

use std::collections::BTreeMap;

use hybrid_core::{
    Error, Result, Usage,
    task::{
        AudioPart, BlockDelta, ChatDelta, Citation, CitationLocation, ContentPart, Logprobs, MediaSource,
        ResponseDetails, Role, StopReason, TextSpan, TokenLogprob, ToolUse, ToolUseKind, TopLogprob,
    },
};
use serde_json::Value;

use super::{
    super::media, Annotation, AnswerDelta, AudioAnswer, Chunk, ChunkChoice, ToolCall, WireLogprob, WireLogprobs,
    WireTopLogprob,
};

const READ: &str = "read chat answer";

/// The blocks of an answer, by number: so a stream folds to the same message whatever its server sends first.
const REASONING: u32 = 0;
const TEXT: u32 = 1;
const REFUSAL: u32 = 2;
const AUDIO: u32 = 3;
const FIRST_TOOL: u32 = 4;

/// Turns chunks into deltas, and says at the end whether the answer was whole.
#[derive(Debug)]
pub(crate) struct AnswerReader {
    /// What calls are named after whose server gave them no id.
    call_prefix: String,
    /// The type of the sound that was asked for.
    audio_type: String,
    choices: BTreeMap<u32, ChoiceReader>,
    usage: Option<Usage>,
    details: ResponseDetails,
}

#[derive(Debug, Default)]
struct ChoiceReader {
    begun: bool,
    /// The blocks begun, by number.
    blocks: Vec<u32>,
    /// The tool calls, each with the index and the id that its server gave it.
    calls: Vec<(Option<u32>, Option<String>)>,
    finished: bool,
}

impl AnswerReader {
    pub(crate) fn new(call_prefix: impl Into<String>, audio_type: Option<&str>) -> Self {
        Self {
            call_prefix: call_prefix.into(),
            audio_type: audio_type.unwrap_or("audio/wav").to_owned(),
            choices: BTreeMap::new(),
            usage: None,
            details: ResponseDetails::default(),
        }
    }

    /// The deltas that a chunk makes.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) if it cannot follow what came before.
    pub(crate) fn read(&mut self, chunk: Chunk) -> Result<Vec<ChatDelta>> {
        let Chunk { id, choices, usage, service_tier, system_fingerprint, .. } = chunk;
        let mut deltas = Vec::new();
        for choice in choices {
            let index = choice.index;
            let reader = self.choices.entry(index).or_default();
            reader
                .read(choice, &self.call_prefix, &self.audio_type, &mut deltas)
                .map_err(|error| error.with("choice", index))?;
        }
        if let Some(usage) = &usage {
            self.usage = Some(usage.into());
        }
        let details = ResponseDetails {
            id: (!id.is_empty()).then_some(id),
            service_tier: service_tier.map(Into::into),
            system_fingerprint,
            ..ResponseDetails::default()
        };
        // Every chunk repeats them.
        if details != self.details && details != ResponseDetails::default() {
            self.details = details.clone();
            deltas.push(ChatDelta::Details(details));
        }
        Ok(deltas)
    }

    /// What was used, where the server said so.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) if there is no choice, or one has not come to its end: what there is would look complete.
    pub(crate) fn finish(self) -> Result<Option<Usage>> {
        if self.choices.is_empty() {
            return Err(corrupt("the answer has no choice"));
        }
        match self.choices.iter().find(|(_, choice)| !choice.finished) {
            Some((index, _)) => Err(corrupt("the answer ended without a finish_reason").with("choice", index)),
            None => Ok(self.usage),
        }
    }
}

impl ChoiceReader {
    fn read(&mut self, wire: ChunkChoice, call_prefix: &str, audio_type: &str, out: &mut Vec<ChatDelta>) -> Result<()> {
        let ChunkChoice { index: choice, delta, logprobs, finish_reason, stop_reason } = wire;
        let before = out.len();
        if !self.begun {
            self.begun = true;
            out.push(ChatDelta::Start { choice, role: Role::Assistant, name: None });
        }
        let begun = out.len();
        self.delta(choice, delta, call_prefix, audio_type, out)?;
        out.extend(logprobs.and_then(read_logprobs).map(|logprobs| ChatDelta::Logprobs { choice, logprobs }));
        if self.finished {
            // Empty deltas after the end are harmless; some servers send one with the usage.
            return if out.len() > begun { Err(corrupt("the answer went on after its finish_reason")) } else { Ok(()) };
        }
        if let Some(reason) = finish_reason.filter(|reason| !reason.is_empty()) {
            self.finish(choice, &reason, stop_reason, out);
        } else if out.len() == begun && before == begun {
            out.truncate(before);
        }
        Ok(())
    }

    fn delta(
        &mut self,
        choice: u32,
        delta: AnswerDelta,
        call_prefix: &str,
        audio_type: &str,
        out: &mut Vec<ChatDelta>,
    ) -> Result<()> {
        let AnswerDelta { role: _, content, refusal, reasoning_content, reasoning, tool_calls, audio, annotations } =
            delta;
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let reasoning = some(reasoning_content).or_else(|| some(reasoning.as_ref()?.as_str().map(str::to_owned)));
        if let Some(text) = reasoning {
            self.begin(choice, REASONING, None, out);
            out.push(ChatDelta::Block { choice, block: REASONING, delta: BlockDelta::Reasoning(text) });
        }
        if let Some(text) = some(content) {
            self.begin(choice, TEXT, Some(ContentPart::Text(String::new())), out);
            out.push(ChatDelta::Block { choice, block: TEXT, delta: BlockDelta::Text(text) });
        }
        for citation in annotations.into_iter().flatten().filter_map(read_annotation) {
            self.begin(choice, TEXT, Some(ContentPart::Text(String::new())), out);
            out.push(ChatDelta::Block { choice, block: TEXT, delta: BlockDelta::Citation(citation) });
        }
        if let Some(text) = some(refusal) {
            self.begin(choice, REFUSAL, Some(ContentPart::Refusal(String::new())), out);
            out.push(ChatDelta::Block { choice, block: REFUSAL, delta: BlockDelta::Text(text) });
        }
        if let Some(audio) = audio {
            self.audio(choice, audio, audio_type, out)?;
        }
        for call in tool_calls.into_iter().flatten() {
            self.call(choice, call, call_prefix, out)?;
        }
        Ok(())
    }

    /// Announces a block unless it was announced already. Reasoning is known by its first delta.
    fn begin(&mut self, choice: u32, block: u32, part: Option<ContentPart>, out: &mut Vec<ChatDelta>) {
        if !self.blocks.contains(&block) {
            self.blocks.push(block);
            out.extend(part.map(|part| ChatDelta::BlockStart { choice, block, part }));
        }
    }

    fn audio(&mut self, choice: u32, audio: AudioAnswer, media_type: &str, out: &mut Vec<ChatDelta>) -> Result<()> {
        let AudioAnswer { id, data, transcript, expires_at } = audio;
        let part = AudioPart { id, ..AudioPart::new(media_type, MediaSource::default()) };
        self.begin(choice, AUDIO, Some(part.into()), out);
        let mut push = |delta| out.push(ChatDelta::Block { choice, block: AUDIO, delta });
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            push(BlockDelta::Media(media::decode(READ, "audio.data", &data)?.into()));
        }
        if let Some(text) = transcript.filter(|text| !text.is_empty()) {
            push(BlockDelta::Transcript(text));
        }
        if let Some(seconds) = expires_at {
            let time = hybrid_core::Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000));
            push(BlockDelta::ExpiresAt(time.to_string()));
        }
        Ok(())
    }

    fn call(&mut self, choice: u32, call: ToolCall, prefix: &str, out: &mut Vec<ChatDelta>) -> Result<()> {
        let ToolCall { index, id, kind, function, custom } = call;
        let id = id.filter(|id| !id.is_empty());
        let (name, fragment, kind) = match (kind.as_deref(), custom) {
            (Some("custom"), custom) | (None, custom @ Some(_)) => {
                let custom = custom.unwrap_or_default();
                (custom.name, custom.input, ToolUseKind::Custom)
            }
            _ => {
                let function = function.unwrap_or_default();
                let fragment = function.arguments.map(|arguments| match arguments {
                    Value::String(text) => text,
                    Value::Null => String::new(),
                    value => value.to_string(),
                });
                (function.name, fragment, ToolUseKind::Function)
            }
        };
        let at = match self.known_call(index, id.as_deref(), name.is_some()) {
            Some(at) => at,
            None => {
                let at = self.calls.len();
                let name = name
                    .filter(|name| !name.is_empty())
                    .ok_or_else(|| corrupt("a tool call began without a name").with("tool_call", at))?;
                // Ids that a server leaves out are made up, so that results can name their calls.
                let id_given = id.clone().unwrap_or_else(|| format!("call_{prefix}_{choice}_{at}"));
                self.calls.push((index, id));
                let part = ToolUse { kind, ..ToolUse::new(id_given, name, Value::Null) }.into();
                self.begin(choice, tool_block(at), Some(part), out);
                at
            }
        };
        // A custom tool can be called with an empty text.
        if let Some(text) = fragment.filter(|text| !text.is_empty() || kind == ToolUseKind::Custom) {
            out.push(ChatDelta::Block { choice, block: tool_block(at), delta: BlockDelta::ToolInput(text) });
        }
        Ok(())
    }

    /// The call that a fragment goes on with. Some servers give every call the index 0 and tell them apart by id, some leave the index out.
    /// Where both are missing, a name begins a call.
    fn known_call(&self, index: Option<u32>, id: Option<&str>, named: bool) -> Option<usize> {
        let fits = |(_, (known_index, known_id)): &(usize, &(Option<u32>, Option<String>))| {
            let same_index = index.is_some() && index == *known_index;
            match id {
                Some(id) => known_id.as_deref().map_or(same_index, |known| known == id),
                None if index.is_some() => same_index,
                None => !named,
            }
        };
        self.calls.iter().enumerate().rev().find(fits).map(|(at, _)| at)
    }

    fn finish(&mut self, choice: u32, reason: &str, stopped_by: Option<Value>, out: &mut Vec<ChatDelta>) {
        if self.blocks.is_empty() {
            // A message has at least one part, so that it can be sent back.
            self.begin(choice, TEXT, Some(ContentPart::Text(String::new())), out);
        }
        self.blocks.sort_unstable();
        out.extend(self.blocks.iter().map(|&block| ChatDelta::BlockStop { choice, block }));
        let (calls, refused) = (!self.calls.is_empty(), self.blocks.contains(&REFUSAL));
        let sequence = stopped_by.and_then(|value| value.as_str().map(str::to_owned));
        let reason = match reason {
            // Some servers say so of calls too.
            "stop" if calls => StopReason::ToolUse,
            "stop" if refused => StopReason::Refusal,
            "stop" if sequence.is_some() => StopReason::StopSequence,
            "stop" => StopReason::EndTurn,
            "length" => StopReason::MaxTokens,
            "tool_calls" | "function_call" => StopReason::ToolUse,
            "content_filter" => StopReason::ContentFiltered,
            other => other.into(),
        };
        self.finished = true;
        let sequence = sequence.filter(|_| reason == StopReason::StopSequence);
        out.push(ChatDelta::Stop { choice, reason, sequence });
    }
}

fn tool_block(at: usize) -> u32 {
    FIRST_TOOL.saturating_add(u32::try_from(at).unwrap_or(u32::MAX))
}

fn read_annotation(annotation: Annotation) -> Option<Citation> {
    let cited = annotation.url_citation?;
    Some(Citation {
        title: (!cited.title.is_empty()).then_some(cited.title),
        location: Some(CitationLocation::Web { url: Some(cited.url), domain: None }),
        span: Some(TextSpan { start: cited.start_index, end: cited.end_index }),
        ..Citation::default()
    })
}

fn read_logprobs(wire: WireLogprobs) -> Option<Logprobs> {
    let read = |tokens: Option<Vec<WireLogprob>>| -> Vec<TokenLogprob> {
        let read = |WireLogprob { token, bytes, logprob, top_logprobs }: WireLogprob| TokenLogprob {
            token,
            bytes: bytes.unwrap_or_default().into(),
            logprob,
            top: top_logprobs
                .into_iter()
                .map(|WireTopLogprob { token, bytes, logprob }| TopLogprob {
                    token,
                    bytes: bytes.unwrap_or_default().into(),
                    logprob,
                })
                .collect(),
        };
        tokens.into_iter().flatten().map(read).collect()
    };
    let logprobs = Logprobs { content: read(wire.content), refusal: read(wire.refusal) };
    (logprobs != Logprobs::default()).then_some(logprobs)
}

fn corrupt(message: &'static str) -> Error {
    Error::corrupt(READ, message)
}
