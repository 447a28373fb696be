//! Temporary files of a store, safe from other living processes and swept after dead ones.
//!
//! Each process writes into a folder of its own, `.hybrid~tmp/<random>`, on which it holds a file lock (`flock`) while it lives. The system
//! ends the lock with the process, however that dies; so who can take the lock knows that the owner is gone.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{
        AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, linkat, mkdirat, openat, renameat, statat, unlinkat,
    },
    io::Errno,
};

use super::root::FOLDER;

/// The folder of temporary files: `~` is in no key.
pub(super) const NAME: &str = ".hybrid~tmp";

/// Where the file system has no locks, only what has lain untouched for so long is taken for dead.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// This process's own folder of temporary files.
pub(super) struct TempFolder {
    all: OwnedFd,
    /// Holds the lock.
    own: OwnedFd,
    name: String,
    next: AtomicU64,
}

/// A temporary file that is whole and durable; it goes when dropped.
pub(super) struct TempFile {
    folder: Arc<TempFolder>,
    name: String,
}

impl TempFolder {
    pub(super) fn new(root: impl AsFd) -> Result<Self, Errno> {
        let everyone = Mode::RWXU | Mode::RWXG | Mode::RWXO;
        match mkdirat(&root, NAME, everyone) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let all = openat(&root, NAME, FOLDER, Mode::empty())?;
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
            let name = format!("{:016x}", u64::from_ne_bytes(random));
            mkdirat(&all, name.as_str(), everyone)?;
            // A sweeper may take the folder for a dead one's until the lock is held; then another is made.
            let own = match openat(&all, name.as_str(), FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            // Any other error means a file system without locks, where age decides.
            if flock(&own, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                continue;
            }
            match statat(&all, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) if there.st_ino == fstat(&own)?.st_ino => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            }
            return Ok(Self { all, own, name, next: AtomicU64::new(0) });
        }
    }

    /// Writes `bytes` to a file that has no name in the store yet, and makes them durable.
    pub(super) fn write(self: &Arc<Self>, bytes: &[u8]) -> Result<TempFile, Errno> {
        self.fill(|file| {
            let written = file.write_all(bytes);
            written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
    }

    /// As [`write`](Self::write), with what `work` writes.
    pub(super) fn fill<E: From<Errno>>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<TempFile, E> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.own, name.as_str(), flags, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
        // From here on the file goes, whatever happens.
        let temp = TempFile { folder: Arc::clone(self), name };
        let mut file = File::from(file);
        work(&mut file)?;
        file.sync_all().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(temp)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed is swept later.
        let _ = unlinkat(&self.all, self.name.as_str(), AtFlags::REMOVEDIR);
    }
}

impl TempFile {
    /// Gives the file the name `name` in `folder`, which must be free.
    pub(super) fn link(&self, folder: impl AsFd, name: &str) -> Result<(), Errno> {
        linkat(&self.folder.own, self.name.as_str(), folder, name, AtFlags::empty())
    }

    /// Gives the file the name `name` in `folder`, in the place of a file that has it.
    pub(super) fn rename(self, folder: impl AsFd, name: &str) -> Result<(), Errno> {
        renameat(&self.folder.own, self.name.as_str(), folder, name)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = unlinkat(&self.folder.own, self.name.as_str(), AtFlags::empty());
    }
}

/// Removes what dead processes have left. A sweep that fails harms nobody, so it is only logged.
pub(super) fn sweep(root: impl AsFd) {
    match try_sweep(root) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed temporary files that a dead process had left"),
        Err(error) => tracing::debug!(%error, "could not sweep temporary files"),
    }
}

fn try_sweep(root: impl AsFd) -> Result<usize, Errno> {
    let all = match openat(&root, NAME, FOLDER, Mode::empty()) {
        Ok(all) => all,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut count = 0;
    for name in names(&all)? {
        let Ok(folder) = openat(&all, name.as_c_str(), FOLDER, Mode::empty()) else { continue };
        if !is_abandoned(&folder) {
            continue;
        }
        for file in names(&folder)? {
            count += usize::from(unlinkat(&folder, file.as_c_str(), AtFlags::empty()).is_ok());
        }
        let _ = unlinkat(&all, name.as_c_str(), AtFlags::REMOVEDIR);
    }
    Ok(count)
}

/// Whether the folder's owner is dead. The lock taken here lasts until `folder` is closed, after its removal.
fn is_abandoned(folder: &OwnedFd) -> bool {
    match flock(folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(Errno::WOULDBLOCK) => false,
        Err(_) => fstat(folder).is_ok_and(|stat| {
            let touched = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            now.saturating_sub(touched) > ABANDONED
        }),
    }
}

fn names(folder: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_behind(root: &std::path::Path) -> usize {
        let folders = std::fs::read_dir(root.join(NAME)).into_iter().flatten().flatten();
        folders.map(|folder| std::fs::read_dir(folder.path()).unwrap().count() + 1).sum()
    }

    #[test]
    fn a_sweep_spares_the_living_and_removes_the_dead() {
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(scratch.path()).unwrap();
        let alive = Arc::new(TempFolder::new(&root).unwrap());
        let file = alive.write(b"being written").unwrap();
        // A dead process leaves a folder that nobody holds a lock on.
        let dead = scratch.path().join(NAME).join("00000000000000aa");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("0"), "torn").unwrap();

        assert_eq!(try_sweep(&root).unwrap(), 1);
        assert!(!dead.exists());
        file.link(&root, "object").unwrap();
        assert_eq!(std::fs::read(scratch.path().join("object")).unwrap(), b"being written");

        drop(file);
        drop(alive);
        assert_eq!(left_behind(scratch.path()), 0);
    }

    #[test]
    fn an_owner_and_sweepers_never_meet_in_one_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(scratch.path()).unwrap();
        std::thread::scope(|scope| {
            let sweepers: Vec<_> = (0..2).map(|_| scope.spawn(|| (0..200).for_each(|_| sweep(&root)))).collect();
            for round in 0..200 {
                let folder = Arc::new(TempFolder::new(&root).unwrap());
                let file = folder.write(b"x").unwrap();
                file.link(&root, &format!("object-{round}")).unwrap();
            }
            sweepers.into_iter().for_each(|sweeper| sweeper.join().unwrap());
        });
        assert_eq!(left_behind(scratch.path()), 0);
    }
}
