//! A file on its way into the cache, which nobody sees under its name before it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use hybrid_core::{Error, Hasher, Result};
use sha1::{Digest as _, Sha1};

use super::{OPERATION, Promised};
use crate::files::{io_error, sync_folder};

const BUFFER: usize = 1 << 20;

/// A file in progress, `{digest}.incomplete`, held by its lock as the hub's own tools hold theirs.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    promised: Promised,
    size: u64,
    sum: Sum,
    length: u64,
    /// Whether it goes on behind what an earlier try had left on the disk.
    resumed: bool,
    _lock: File,
}

/// What became of a part.
pub(super) enum Finished {
    Whole,
    /// It was not what had been promised; if it had been begun earlier, it is empty again.
    Begun(Box<Part>),
}

impl Part {
    /// Waits until nobody else fetches the file for `target`, and opens what is there of it; `None` if it is whole by then.
    pub(super) fn open(target: &Path, lock: &Path, promised: Promised, size: u64) -> Result<Option<Self>> {
        let lock = take_lock(lock)?;
        if is_whole(target, size) {
            return Ok(None);
        }
        let mut path = target.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        make_folder_of(&path)?;
        let fail = |error| io_error(OPERATION, &path, error);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(fail)?;
        let (mut sum, mut length, mut buffer) = (Sum::new(&promised, size), 0, vec![0u8; BUFFER]);
        loop {
            match file.read(&mut buffer).map_err(fail)? {
                0 => break,
                count => {
                    sum.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
        let mut part = Self { path, file, promised, size, sum, length, resumed: length > 0, _lock: lock };
        if length > size {
            part.empty()?;
        }
        Ok(Some(part))
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn missing(&self) -> u64 {
        self.size - self.length
    }

    /// Begins anew.
    pub(super) fn empty(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| io_error(OPERATION, &self.path, error))?;
        (self.sum, self.length, self.resumed) = (Sum::new(&self.promised, self.size), 0, false);
        Ok(())
    }

    /// # Errors
    /// `Corrupt` if more comes than was promised; then it is empty again.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.missing() {
            self.empty()?;
            return Err(Error::corrupt(OPERATION, "more comes than the hub promises; it was thrown away")
                .with("expected_size", self.size));
        }
        self.file.write_all(bytes).map_err(|error| io_error(OPERATION, &self.path, error))?;
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name, if it is what was promised.
    ///
    /// # Errors
    /// `Corrupt` with both digests if it is not; then it is removed.
    pub(super) fn finish(mut self, target: &Path) -> Result<Finished> {
        let path = self.path.clone();
        let fail = |error| io_error(OPERATION, &path, error);
        self.file.sync_all().map_err(fail)?;
        // Where locks are not kept another process may have written into the same file.
        let written = self.file.metadata().map_err(fail)?.len();
        let found = std::mem::replace(&mut self.sum, Sum::new(&self.promised, self.size)).finish();
        if found == self.promised.name() && written == self.size {
            fs::rename(&path, target).map_err(|error| io_error(OPERATION, target, error))?;
            sync_folder(target)?;
            return Ok(Finished::Whole);
        }
        if self.resumed {
            tracing::warn!(path = %path.display(), "what was left of an earlier download is not the file's beginning; it is fetched anew");
            self.empty()?;
            return Ok(Finished::Begun(Box::new(self)));
        }
        fs::remove_file(&path).map_err(fail)?;
        Err(Error::corrupt(OPERATION, "the file is not what the hub promises; it was thrown away")
            .with("expected", self.promised.name())
            .with("found", found)
            .with("expected_size", self.size)
            .with("found_size", written))
    }
}

/// Whether the cache has the file.
pub(super) fn is_whole(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

/// Waits for a lock, which the system gives back when its holder ends, however it does.
pub(super) fn take_lock(path: &Path) -> Result<File> {
    make_folder_of(path)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let held = file.and_then(|file| file.lock().map(|()| file));
    held.map_err(|error| io_error(OPERATION, path, error))
}

pub(super) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| io_error(OPERATION, folder, error))
}

/// What a file's bytes come to.
enum Sum {
    Sha256(Hasher),
    Git(Sha1),
}

impl Sum {
    /// Of nothing yet; git's needs the length ahead.
    fn new(promised: &Promised, size: u64) -> Self {
        match promised {
            Promised::Sha256(_) => Self::Sha256(Hasher::new()),
            Promised::Git(_) => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hasher.finish().to_string(),
            Self::Git(hasher) => hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sum")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_gits_own_of_small_files() {
        // `printf 'hello\n' | git hash-object --stdin`
        let mut sum = Sum::new(&Promised::Git(String::new()), 6);
        sum.update(b"hello\n");
        assert_eq!(sum.finish(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn a_file_that_another_process_wrote_into_is_not_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (target, lock) = (folder.path().join("blobs/x"), folder.path().join("lock"));
        let promised = Promised::Sha256(hybrid_core::Digest::of(b"whole").to_string());
        let mut part = Part::open(&target, &lock, promised, 5).unwrap().unwrap();
        part.append(b"who").unwrap();
        OpenOptions::new().append(true).open(&part.path).unwrap().write_all(b"who").unwrap();
        part.append(b"le").unwrap();
        assert!(part.append(b"!").is_err(), "more than was promised");
        part.append(b"who").unwrap();
        OpenOptions::new().append(true).open(&part.path).unwrap().write_all(b"le").unwrap();
        part.append(b"le").unwrap();
        let error = part.finish(&target).err().unwrap();
        assert_eq!(error.context("found_size"), Some("7"), "{error}");
        assert!(!target.exists());
    }
}
