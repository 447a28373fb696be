//! Chunks that are on this machine already, in the cache's other versions.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use bytes::Bytes;
use hybrid_core::{Digest, Document, Manifest};

use super::{
    super::{
        MANIFEST_FILE,
        files::{open_plain, read_small},
        oms::MAX_BUNDLE,
    },
    folder::Cache,
};

/// Where a chunk lies. Whether it still does is known once its bytes have been verified.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
}

/// The chunks of all activated versions in the cache. What cannot be read is left out: it is only a saving.
pub(super) fn index(cache: &Cache) -> HashMap<Digest, Place> {
    let mut places = HashMap::new();
    let Ok(entries) = fs::read_dir(cache.root()) else { return places };
    for entry in entries.flatten() {
        let is_version = entry.file_name().to_str().is_some_and(|name| name.parse::<Digest>().is_ok());
        if !is_version || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let folder = entry.path();
        let manifest = read_small(&folder.join(MANIFEST_FILE), MAX_BUNDLE).and_then(|bytes| Manifest::decode(&bytes));
        let Ok(manifest) = manifest else { continue };
        for file in manifest.files {
            let mut offset = 0_u64;
            for chunk in file.chunks {
                places.insert(chunk.digest, Place { path: folder.join(file.name.as_str()), offset });
                offset = offset.saturating_add(chunk.size);
            }
        }
    }
    places
}

/// The bytes at a place, if they have the digest.
pub(super) fn read_place(place: &Place, size: u64, digest: Digest) -> Option<Bytes> {
    read_at(place, size).ok().filter(|bytes| Digest::of(bytes) == digest)
}

/// The `size` bytes at a place.
pub(super) fn read_at(place: &Place, size: u64) -> io::Result<Bytes> {
    let mut file = open_plain(&place.path).map_err(io::Error::other)?;
    file.seek(SeekFrom::Start(place.offset))?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(io::Error::other)?);
    file.take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
