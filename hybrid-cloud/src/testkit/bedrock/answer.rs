//! A model's answer as Converse and ConverseStream write it.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use serde_json::{Map, Value, json};

/// A model's answer. The same answer is told whole and as a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The content blocks, as Converse has them: `{"text": …}`, `{"toolUse": {…}}`, …
    pub content: Vec<Value>,
    /// Why the model stopped.
    pub stop_reason: String,
    /// `{"inputTokens", "outputTokens", "totalTokens", …}`.
    pub usage: Value,
    /// `additionalModelResponseFields`.
    pub additional: Option<Value>,
    /// `trace`, `performanceConfig` and `serviceTier`, by these names.
    pub more: Map<String, Value>,
    /// How many characters a delta has.
    pub piece: usize,
    /// Whether events are padded as Bedrock pads them, so that their lengths tell nothing.
    pub padded: bool,
}

impl Answer {
    /// An answer of these content blocks.
    pub fn new(content: impl IntoIterator<Item = Value>) -> Self {
        Self {
            content: content.into_iter().collect(),
            stop_reason: "end_turn".to_owned(),
            usage: json!({"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}),
            additional: None,
            more: Map::new(),
            piece: 5,
            padded: true,
        }
    }

    /// An answer of one text.
    pub fn text(text: &str) -> Self {
        Self::new([json!({"text": text})])
    }

    /// An answer that calls a tool.
    pub fn tool_use(id: &str, name: &str, input: Value) -> Self {
        let call = json!({"toolUse": {"toolUseId": id, "name": name, "input": input}});
        Self { stop_reason: "tool_use".to_owned(), ..Self::new([call]) }
    }

    /// What `Converse` answers.
    pub fn json(&self) -> Value {
        let mut fields = self.more.clone();
        fields.insert("output".into(), json!({"message": {"role": "assistant", "content": self.content}}));
        fields.insert("stopReason".into(), self.stop_reason.clone().into());
        fields.insert("usage".into(), self.usage.clone());
        fields.insert("metrics".into(), json!({"latencyMs": 7}));
        if let Some(additional) = &self.additional {
            fields.insert("additionalModelResponseFields".into(), additional.clone());
        }
        fields.into()
    }

    /// What `ConverseStream` answers, frame after frame.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut events = vec![("messageStart", json!({"role": "assistant"}))];
        for (index, block) in self.content.iter().enumerate() {
            let (start, deltas) = self.split(block);
            if let Some(start) = start {
                events.push(("contentBlockStart", json!({"contentBlockIndex": index, "start": start})));
            }
            for delta in deltas {
                events.push(("contentBlockDelta", json!({"contentBlockIndex": index, "delta": delta})));
            }
            events.push(("contentBlockStop", json!({"contentBlockIndex": index})));
        }
        let mut stop = json!({"stopReason": self.stop_reason});
        if let Some(additional) = &self.additional {
            stop["additionalModelResponseFields"] = additional.clone();
        }
        events.push(("messageStop", stop));
        let mut metadata = Value::Object(self.more.clone());
        metadata["usage"] = self.usage.clone();
        metadata["metrics"] = json!({"latencyMs": 7});
        events.push(("metadata", metadata));
        let padded = |(i, (name, mut body)): (usize, (&str, Value))| {
            if self.padded {
                body["p"] = "abcdefghijklmnop"[..i % 16].into();
            }
            event_frame(name, &body)
        };
        events.into_iter().enumerate().map(padded).collect()
    }

    /// All [`frames`](Self::frames), joined.
    pub fn stream(&self) -> Vec<u8> {
        self.frames().concat()
    }

    /// How a block begins, and what is added to it.
    fn split(&self, block: &Value) -> (Option<Value>, Vec<Value>) {
        let fields = |block: &Value, names: &[&str]| -> Value {
            names.iter().filter_map(|name| Some((*name, block.get(*name)?.clone()))).collect()
        };
        if let Some(text) = block["text"].as_str() {
            return (None, self.pieces(text).map(|text| json!({"text": text})).collect());
        }
        if let Some(call) = block.get("toolUse") {
            let input = call["input"].to_string();
            let deltas = self.pieces(&input).map(|text| json!({"toolUse": {"input": text}})).collect();
            return (Some(json!({"toolUse": fields(call, &["toolUseId", "name", "type"])})), deltas);
        }
        if let Some(result) = block.get("toolResult") {
            let parts = result["content"].as_array().into_iter().flatten().map(|part| json!({"toolResult": [part]}));
            return (Some(json!({"toolResult": fields(result, &["toolUseId", "type", "status"])})), parts.collect());
        }
        if let Some(reasoning) = block.pointer("/reasoningContent/reasoningText") {
            let text = self.pieces(reasoning["text"].as_str().unwrap_or_default()).map(|text| json!({"text": text}));
            let signature = reasoning.get("signature").map(|signature| json!({"signature": signature}));
            return (None, text.chain(signature).map(|delta| json!({"reasoningContent": delta})).collect());
        }
        if let Some(redacted) = block.pointer("/reasoningContent/redactedContent") {
            return (None, vec![json!({"reasoningContent": {"redactedContent": redacted}})]);
        }
        if let Some(cited) = block.get("citationsContent") {
            let text: String =
                cited["content"].as_array().into_iter().flatten().filter_map(|c| c["text"].as_str()).collect();
            let citations = cited["citations"].as_array().into_iter().flatten().map(|c| json!({"citation": c}));
            return (None, self.pieces(&text).map(|text| json!({"text": text})).chain(citations).collect());
        }
        if let Some(image) = block.get("image") {
            let start = json!({"image": fields(image, &["format"])});
            return (Some(start), vec![json!({"image": fields(image, &["source", "error"])})]);
        }
        // Something new that only the script knows, in one piece.
        (None, vec![block.clone()])
    }

    fn pieces<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        let size = self.piece.max(1);
        let mut rest = text;
        std::iter::from_fn(move || {
            let end = rest.char_indices().nth(size).map_or(rest.len(), |(at, _)| at);
            let (piece, more) = rest.split_at(end);
            rest = more;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// One event of a stream in its frame.
pub fn event_frame(name: &str, body: &Value) -> Vec<u8> {
    frame([(":event-type", name), (":content-type", "application/json"), (":message-type", "event")], body)
}

/// A piece of what InvokeModelWithResponseStream answers, in its frame.
pub fn chunk_frame(body: &Value) -> Vec<u8> {
    event_frame("chunk", &json!({"bytes": aws_smithy_types::base64::encode(body.to_string())}))
}

/// An exception in its frame; the name is lower camel, such as `throttlingException`.
pub fn exception_frame(name: &str, message: &str) -> Vec<u8> {
    let headers = [(":exception-type", name), (":content-type", "application/json"), (":message-type", "exception")];
    frame(headers, &json!({"message": message}))
}

fn frame(headers: [(&'static str, &str); 3], body: &Value) -> Vec<u8> {
    let message = headers.into_iter().fold(Message::new(body.to_string()), |message, (name, value)| {
        message.add_header(Header::new(name, HeaderValue::String(value.to_owned().into())))
    });
    let mut bytes = Vec::new();
    // A vector takes every byte, and no header or payload here comes near the format's limits.
    let written = write_message_to(&message, &mut bytes);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32 (IEEE 802.3), bit by bit, to have it from another hand.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn frames_have_the_layout_that_aws_documents() {
        let bytes = event_frame("messageStop", &json!({"stopReason": "end_turn"}));
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let (total, headers) = (word(0) as usize, word(4) as usize);
        assert_eq!(total, bytes.len());
        assert_eq!(word(8), crc(&bytes[..8]));
        assert_eq!(word(total - 4), crc(&bytes[..total - 4]));
        assert_eq!(&bytes[12 + headers..total - 4], br#"{"stopReason":"end_turn"}"#);
        let first = [&[11][..], b":event-type", &[7, 0, 11], b"messageStop"].concat();
        assert_eq!(bytes[12..12 + first.len()], first);
    }

    #[test]
    fn a_stream_tells_what_the_whole_answer_tells() {
        let answer = Answer::tool_use("t-1", "weigh", json!({"grams": 500}));
        let frames = answer.frames();
        let text: Vec<_> = frames.iter().map(|frame| String::from_utf8_lossy(frame).into_owned()).collect();
        let names = ["messageStart", "contentBlockStart", "contentBlockDelta"];
        for (frame, name) in text.iter().zip(names) {
            assert!(frame.contains(name), "{frame}");
        }
        assert!(text.last().unwrap().contains("metadata"));
    }
}
