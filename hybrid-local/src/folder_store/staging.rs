//! Whole files in a folder: see [`FolderStaging`].

use std::{
    fmt,
    fs::{File, Metadata},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{BoxStream, Error, FileName, Key, MAX_OBJECT_BYTES, Result, StagedFile, Staging};
use rustix::{
    fs::{AtFlags, Dir, unlinkat},
    io::Errno,
};

use super::{
    FolderStore, Inner, on_blocking_thread, read_range,
    root::{Kind, kind_of, size_and_time, split},
};
use crate::disk::disk_error;

const PUT: &str = "stage file";
/// Bytes copied between two looks at whether anybody still waits.
const PIECE: usize = 1024 * 1024;

/// A [`Staging`] place below a [`FolderStore`]'s folder: each file is a file, at the path that its folder and name make.
///
/// # Behavior
/// - A put copies into a private temporary file, makes it durable, and moves it to its name in one step. What a process that dies leaves is swept as the store's own
///   temporary files are.
/// - Two who put one file at once both succeed; the later one's is there.
/// - Symbolic links below the folder are not followed: a listing passes them over, a put takes the place of one.
#[derive(Clone)]
pub struct FolderStaging {
    inner: Arc<Inner>,
}

impl FolderStore {
    /// The place for whole files below this store's folder.
    pub fn staging(&self) -> FolderStaging {
        FolderStaging { inner: Arc::clone(&self.inner) }
    }
}

impl fmt::Debug for FolderStaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FolderStaging").field("path", &self.inner.root.path()).finish_non_exhaustive()
    }
}

impl FolderStaging {
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        on_blocking_thread(move || work(&inner)).await?
    }
}

#[async_trait]
impl Staging for FolderStaging {
    async fn put_file(&self, folder: &Key, name: &FileName, source: &Path) -> Result<()> {
        let (target, source) = (path_of(folder, name), source.to_owned());
        let wanted = Wanted::new();
        let _guard = wanted.guard();
        self.blocking(move |inner| inner.put_staged(&target, &source, &wanted)).await
    }

    async fn read_file(&self, folder: &Key, name: &FileName) -> Result<Bytes> {
        let path = path_of(folder, name);
        self.blocking(move |inner| inner.read_staged(&path)).await
    }

    fn list(&self, folder: &Key) -> BoxStream<'static, Result<StagedFile>> {
        let (this, folder) = (self.clone(), folder.as_str().to_owned());
        let files = async move {
            let files = this.blocking(move |inner| inner.list_staged(&folder)).await?;
            Result::Ok(stream::iter(files.into_iter().map(Ok)))
        };
        stream::once(files).try_flatten().boxed()
    }

    async fn delete(&self, folder: &Key, name: &FileName) -> Result<()> {
        let path = path_of(folder, name);
        self.blocking(move |inner| inner.delete_staged(&path)).await
    }

    fn location(&self, folder: &Key) -> String {
        format!("{}/{folder}/", self.inner.root.path().display())
    }
}

fn path_of(folder: &Key, name: &FileName) -> String {
    format!("{folder}/{name}")
}

impl Inner {
    fn put_staged(&self, target: &str, source: &Path, wanted: &Wanted) -> Result<()> {
        let failed = |error: Errno| disk_error(PUT, &self.root.path().join(target), error);
        let mut source = Source::open(source)?;
        let (folder_name, name) = split(target);
        let folder = self.root.make_folder(folder_name).map_err(failed)?;
        let temp = self.temp_folder(None).map_err(failed)?;
        let copied = match temp.fill(|file| source.copy_to(file, wanted)) {
            // Somebody has swept the folder of temporary files away, before the first byte.
            Err(Stop::Target(Errno::NOENT)) => {
                let temp = self.temp_folder(Some(&temp)).map_err(failed)?;
                temp.fill(|file| source.copy_to(file, wanted))
            }
            other => other,
        };
        let copied = copied.map_err(|stop| match stop {
            Stop::Target(error) => failed(error),
            Stop::Source(error) => error,
        })?;
        wanted.while_waited_for(|| copied.rename(folder.fd(), name).map_err(failed))?;
        folder.sync().map_err(failed)
    }

    fn read_staged(&self, path: &str) -> Result<Bytes> {
        const OPERATION: &str = "read staged file";
        let at = self.root.path().join(path);
        let missing = || Error::not_found(OPERATION, "no such file").with("path", at.display());
        let opened = self.root.open_file(path).map_err(|error| disk_error(OPERATION, &at, error))?;
        let file = opened.ok_or_else(missing)?;
        let meta = file.metadata().map_err(|error| disk_error(OPERATION, &at, error))?;
        if !meta.is_file() {
            return Err(missing());
        }
        if meta.len() > MAX_OBJECT_BYTES as u64 {
            return Err(Error::too_large(OPERATION, "the file is over the limit of what is read in one piece")
                .with("path", at.display())
                .with("size", meta.len())
                .with("limit", MAX_OBJECT_BYTES));
        }
        let bytes = read_range(&file, 0, meta.len() as usize).map_err(|error| disk_error(OPERATION, &at, error))?;
        Ok(bytes.into())
    }

    fn list_staged(&self, folder: &str) -> Result<Vec<StagedFile>> {
        let mut found = Vec::new();
        // Folders still to be entered, by their names below the one asked for.
        let mut left = vec![String::new()];
        while let Some(below) = left.pop() {
            let path = format!("{folder}/{below}");
            match self.list_one(&path, &below, &mut left, &mut found) {
                // A folder that went meanwhile has no files.
                Ok(()) | Err(Errno::LOOP) => {}
                Err(error) => return Err(disk_error("list staged files", &self.root.path().join(path), error)),
            }
        }
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn list_one(
        &self,
        path: &str,
        below: &str,
        folders: &mut Vec<String>,
        files: &mut Vec<StagedFile>,
    ) -> Result<(), Errno> {
        let Some(folder) = self.root.find_folder(path)? else { return Ok(()) };
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            // A name that cannot be a staged file's was put here by somebody else; `.` and `..` are such names.
            let Ok(full) = FileName::new(format!("{below}{name}")) else { continue };
            match kind_of(&folder, name)? {
                Some(Kind::Folder) => folders.push(format!("{full}/")),
                Some(Kind::Object) => {
                    let found = size_and_time(&folder, name)?;
                    files.extend(found.map(|(size, modified)| StagedFile { name: full, size, modified }));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn delete_staged(&self, path: &str) -> Result<()> {
        let failed = |error: Errno| disk_error("delete staged file", &self.root.path().join(path), error);
        let (folder, name) = split(path);
        let Some(folder) = self.root.find_folder(folder).map_err(failed)? else { return Ok(()) };
        if kind_of(&folder, name).map_err(failed)? != Some(Kind::Object) {
            return Ok(());
        }
        match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A local file that is to stay as it is while it is copied.
struct Source {
    path: PathBuf,
    file: File,
    meta: Metadata,
}

/// Why a copy ended: by what it is of, or by where it goes.
enum Stop {
    Source(Error),
    Target(Errno),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Target(error)
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let opened = File::open(path).and_then(|file| file.metadata().map(|meta| (file, meta)));
        let (file, meta) = opened.map_err(|error| disk_error(PUT, path, error))?;
        if !meta.is_file() {
            return Err(Error::invalid(PUT, "expected a file").with("path", path.display()));
        }
        Ok(Self { path: path.to_owned(), file, meta })
    }

    fn copy_to(&mut self, target: &mut File, wanted: &Wanted) -> Result<(), Stop> {
        let unreadable = |error| Stop::Source(disk_error(PUT, &self.path, error));
        let mut piece = vec![0; PIECE];
        let mut copied = 0;
        loop {
            wanted.check().map_err(Stop::Source)?;
            let read = self.file.read(&mut piece).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            let written = target.write_all(&piece[..read]);
            written.map_err(|error| Stop::Target(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            copied += read as u64;
        }
        let now = self.file.metadata().map_err(unreadable)?;
        let same = copied == self.meta.len() && now.len() == copied && now.modified().ok() == self.meta.modified().ok();
        if same { Ok(()) } else { Err(Stop::Source(self.changed())) }
    }

    fn changed(&self) -> Error {
        Error::invalid(PUT, "the file changed while it was read").with("path", self.path.display())
    }
}

/// Whether the caller still waits for a put, which goes on on another thread when its future is dropped.
#[derive(Clone)]
struct Wanted(Arc<Mutex<bool>>);

impl Wanted {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(true)))
    }

    fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    fn check(&self) -> Result<()> {
        self.while_waited_for(|| Ok(()))
    }

    /// Does `work` unless the caller has gone; and the caller cannot go meanwhile.
    fn while_waited_for<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_waited_for = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_waited_for {
            return Err(Error::cancelled(PUT, "nobody waits for the file any more"));
        }
        work()
    }
}

struct Guard(Wanted);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}
