//! Reading objects and what is known about them.

use std::{error::Error as StdError, ops::Range};

use aws_sdk_s3::{
    operation::get_object::GetObjectOutput,
    primitives::{ByteStream, DateTime},
    types::ChecksumMode,
};
use aws_smithy_checksums::body::validate::Error as ChecksumError;
use bytes::Bytes;
use hybrid_core::{Error, ErrorKind, Key, MAX_OBJECT_BYTES, ObjectMeta, ReadOptions, Result, Timestamp, checked_range};

use super::{Inner, attempt::Failure};

const OPERATION: &str = "read object";
/// Offsets beyond which no server counts: 2^53, far over the largest object of 50 TB.
const MAX_OFFSET: u64 = 1 << 53;

impl Inner {
    pub(super) async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        let ReadOptions { range, digest } = options;
        let name = self.name(key);
        let bytes = match range {
            None => {
                let whole = self.retried(|| self.get(&name, None, MAX_OBJECT_BYTES as u64)).await;
                whole.map_err(|error| self.about(error, &name))?.bytes
            }
            Some(range) => self.read_range(key, &name, range).await?,
        };
        ReadOptions { range: None, digest }.apply(key, bytes)
    }

    /// A file that nobody but its writer has limited in size.
    pub(super) async fn read_whole(&self, operation: &'static str, name: &str) -> Result<Bytes> {
        let whole = self.retried(|| self.get(name, None, MAX_OBJECT_BYTES as u64)).await;
        whole.map(|part| part.bytes).map_err(|error| match (error.kind(), error.context("size")) {
            (ErrorKind::Corrupt, Some(size)) => {
                Error::too_large(operation, "the file is over the limit of what is read in one piece")
                    .with("size", size)
                    .with("limit", MAX_OBJECT_BYTES)
            }
            _ => error,
        })
    }

    async fn read_range(&self, key: &Key, name: &str, range: Range<u64>) -> Result<Bytes> {
        if range.start >= range.end || range.end > MAX_OFFSET {
            // No request can ask for it, so its place is checked against the size.
            let size = self.head_as(OPERATION, key).await?.size;
            checked_range(key, &range, size)?;
            return Ok(Bytes::new());
        }
        let length = range.end - range.start;
        let asked = range.start..range.start.saturating_add(length.min(MAX_OBJECT_BYTES as u64 + 1));
        let outside = |size| match checked_range(key, &range, size) {
            Err(error) => error,
            Ok(_) => Error::internal(OPERATION, "the server refuses a range that lies within the object")
                .with("key", key)
                .with("size", size),
        };
        let part = match self.retried(|| self.get(name, Some(asked.clone()), length)).await {
            Ok(part) => part,
            Err(error) if error.kind() == ErrorKind::InvalidInput && error.context("range").is_some() => {
                return Err(outside(self.head_as(OPERATION, key).await?.size));
            }
            Err(error) => return Err(self.about(error, name)),
        };
        match part.total {
            // The server has answered with the whole object: those that know no ranges do.
            None => ReadOptions::range(range).apply(key, part.bytes),
            Some(total) if range.end > total => Err(outside(total)),
            Some(_) if part.bytes.len() as u64 == length => Ok(part.bytes),
            Some(_) => Err(self.about(Error::unavailable(OPERATION, "the server answers with another range"), name)),
        }
    }

    /// One attempt at an object, or at a range of it of which at most `limit` bytes are wanted.
    async fn get(&self, name: &str, range: Option<Range<u64>>, limit: u64) -> Result<Part, Failure> {
        let mut call = self.client.get_object().bucket(self.bucket()).key(name).checksum_mode(ChecksumMode::Enabled);
        if let Some(range) = &range {
            call = call.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        let expected = limit.min(MAX_OBJECT_BYTES as u64);
        let read = async {
            let answer = match call.send().await {
                Ok(answer) => answer,
                Err(failed) => {
                    let failure = Failure::of(OPERATION, failed);
                    return Err(match &range {
                        Some(range) if failure.out_of_range => {
                            Error::invalid(OPERATION, "the range does not lie within the object")
                                .with("range", format_args!("{}..{}", range.start, range.end))
                                .into()
                        }
                        _ => failure,
                    });
                }
            };
            let total = answer.content_range().and_then(total);
            // What lies outside is refused by its caller, without reading any of it.
            if let (Some(range), Some(total)) = (&range, total)
                && range.end > total
            {
                return Ok(Part { bytes: Bytes::new(), total: Some(total) });
            }
            let bytes = body(answer).await?;
            Ok(Part { bytes, total })
        };
        self.in_turn(OPERATION, expected, read).await
    }

    pub(super) async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.head_as("head object", key).await
    }

    async fn head_as(&self, operation: &'static str, key: &Key) -> Result<ObjectMeta> {
        let name = self.name(key);
        let found = self
            .retried(|| async {
                let call = self.client.head_object().bucket(self.bucket()).key(&name).send();
                self.attempt(operation, 0, call).await
            })
            .await
            .map_err(|error| self.about(error, &name))?;
        Ok(ObjectMeta {
            key: key.clone(),
            size: size(found.content_length()),
            created: timestamp(found.last_modified()),
        })
    }
}

/// What a get has brought: the bytes, and the whole object's size where the answer was a range.
struct Part {
    bytes: Bytes,
    total: Option<u64>,
}

/// The size in `bytes 0-9/100`.
fn total(content_range: &str) -> Option<u64> {
    content_range.rsplit('/').next()?.parse().ok()
}

pub(super) fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or_default()
}

/// The epoch where the server gives no time.
pub(super) fn timestamp(time: Option<&DateTime>) -> Timestamp {
    let Some(time) = time else { return Timestamp::UNIX_EPOCH };
    let micros = i128::from(time.secs()) * 1_000_000 + i128::from(time.subsec_nanos() / 1_000);
    Timestamp::from_unix_micros(i64::try_from(micros).unwrap_or_default())
}

async fn body(answer: GetObjectOutput) -> Result<Bytes> {
    let length = size(answer.content_length());
    let too_large = |size: u64| {
        Error::corrupt(OPERATION, "the object is larger than an object can be; no store wrote it")
            .with("size", size)
            .with("limit", MAX_OBJECT_BYTES)
    };
    if length > MAX_OBJECT_BYTES as u64 {
        return Err(too_large(length));
    }
    let mut stream: ByteStream = answer.body;
    let mut bytes = Vec::with_capacity(length as usize);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| {
            if is_checksum_mismatch(&error) {
                Error::corrupt(OPERATION, "the bytes do not have the checksum that they were stored with")
            } else {
                Error::unavailable(OPERATION, "the answer broke off")
            }
            .with_source(chain(&error))
        })?;
        if bytes.len() + piece.len() > MAX_OBJECT_BYTES {
            return Err(too_large((bytes.len() + piece.len()) as u64));
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != length {
        return Err(Error::unavailable(OPERATION, "the answer is shorter than it says")
            .with("expected", length)
            .with("found", bytes.len()));
    }
    Ok(bytes.into())
}

fn is_checksum_mismatch(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(layer) = next {
        if layer.is::<ChecksumError>() {
            return true;
        }
        next = layer.source();
    }
    false
}

/// The layers of an error in one text.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(layer) = next {
        text = format!("{text}: {layer}");
        next = layer.source();
    }
    text
}
