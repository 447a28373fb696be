//! The threads behind a download: one writes chunks, one hashes whole files, one brings what is written to the disk meanwhile.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender},
    },
};

use bytes::Bytes;
use hybrid_core::{Error, FileEntry, Hasher, Result};
use tokio::sync::mpsc;

use super::{
    super::files::{io_error, open_own, place},
    FETCH,
    local::{Place, read_at},
};

/// How much is written before the disk is asked to take it: 32 MiB. It works while the rest arrives, and no flood of dirty pages waits for the
/// end, where an fsync of all of it would hold up whoever else writes to this disk.
const FLUSH_BYTES: u64 = 32 * 1024 * 1024;

/// A chunk on its way into its file.
#[derive(Debug)]
pub(super) struct Piece {
    /// The index of its file.
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    /// The bytes lie there already.
    pub(super) in_place: bool,
}

/// A file that has to reach the disk.
#[derive(Debug)]
pub(super) struct Flush {
    target: Arc<Target>,
    /// The file is complete; before that only what it has so far.
    complete: bool,
}

/// Writes `files` below `folder` from pieces that come in order and hands each to `flush`. What stops early leaves the reason to the other side.
pub(super) fn write_files(
    folder: &Path,
    files: &[FileEntry],
    mut pieces: mpsc::Receiver<Piece>,
    flush: &SyncSender<Flush>,
) -> Result<()> {
    for (index, entry) in files.iter().enumerate() {
        let target = Arc::new(Target::open(folder, entry)?);
        let mut dirty = 0;
        for _ in &entry.chunks {
            match pieces.blocking_recv() {
                Some(piece) if piece.file == index => dirty += target.write(&piece)?,
                Some(_) => return Err(Error::internal(FETCH, "chunks came out of order")),
                None => return Ok(()),
            }
            // While the disk is busy with the last request, the next covers more.
            if dirty >= FLUSH_BYTES && flush.try_send(Flush { target: Arc::clone(&target), complete: false }).is_ok() {
                dirty = 0;
            }
        }
        if flush.send(Flush { target, complete: true }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Makes what is written durable.
pub(super) fn flush_files(targets: &Receiver<Flush>) -> Result<()> {
    for Flush { target, complete } in targets {
        // An error is told once for each open file, so none may be passed over.
        let synced = if complete { target.file.sync_all() } else { target.file.sync_data() };
        synced.map_err(|error| io_error("write file", &target.path, error))?;
    }
    Ok(())
}

/// Hashes `files` from chunks that come in order: the index of the first file that is not the one that was signed.
pub(super) fn hash_files(files: &[FileEntry], mut chunks: mpsc::Receiver<Bytes>) -> Option<usize> {
    files.iter().position(|entry| {
        let mut hasher = Hasher::new();
        for _ in &entry.chunks {
            match chunks.blocking_recv() {
                Some(bytes) => hasher.update(&bytes),
                // The downloads have failed and say why.
                None => return false,
            }
        }
        hasher.finish() != entry.digest
    })
}

/// Why a file that lies below `folder` whole is not the one that was signed: the chunk that is not what the manifest says.
pub(super) fn blame(folder: &Path, entry: &FileEntry) -> Error {
    let path = folder.join(entry.name.as_str());
    let mut offset = 0;
    for chunk in &entry.chunks {
        let place = Place { path: path.clone(), offset };
        let checked = match read_at(&place, chunk.size) {
            Ok(bytes) => chunk.digest.verify(FETCH, &bytes),
            Err(error) => Err(io_error("read file", &path, error)),
        };
        if let Err(error) = checked {
            return error.with("key", &chunk.blob);
        }
        offset += chunk.size;
    }
    Error::corrupt(FETCH, "the chunks do not make the file that was signed")
        .with("file", &entry.name)
        .with("expected", entry.digest)
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    fn open(folder: &Path, entry: &FileEntry) -> Result<Self> {
        let path = place(folder, &entry.name)?;
        let file = open_own(&path)?;
        file.set_len(entry.size).map_err(|error| io_error("write file", &path, error))?;
        Ok(Self { path, file })
    }

    /// The bytes that were written.
    fn write(&self, piece: &Piece) -> Result<u64> {
        if piece.in_place {
            return Ok(0);
        }
        let mut file = &self.file;
        file.seek(SeekFrom::Start(piece.offset))
            .and_then(|_| file.write_all(&piece.bytes))
            .map_err(|error| io_error("write file", &self.path, error))?;
        Ok(piece.bytes.len() as u64)
    }
}
