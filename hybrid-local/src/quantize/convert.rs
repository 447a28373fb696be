use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{Cancellation, Digest, Error, ErrorKind, Hasher, Progress, ProgressEvent, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Mix, OPERATION,
    layout::{Layout, Planned},
    mix::format_name,
    verify::verify,
};
use crate::{
    blocking::blocking,
    files::{self, io_error},
};

const STAGE: &str = "quantize";
/// How much is written between two points from which a run goes on.
const SYNC_BYTES: u64 = 64 << 20;

/// Makes a GGUF file of a model in a Hugging Face folder: smaller numbers, one file, its tokenizer and chat template within.
///
/// # Behavior
/// - Takes what [`DecoderLoader`](crate::DecoderLoader) reads of a folder, and writes what it and llama.cpp read: matrices in the formats of
///   a [`Mix`], norms and biases in single precision. A matrix whose rows are no whole blocks gets a format that fits and takes more room;
///   [`Quantized::fallbacks`] names each.
/// - The file appears at its place when it is whole, flushed to the disk and read back; one that was there is replaced. Before that it grows
///   beside its place, as `<file>.part` with `<file>.part.progress`.
/// - A run that was killed, cut off or cancelled goes on where it was when it is made again with the same folder, mix and place, and ends with the same bytes. A
///   folder that has changed, another mix or another name begins anew.
/// - Memory is a few matrices' rows, 32 MiB or so for each processor, however large the model is.
/// - Nothing is written unless the file fits on the disk, where the system says how much is free.
/// - Reading back compares how the file's tokenizer reads a handful of texts with the folder's, so that a way of splitting that the
///   format names but does not describe is not taken for another.
///
/// How good the result is, is measured by [`Comparison`](super::Comparison).
///
/// ```no_run
/// # async fn quantize() -> hybrid_core::Result<()> {
/// use std::sync::Arc;
/// use hybrid_core::{Cancellation, NoProgress};
/// use hybrid_local::quantize::{Mix, Quantizer};
///
/// let quantizer = Quantizer::new(Mix::Q4KM);
/// let made = quantizer.run("models/bakery".as_ref(), "bakery-q4_k_m.gguf".as_ref(), Arc::new(NoProgress), Cancellation::new()).await?;
/// println!("{} bytes", made.bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Quantizer {
    mix: Mix,
    name: Option<String>,
}

/// What a [`Quantizer`] made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantized {
    /// What was asked for.
    pub mix: Mix,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The digest of the file.
    pub digest: Digest,
    /// The bytes of all tensors of each format, by the format's name.
    pub formats: BTreeMap<String, u64>,
    /// Tensors that have another format than the mix says.
    pub fallbacks: Vec<Fallback>,
    /// Tensors of the folder that the model does not use.
    pub left_out: Vec<String>,
    /// What the file says otherwise than the folder, for people.
    pub notes: Vec<String>,
}

/// A tensor whose rows are no whole blocks of the format that the mix says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Its name in the file.
    pub tensor: String,
    /// Numbers of a row.
    pub columns: usize,
    /// The format of the mix.
    pub wanted: String,
    /// The format that it has.
    pub used: String,
}

impl Quantizer {
    /// Makes files of a mix.
    pub fn new(mix: Mix) -> Self {
        Self { mix, name: None }
    }

    /// The same, with another name in the file's `general.name` than that of the folder.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the file `file` of the model in `folder`. Progress counts the file's bytes, in the stage `quantize`.
    ///
    /// Needs a tokio runtime: the work runs on its blocking threads, and on rayon's.
    ///
    /// # Errors
    /// - Those of reading the folder, with the name of what is missing, damaged or unknown.
    /// - [`Unsupported`](ErrorKind::Unsupported) for a tokenizer, or rotary positions, that such files have no words for.
    /// - [`StorageFull`](ErrorKind::StorageFull) with the bytes needed and free, before anything is written.
    /// - [`Unavailable`](ErrorKind::Unavailable) while another run writes the same file.
    /// - [`Cancelled`](ErrorKind::Cancelled); what is written stays for the next run.
    pub async fn run(
        &self,
        folder: &Path,
        file: &Path,
        progress: Arc<dyn Progress>,
        cancel: Cancellation,
    ) -> Result<Quantized> {
        let (this, folder, file) = (self.clone(), folder.to_owned(), file.to_owned());
        blocking(OPERATION, move || this.write(&folder, &file, &*progress, &cancel)).await
    }

    pub(super) fn write(
        &self,
        folder: &Path,
        file: &Path,
        progress: &dyn Progress,
        cancel: &Cancellation,
    ) -> Result<Quantized> {
        let own_name = || folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.name.clone().unwrap_or_else(own_name);
        let (layout, source) = Layout::plan(folder, &name, self.mix)?;
        let mut part = Part::open(file, &layout)?;
        part.fill(&layout, progress, cancel)?;
        verify(&part.path, &source)?;
        let digest = digest(&part.path, cancel)?;
        part.finish(file)?;
        let mut formats = BTreeMap::new();
        for tensor in &layout.tensors {
            *formats.entry(format_name(tensor.format).to_owned()).or_default() += tensor.bytes;
        }
        let bytes = layout.bytes();
        let Layout { fallbacks, left_out, notes, .. } = layout;
        Ok(Quantized { mix: self.mix, bytes, digest, formats, fallbacks, left_out, notes })
    }
}

/// A file on its way.
struct Part {
    path: PathBuf,
    progress: PathBuf,
    /// Open and locked, so that no two runs write it.
    file: File,
    plan: Digest,
    /// How many tensors are durable.
    done: usize,
}

/// How far a file has come.
#[derive(Serialize, Deserialize)]
struct Position {
    plan: Digest,
    tensors: usize,
}

impl Part {
    /// Begins the file, or goes on with what an earlier run of the same plan has left.
    fn open(target: &Path, layout: &Layout) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (path, progress) = (beside(".part"), beside(".part.progress"));
        let fail = |error| io_error(OPERATION, &path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::unavailable(OPERATION, "another run writes the same file; wait for its end")
                    .with("path", path.display()));
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        if !is_named(&file, &path).map_err(fail)? {
            return Err(Error::unavailable(OPERATION, "another run has ended with the same file just now; try again")
                .with("path", path.display()));
        }
        let mut part = Self { plan: layout.digest()?, done: 0, file, path, progress };
        part.done = part.resumed(layout);
        part.check_disk(layout)?;
        Ok(part)
    }

    /// How many tensors an earlier run has left. A record that cannot be read is as good as none.
    fn resumed(&self, layout: &Layout) -> usize {
        let position = fs::read(&self.progress).ok().and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
        let Some(position) = position.filter(|position| position.plan == self.plan) else { return 0 };
        let done = position.tensors.min(layout.tensors.len());
        let needed = done.checked_sub(1).map_or(0, |last| layout.tensors[last].end());
        match self.file.metadata() {
            Ok(meta) if meta.len() >= needed => done,
            _ => 0,
        }
    }

    fn check_disk(&self, layout: &Layout) -> Result<()> {
        let there = self.file.metadata().map_err(|error| io_error(OPERATION, &self.path, error))?.len();
        let needed = layout.bytes().saturating_sub(there);
        let folder = self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        match available_disk(folder) {
            Some(free) if free < needed => {
                let message = "the file does not fit on the disk; free some space, or write it elsewhere";
                Err(Error::new(ErrorKind::StorageFull, OPERATION, message)
                    .with("path", self.path.display())
                    .with("needed", needed)
                    .with("free", free))
            }
            _ => Ok(()),
        }
    }

    /// Writes what is missing.
    fn fill(&mut self, layout: &Layout, progress: &dyn Progress, cancel: &Cancellation) -> Result<()> {
        let total = layout.bytes();
        let report = |tensor: Option<&Planned>, done: u64| {
            let event = ProgressEvent::new(STAGE, done, total, "bytes");
            progress.report(event.with_message(tensor.map_or("", |tensor| &tensor.name)));
        };
        let from = self.done.checked_sub(1).map_or(0, |last| layout.tensors[last].end());
        self.io(|file| {
            file.set_len(from)?;
            file.seek(SeekFrom::Start(from))?;
            if from == 0 { file.write_all(&layout.header) } else { Ok(()) }
        })?;
        report(None, from.max(layout.header.len() as u64));
        let mut synced = from;
        for (number, tensor) in layout.tensors.iter().enumerate().skip(self.done) {
            let mut written = 0;
            for chunks in layout.chunks(tensor).chunks(rayon::current_num_threads()) {
                if cancel.is_cancelled() {
                    return Err(Error::cancelled(OPERATION, "the run was cancelled; it goes on when it is made again"));
                }
                let made = chunks.par_iter().map(|rows| layout.chunk(tensor, rows.clone()));
                for blocks in made.collect::<Result<Vec<_>>>()? {
                    self.io(|file| file.write_all(&blocks))?;
                    written += blocks.len() as u64;
                }
                report(Some(tensor), tensor.offset + written);
            }
            if written != tensor.bytes {
                return Err(Error::internal(OPERATION, "a tensor has another length than was planned")
                    .with("tensor", &tensor.name)
                    .with("found", written)
                    .with("expected", tensor.bytes));
            }
            let padding = vec![0; (tensor.end() - tensor.offset - written) as usize];
            self.io(|file| file.write_all(&padding))?;
            if tensor.end() - synced >= SYNC_BYTES || number + 1 == layout.tensors.len() {
                self.io(|file| file.sync_data())?;
                let position = Position { plan: self.plan, tensors: number + 1 };
                let text = serde_json::to_vec(&position)
                    .map_err(|error| Error::internal(OPERATION, "the position cannot be written").with_source(error))?;
                files::write(&self.progress, &text)?;
                synced = tensor.end();
            }
        }
        report(None, total);
        Ok(())
    }

    /// Gives the whole file its name.
    fn finish(self, target: &Path) -> Result<()> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, target))
            .map_err(|error| io_error(OPERATION, target, error))?;
        files::sync_folder(target)?;
        files::remove(&self.progress)
    }

    fn io(&mut self, work: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
        work(&mut self.file).map_err(|error| io_error(OPERATION, &self.path, error))
    }
}

/// Whether the open file still has its name: one that was renamed between opening and locking is somebody's whole file.
#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    let named = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

// Elsewhere an open file cannot be renamed by another.
#[cfg(not(unix))]
fn is_named(_file: &File, _path: &Path) -> std::io::Result<bool> {
    Ok(true)
}

fn digest(path: &Path, cancel: &Cancellation) -> Result<Digest> {
    let fail = |error| io_error(OPERATION, path, error);
    let (mut file, mut hasher, mut buffer) = (File::open(path).map_err(fail)?, Hasher::new(), vec![0; 1 << 20]);
    loop {
        if cancel.is_cancelled() {
            return Err(Error::cancelled(OPERATION, "the run was cancelled; it goes on when it is made again"));
        }
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// What is free to this user in the file system of `folder`, in bytes, where the system says so.
#[cfg(unix)]
fn available_disk(folder: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(folder).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

#[cfg(not(unix))]
fn available_disk(_folder: &Path) -> Option<u64> {
    None
}
