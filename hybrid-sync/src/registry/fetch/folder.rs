//! A version's folder in the cache: in progress, activated, verified again.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use hybrid_core::{Digest, Error, FileName, Manifest, Result};

use super::{
    super::{
        MANIFEST_FILE, SIGNATURE_FILE,
        files::{digest_file, in_the_way, io_error, make_folders, open_own, place, read_small, sync_folder, walk},
        oms::MAX_BUNDLE,
    },
    InUse,
};

/// The cache folder with the version that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
    digest: Digest,
}

impl Cache {
    pub(super) fn new(root: &Path, digest: Digest) -> Self {
        Self { root: root.to_owned(), digest }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn active(&self) -> PathBuf {
        self.root.join(self.digest.to_string())
    }

    fn partial_name(&self) -> String {
        format!("{}.partial", self.digest)
    }

    /// Takes the version's lock, or `None` if another fetch holds it.
    pub(super) fn try_lock(&self) -> Result<Option<File>> {
        // The cache folder itself is the deployment's choice and may lie behind a symlink.
        fs::create_dir_all(&self.root).map_err(|error| io_error("create cache folder", &self.root, error))?;
        let _open = gate(&self.root)?;
        let path = lock_of(&self.root, &self.digest);
        let file = open_lock(&path)?;
        Ok(try_lock(&file, &path)?.then_some(file))
    }

    /// Keeps the version from being pruned. The version's lock must be held, so that nobody is about to prune it.
    pub(super) fn use_version(&self) -> Result<InUse> {
        let path = use_of(&self.root, &self.digest);
        let file = open_lock(&path)?;
        file.lock_shared().map_err(|error| io_error("use version", &path, error))?;
        Ok(InUse::new(file))
    }

    /// Whether the version's folder is there.
    pub(super) fn is_active(&self) -> Result<bool> {
        let path = self.active();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => Ok(true),
            Ok(_) => Err(in_the_way(&path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("look at folder", &path, error)),
        }
    }

    /// Verifies the activated folder, every byte of it.
    pub(super) fn verify(&self, manifest: impl FnOnce(&[u8], &[u8]) -> Result<Manifest>) -> Result<Manifest> {
        let folder = self.active();
        let bytes = read_small(&folder.join(MANIFEST_FILE), MAX_BUNDLE)?;
        let bundle = read_small(&folder.join(SIGNATURE_FILE), MAX_BUNDLE)?;
        let manifest = manifest(&bytes, &bundle)?;
        let found = walk(&folder, &mut |path| Err(in_the_way(path)))?;
        let expected = expected(&manifest);
        if let Some(extra) = found.iter().find(|path| !expected.contains(path.as_str())) {
            return Err(Error::untrusted("verify cached version", "a file is not the version's")
                .with("path", folder.join(extra).display()));
        }
        // As many threads as files or cores, so that a version in several files is hashed as fast as the machine can.
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(manifest.files.len());
        let check = || -> Result<()> {
            while let Some(file) = manifest.files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                let path = folder.join(file.name.as_str());
                let (digest, size) = digest_file(&path)?;
                if (digest, size) != (file.digest, file.size) {
                    return Err(Error::corrupt("verify cached version", "a file's bytes are not the version's")
                        .with("path", path.display())
                        .with("expected", file.digest)
                        .with("found", digest));
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(check)).collect();
            let own = check();
            workers.into_iter().fold(own, |result, worker| {
                let joined = worker
                    .join()
                    .unwrap_or_else(|_| Err(Error::internal("verify cached version", "a worker thread panicked")));
                result.and(joined)
            })
        })?;
        Ok(manifest)
    }

    /// Makes a damaged version work in progress again, so that its sound chunks are kept.
    pub(super) fn deactivate(&self) -> Result<()> {
        let (active, partial) = (self.active(), self.root.join(self.partial_name()));
        remove(&partial)?;
        fs::rename(&active, &partial).map_err(|error| io_error("set version aside", &active, error))
    }
}

/// A version in progress.
#[derive(Debug)]
pub(super) struct Partial {
    folder: PathBuf,
    expected: BTreeSet<String>,
    present: HashMap<FileName, u64>,
}

impl Partial {
    /// Opens or makes the folder and removes from it what is not the version's.
    pub(super) fn open(cache: &Cache, manifest: &Manifest) -> Result<Self> {
        let folder = make_folders(cache.root(), &[&cache.partial_name()])?;
        let expected: BTreeSet<String> = expected(manifest).into_iter().map(str::to_owned).collect();
        for path in walk(&folder, &mut |strange| remove(strange))? {
            if !expected.contains(&path) {
                remove(&folder.join(path))?;
            }
        }
        let mut present = HashMap::new();
        for file in &manifest.files {
            if let Ok(meta) = fs::symlink_metadata(folder.join(file.name.as_str())) {
                present.insert(file.name.clone(), meta.len());
            }
        }
        Ok(Self { folder, expected, present })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn present(&self) -> HashMap<FileName, u64> {
        self.present.clone()
    }

    /// Adds the small files, makes everything durable and gives the folder its name.
    pub(super) fn activate(self, cache: &Cache, small: &[(&str, &[u8])]) -> Result<PathBuf> {
        let mut folders = BTreeSet::from([self.folder.clone()]);
        for (name, bytes) in small {
            let path = place(&self.folder, &FileName::new(*name)?)?;
            let failed = |error| io_error("write file", &path, error);
            let mut file = open_own(&path)?;
            file.set_len(0).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        for path in &self.expected {
            folders.extend(path.match_indices('/').map(|(at, _)| self.folder.join(&path[..at])));
        }
        folders.iter().rev().try_for_each(|folder| sync_folder(folder))?;
        let active = cache.active();
        fs::rename(&self.folder, &active).map_err(|error| io_error("activate version", &active, error))?;
        sync_folder(cache.root())?;
        Ok(active)
    }
}

/// The lock under which lock files are opened; who prunes holds it alone, because a lock on a file that has lost its name locks nothing.
pub(super) const GATE: &str = "cache.lock";

/// Keeps lock files where they are until the gate is dropped. Waits for at most a few renames.
pub(super) fn gate(root: &Path) -> Result<File> {
    let path = root.join(GATE);
    let file = open_lock(&path)?;
    file.lock_shared().map_err(|error| io_error("lock cache", &path, error))?;
    Ok(file)
}

pub(super) fn lock_of(root: &Path, digest: &Digest) -> PathBuf {
    root.join(format!("{digest}.lock"))
}

pub(super) fn use_of(root: &Path, digest: &Digest) -> PathBuf {
    root.join(format!("{digest}.use"))
}

pub(super) fn open_lock(path: &Path) -> Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(in_the_way(path));
    }
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| io_error("open lock", path, error))
}

/// Whether this call took the lock for itself alone.
pub(super) fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(io_error("lock version", path, error)),
    }
}

fn expected(manifest: &Manifest) -> BTreeSet<&str> {
    manifest.files.iter().map(|file| file.name.as_str()).chain([MANIFEST_FILE, SIGNATURE_FILE]).collect()
}

/// Removes a file, a symlink (not what it points to), or a folder with all that is in it.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| io_error("remove leftover", path, error))
}
