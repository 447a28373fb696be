//! Where the tensors of a GGUF file lie (versions 2 and 3, little-endian).
//!
//! Format: magic, version, counts, typed key-value pairs, tensor infos (name, dimensions, type, offset), padding, the tensors' bytes. Source: the
//! document `gguf.md` of the `ggml` project. Tensor types need not be known: a tensor ends where the next begins.

use std::{
    fs::File,
    io::{BufReader, Read, Seek},
};

use super::Tensor;

/// No real file has more; a header that says so is not believed.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_NAME: u64 = 64 * 1024;

pub(super) fn tensors(file: &mut File, size: u64) -> Option<Vec<Tensor>> {
    file.rewind().ok()?;
    let mut header = Header { source: BufReader::new(file), at: 0, size };
    header.skip(4)?;
    if !(2..=3).contains(&header.u32()?) {
        return None;
    }
    let (tensor_count, pair_count) = (header.u64()?, header.u64()?);
    // The smallest tensor info has 24 bytes, the smallest pair 13.
    if tensor_count == 0 || tensor_count > MAX_TENSORS || pair_count > size / 13 {
        return None;
    }
    let mut alignment = 32;
    for _ in 0..pair_count {
        let key = header.text()?;
        let kind = header.u32()?;
        if key == "general.alignment" && kind == 4 {
            alignment = u64::from(header.u32()?);
        } else {
            header.skip_value(kind)?;
        }
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = header.text()?;
        let dimensions = header.u32()?;
        if dimensions > 8 {
            return None;
        }
        header.skip(u64::from(dimensions) * 8 + 4)?;
        tensors.push(Tensor { name, start: header.u64()? });
    }
    if !alignment.is_power_of_two() {
        return None;
    }
    let data = header.at.checked_next_multiple_of(alignment)?;
    for tensor in &mut tensors {
        tensor.start = tensor.start.checked_add(data).filter(|&start| start <= size)?;
    }
    Some(tensors)
}

struct Header<'a> {
    source: BufReader<&'a mut File>,
    at: u64,
    size: u64,
}

impl Header<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).ok()?;
        self.at += N as u64;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        let end = self.at.checked_add(bytes).filter(|&end| end <= self.size)?;
        self.source.seek_relative(i64::try_from(bytes).ok()?).ok()?;
        self.at = end;
        Some(())
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u64()?;
        if len > MAX_NAME || len > self.size - self.at {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.source.read_exact(&mut bytes).ok()?;
        self.at += len;
        String::from_utf8(bytes).ok()
    }

    fn skip_value(&mut self, kind: u32) -> Option<()> {
        const ARRAY: u32 = 9;
        if kind != ARRAY {
            return self.skip_scalar(kind);
        }
        let (element, count) = (self.u32()?, self.u64()?);
        match (width(element), element) {
            (Some(width), _) => self.skip(count.checked_mul(width)?),
            // A string has at least its length's eight bytes, so the file's size bounds the loop. Arrays of arrays exist in no known file.
            (None, STRING) if count <= self.size / 8 => (0..count).try_for_each(|_| self.skip_scalar(STRING)),
            _ => None,
        }
    }

    fn skip_scalar(&mut self, kind: u32) -> Option<()> {
        if kind == STRING {
            let len = self.u64()?;
            return self.skip(len);
        }
        self.skip(width(kind)?)
    }
}

const STRING: u32 = 8;

/// Bytes of one value of a fixed-size type.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod testing {
    /// A GGUF v3 file with a number, a text and a list of texts among its pairs.
    pub(in super::super) fn file(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
        fn text(out: &mut Vec<u8>, text: &str) {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        }
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(3u64.to_le_bytes());
        text(&mut out, "general.alignment");
        out.extend(4u32.to_le_bytes());
        out.extend(64u32.to_le_bytes());
        text(&mut out, "general.name");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "test");
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "bc");
        let mut offset = 0u64;
        for (name, data) in tensors {
            text(&mut out, name);
            out.extend(1u32.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            out.extend(24u32.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(64);
        }
        for (_, data) in tensors {
            out.resize(out.len().next_multiple_of(64), 0);
            out.extend(data);
        }
        out
    }
}
