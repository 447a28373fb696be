//! Where the tensors of a Safetensors file lie.
//!
//! Format: a little-endian u64 header length, a JSON object of that length (`{"name": {"data_offsets": [begin, end], …}}`, offsets from the end of
//! the header), the tensors' bytes. Source: the README of the `safetensors` project.

use std::{collections::BTreeMap, fs::File, io::Read};

use serde::Deserialize;

use super::Tensor;

/// Headers beyond this are cut by content with the rest: no real model comes near.
const MAX_HEADER: u64 = 64 * 1024 * 1024;

#[derive(Deserialize)]
struct Entry {
    /// Absent in `__metadata__`.
    data_offsets: Option<[u64; 2]>,
}

pub(super) fn tensors(file: &mut File, size: u64) -> Option<Vec<Tensor>> {
    std::io::Seek::rewind(file).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let header = u64::from_le_bytes(length);
    let data = header.checked_add(8).filter(|&end| header <= MAX_HEADER && end <= size)?;
    let mut json = vec![0; usize::try_from(header).ok()?];
    file.read_exact(&mut json).ok()?;
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(&json).ok()?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let Some([begin, end]) = entry.data_offsets else { continue };
        if begin > end || end > size - data {
            return None;
        }
        tensors.push(Tensor { name, start: data + begin });
    }
    (!tensors.is_empty()).then_some(tensors)
}
