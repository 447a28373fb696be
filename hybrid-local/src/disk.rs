//! What every adapter on this machine's disk needs: one reading of the system's errors, and folders that outlast a power failure.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use hybrid_core::{Error, ErrorKind};
use rustix::io::Errno;

/// Says what failed at `path`, and what to do about it.
pub(crate) fn disk_error(operation: &'static str, path: &Path, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let (kind, message) = match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => {
            (ErrorKind::StorageFull, "no space is left on the disk; free some, then try again")
        }
        Some(Errno::ACCESS | Errno::PERM) => {
            (ErrorKind::PermissionDenied, "access is denied; check the owner and the mode")
        }
        Some(Errno::ROFS) => (ErrorKind::PermissionDenied, "the file system is mounted read-only"),
        Some(Errno::LOOP) => {
            (ErrorKind::PermissionDenied, "a symbolic link stands in the way, and links are not followed")
        }
        Some(Errno::NOENT) => (ErrorKind::NotFound, "no such file or folder"),
        Some(Errno::NOTDIR) => (ErrorKind::InvalidInput, "a part of the path is a file, not a folder"),
        Some(Errno::ISDIR) => (ErrorKind::InvalidInput, "the path is a folder, not a file"),
        Some(Errno::NAMETOOLONG) => (ErrorKind::InvalidInput, "the path is too long for this file system"),
        Some(Errno::MFILE | Errno::NFILE) => {
            (ErrorKind::ResourceExhausted, "too many files are open; raise the limit of open files")
        }
        Some(Errno::NOMEM) => (ErrorKind::ResourceExhausted, "the system has no memory left"),
        Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => (ErrorKind::Unavailable, "the file system is busy"),
        _ => (ErrorKind::Internal, "the file system failed"),
    };
    Error::new(kind, operation, message).with("path", path.display()).with_source(error)
}

/// Makes `path` a folder, with those above it; what it makes is durable when it returns.
pub(crate) fn create_folders(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        // Whether the path that exists is a folder shows when it is opened.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match path.parent().filter(|parent| *parent != Path::new("")) {
                Some(parent) => {
                    create_folders(parent)?;
                    match fs::create_dir(path) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                        _ => sync_parent(path),
                    }
                }
                None => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent == Path::new("") => sync_folder(&File::open(".")?),
        Some(parent) => sync_folder(&File::open(parent)?),
        None => Ok(()),
    }
}

/// Makes the entries of an open folder durable.
pub(crate) fn sync_folder(folder: &File) -> io::Result<()> {
    match folder.sync_all() {
        // Some file systems know no such call for folders, and write their entries at once.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_path_and_what_a_caller_can_do() {
        let kind = |errno: Errno| disk_error("create object", Path::new("/data/a"), errno).kind();
        assert_eq!(kind(Errno::NOSPC), ErrorKind::StorageFull);
        assert_eq!(kind(Errno::DQUOT), ErrorKind::StorageFull);
        assert_eq!(kind(Errno::ROFS), ErrorKind::PermissionDenied);
        assert_eq!(kind(Errno::ACCESS), ErrorKind::PermissionDenied);
        assert_eq!(kind(Errno::NOTDIR), ErrorKind::InvalidInput);
        assert_eq!(kind(Errno::IO), ErrorKind::Internal);
        assert!(disk_error("create object", Path::new("/data/a"), Errno::NOSPC).to_string().contains("/data/a"));
    }

    #[test]
    fn folders_are_made_all_the_way_and_again_without_complaint() {
        let scratch = tempfile::tempdir().unwrap();
        let deep = scratch.path().join("a/b/c");
        create_folders(&deep).unwrap();
        create_folders(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(scratch.path().join("file"), "").unwrap();
        assert!(create_folders(&scratch.path().join("file/below")).is_err());
    }
}
