//! Objects in a folder, and the bare system calls that make one durable.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use hybrid_core::Key;

use crate::must;

/// The sizes that are measured, in bytes, with their names.
pub const SIZES: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)];

/// The key of object `number`.
pub fn key(number: u64) -> Key {
    must(Key::new(format!("objects/{number:08}")))
}

/// Files that are created once, by the calls that it takes and no others.
#[derive(Debug)]
pub struct BareFolder {
    folder: PathBuf,
    next: AtomicU64,
}

impl BareFolder {
    /// In `folder`, which exists.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), next: AtomicU64::new(0) }
    }

    /// Writes a file that has no name yet, makes it durable, gives it its name, makes that durable. Answers with the file's path.
    pub fn create(&self, bytes: &[u8]) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (temp, path) = (self.folder.join(format!("{number}.tmp")), self.folder.join(format!("{number:08}")));
        let mut file = must(File::create_new(&temp));
        must(file.write_all(bytes));
        must(file.sync_all());
        must(fs::hard_link(&temp, &path));
        must(fs::remove_file(&temp));
        must(File::open(&self.folder).and_then(|folder| folder.sync_all()));
        path
    }
}
