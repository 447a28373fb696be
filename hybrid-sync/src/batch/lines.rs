//! The lines of a file that comes in parts.

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use hybrid_core::{BoxStream, Error, Result};

/// The lines of a file, one after the other; a part of the file and a line are in memory.
pub struct Lines {
    parts: BoxStream<'static, Result<Bytes>>,
    limit: usize,
    buffer: BytesMut,
    /// How many bytes of the buffer have no line's end in them.
    searched: usize,
    number: u64,
    ended: bool,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from one.
    pub number: u64,
    /// What it holds, with its end.
    pub bytes: Bytes,
}

impl Lines {
    /// The lines of a file that comes in `parts`, none of them longer than `limit` bytes.
    pub fn new(parts: BoxStream<'static, Result<Bytes>>, limit: usize) -> Self {
        Self { parts, limit, buffer: BytesMut::new(), searched: 0, number: 0, ended: false }
    }

    /// The next line that has more than white space; `None` at the end.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) with the number of a line that is too long; those of the file.
    pub async fn next(&mut self) -> Result<Option<Line>> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
            let line = match end {
                Some(end) => {
                    let line = self.buffer.split_to(end + 1);
                    self.searched = 0;
                    line
                }
                None if self.ended && self.buffer.is_empty() => return Ok(None),
                None if self.ended => self.buffer.split(),
                None => {
                    self.searched = self.buffer.len();
                    self.fits(self.buffer.len())?;
                    match self.parts.try_next().await? {
                        Some(part) => self.buffer.extend_from_slice(&part),
                        None => (self.ended, self.searched) = (true, 0),
                    }
                    continue;
                }
            };
            self.fits(line.len())?;
            self.number += 1;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(Line { number: self.number, bytes: line.freeze() }));
            }
        }
    }

    fn fits(&self, length: usize) -> Result<()> {
        if length <= self.limit {
            return Ok(());
        }
        let error = Error::invalid("read lines", "the line is too long");
        Err(error.with("line", self.number + 1).with("limit", self.limit))
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("number", &self.number).field("limit", &self.limit).finish_non_exhaustive()
    }
}
