//! From ConverseStream's events to [`ChatDelta`]s, with one end.

use std::collections::{BTreeMap, VecDeque};

use aws_sdk_bedrockruntime::{
    primitives::event_stream::EventReceiver,
    types::{
        CitationsDelta, ContentBlockDelta, ContentBlockStart, ConverseStreamMetadataEvent, ConverseStreamOutput,
        ImageBlockDelta, ReasoningContentBlockDelta, ToolResultBlockDelta, error::ConverseStreamOutputError,
    },
};
use hybrid_core::{
    CallContext, Monotonic, Note, ReplyMeta, Result, Usage,
    task::{
        BlockDelta, ChatDelta, Citation, ContentPart, ImagePart, MediaSource, ResponseDetails, StopReason, ToolResult,
        ToolResultPart, ToolUse,
    },
};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    super::{
        call::{Caller, note},
        failure::Failure,
        json,
        streaming::Pieces,
        trace::TraceTap,
    },
    STREAM, media, response,
};

type Receiver = EventReceiver<ConverseStreamOutput, ConverseStreamOutputError>;

/// ConverseStream's events.
#[derive(Debug)]
pub(super) struct Events {
    receiver: Receiver,
    decoder: Decoder,
}

impl Events {
    pub(super) fn new(receiver: Receiver, tap: TraceTap) -> Self {
        Self { receiver, decoder: Decoder::new(tap) }
    }
}

impl Pieces for Events {
    const OPERATION: &'static str = STREAM;

    async fn advance(&mut self, ready: &mut VecDeque<ChatDelta>) -> std::result::Result<(), Failure> {
        match self.receiver.recv().await {
            Ok(Some(event)) => self.decoder.take(event, ready),
            Ok(None) => Err(Failure::cut("the stream ended before the answer did")),
            Err(error) => Err(Failure::in_stream(error)),
        }
    }

    fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// What would have come is the bill.
    fn is_whole_without(&mut self, silence: &Failure) -> bool {
        let decoder = &mut self.decoder;
        if decoder.stopped.is_some() {
            let why = format!("the answer is whole, its usage is unknown: {}", silence.message);
            decoder.notes.push(note("unmetered", why));
            decoder.unmetered = true;
        }
        decoder.unmetered
    }

    fn finish(self, caller: &Caller, cx: &CallContext, start: Monotonic, mut notes: Vec<Note>) -> Result<ReplyMeta> {
        notes.extend(self.decoder.notes);
        let elapsed = cx.clock.monotonic().since(start);
        let mut meta = caller.meta(elapsed, self.decoder.usage.unwrap_or_default(), notes)?;
        if self.decoder.unmetered {
            meta.cost = None;
        }
        Ok(meta)
    }
}

/// Follows one answer.
#[derive(Debug)]
struct Decoder {
    tap: TraceTap,
    /// The blocks that have begun; for calls of tools, their input so far.
    blocks: BTreeMap<u32, Option<String>>,
    stopped: Option<StopReason>,
    usage: Option<Usage>,
    unmetered: bool,
    notes: Vec<Note>,
}

impl Decoder {
    fn new(tap: TraceTap) -> Self {
        Self { tap, blocks: BTreeMap::new(), stopped: None, usage: None, unmetered: false, notes: Vec::new() }
    }

    /// Whether usage has come, which is last.
    fn is_done(&self) -> bool {
        self.usage.is_some() || self.unmetered
    }

    fn take(&mut self, event: ConverseStreamOutput, out: &mut VecDeque<ChatDelta>) -> std::result::Result<(), Failure> {
        if self.stopped.is_some() && !event.is_metadata() && !event.is_unknown() {
            return Err(Failure::corrupt("the answer went on after its end"));
        }
        match event {
            ConverseStreamOutput::MessageStart(start) => {
                out.push_back(ChatDelta::Start { choice: 0, role: response::role(&start.role), name: None });
            }
            ConverseStreamOutput::ContentBlockStart(event) => {
                let block = number(event.content_block_index)?;
                // Without a start it is a text, which its deltas tell.
                if let Some(start) = event.start {
                    self.begin(block, start, out)?;
                }
            }
            ConverseStreamOutput::ContentBlockDelta(event) => {
                let block = number(event.content_block_index)?;
                let delta = event.delta.ok_or_else(|| Failure::corrupt("a delta of the stream is empty"))?;
                self.go_on(block, delta, out)?;
            }
            ConverseStreamOutput::ContentBlockStop(event) => {
                let block = number(event.content_block_index)?;
                // What was left out has no end either.
                if self.blocks.contains_key(&block) {
                    out.push_back(ChatDelta::BlockStop { choice: 0, block });
                }
            }
            ConverseStreamOutput::MessageStop(event) => {
                let reason = response::stop_reason(&event.stop_reason)?;
                self.check_inputs(&reason)?;
                self.stopped = Some(reason.clone());
                out.push_back(ChatDelta::Stop { choice: 0, reason, sequence: None });
                let extra = response::extra(event.additional_model_response_fields);
                if !extra.is_empty() {
                    out.push_back(ChatDelta::Details(ResponseDetails { extra, ..ResponseDetails::default() }));
                }
            }
            ConverseStreamOutput::Metadata(event) => self.meter(event, out)?,
            _ => response::unknown(&mut self.notes, "an event of the stream"),
        }
        Ok(())
    }

    fn begin(
        &mut self,
        block: u32,
        start: ContentBlockStart,
        out: &mut VecDeque<ChatDelta>,
    ) -> std::result::Result<(), Failure> {
        let mut input = None;
        let part: ContentPart = match start {
            ContentBlockStart::ToolUse(start) => {
                input = Some(String::new());
                let kind = response::tool_use_kind(start.r#type.as_ref());
                ToolUse { id: start.tool_use_id, name: start.name, input: Value::Null, kind }.into()
            }
            ContentBlockStart::ToolResult(start) => {
                let status = response::tool_status(start.status.as_ref());
                ToolResult { tool_use_id: start.tool_use_id, content: Vec::new(), status, kind: start.r#type }.into()
            }
            ContentBlockStart::Image(start) => {
                ImagePart::new(media::image_type(&start.format), MediaSource::default()).into()
            }
            _ => {
                response::unknown(&mut self.notes, "a block of the answer");
                return Ok(());
            }
        };
        if self.blocks.insert(block, input).is_some() {
            return Err(Failure::corrupt("a block of the answer began twice"));
        }
        out.push_back(ChatDelta::BlockStart { choice: 0, block, part });
        Ok(())
    }

    fn go_on(
        &mut self,
        block: u32,
        delta: ContentBlockDelta,
        out: &mut VecDeque<ChatDelta>,
    ) -> std::result::Result<(), Failure> {
        let begun = self.blocks.contains_key(&block);
        let mut deltas = Vec::with_capacity(1);
        match delta {
            ContentBlockDelta::Text(text) => deltas.push(BlockDelta::Text(text)),
            ContentBlockDelta::ToolUse(delta) => {
                let Some(Some(input)) = self.blocks.get_mut(&block) else {
                    return Err(Failure::corrupt("a tool's input came for a block that is no call of a tool"));
                };
                input.push_str(&delta.input);
                deltas.push(BlockDelta::ToolInput(delta.input));
            }
            ContentBlockDelta::ToolResult(parts) if begun => {
                for part in parts {
                    match part {
                        ToolResultBlockDelta::Text(text) => {
                            deltas.push(BlockDelta::ToolResult(ToolResultPart::Text(text)));
                        }
                        ToolResultBlockDelta::Json(value) => {
                            deltas.push(BlockDelta::ToolResult(ToolResultPart::Json(json::value(value))));
                        }
                        _ => response::unknown(&mut self.notes, "a part of a tool's result"),
                    }
                }
            }
            ContentBlockDelta::ReasoningContent(delta) => match delta {
                ReasoningContentBlockDelta::Text(text) => deltas.push(BlockDelta::Reasoning(text)),
                ReasoningContentBlockDelta::Signature(text) => deltas.push(BlockDelta::Signature(text)),
                ReasoningContentBlockDelta::RedactedContent(bytes) => {
                    deltas.push(BlockDelta::Redacted(bytes.into_inner().into()));
                }
                _ => response::unknown(&mut self.notes, "a part of the reasoning"),
            },
            ContentBlockDelta::Citation(citation) => deltas.push(BlockDelta::Citation(self::citation(citation))),
            ContentBlockDelta::Image(image) if begun => self.image(image, &mut deltas),
            _ => response::unknown(&mut self.notes, "a part of the answer"),
        }
        if !deltas.is_empty() {
            self.blocks.entry(block).or_default();
        }
        out.extend(deltas.into_iter().map(|delta| ChatDelta::Block { choice: 0, block, delta }));
        Ok(())
    }

    fn image(&mut self, image: ImageBlockDelta, deltas: &mut Vec<BlockDelta>) {
        if let Some(source) = image.source {
            match media::read_image_source(source) {
                Some(source) => deltas.push(BlockDelta::Media(source)),
                None => response::unknown(&mut self.notes, "the source of an image"),
            }
        }
        if let Some(error) = image.error {
            deltas.push(BlockDelta::Error(error.message.unwrap_or_default()));
        }
    }

    /// A call of a tool that the model finished has an input that can be read.
    fn check_inputs(&self, reason: &StopReason) -> std::result::Result<(), Failure> {
        if !reason.is_complete() {
            return Ok(());
        }
        for input in self.blocks.values().flatten().filter(|input| !input.trim().is_empty()) {
            serde_json::from_str::<IgnoredAny>(input)
                .map_err(|error| Failure::corrupt("the input of a tool's call is not JSON").caused_by(error))?;
        }
        Ok(())
    }

    fn meter(
        &mut self,
        event: ConverseStreamMetadataEvent,
        out: &mut VecDeque<ChatDelta>,
    ) -> std::result::Result<(), Failure> {
        if self.stopped.is_none() {
            return Err(Failure::corrupt("the usage came before the answer's end"));
        }
        let ConverseStreamMetadataEvent { usage, metrics: _, trace: _, performance_config, service_tier, .. } = event;
        let details = response::details(performance_config, service_tier, self.tap.take(), &mut self.notes);
        if usage.is_none() {
            self.notes.push(note("unmetered", "the provider did not tell the usage"));
            self.unmetered = true;
        }
        self.usage = Some(response::usage(usage.as_ref(), details.service_tier.as_ref(), &mut self.notes));
        if details != ResponseDetails::default() {
            out.push_back(ChatDelta::Details(details));
        }
        Ok(())
    }
}

fn number(index: i32) -> std::result::Result<u32, Failure> {
    index.try_into().map_err(|_| Failure::corrupt("a block of the stream has a negative number"))
}

fn citation(citation: CitationsDelta) -> Citation {
    let CitationsDelta { title, source, source_content, location, .. } = citation;
    let words = source_content.unwrap_or_default().into_iter().filter_map(|content| content.text);
    Citation {
        title,
        source,
        source_content: words.collect(),
        location: location.and_then(response::location),
        span: None,
    }
}
