//! The folder of a store, reached part by part so that no symbolic link below it is followed.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hybrid_core::{Key, ObjectMeta, Timestamp};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat},
    io::Errno,
};

use crate::disk;

pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How many folders a process remembers, beside those in use.
const MAX_FOLDERS: usize = 4096;

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Folder,
    Link,
    Other,
}

/// The folder of a store.
pub(super) struct Root {
    path: PathBuf,
    file: File,
    /// What this process knows about the folders it has created objects in, by path below the root.
    syncs: Mutex<HashMap<String, Arc<FolderSync>>>,
}

/// A folder that exists all the way up durably, open for the creation of objects.
pub(super) struct OpenFolder {
    file: File,
    sync: Arc<FolderSync>,
}

/// Splits a key into the path of its folder, empty for the root, and its name in it.
pub(super) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

/// What `name` in `folder` is; a symbolic link is itself.
pub(super) fn kind_of(folder: impl AsFd, name: &str) -> Result<Option<Kind>, Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Object,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The size and time of the object `name` in `folder`; none if it is not there or is no object.
pub(super) fn object_meta(folder: impl AsFd, name: &str, key: &Key) -> Result<Option<ObjectMeta>, Errno> {
    let found = size_and_time(folder, name)?;
    Ok(found.map(|(size, created)| ObjectMeta { key: key.clone(), size, created }))
}

/// The size and the time of the last change of the file `name` in `folder`; none if it is not there or is no file.
pub(super) fn size_and_time(folder: impl AsFd, name: &str) -> Result<Option<(u64, Timestamp)>, Errno> {
    let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Ok(None),
    }
    let micros = whole(stat.st_mtime).saturating_mul(1_000_000).saturating_add(whole(stat.st_mtime_nsec) / 1_000);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(Some((size, Timestamp::from_unix_micros(micros))))
}

/// The fields of `stat` have other integer types on other systems.
fn whole(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(0)
}

impl Root {
    /// Opens the folder `path`, making it if need be.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        disk::create_folders(path)?;
        // The root itself may be a link: whoever names the folder chooses the way to it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Self { path: path.to_owned(), file, syncs: Mutex::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> &File {
        &self.file
    }

    /// Opens the folder at `path` below the root; none if it does not exist.
    pub(super) fn find_folder(&self, path: &str) -> Result<Option<OwnedFd>, Errno> {
        let mut folder = openat(&self.file, ".", FOLDER, Mode::empty())?;
        for part in parts(path) {
            folder = match open_part(&folder, part) {
                Ok(child) => child,
                // An object in place of the folder: nothing lies below it.
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(Some(folder))
    }

    /// Opens the file at `path` below the root; none if it does not exist.
    pub(super) fn open_file(&self, path: &str) -> Result<Option<File>, Errno> {
        let (folder, name) = split(path);
        let Some(folder) = self.find_folder(folder)? else { return Ok(None) };
        // Without waiting: a pipe in the folder must not hold a reader for ever.
        match openat(
            &folder,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the folder at `path` below the root, making what is missing; each folder on the way is durable when it returns.
    pub(super) fn make_folder(&self, path: &str) -> Result<OpenFolder, Errno> {
        let sync = self.sync_of(path);
        let known = sync.is_durable.load(Ordering::Acquire);
        let mut folder = openat(&self.file, ".", FOLDER, Mode::empty())?;
        let mut end = 0;
        for part in parts(path) {
            let (child, made) = open_or_make(&folder, part)?;
            let parent = File::from(folder);
            // Another process may have made the folder and died before it was durable, so the first visit makes sure.
            if made || !known {
                self.sync_of(path[..end].trim_end_matches('/')).sync(&parent)?;
            }
            end += part.len() + 1;
            folder = child;
        }
        sync.is_durable.store(true, Ordering::Release);
        Ok(OpenFolder { file: folder.into(), sync })
    }

    fn sync_of(&self, path: &str) -> Arc<FolderSync> {
        let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        match syncs.get(path) {
            Some(sync) => Arc::clone(sync),
            None => {
                // A forgotten folder is made sure of once more when it is next visited; one that somebody syncs now is kept.
                if syncs.len() >= MAX_FOLDERS {
                    syncs.retain(|_, sync| Arc::strong_count(sync) > 1);
                }
                Arc::clone(syncs.entry(path.to_owned()).or_default())
            }
        }
    }
}

impl OpenFolder {
    pub(super) fn fd(&self) -> &File {
        &self.file
    }

    /// Makes the names that are in the folder now durable.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        self.sync.sync(&self.file)
    }

    /// What `name` in the folder is.
    pub(super) fn kind_of(&self, name: &str) -> Result<Option<Kind>, Errno> {
        kind_of(&self.file, name)
    }
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

fn open_part(folder: &OwnedFd, part: &str) -> Result<OwnedFd, Errno> {
    match openat(folder, part, FOLDER, Mode::empty()) {
        // Systems differ in what they answer for a link here.
        Err(Errno::NOTDIR) if kind_of(folder, part)? == Some(Kind::Link) => Err(Errno::LOOP),
        other => other,
    }
}

fn open_or_make(folder: &OwnedFd, part: &str) -> Result<(OwnedFd, bool), Errno> {
    match open_part(folder, part) {
        Err(Errno::NOENT) => {}
        other => return other.map(|child| (child, false)),
    }
    match mkdirat(folder, part, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
        Ok(()) | Err(Errno::EXIST) => open_part(folder, part).map(|child| (child, true)),
        Err(error) => Err(error),
    }
}

/// Lets those who create in one folder at the same time share one fsync of it.
#[derive(Default)]
struct FolderSync {
    /// Whether the folder's own name, and those above it, are known to be durable.
    is_durable: AtomicBool,
    /// The number of the latest fsync that was started.
    started: AtomicU64,
    /// The number of the latest that succeeded.
    finished: Mutex<u64>,
}

impl FolderSync {
    fn sync(&self, folder: &File) -> Result<(), Errno> {
        self.sync_by(|| disk::sync_folder(folder).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    fn sync_by(&self, fsync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let seen = self.started.load(Ordering::SeqCst);
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        // One that started after we came has covered what we did before.
        if *finished > seen {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        fsync()?;
        *finished = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, atomic::AtomicUsize};

    use super::*;

    #[test]
    fn what_is_known_of_folders_has_a_limit_and_what_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let in_use = root.make_folder("jobs/1").unwrap();
        for i in 0..3 * MAX_FOLDERS {
            root.sync_of(&format!("jobs/{i}/x"));
        }
        assert!(root.syncs.lock().unwrap().len() <= MAX_FOLDERS + 1);
        assert!(Arc::ptr_eq(&in_use.sync, &root.sync_of("jobs/1")));
        // A folder that was forgotten is used again.
        root.make_folder("jobs/7/x").unwrap().sync().unwrap();
    }

    #[test]
    fn callers_share_an_fsync_only_if_it_started_after_they_came() {
        let (sync, count) = (FolderSync::default(), AtomicUsize::new(0));
        let fsync = || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        sync.sync_by(fsync).unwrap();
        sync.sync_by(fsync).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 2, "one after the other share nothing");

        // Callers that come while an fsync runs cannot share it, but share the next.
        let (running, waiting) = (Barrier::new(2), 8);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sync.sync_by(|| {
                    running.wait();
                    // The others hold this fsync's number before it ends.
                    while Arc::strong_count(&WAITERS) < waiting + 1 {
                        std::thread::yield_now();
                    }
                    fsync()
                })
                .unwrap();
            });
            running.wait();
            for _ in 0..waiting {
                scope.spawn(|| {
                    let seen = sync.started.load(Ordering::SeqCst);
                    assert_eq!(seen, 3);
                    let _here = Arc::clone(&WAITERS);
                    sync.sync_by(fsync).unwrap();
                });
            }
        });
        let shared = count.load(Ordering::SeqCst) - 3;
        assert!((1..=2).contains(&shared), "{shared} fsyncs for {waiting} callers");
    }

    static WAITERS: std::sync::LazyLock<Arc<()>> = std::sync::LazyLock::new(Arc::default);

    #[test]
    fn a_failed_fsync_is_told_and_the_next_caller_tries_again() {
        let sync = FolderSync::default();
        assert_eq!(sync.sync_by(|| Err(Errno::IO)), Err(Errno::IO));
        let mut called = false;
        sync.sync_by(|| {
            called = true;
            Ok(())
        })
        .unwrap();
        assert!(called);
    }
}
