//! Files that are whole or absent.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use hybrid_core::Result;

pub(super) use crate::files::{check_memory, io_error, read};

/// Writes a file whole: first beside its place, then flushed to the disk, then renamed.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |error| io_error("write file", path, error);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut file = File::create(&beside).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&beside, path).map_err(fail)?;
    sync_folder(path)
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove file", path, error)),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error("write file", folder, error))
}

// Elsewhere a folder cannot be opened to be flushed; the rename is as durable as the system makes it.
#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> Result<()> {
    Ok(())
}
