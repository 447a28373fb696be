//! Cutting files into chunks so that what has not changed does not move again.
//!
//! Tensor files are cut where tensors begin and end: a tensor that did not change has the same chunks wherever it lies. Tensors above
//! [`AVERAGE`] bytes and all other files are cut by content (FastCDC 2020, Xia et al.), so that rows added to a table move little. Tensors below
//! [`SMALL`] bytes share a chunk of at most that size with their neighbours: a change costs at most [`SMALL`] bytes of neighbours, and ten
//! thousand biases do not make ten thousand objects. How a file was cut is never part of the format.

mod gguf;
mod safetensors;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use bytes::Bytes;
use fastcdc::v2020::FastCDC;

/// A tensor of at most this size is one chunk, and what is larger is cut into chunks of about this size: 4 MiB. An object costs a store
/// about as much as a MiB, and what a change costs beyond itself is one chunk.
const AVERAGE: usize = 4 * 1024 * 1024;
/// The least and the most that a cut by content leaves, but for a file's end.
const LEAST: usize = AVERAGE / 4;
const MOST: usize = AVERAGE * 2;
/// Tensors below this size are grouped, up to this size: 64 KiB.
const SMALL: u64 = 64 * 1024;
/// A group of at least this size may end early, at a tensor whose name says so.
const GROUP_MIN: u64 = 16 * 1024;

/// A part of a file that is cut on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Bytes.
    pub(super) size: u64,
}

/// Where one tensor lies in its file.
#[derive(Debug)]
struct Tensor {
    name: String,
    start: u64,
}

/// The parts of a file of `size` bytes, in order; they cover it whole. A file that is no tensor file, or a malformed one, is one part.
pub(super) fn regions(file: &mut File, name: &str, size: u64) -> io::Result<Vec<Region>> {
    let mut magic = [0; 4];
    file.rewind()?;
    let tensors = if size >= 4 && file.read_exact(&mut magic).is_ok() && &magic == b"GGUF" {
        gguf::tensors(file, size)
    } else if name.ends_with(".safetensors") {
        safetensors::tensors(file, size)
    } else {
        None
    };
    file.seek(SeekFrom::Start(0))?;
    Ok(tensors.and_then(|tensors| tensor_regions(tensors, size)).unwrap_or_else(|| vec![Region { size }]))
}

/// Groups tensors into regions, or `None` if they do not lie one after the other within the file.
fn tensor_regions(mut tensors: Vec<Tensor>, size: u64) -> Option<Vec<Region>> {
    // An empty tensor starts where its neighbour does; the stable order by name keeps the cut the same in each run.
    tensors.sort_unstable_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    let mut regions = Vec::new();
    let mut push = |size: u64| {
        if size > 0 {
            regions.push(Region { size });
        }
    };
    push(tensors.first().map_or(size, |first| first.start));
    let mut group = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        // What lies between two tensors is padding and belongs to the first.
        let end = tensors.get(i + 1).map_or(size, |next| next.start);
        let len = end.checked_sub(tensor.start)?;
        if len >= SMALL {
            push(std::mem::take(&mut group));
            push(len);
            continue;
        }
        if group + len > SMALL {
            push(std::mem::take(&mut group));
        }
        group += len;
        // Ends that depend on names alone fall into step again after a tensor was added or removed.
        if group >= GROUP_MIN && fnv(tensor.name.as_bytes()).is_multiple_of(8) {
            push(std::mem::take(&mut group));
        }
    }
    push(group);
    Some(regions)
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads `regions` of `source` one after the other, cuts them by content, and hands on each chunk until `each` says stop.
pub(super) fn cut(source: &mut impl Read, regions: &[Region], mut each: impl FnMut(Bytes) -> bool) -> io::Result<()> {
    for region in regions {
        let mut left = region.size;
        let mut block = Bytes::new();
        loop {
            // Far more than one chunk at a time, so that little is copied again from the end of a block to the start of the next.
            if block.len() < MOST && left > 0 {
                let want = left.min((4 * MOST - block.len()) as u64);
                let mut next = Vec::with_capacity(block.len() + usize::try_from(want).unwrap_or(0));
                next.extend_from_slice(&block);
                if (&mut *source).take(want).read_to_end(&mut next)? as u64 != want {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                left -= want;
                block = next.into();
            }
            if block.is_empty() {
                break;
            }
            let len = if region.size <= AVERAGE as u64 {
                block.len()
            } else {
                FastCDC::new(&block, LEAST, AVERAGE, MOST).cut(0, block.len()).1
            };
            if !each(block.split_to(len)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn cut(name: &str, bytes: &[u8]) -> Vec<Bytes> {
        let mut file = file(bytes);
        let regions = regions(&mut file, name, bytes.len() as u64).unwrap();
        assert_eq!(regions.iter().map(|region| region.size).sum::<u64>(), bytes.len() as u64);
        let mut chunks = Vec::new();
        super::cut(&mut file, &regions, |chunk| {
            chunks.push(chunk);
            true
        })
        .unwrap();
        assert_eq!(chunks.concat(), bytes);
        chunks
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    fn safetensors(tensors: &[(String, Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, data)| {
            (name, ::safetensors::tensor::TensorView::new(::safetensors::Dtype::U8, vec![data.len()], data).unwrap())
        });
        ::safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn a_changed_tensor_moves_alone() {
        let mut tensors: Vec<_> =
            (0..40).map(|i| (format!("t{i:02}"), noise(if i % 2 == 0 { 300_000 } else { 900 }, i))).collect();
        let before = cut("m.safetensors", &safetensors(&tensors));
        tensors[10].1 = noise(300_000, 999);
        let after = cut("m.safetensors", &safetensors(&tensors));
        let moved: usize = after.iter().filter(|chunk| !before.contains(chunk)).map(Bytes::len).sum();
        assert_eq!(moved, 300_000);
    }

    #[test]
    fn many_small_tensors_share_chunks_and_a_change_costs_one_group() {
        let mut tensors: Vec<_> = (0..4000).map(|i| (format!("layer.{i:04}.bias"), noise(1000, i))).collect();
        let before = cut("m.safetensors", &safetensors(&tensors));
        assert!(before.len() < 260, "{}", before.len());
        tensors[2000].1 = noise(1000, 77_777);
        let after = cut("m.safetensors", &safetensors(&tensors));
        let moved: usize = after.iter().filter(|chunk| !before.contains(chunk)).map(Bytes::len).sum();
        assert!(moved <= SMALL as usize, "{moved}");
    }

    #[test]
    fn rows_added_to_a_large_tensor_move_little() {
        let table = noise(40 << 20, 5);
        let grown: Vec<u8> = table.iter().copied().chain(noise(64 << 10, 6)).collect();
        let before = cut("m.safetensors", &safetensors(&[("table".to_owned(), table)]));
        let after = cut("m.safetensors", &safetensors(&[("table".to_owned(), grown)]));
        let moved: usize = after.iter().filter(|chunk| !before.contains(chunk)).map(Bytes::len).sum();
        assert!(moved <= MOST + (64 << 10), "{moved}");
    }

    #[test]
    fn a_malformed_tensor_file_is_cut_by_content() {
        let good = safetensors(&[("a".to_owned(), noise(100_000, 1)), ("b".to_owned(), noise(100_000, 2))]);
        assert_eq!(cut("m.safetensors", &good).len(), 3);
        for bad in [
            &b"\xff\xff\xff\xff\xff\xff\xff\xff{}"[..],
            b"",
            b"\x02\0\0\0\0\0\0\0[]",
            b"\x40\0\0\0\0\0\0\0{\"a\":{\"data_offsets\":[9,3]}}",
        ] {
            assert_eq!(
                regions(&mut file(bad), "m.safetensors", bad.len() as u64).unwrap(),
                [Region { size: bad.len() as u64 }]
            );
        }
        let beyond = good[..good.len() - 1].to_vec();
        assert_eq!(cut("m.safetensors", &beyond).len(), 1);
    }

    #[test]
    fn gguf_files_are_cut_at_tensors() {
        let gguf = gguf::testing::file(&[("a", noise(70_000, 1)), ("b", noise(70_001, 2)), ("c", noise(100_000, 3))]);
        let chunks = cut("m.gguf", &gguf);
        assert_eq!(chunks.len(), 4);
        assert_eq!(&chunks[2][..70_001], noise(70_001, 2));
        for len in 0..gguf.len().min(400) {
            let part = &gguf[..len];
            assert_eq!(regions(&mut file(part), "m.gguf", len as u64).unwrap(), [Region { size: len as u64 }], "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_header_can_break_the_cutting(mut bytes in prop::collection::vec(any::<u8>(), 0..400), gguf in any::<bool>()) {
            if gguf && bytes.len() > 24 {
                bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            }
            cut("m.safetensors", &bytes);
        }
    }
}
