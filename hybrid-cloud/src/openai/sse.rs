//! Server-sent events, as <https://html.spec.whatwg.org/multipage/server-sent-events.html> defines their form.
//!
//! Written here because the one crate at hand bounds neither line nor event, so that a broken server could fill the memory.

use hybrid_core::{Error, Result};

const READ: &str = "read event stream";

/// Takes bytes as they come, cut anywhere, and gives the data of each event. Names, ids and comments are passed over.
#[derive(Debug)]
pub(super) struct SseParser {
    /// The bytes of the line that has not ended.
    line: Vec<u8>,
    /// The lines of data of the event that has not ended.
    data: Option<String>,
    /// The last byte was a carriage return: a line feed right after it ends no line of its own.
    after_return: bool,
    /// Nothing was read yet: a byte order mark may stand here.
    first_line: bool,
    limit: usize,
}

impl SseParser {
    /// A parser that takes no event of more than `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { line: Vec::new(), data: None, after_return: false, first_line: true, limit }
    }

    /// The data of the events that `bytes` complete.
    pub(super) fn push(&mut self, mut bytes: &[u8], events: &mut impl Extend<String>) -> Result<()> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return)
                && let Some(rest) = bytes.strip_prefix(b"\n")
            {
                bytes = rest;
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if line.len() > self.limit.saturating_sub(held) {
                return Err(Error::corrupt(READ, "an event is over the limit").with("limit", self.limit));
            }
            self.line.extend_from_slice(line);
            bytes = match rest.split_first() {
                Some((end, rest)) => {
                    self.after_return = *end == b'\r';
                    events.extend(self.end_line()?);
                    rest
                }
                None => rest,
            };
        }
        Ok(())
    }

    /// What the stream ended in the middle of: an event without the empty line after it.
    pub(super) fn finish(mut self) -> Result<Option<String>> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        Ok(self.data)
    }

    fn end_line(&mut self) -> Result<Option<String>> {
        let bytes = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&bytes)
            .map_err(|error| Error::corrupt(READ, "the stream is not UTF-8").with_source(error))?;
        let line = match std::mem::replace(&mut self.first_line, false) {
            true => line.strip_prefix('\u{feff}').unwrap_or(line),
            false => line,
        };
        if line.is_empty() {
            return Ok(self.data.take());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let mut parser = SseParser::new(1000);
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events).unwrap();
        }
        (events, parser.finish().unwrap())
    }

    const STREAM: &str = "\u{feff}: hello\n\nevent: a\ndata: {\"ä\":1}\r\n\r\ndata:x\rdata:  y\r\rid: 3\nretry\ndata\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_read_with_any_line_end() {
        let expected: Vec<_> = ["{\"ä\":1}", "x\n y", "", "[DONE]"].map(String::from).into();
        assert_eq!(read(&[STREAM.as_bytes()]), (expected.clone(), None));
        for at in 0..STREAM.len() {
            let (head, tail) = STREAM.as_bytes().split_at(at);
            assert_eq!(read(&[head, tail]), (expected.clone(), None), "cut at {at}");
        }
        let bytes: Vec<_> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(read(&bytes), (expected, None));
    }

    #[test]
    fn what_has_not_ended_is_told_apart() {
        assert_eq!(read(&[b"data: a\n\ndata: b\n"]), (vec!["a".into()], Some("b".into())));
        assert_eq!(read(&[b"data: [DONE]"]), (vec![], Some("[DONE]".into())));
    }

    #[test]
    fn no_event_is_larger_than_the_limit() {
        let mut parser = SseParser::new(10);
        let mut events = Vec::new();
        parser.push(b"data: abcd\n\n", &mut events).unwrap();
        assert!(parser.push(b"data: abcde", &mut events).is_err());
        let mut parser = SseParser::new(12);
        parser.push(b"data: abcd\n", &mut events).unwrap();
        assert!(parser.push(b"data: abcd\n", &mut events).is_err());
    }

    #[test]
    fn bytes_that_are_no_text_are_corrupt() {
        let mut parser = SseParser::new(100);
        assert!(parser.push(b"data: \xff\n", &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same(bytes: Vec<u8>, cut in 0usize..64) {
            let whole = |pieces: &[&[u8]]| -> Result<Vec<String>> {
                let mut parser = SseParser::new(10_000);
                let mut events = Vec::new();
                pieces.iter().try_for_each(|piece| parser.push(piece, &mut events))?;
                Ok(events)
            };
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(whole(&[&bytes]).ok(), whole(&[head, tail]).ok());
        }
    }
}
