//! The file system as the registry uses it: nothing through symlinks, everything durable, errors that name the path.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind as Io, Read, Write},
    path::{Path, PathBuf},
};

use hybrid_core::{Digest, Error, ErrorKind, FileName, Hasher, Result};

const BUFFER: usize = 1024 * 1024;

/// Converts an I/O error; the one place where this crate does.
pub(crate) fn io_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    let (kind, message) = match error.kind() {
        Io::NotFound => (ErrorKind::NotFound, "no such file"),
        Io::AlreadyExists => (ErrorKind::AlreadyExists, "the file exists"),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => {
            (ErrorKind::PermissionDenied, "the file system does not let this process do it")
        }
        Io::StorageFull | Io::QuotaExceeded => (ErrorKind::StorageFull, "the disk is full; free space and try again"),
        Io::UnexpectedEof => (ErrorKind::Corrupt, "the file is shorter than expected"),
        _ => (ErrorKind::Internal, "the file system answered with an error"),
    };
    Error::new(kind, operation, message).with("path", path.display()).with_source(error)
}

/// Makes `root/<folders>` of one plain folder in another and refuses whatever else stands there.
pub(crate) fn make_folders(root: &Path, folders: &[&str]) -> Result<PathBuf> {
    let mut path = root.to_owned();
    plain_folder(&path)?;
    for folder in folders {
        path.push(folder);
        plain_folder(&path)?;
    }
    Ok(path)
}

fn plain_folder(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == Io::AlreadyExists => {}
        other => return other.map_err(|error| io_error("create folder", path, error)),
    }
    let meta = fs::symlink_metadata(path).map_err(|error| io_error("look at folder", path, error))?;
    if meta.is_dir() {
        return Ok(());
    }
    Err(in_the_way(path))
}

/// The error for a symlink, or anything else, where a plain file or folder has to be.
pub(crate) fn in_the_way(path: &Path) -> Error {
    Error::untrusted(
        "prepare folder",
        "a symlink or another file stands where a folder or file of the cache has to be; remove it",
    )
    .with("path", path.display())
}

/// The path of `name` below `folder`, whose parents are plain folders, made where they are missing.
pub(crate) fn place(folder: &Path, name: &FileName) -> Result<PathBuf> {
    let parts: Vec<&str> = name.as_str().split('/').collect();
    let (file, folders) = parts.split_last().ok_or_else(|| Error::internal("place file", "a file name has no part"))?;
    Ok(make_folders(folder, folders)?.join(file))
}

/// Opens a file for writing that is a plain file of its own: no symlink, no second name of another file.
pub(crate) fn open_own(path: &Path) -> Result<File> {
    let failed = |error| io_error("open file", path, error);
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && names(&meta) == 1 => {
            OpenOptions::new().read(true).write(true).open(path).map_err(failed)
        }
        Ok(meta) if meta.is_dir() => Err(in_the_way(path)),
        found => {
            if found.is_ok() {
                fs::remove_file(path).map_err(failed)?;
            }
            OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)
        }
    }
}

#[cfg(unix)]
fn names(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(meta)
}

#[cfg(not(unix))]
fn names(_meta: &fs::Metadata) -> u64 {
    1
}

/// Every file below `folder`, as paths relative to it with `/`, in byte order.
///
/// A symlink, or anything that is neither file nor folder, is an error unless `on_strange` deals with it.
pub(crate) fn walk(folder: &Path, on_strange: &mut dyn FnMut(&Path) -> Result<()>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((path, prefix)) = folders.pop() {
        for entry in fs::read_dir(&path).map_err(|error| io_error("list folder", &path, error))? {
            let entry = entry.map_err(|error| io_error("list folder", &path, error))?;
            let kind = entry.file_type().map_err(|error| io_error("look at file", &entry.path(), error))?;
            match entry.file_name().to_str() {
                Some(name) if kind.is_dir() => folders.push((entry.path(), format!("{prefix}{name}/"))),
                Some(name) if kind.is_file() => found.push(format!("{prefix}{name}")),
                _ => on_strange(&entry.path())?,
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The digest and size of a plain file.
pub(crate) fn digest_file(path: &Path) -> Result<(Digest, u64)> {
    let failed = |error| io_error("read file", path, error);
    let mut file = open_plain(path)?;
    let (mut hasher, mut size, mut buffer) = (Hasher::new(), 0, vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok((hasher.finish(), size)),
            read => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

/// Opens a plain file for reading; a symlink is refused.
pub(crate) fn open_plain(path: &Path) -> Result<File> {
    let meta = fs::symlink_metadata(path).map_err(|error| io_error("open file", path, error))?;
    if !meta.is_file() {
        return Err(in_the_way(path));
    }
    File::open(path).map_err(|error| io_error("open file", path, error))
}

/// Reads a small file whole, at most `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(|error| io_error("read file", path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::too_large("read file", "the file is over the limit")
            .with("path", path.display())
            .with("limit", limit));
    }
    Ok(bytes)
}

/// Replaces a file by one rename, durably.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let failed = |error| io_error("write file", &new, error);
    let mut file = open_own(&new)?;
    file.set_len(0).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(|error| io_error("replace file", path, error))?;
    sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes a folder's entries durable, where the system can.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| io_error("sync folder", path, error))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal("run blocking work", "the work did not end").with_source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_as_such() {
        let full = io_error("write file", Path::new("/cache/x"), Io::StorageFull.into());
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(full.context("path"), Some("/cache/x"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_with_a_second_name_is_replaced_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
        fs::write(&outside, "kept").unwrap();
        fs::hard_link(&outside, &inside).unwrap();
        open_own(&inside).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"kept");
        fs::remove_file(&inside).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        open_own(&inside).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"kept");
        assert!(open_plain(&inside).is_ok());
    }
}
