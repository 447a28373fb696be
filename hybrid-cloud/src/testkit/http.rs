//! As much of HTTP/1.1 as a proxy needs (RFC 9112): heads, and the framing of bodies.

use std::io::{self, BufRead, Read};

/// The most bytes that a head may have.
const MAX_HEAD: u64 = 256 * 1024;
const PIECE: u64 = 16 * 1024;

/// The first line and the headers of a message.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) first: String,
    pub(super) headers: Vec<(String, String)>,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What stands on the wire: content, or the framing around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Content,
    Frame,
}

impl Head {
    /// Reads a head; `None` where the connection ends before one.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut limited = from.take(MAX_HEAD);
        let mut first = String::new();
        if limited.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if limited.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(Some(Self { first: first.trim_end().to_owned(), headers }));
            }
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
    }

    /// Word `index` of the first line.
    pub(super) fn word(&self, index: usize) -> &str {
        self.first.split(' ').nth(index).unwrap_or_default()
    }

    pub(super) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_default()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{headers}\r\n", self.first).into_bytes()
    }

    pub(super) fn request_framing(&self) -> Framing {
        self.framing(Framing::None)
    }

    /// The framing of the answer to `method`.
    pub(super) fn answer_framing(&self, method: &str) -> Framing {
        if method == "HEAD" || matches!(self.status(), 100..=199 | 204 | 304) {
            return Framing::None;
        }
        self.framing(Framing::UntilClose)
    }

    fn framing(&self, otherwise: Framing) -> Framing {
        if self.header("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked")) {
            return Framing::Chunked;
        }
        self.header("content-length").and_then(|length| length.parse().ok()).map_or(otherwise, Framing::Length)
    }
}

/// Passes a body on, piece by piece, as it stands on the wire.
pub(super) fn pass_body(
    from: &mut impl BufRead,
    framing: Framing,
    mut to: impl FnMut(&mut [u8], Part) -> io::Result<()>,
) -> io::Result<()> {
    match framing {
        Framing::None => Ok(()),
        Framing::Length(length) => pass_exactly(from, length, &mut to),
        Framing::UntilClose => loop {
            let mut piece = from.fill_buf()?.to_vec();
            if piece.is_empty() {
                return Ok(());
            }
            from.consume(piece.len());
            to(&mut piece, Part::Content)?;
        },
        Framing::Chunked => loop {
            let mut line = read_line(from)?;
            let text = String::from_utf8_lossy(&line);
            let digits = text.trim_end().split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            to(&mut line, Part::Frame)?;
            if size == 0 {
                // The trailer, up to its empty line.
                loop {
                    let mut line = read_line(from)?;
                    let last = line == b"\r\n";
                    to(&mut line, Part::Frame)?;
                    if last {
                        return Ok(());
                    }
                }
            }
            pass_exactly(from, size, &mut to)?;
            to(&mut read_line(from)?, Part::Frame)?;
        },
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(MAX_HEAD).read_until(b'\n', &mut line)?;
    if line.ends_with(b"\n") { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn pass_exactly(
    from: &mut impl Read,
    mut left: u64,
    to: &mut impl FnMut(&mut [u8], Part) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; PIECE as usize];
    while left > 0 {
        let wanted = left.min(PIECE) as usize;
        let got = from.read(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to(&mut buffer[..got], Part::Content)?;
        left -= got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_passes_unchanged_and_ends_where_it_ends() {
        let wire = b"5;x=y\r\nhello\r\n3\r\n wo\r\n0\r\nx-amz-checksum: 1\r\n\r\nNEXT";
        let mut from = &wire[..];
        let (mut all, mut content) = (Vec::new(), Vec::new());
        let pass = |piece: &mut [u8], part| {
            all.extend_from_slice(piece);
            if part == Part::Content {
                content.extend_from_slice(piece);
            }
            Ok(())
        };
        pass_body(&mut from, Framing::Chunked, pass).unwrap();
        assert_eq!((from, &content[..]), (&b"NEXT"[..], &b"hello wo"[..]));
        assert_eq!(all, &wire[..wire.len() - 4]);
    }

    #[test]
    fn a_head_keeps_its_order_and_says_how_its_body_ends() {
        let mut from = &b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 12\r\n\r\n"[..];
        let head = Head::read(&mut from).unwrap().unwrap();
        assert_eq!((head.status(), head.answer_framing("GET")), (200, Framing::Length(12)));
        assert_eq!(head.answer_framing("HEAD"), Framing::None);
        assert_eq!(head.to_bytes(), b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 12\r\n\r\n");
        assert!(Head::read(&mut from).unwrap().is_none());
    }
}
