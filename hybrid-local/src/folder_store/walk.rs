//! Listing: a walk through the folder in byte order of the keys.

use std::os::fd::OwnedFd;

use hybrid_core::{Key, ObjectMeta, Result};
use rustix::{
    fs::{Dir, FileType, Mode, openat},
    io::Errno,
};

use super::root::{FOLDER, Kind, Root, kind_of, object_meta};
use crate::disk::disk_error;

/// How many objects one hop to a blocking thread looks at.
const BATCH: usize = 256;

/// A walk that has come to some place in the tree.
///
/// Byte order of keys is not the order of names, since `-` and `.` sort before `/`: `a-b`, `a.b`, `a/b`. It is the order of names if those of
/// folders end in `/`, because then no name in a folder begins with another that has keys below it.
pub(super) struct Walk {
    prefix: String,
    after: String,
    /// The folders from the root to here.
    levels: Vec<Level>,
    is_started: bool,
}

struct Level {
    /// The path of the folder, which ends in `/` but for the root's, which is empty.
    path: String,
    folder: OwnedFd,
    /// The names still to come, the next one last; those of folders end in `/`.
    names: Vec<String>,
}

impl Walk {
    pub(super) fn new(prefix: &str, start_after: Option<Key>) -> Self {
        let after = start_after.map_or_else(String::new, |key| key.as_str().to_owned());
        Self { prefix: prefix.to_owned(), after, levels: Vec::new(), is_started: false }
    }

    /// The next objects; none at the end.
    pub(super) fn next_batch(&mut self, root: &Root) -> Result<Vec<ObjectMeta>> {
        let failed = |path: &str, error: Errno| disk_error("list objects", &root.path().join(path), error);
        if !self.is_started {
            self.is_started = true;
            self.start(root).map_err(|error| failed(&self.prefix, error))?;
        }
        let mut found = Vec::new();
        while found.len() < BATCH
            && let Some(level) = self.levels.last_mut()
        {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let path = format!("{}{name}", level.path);
            match name.strip_suffix('/') {
                Some(name) => match openat(&level.folder, name, FOLDER, Mode::empty()) {
                    Ok(folder) => self.enter(folder, path.clone()).map_err(|error| failed(&path, error))?,
                    // Gone meanwhile, or no longer a folder.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(failed(&path, error)),
                },
                None => {
                    // A name that is no key was put here by somebody else.
                    let Ok(key) = Key::new(&path) else { continue };
                    match object_meta(&level.folder, &name, &key) {
                        Ok(meta) => found.extend(meta),
                        Err(Errno::LOOP) => {}
                        Err(error) => return Err(failed(&path, error)),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Goes straight to the deepest folder that holds all keys with the prefix.
    fn start(&mut self, root: &Root) -> Result<(), Errno> {
        let path = self.prefix.rfind('/').map_or("", |end| &self.prefix[..end]);
        // A prefix is plain text; what is no key leads nowhere, above all not out of the folder.
        if !path.is_empty() && Key::new(path).is_err() {
            return Ok(());
        }
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        match root.find_folder(path) {
            Ok(Some(folder)) => self.enter(folder, below),
            Ok(None) | Err(Errno::LOOP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn enter(&mut self, folder: OwnedFd, path: String) -> Result<(), Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            // Only what can be a part of a key; `.`, `..` and the folder of temporary files cannot.
            let Some(name) = entry.file_name().to_str().ok().filter(|name| Key::new(name).is_ok()) else { continue };
            let kind = match entry.file_type() {
                FileType::RegularFile => Some(Kind::Object),
                FileType::Directory => Some(Kind::Folder),
                FileType::Unknown => kind_of(&folder, name)?,
                _ => None,
            };
            let name = match kind {
                Some(Kind::Object) => name.to_owned(),
                Some(Kind::Folder) => format!("{name}/"),
                _ => continue,
            };
            if self.may_hold(&path, &name) {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.levels.push(Level { path, folder, names });
        Ok(())
    }

    /// Whether `name` below `path` is wanted, or a folder that may hold what is.
    fn may_hold(&self, path: &str, name: &str) -> bool {
        let full = || path.bytes().chain(name.bytes());
        let is_folder = name.ends_with('/');
        let starts_with = |text: &str| full().zip(text.bytes()).all(|(a, b)| a == b);
        let length = path.len() + name.len();
        let fits_prefix = starts_with(&self.prefix) && (is_folder || length >= self.prefix.len());
        // All keys of a folder are on one side of the start, unless the start lies within it.
        let comes_after =
            full().gt(self.after.bytes()) || (is_folder && length <= self.after.len() && starts_with(&self.after));
        fits_prefix && comes_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(prefix: &str, after: &str) -> Walk {
        Walk::new(prefix, (!after.is_empty()).then(|| Key::new(after).unwrap()))
    }

    #[test]
    fn folders_that_cannot_hold_what_is_wanted_are_not_entered() {
        let check = |prefix, after, path, name| walk(prefix, after).may_hold(path, name);
        assert!(check("", "", "", "a/"));
        assert!(check("a/b", "", "", "a/"));
        assert!(check("a/b", "", "a/", "bc"));
        assert!(!check("a/b", "", "a/", "c"));
        assert!(!check("a/b", "", "", "a"), "shorter than the prefix");
        assert!(!check("a/b", "", "", "b/"));
        assert!(check("", "m/5", "", "m/"), "the start lies within");
        assert!(check("", "m/5", "m/", "6"));
        assert!(!check("", "m/5", "m/", "5"));
        assert!(!check("", "m/5", "", "l/"));
        assert!(!check("", "m/5", "", "m.x"), "sorts before the folder");
        assert!(check("", "m-5", "", "m/"));
        assert!(check("", "a", "", "a/"));
    }
}
