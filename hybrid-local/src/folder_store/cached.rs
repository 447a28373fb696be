//! Small reads that need not wait for the disk, and so need no thread that may.
//!
//! Linux can be asked to open a path only if every part of it is in its cache of names (`openat2`, `RESOLVE_CACHED`, since 5.12) and to read only
//! what is in its cache of pages (`preadv2`, `RWF_NOWAIT`, since 4.14). Whatever stands in the way, a name or page that is not there, a file
//! system or kernel that cannot say, answers at once, and the read takes the ordinary way, which also tells its errors.

use bytes::Bytes;
use hybrid_core::{Key, ReadOptions, Result};

use super::root::Root;

/// The largest object read so, in bytes: copying and hashing it takes less time than changing to another thread and back.
#[cfg(target_os = "linux")]
const MAX_BYTES: i64 = 16 * 1024;

/// What a read that does not wait has found; none if it might have had to, or if anything is unusual.
#[cfg(target_os = "linux")]
pub(super) fn read(root: &Root, key: &Key, options: &ReadOptions) -> Option<Result<Bytes>> {
    use std::io::IoSliceMut;

    use rustix::{
        fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
        io::{ReadWriteFlags, preadv2},
    };

    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::CACHED | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = openat2(root.fd(), key.as_str(), flags, Mode::empty(), resolve).ok()?;
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size > MAX_BYTES {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(stat.st_size).ok()?];
    // An empty read would not say whether it had to wait; there is nothing to wait for.
    if !bytes.is_empty() {
        let read = preadv2(&file, &mut [IoSliceMut::new(&mut bytes)], 0, ReadWriteFlags::NOWAIT).ok()?;
        if read != bytes.len() {
            return None;
        }
    }
    Some(options.clone().apply(key, bytes.into()))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read(_root: &Root, _key: &Key, _options: &ReadOptions) -> Option<Result<Bytes>> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_small_plain_files_below_the_folder_are_read_without_waiting() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("store");
        let root = Root::open(&path).unwrap();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/small"), b"small").unwrap();
        fs::write(path.join("a/b/large"), vec![7; MAX_BYTES as usize + 1]).unwrap();
        symlink(path.join("a/b/small"), path.join("a/link")).unwrap();
        symlink(path.join("a/b"), path.join("a/folder-link")).unwrap();
        let read = |key: &str, options: ReadOptions| read(&root, &Key::new(key).unwrap(), &options);
        let whole = ReadOptions::default;
        // A file system or kernel that cannot say makes every one of these none, which is always right.
        if let Some(bytes) = read("a/b/small", whole()) {
            assert_eq!(bytes.unwrap(), "small");
            assert_eq!(read("a/b/small", ReadOptions::range(1..3)).unwrap().unwrap(), "ma");
            assert!(read("a/b/small", ReadOptions::range(1..9)).unwrap().is_err());
            let other = ReadOptions::verified(hybrid_core::Digest::of(b"other"));
            assert_eq!(read("a/b/small", other).unwrap().unwrap_err().kind(), hybrid_core::ErrorKind::Corrupt);
        } else {
            println!("reads that do not wait are not to be had here");
        }
        for key in ["a/b/large", "a/link", "a/folder-link/small", "a/b", "a/b/none", "a/b/small/below"] {
            assert!(read(key, whole()).is_none(), "{key}");
        }
    }
}
