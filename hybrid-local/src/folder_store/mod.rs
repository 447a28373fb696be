//! An artifact store in a folder: see [`FolderStore`].

mod cached;
mod root;
mod staging;
mod temp;
mod walk;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    ArtifactStore, BoxStream, Error, Key, ListOptions, MAX_OBJECT_BYTES, ObjectMeta, ReadOptions, Result,
    check_object_size, checked_range,
};
use rustix::{
    fs::{AtFlags, unlinkat},
    io::Errno,
};

use crate::disk::disk_error;
pub use staging::FolderStaging;

use root::{Kind, Root, split};
use temp::TempFolder;
use walk::Walk;

/// An [`ArtifactStore`] in a folder of this machine: each object is a file whose path below the folder is its key.
///
/// Any number of processes may use one folder at once. Clones share their state.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let scratch = tempfile::tempdir().unwrap();
/// # let path = scratch.path().join("site");
/// use hybrid_core::{ArtifactStore, ArtifactStoreExt, Key};
/// use hybrid_local::FolderStore;
///
/// let store = FolderStore::open(&path)?;
/// let key = Key::new("blobs/a")?;
/// store.create(&key, "bytes".into()).await?;
/// assert_eq!(store.get(&key).await?, "bytes");
/// assert_eq!(std::fs::read(path.join("blobs/a")).unwrap(), b"bytes");
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// - `create` writes a private temporary file, makes it durable, and gives it its name by an exclusive hard link: atomic, never over
///   another, and nothing is visible before it is whole. Then it makes the name durable, with every folder above that is new. A create that finds
///   the object there makes its name durable too, so that a loser may build on what it found.
/// - A process that dies at any moment leaves at most a temporary file in the folder `.hybrid~tmp`, which no key can name and no listing shows.
///   The next process that opens the store removes what a dead one left, and never what a living one is writing: each holds a file lock on its own part.
/// - A full disk or quota is [`StorageFull`](hybrid_core::ErrorKind::StorageFull); missing rights and a read-only file system are
///   [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied). Both name the path and leave nothing behind. A store that is only read writes nothing at all.
/// - Symbolic links below the folder are not followed: a listing passes them over, and a key that leads through one is refused with
///   [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied). The folder itself may be reached through one.
/// - `list` holds the names of the folders that it is in, one a level, not those of the whole tree.
/// - [`ObjectMeta::created`] is the file's modification time. Files are made read-only.
/// - A delete that a power failure undoes is left to the next collection.
///
/// The file system must have hard links ([`Unsupported`](hybrid_core::ErrorKind::Unsupported) otherwise), as ext4, XFS, btrfs, ZFS, tmpfs and APFS do. Calls need a tokio
/// runtime, on whose blocking threads the file work runs: one hop a call, one for some hundred objects in a listing, none for a small object that Linux
/// has in memory.
#[derive(Clone)]
pub struct FolderStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: Root,
    /// Made by the first create, so that a store on a read-only folder can be read.
    temp: Mutex<Option<Arc<TempFolder>>>,
}

impl FolderStore {
    /// Opens the store in the folder `path`, which is made if it does not exist.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the path is not a folder, [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied) if it cannot be read
    /// or made; both name it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let root = Root::open(path).map_err(|error| disk_error("open folder store", path, error))?;
        temp::sweep(root.fd());
        Ok(Self { inner: Arc::new(Inner { root, temp: Mutex::default() }) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.inner.root.path()
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        on_blocking_thread(move || work(&inner)).await?
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => Ok(answer),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::cancelled("use folder store", "the runtime is shutting down").with_source(error)),
        },
    }
}

impl fmt::Debug for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FolderStore").field("path", &self.path()).finish_non_exhaustive()
    }
}

#[async_trait]
impl ArtifactStore for FolderStore {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        check_object_size(key, bytes.len())?;
        let key = key.clone();
        self.blocking(move |inner| inner.create(&key, &bytes)).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        if let Some(found) = cached::read(&self.inner.root, key, &options) {
            return found;
        }
        let key = key.clone();
        self.blocking(move |inner| inner.read(&key, options)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let key = key.clone();
        self.blocking(move |inner| inner.head(&key)).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let ListOptions { start_after } = options;
        let walk = Walk::new(prefix, start_after);
        stream::unfold(Some((Arc::clone(&self.inner), walk)), |state| async {
            let (inner, mut walk) = state?;
            let step = on_blocking_thread(move || {
                let found = walk.next_batch(&inner.root);
                (inner, walk, found)
            });
            match step.await {
                Ok((.., Ok(found))) if found.is_empty() => None,
                Ok((inner, walk, Ok(found))) => Some((found.into_iter().map(Ok).collect(), Some((inner, walk)))),
                Ok((.., Err(error))) | Err(error) => Some((vec![Err(error)], None)),
            }
        })
        .flat_map(|found: Vec<_>| stream::iter(found))
        .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.blocking(move |inner| inner.delete(&key)).await
    }
}

impl Inner {
    fn create(&self, key: &Key, bytes: &[u8]) -> Result<()> {
        const OPERATION: &str = "create object";
        let failed = |error: Errno| disk_error(OPERATION, &self.path_of(key), error);
        let (folder_name, name) = split(key.as_str());
        let folder = self.root.make_folder(folder_name).map_err(failed)?;
        // Most creates that lose find the object here, before they have written up to 16 MiB for nothing.
        let taken = match folder.kind_of(name).map_err(failed)? {
            Some(kind) => Some(kind),
            None => {
                let temp = self.write_temporary(bytes).map_err(|(path, error)| disk_error(OPERATION, &path, error))?;
                match temp.link(folder.fd(), name) {
                    Ok(()) => None,
                    Err(Errno::EXIST) => folder.kind_of(name).map_err(failed)?.or(Some(Kind::Object)),
                    Err(error @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                        return Err(Error::unsupported(
                            OPERATION,
                            "the file system has no hard links; put the store on one that has",
                        )
                        .with("path", self.path_of(key).display())
                        .with_source(io::Error::from(error)));
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        };
        match taken {
            None => folder.sync().map_err(failed),
            Some(Kind::Object) => {
                // Whoever reads the winner's object and builds on it must not outlive it, so its name is made durable first.
                folder.sync().map_err(failed)?;
                Err(Error::already_exists(OPERATION, "the object exists").with("key", key))
            }
            Some(Kind::Folder) => Err(Error::invalid(OPERATION, "the key is the path of a folder with other objects")
                .with("key", key)
                .with("path", self.path_of(key).display())),
            Some(Kind::Link | Kind::Other) => {
                Err(Error::invalid(OPERATION, "something that is not an object has the name")
                    .with("key", key)
                    .with("path", self.path_of(key).display()))
            }
        }
    }

    fn write_temporary(&self, bytes: &[u8]) -> Result<temp::TempFile, (PathBuf, Errno)> {
        let written = match self.temp_folder(None) {
            Ok(folder) => match folder.write(bytes) {
                // Somebody has swept the folder away under us; it is ours to make again.
                Err(Errno::NOENT) => self.temp_folder(Some(&folder)).and_then(|folder| folder.write(bytes)),
                other => other,
            },
            Err(error) => Err(error),
        };
        written.map_err(|error| (self.root.path().join(temp::NAME), error))
    }

    /// This process's folder of temporary files; another one if it was `swept` away.
    fn temp_folder(&self, swept: Option<&Arc<TempFolder>>) -> Result<Arc<TempFolder>, Errno> {
        let mut temp = self.temp.lock().unwrap_or_else(PoisonError::into_inner);
        match &*temp {
            Some(folder) if !swept.is_some_and(|swept| Arc::ptr_eq(folder, swept)) => Ok(Arc::clone(folder)),
            _ => Ok(Arc::clone(temp.insert(Arc::new(TempFolder::new(self.root.fd())?)))),
        }
    }

    fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        const OPERATION: &str = "read object";
        let ReadOptions { range, digest } = options;
        let (file, size) = self.open_object(OPERATION, key)?;
        let range = checked_range(key, &range.unwrap_or(0..size), size)?;
        if range.len() > MAX_OBJECT_BYTES {
            return Err(Error::corrupt(OPERATION, "the file is larger than an object can be; no store wrote it")
                .with("path", self.path_of(key).display())
                .with("size", size)
                .with("limit", MAX_OBJECT_BYTES));
        }
        let bytes = read_range(&file, range.start as u64, range.len()).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt(OPERATION, "the file became shorter while it was read")
                .with("path", self.path_of(key).display()),
            _ => disk_error(OPERATION, &self.path_of(key), error),
        })?;
        ReadOptions { range: None, digest }.apply(key, bytes.into())
    }

    fn head(&self, key: &Key) -> Result<ObjectMeta> {
        const OPERATION: &str = "head object";
        let failed = |error: Errno| disk_error(OPERATION, &self.path_of(key), error);
        let (folder, name) = split(key.as_str());
        let found = match self.root.find_folder(folder).map_err(failed)? {
            Some(folder) => root::object_meta(&folder, name, key).map_err(failed)?,
            None => None,
        };
        found.ok_or_else(|| Error::not_found(OPERATION, "no such object").with("key", key))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let failed = |error: Errno| disk_error("delete object", &self.path_of(key), error);
        let (folder, name) = split(key.as_str());
        let Some(folder) = self.root.find_folder(folder).map_err(failed)? else { return Ok(()) };
        // Only objects are ours to remove.
        if root::kind_of(&folder, name).map_err(failed)? != Some(Kind::Object) {
            return Ok(());
        }
        match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn open_object(&self, operation: &'static str, key: &Key) -> Result<(File, u64)> {
        let failed = |error: io::Error| disk_error(operation, &self.path_of(key), error);
        let opened = self.root.open_file(key.as_str()).map_err(|error| failed(error.into()))?;
        let Some(file) = opened else { return Err(Error::not_found(operation, "no such object").with("key", key)) };
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(Error::not_found(operation, "no such object").with("key", key));
        }
        Ok((file, meta.len()))
    }

    fn path_of(&self, key: &Key) -> PathBuf {
        self.root.path().join(key.as_str())
    }
}

fn read_range(mut file: &File, start: u64, length: usize) -> io::Result<Vec<u8>> {
    if start > 0 {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start)?;
        return Ok(bytes);
    }
    // From the start the buffer need not be zeroed first.
    let mut bytes = Vec::with_capacity(length);
    Read::by_ref(&mut file).take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_names_the_folder_of_temporary_files() {
        assert!(Key::new(temp::NAME).is_err());
    }
}
