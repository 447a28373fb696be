//! The one thread that writes verified chunks and hashes whole files.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use hybrid_core::{Digest, Error, FileEntry, Hasher, Result};
use tokio::sync::mpsc;

use super::super::files::{io_error, open_own, place};

/// A verified chunk.
#[derive(Debug)]
pub(super) struct Piece {
    /// The index of its file.
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    /// The bytes lie there already.
    pub(super) in_place: bool,
}

/// Writes `files` below `folder` from pieces that come in order, makes each durable and checks its digest.
pub(super) fn write_files(folder: &Path, files: &[FileEntry], mut pieces: mpsc::Receiver<Piece>) -> Result<()> {
    for (index, entry) in files.iter().enumerate() {
        let mut target = Target::open(folder, entry)?;
        for _ in &entry.chunks {
            match pieces.blocking_recv() {
                Some(piece) if piece.file == index => target.add(piece)?,
                Some(_) => return Err(Error::internal("write version", "chunks came out of order")),
                // The downloads have failed and say why.
                None => return Ok(()),
            }
        }
        target.finish()?;
    }
    Ok(())
}

struct Target<'a> {
    entry: &'a FileEntry,
    path: PathBuf,
    file: File,
    hasher: Option<Hasher>,
}

impl<'a> Target<'a> {
    fn open(folder: &Path, entry: &'a FileEntry) -> Result<Self> {
        let path = place(folder, &entry.name)?;
        let file = open_own(&path)?;
        file.set_len(entry.size).map_err(|error| io_error("write file", &path, error))?;
        // The digest of a file of one chunk is the chunk's, which has been verified.
        let single = matches!(entry.chunks.as_slice(), [only] if only.digest == entry.digest);
        Ok(Self { entry, path, file, hasher: (!single).then(Hasher::new) })
    }

    fn add(&mut self, piece: Piece) -> Result<()> {
        if !piece.in_place {
            let failed = |error| io_error("write file", &self.path, error);
            self.file.seek(SeekFrom::Start(piece.offset)).map_err(failed)?;
            self.file.write_all(&piece.bytes).map_err(failed)?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece.bytes);
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| io_error("write file", &self.path, error))?;
        let found = self.hasher.map(Hasher::finish);
        let expected: Digest = self.entry.digest;
        match found {
            Some(found) if found != expected => {
                Err(Error::corrupt("write version", "the chunks do not make the file that was signed")
                    .with("file", &self.entry.name)
                    .with("expected", expected)
                    .with("found", found))
            }
            _ => Ok(()),
        }
    }
}
