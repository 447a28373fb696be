//! The chain of hashes: how entries are written, and how they are proved to be all there and unchanged.
//!
//! A log is a sequence of segments, and a segment is lines of JSON, each ended by a line feed. The first line of a segment is its head:
//! `{"format": "hybrid.audit/1", "writer", "seq", "prev"}`; each other is an entry: `{"seq", "prev", "entry"}`. `seq` counts the entries of the
//! whole log from zero; a head's is that of the entry to come. `prev` is the SHA-256 of the line before, without its line feed, across segments too;
//! 64 zeros in the very first.

use std::{fs, path::Path};

use futures_util::TryStreamExt;
use hybrid_core::{ArtifactStore, ArtifactStoreExt, Digest, Error, Key, ListOptions, Result, WriterId};
use serde::{Deserialize, Serialize, de::IgnoredAny};

const FORMAT: &str = "hybrid.audit/1";
const VERIFY: &str = "verify audit log";

/// The head of a segment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    format: String,
    writer: WriterId,
    seq: u64,
    prev: Digest,
}

/// An entry as it stands in a segment.
#[derive(Debug, Deserialize)]
struct Line {
    seq: u64,
    prev: Digest,
    #[allow(dead_code, reason = "it must be there and be JSON; what it says is not the chain's business")]
    entry: IgnoredAny,
}

/// Where a chain has got to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The next entry's number.
    pub(super) seq: u64,
    /// The digest of the last line.
    pub(super) prev: Digest,
}

impl Link {
    pub(super) fn first() -> Self {
        Self { seq: 0, prev: Digest::from_bytes([0; 32]) }
    }

    /// Appends the head of a segment to `text`.
    pub(super) fn write_head(&mut self, writer: &WriterId, text: &mut Vec<u8>) -> Result<()> {
        let head = Head { format: FORMAT.to_owned(), writer: writer.clone(), seq: self.seq, prev: self.prev };
        let start = text.len();
        serde_json::to_writer(&mut *text, &head)
            .map_err(|error| Error::internal("append audit entry", "the head is no JSON").with_source(error))?;
        self.end_line(start, text);
        Ok(())
    }

    /// Appends an entry, which is JSON without line feeds, to `text`.
    pub(super) fn write_entry(&mut self, entry: &str, text: &mut Vec<u8>) {
        let start = text.len();
        text.extend_from_slice(format!(r#"{{"seq":{},"prev":"{}","entry":"#, self.seq, self.prev).as_bytes());
        text.extend_from_slice(entry.as_bytes());
        text.push(b'}');
        self.end_line(start, text);
        self.seq += 1;
    }

    /// Ends the line that begins at `start`.
    fn end_line(&mut self, start: usize, text: &mut Vec<u8>) {
        self.prev = Digest::of(&text[start..]);
        text.push(b'\n');
    }

    /// Where the chain stands before the segment with this head.
    pub(super) fn at_head(segment: &str, head: &[u8]) -> Result<Self> {
        let head: Head = serde_json::from_slice(head).map_err(|error| {
            Error::corrupt(VERIFY, "the line is no head of a segment")
                .with("segment", segment)
                .with("line", 1)
                .with_source(error)
        })?;
        Ok(Self { seq: head.seq, prev: head.prev })
    }

    /// Follows the chain through a whole segment; answers with its writer.
    pub(super) fn follow(&mut self, segment: &str, text: &[u8]) -> Result<WriterId> {
        let broken = |line: usize, message: &'static str| {
            Error::corrupt(VERIFY, message).with("segment", segment).with("line", line + 1)
        };
        let Some(text) = text.strip_suffix(b"\n") else {
            return Err(broken(0, "the segment does not end with a line"));
        };
        let mut writer = None;
        for (i, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let (seq, prev) = if i == 0 {
                let head: Head = serde_json::from_slice(line)
                    .map_err(|error| broken(i, "the line is no head of a segment").with_source(error))?;
                if head.format != FORMAT {
                    return Err(Error::unsupported(VERIFY, "another format than this version reads; upgrade first")
                        .with("segment", segment)
                        .with("found", format_args!("{:?}", head.format)));
                }
                writer = Some(head.writer);
                (head.seq, head.prev)
            } else {
                let entry: Line = serde_json::from_slice(line)
                    .map_err(|error| broken(i, "the line is no entry").with_source(error))?;
                (entry.seq, entry.prev)
            };
            if seq != self.seq {
                return Err(broken(i, "an entry is missing").with("expected", self.seq).with("found", seq));
            }
            if prev != self.prev {
                return Err(broken(i, "the line does not follow from the one before")
                    .with("seq", seq)
                    .with("expected", self.prev)
                    .with("found", prev));
            }
            self.prev = Digest::of(line);
            self.seq += u64::from(i > 0);
        }
        writer.ok_or_else(|| broken(0, "the segment is empty"))
    }
}

/// A log that was found whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Who wrote it.
    pub writer: WriterId,
    /// How many segments it has.
    pub segments: usize,
    /// How many entries it has.
    pub entries: u64,
    /// The digest of its last line. A chain cannot show that its end was cut off: compare entries and head with those noted before.
    pub head: Digest,
    /// Bytes after the last whole line, which a crash left behind and which no caller was told are kept.
    pub torn: usize,
}

/// The keys of a writer's segments in the bucket: `audit/<writer>/<number of the first entry, 20 digits>`.
pub fn audit_prefix(writer: &WriterId) -> String {
    format!("audit/{writer}/")
}

pub(super) fn segment_key(writer: &WriterId, first: u64) -> Result<Key> {
    Key::new(format!("{}{first:020}", audit_prefix(writer)))
}

/// Verifies the log in a folder, from its first segment to its last.
///
/// # Errors
/// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) that names segment and line of the first broken link, and what was expected there;
/// [`NotFound`](hybrid_core::ErrorKind::NotFound) where there is no log.
pub fn verify_folder(folder: &Path) -> Result<Verified> {
    let segments = segments(folder)?;
    let (mut link, mut writer, mut torn) = (Link::first(), None, 0);
    for (i, (first, name)) in segments.iter().enumerate() {
        let path = folder.join(name);
        let mut bytes = fs::read(&path).map_err(|error| unreadable(&path, error))?;
        if i + 1 == segments.len() {
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            torn = bytes.len() - whole;
            bytes.truncate(whole);
            if bytes.is_empty() && i > 0 {
                continue;
            }
        }
        follow(&mut link, &mut writer, name, *first, &bytes)?;
    }
    verified(writer, segments.len(), link, torn)
        .ok_or_else(|| Error::not_found(VERIFY, "there is no audit log").with("folder", folder.display()))
}

/// Verifies the sealed segments of `writer` in a bucket, from the first to the last.
///
/// # Errors
/// As [`verify_folder`]; and those of the store.
pub async fn verify_bucket(store: &dyn ArtifactStore, writer: &WriterId) -> Result<Verified> {
    let prefix = audit_prefix(writer);
    let mut objects = store.list(&prefix, ListOptions::default());
    let (mut link, mut found, mut segments) = (Link::first(), None, 0);
    while let Some(object) = objects.try_next().await? {
        let name = object.key.as_str();
        let first = name.strip_prefix(&prefix).and_then(|first| first.parse().ok());
        let first = first.ok_or_else(|| Error::corrupt(VERIFY, "this is no segment").with("segment", name))?;
        follow(&mut link, &mut found, name, first, &store.get(&object.key).await?)?;
        segments += 1;
    }
    let found = found.filter(|found| found == writer);
    verified(found, segments, link, 0)
        .ok_or_else(|| Error::not_found(VERIFY, "there is no audit log of this writer").with("writer", writer))
}

fn follow(link: &mut Link, writer: &mut Option<WriterId>, name: &str, first: u64, bytes: &[u8]) -> Result<()> {
    if first != link.seq {
        return Err(Error::corrupt(VERIFY, "a segment is missing before this one")
            .with("segment", name)
            .with("expected", link.seq)
            .with("found", first));
    }
    let by = link.follow(name, bytes)?;
    match writer {
        Some(writer) if *writer != by => {
            Err(Error::corrupt(VERIFY, "the segment is another writer's").with("segment", name).with("writer", by))
        }
        _ => {
            *writer = Some(by);
            Ok(())
        }
    }
}

fn verified(writer: Option<WriterId>, segments: usize, link: Link, torn: usize) -> Option<Verified> {
    Some(Verified { writer: writer?, segments, entries: link.seq, head: link.prev, torn })
}

/// The segments in a folder, in order: the number of each one's first entry, and its name.
pub(super) fn segments(folder: &Path) -> Result<Vec<(u64, String)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let name = entry.map_err(|error| unreadable(folder, error))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(first) = name.strip_suffix(".jsonl").and_then(|first| first.parse().ok()) {
            segments.push((first, name.to_owned()));
        }
    }
    segments.sort();
    Ok(segments)
}

pub(super) fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let failed = match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("read audit log", "there is no such file or folder"),
        _ => Error::unavailable("read audit log", "it cannot be read"),
    };
    failed.with("path", path.display()).with_source(error)
}
