//! Keeping a cache bounded: who needs which versions, and the removal of all others.
//!
//! | file in the cache | says | lives |
//! |---|---|---|
//! | `<holder>.held.json` | versions that a holder needs, also while it does not run | until the holder rewrites it |
//! | `<digest>.use`, locked shared | a process reads the version now | as long as the process holds it; the system ends it with the process |
//! | `<digest>.lock`, locked | a process writes or verifies the version now | the same |
//! | `cache.lock`, locked alone | versions lose their names now, so no other lock file may be opened | a few renames |
//! | `prune.lock`, locked | a process prunes | the whole pruning |

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{Digest, Document, Error, FileName, Result};
use serde::{Deserialize, Serialize};

use super::{
    super::files::{blocking, io_error, read_small, replace, sync_folder},
    folder::{gate, lock_of, open_lock, remove, try_lock, use_of},
};

const PRUNE: &str = "prune cache";
const HELD: &str = ".held.json";
const PARTIAL: &str = ".partial";
const PRUNED: &str = ".pruned";

/// Keeps a version in its cache from being pruned until the last clone is dropped, or the process ends, however it does.
#[derive(Clone, Debug)]
pub struct InUse {
    _lock: Arc<File>,
}

impl InUse {
    pub(super) fn new(lock: File) -> Self {
        Self { _lock: Arc::new(lock) }
    }
}

/// What was removed from a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The versions, whole or in progress.
    pub versions: BTreeSet<Digest>,
    /// The sizes of their files, in bytes.
    pub bytes: u64,
}

/// The versions that a holder needs.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    versions: Vec<Digest>,
}

impl Document for Held {
    const FORMAT: &'static str = "hybrid.held-versions";
    const MAJOR: u32 = 1;
}

/// Writes down which versions `holder` needs in `cache`, in place of those it needed before. They outlast the holder's process: what a holder
/// that is gone for good has left is let go by an empty list, or by removing its file `<holder>.held.json`.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a name that cannot be a file's; those of the file system.
pub async fn hold_versions(cache: &Path, holder: &str, versions: &[Digest]) -> Result<()> {
    let (root, path) = (cache.to_owned(), held_path(cache, holder)?);
    let bytes = Held { versions: versions.to_vec() }.encode()?;
    blocking(move || {
        fs::create_dir_all(&root).map_err(|error| io_error("create cache folder", &root, error))?;
        // Whoever prunes has done so before, or reads this.
        let _open = gate(&root)?;
        replace(&path, &bytes)
    })
    .await
}

/// The versions that `holder` has written down, in its order; none if it has not.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a name that cannot be a file's; a file that cannot be read.
pub async fn held_versions(cache: &Path, holder: &str) -> Result<Vec<Digest>> {
    let path = held_path(cache, holder)?;
    blocking(move || match path.try_exists() {
        Ok(false) => Ok(Vec::new()),
        _ => read_held(&path),
    })
    .await
}

/// Removes from a cache every version, whole or in progress, that no holder has written down and nobody is using.
///
/// # Behavior
/// - A version that is being fetched, or whose [`InUse`] is held by any process on this machine, stays.
/// - A version loses its name by one rename before a byte of it is removed, so no one ever finds half of one. What a crash leaves is removed next time.
/// - While another process prunes the same cache, nothing is done.
/// - If a holder's list cannot be read, nothing is removed.
///
/// # Errors
/// Those of the file system, and of a list that cannot be read; both name the path.
///
/// # Cancel safety
/// The work goes on to its end on a thread of its own.
pub async fn prune_cache(cache: &Path) -> Result<Pruned> {
    let root = cache.to_owned();
    blocking(move || prune(&root)).await
}

fn prune(root: &Path) -> Result<Pruned> {
    if matches!(root.try_exists(), Ok(false)) {
        return Ok(Pruned::default());
    }
    let prune_lock = root.join("prune.lock");
    let lock = open_lock(&prune_lock)?;
    if !try_lock(&lock, &prune_lock)? {
        return Ok(Pruned::default());
    }
    let mut pruned = Pruned::default();
    let leftovers = take_names(root, &mut pruned)?;
    for path in &leftovers {
        pruned.bytes += size_of(path);
        remove(path)?;
    }
    Ok(pruned)
}

/// Takes the names of versions that nobody needs; the folders to remove.
fn take_names(root: &Path, pruned: &mut Pruned) -> Result<Vec<PathBuf>> {
    let gate_path = root.join(super::folder::GATE);
    let gate = open_lock(&gate_path)?;
    gate.lock().map_err(|error| io_error(PRUNE, &gate_path, error))?;
    let (mut versions, mut needed, mut leftovers) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for entry in fs::read_dir(root).map_err(|error| io_error(PRUNE, root, error))? {
        let entry = entry.map_err(|error| io_error(PRUNE, root, error))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(HELD) {
            needed.extend(read_held(&entry.path())?);
        } else if let Some((digest, rest)) = split(&name) {
            match rest {
                PRUNED | ".partial.pruned" => leftovers.push(entry.path()),
                "" | PARTIAL | ".lock" | ".use" => drop(versions.insert(digest)),
                _ => {}
            }
        }
    }
    for digest in versions.difference(&needed) {
        let (lock_path, use_path) = (lock_of(root, digest), use_of(root, digest));
        let lock = open_lock(&lock_path)?;
        if !try_lock(&lock, &lock_path)? {
            continue;
        }
        let users = open_lock(&use_path)?;
        if !try_lock(&users, &use_path)? {
            continue;
        }
        for suffix in ["", PARTIAL] {
            let (from, to) = (root.join(format!("{digest}{suffix}")), root.join(format!("{digest}{suffix}{PRUNED}")));
            // Only what a fetch has made is ours to remove.
            if !fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            remove(&to)?;
            fs::rename(&from, &to).map_err(|error| io_error(PRUNE, &from, error))?;
            pruned.versions.insert(*digest);
            leftovers.push(to);
        }
        // Nobody else has them open: that takes the gate. A system that keeps open files by their names keeps two empty ones.
        let _ = fs::remove_file(&use_path);
        let _ = fs::remove_file(&lock_path);
    }
    leftovers.sort_unstable();
    leftovers.dedup();
    sync_folder(root)?;
    Ok(leftovers)
}

/// The digest that a name begins with, and the rest of the name.
fn split(name: &str) -> Option<(Digest, &str)> {
    let (digest, rest) = name.split_at_checked(64)?;
    Some((digest.parse().ok()?, rest))
}

fn held_path(cache: &Path, holder: &str) -> Result<PathBuf> {
    let name = FileName::new(holder)?;
    if name.as_str().contains('/') {
        return Err(Error::invalid("hold versions", "a holder's name must have no /").with("holder", holder));
    }
    Ok(cache.join(format!("{name}{HELD}")))
}

fn read_held(path: &Path) -> Result<Vec<Digest>> {
    let bytes = read_small(path, 1024 * 1024)?;
    Held::decode(&bytes).map(|held| held.versions).map_err(|error| {
        Error::new(error.kind(), "read held versions", "the list of versions that a holder needs cannot be read")
            .with("path", path.display())
            .with_source(error)
    })
}

/// The sizes of all files below a path; what cannot be looked at counts nothing.
fn size_of(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_of(&entry.path())).sum()
        }
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}
