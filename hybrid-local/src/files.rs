//! Reading files of models with care, writing files that are whole or absent, and asking for the memory that models take.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use hybrid_core::{Digest, Error, ErrorKind, Hasher, Result};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Tensors in one file.
#[cfg(any(feature = "classifier", feature = "embedder"))]
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Room for a configuration, or for the header of a file of tensors.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// `Corrupt` that names the file if it is missing or larger.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let size = size(path)?;
    if size > limit {
        return Err(Error::corrupt("read file", "the file is larger than such a file can be")
            .with("path", path.display())
            .with("size", size)
            .with("limit", limit));
    }
    fs::read(path).map_err(|error| io_error("read file", path, error))
}

/// A file's size in bytes.
pub(crate) fn size(path: &Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(meta.len()),
        Ok(_) => Err(Error::corrupt("read file", "not a file").with("path", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::corrupt("read file", "the file is missing").with("path", path.display()))
        }
        Err(error) => Err(io_error("read file", path, error)),
    }
}

/// The SHA-256 of a file.
#[cfg_attr(not(any(feature = "decoder", feature = "evaluation")), allow(dead_code))]
pub(crate) fn digest(operation: &'static str, path: &Path) -> Result<Digest> {
    let fail = |error| io_error(operation, path, error);
    let mut file = File::open(path).map_err(fail)?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Writes a file whole: first beside its place, then flushed to the disk, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |error| io_error("write file", path, error);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut file = File::create(&beside).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&beside, path).map_err(fail)?;
    sync_folder(path)
}

/// Copies a file into a folder, flushed to the disk; gives its path there.
#[cfg_attr(not(feature = "decoder"), allow(dead_code))]
pub(crate) fn copy(from: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(from.file_name().unwrap_or_default());
    let copied = fs::copy(from, &to).and_then(|_| File::open(&to)?.sync_all());
    copied.map_err(|error| io_error("copy file", &to, error))?;
    Ok(to)
}

/// Removes a file that may be gone already.
#[cfg_attr(not(feature = "decoder"), allow(dead_code))]
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove file", path, error)),
        _ => Ok(()),
    }
}

/// Makes the entry of `path` in its folder durable.
#[cfg(unix)]
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error("write file", folder, error))
}

// Elsewhere a folder cannot be opened to be flushed; the rename is as durable as the system makes it.
#[cfg(not(unix))]
pub(crate) fn sync_folder(_path: &Path) -> Result<()> {
    Ok(())
}

/// Checks that `bytes` can be taken of the memory that is free, where the system says so, and of `limit`.
///
/// # Errors
/// `ResourceExhausted` that names both.
pub(crate) fn check_memory(operation: &'static str, bytes: u64, limit: Option<u64>) -> Result<()> {
    let limit = [limit, available_memory()].into_iter().flatten().min().unwrap_or(u64::MAX);
    if bytes <= limit {
        return Ok(());
    }
    let message = "the model does not fit into memory; free some or use a smaller model";
    Err(Error::new(ErrorKind::ResourceExhausted, operation, message).with("needed", bytes).with("limit", limit))
}

/// Memory that can be taken without swapping, in bytes, where the system says so.
pub(crate) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) fn io_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::StorageFull
        }
        _ => ErrorKind::Internal,
    };
    Error::new(kind, operation, "the file system refused").with("path", path.display()).with_source(error)
}
