//! One file of the log: the segment that is being written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use hybrid_core::{Error, ErrorKind, Result, WriterId};
use tokio::sync::oneshot;

use self::fault::{Step, disk};
use super::{
    chain::{self, Link, segments},
    file::{APPEND, AuditLogOptions, OPEN},
};

/// What a segment may have at most, so that a bucket takes it: an object has at most 16 MiB.
pub(super) const MOST_BYTES: u64 = 15 * 1024 * 1024;
/// What a line has beside its entry: number and digest.
const LINE_BYTES: u64 = 128;

/// Something to do with the log.
pub(super) enum Order {
    /// Keeps an entry, which is JSON.
    Append(String, oneshot::Sender<Result<()>>),
    /// Ends the segment, if it has any entries.
    Seal(oneshot::Sender<Result<()>>),
}

/// The segment that is being written.
pub(super) struct Segment {
    folder: PathBuf,
    writer: WriterId,
    options: AuditLogOptions,
    file: File,
    path: PathBuf,
    /// How long the file is known to be good, and the chain there.
    length: u64,
    link: Link,
    entries: u64,
    /// Why nothing can be written any more.
    lost: Option<String>,
}

impl Segment {
    /// The last segment of a folder, without what a crash left half-written; or the first.
    pub(super) fn resume(folder: &Path, writer: &WriterId, options: &AuditLogOptions) -> Result<Self> {
        let Some((first, name)) = segments(folder)?.pop() else {
            return Self::begin(folder, writer, options, Link::first());
        };
        let path = folder.join(&name);
        let unreadable = |error: io::Error| chain::unreadable(&path, error);
        let bytes = fs::read(&path).map_err(unreadable)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        // The head says where its segment's chain begins; verification from the very first segment is for `verify_folder`.
        let Some(head) = bytes[..whole].split(|&byte| byte == b'\n').next().filter(|head| !head.is_empty()) else {
            // The crash came between making the file and writing its head.
            let link = Self::end_before(folder, first)?;
            fs::remove_file(&path).map_err(unreadable)?;
            return Self::begin(folder, writer, options, link);
        };
        let mut link = Link::at_head(&name, head)?;
        let by = link.follow(&name, &bytes[..whole])?;
        if by != *writer {
            return Err(Error::corrupt(OPEN, "the log is another writer's")
                .with("path", path.display())
                .with("writer", by));
        }
        let mut file = OpenOptions::new().write(true).open(&path).map_err(unreadable)?;
        if whole < bytes.len() {
            tracing::warn!(bytes = bytes.len() - whole, path = %path.display(), "an audit entry that a crash left half-written is cut off");
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(|error| failed(OPEN, &path, &error))?;
        }
        file.seek(SeekFrom::End(0)).map_err(|error| failed(OPEN, &path, &error))?;
        Ok(Self {
            folder: folder.to_owned(),
            writer: writer.clone(),
            options: options.clone(),
            entries: link.seq - first,
            length: whole as u64,
            file,
            path,
            link,
            lost: None,
        })
    }

    /// Where the chain stands before the segment that begins with `first`.
    fn end_before(folder: &Path, first: u64) -> Result<Link> {
        let Some((_, name)) = segments(folder)?.into_iter().rfind(|(other, _)| *other < first) else {
            return Ok(Link::first());
        };
        let path = folder.join(&name);
        let bytes = fs::read(&path).map_err(|error| chain::unreadable(&path, error))?;
        let mut link = Link::at_head(&name, bytes.split(|&byte| byte == b'\n').next().unwrap_or_default())?;
        link.follow(&name, &bytes)?;
        Ok(link)
    }

    fn begin(folder: &Path, writer: &WriterId, options: &AuditLogOptions, mut link: Link) -> Result<Self> {
        let path = segment_path(folder, link.seq);
        let failed = |error: io::Error| failed(OPEN, &path, &error);
        // A segment is there with its head or not at all: on a full disk the next try begins anew.
        let fresh = folder.join("next");
        let mut file = File::create(&fresh).map_err(failed)?;
        let mut head = Vec::new();
        link.write_head(writer, &mut head)?;
        file.write_all(&head).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        // The name must outlive a crash as the bytes do. One that may not is taken back, for the segment before it grows on.
        let named = File::open(folder).and_then(|folder| folder.sync_all()).and_then(|()| disk(Step::Name));
        if let Err(error) = named {
            disk(Step::Unname).and_then(|()| fs::remove_file(&path)).map_err(|left| {
                tracing::error!(error = %left, path = %path.display(), "an audit segment that was begun in vain stays behind");
                failed(left)
            })?;
            return Err(failed(error));
        }
        Ok(Self {
            folder: folder.to_owned(),
            writer: writer.clone(),
            options: options.clone(),
            file,
            length: head.len() as u64,
            entries: 0,
            path,
            link,
            lost: None,
        })
    }

    /// How many bytes of entries fit into this segment, as it stands; none where nothing can be written.
    pub(super) fn room(&self) -> u64 {
        if self.lost.is_some() { 0 } else { self.options.segment_bytes.saturating_sub(self.length) }
    }

    /// Carries out orders, each in its turn; those for entries with one write where they fit into one segment.
    pub(super) fn carry_out(&mut self, orders: impl IntoIterator<Item = Order>) {
        let (mut waiting, mut text) = (Vec::new(), Vec::new());
        let mut link = self.link.clone();
        for order in orders {
            match order {
                Order::Append(entry, done) => {
                    let line = line_bytes(&entry);
                    let full = self.length + text.len() as u64 + line > self.options.segment_bytes;
                    if full && link.seq - self.link.seq + self.entries > 0 {
                        self.commit(&mut text, &mut link, &mut waiting);
                        // Where nothing of it could be kept, this segment is as good as a new one.
                        let next = self.next();
                        link = self.link.clone();
                        if let Err(error) = next {
                            tracing::error!(%error, "no new audit segment");
                            // This one grows on, but never over what the bucket takes.
                            if self.length + line > MOST_BYTES {
                                let _ = done.send(Err(error));
                                continue;
                            }
                        }
                    }
                    link.write_entry(&entry, &mut text);
                    waiting.push(done);
                }
                Order::Seal(done) => {
                    self.commit(&mut text, &mut link, &mut waiting);
                    // Whoever asked may have gone.
                    let _ = done.send(self.next());
                    link = self.link.clone();
                }
            }
        }
        self.commit(&mut text, &mut link, &mut waiting);
    }

    /// Makes `text` durable and tells who waits for it. On failure nothing of it is kept.
    fn commit(&mut self, text: &mut Vec<u8>, link: &mut Link, waiting: &mut Vec<oneshot::Sender<Result<()>>>) {
        if text.is_empty() {
            return;
        }
        let written = self.check().and_then(|()| {
            self.write(text).map_err(|error| {
                let back = disk(Step::Cut).and_then(|()| self.file.set_len(self.length));
                if let Err(error) = back.and_then(|()| self.file.seek(SeekFrom::End(0))) {
                    self.lost = Some(error.to_string());
                }
                failed(APPEND, &self.path, &error)
            })
        });
        match &written {
            Ok(()) => {
                self.length += text.len() as u64;
                self.entries += link.seq - self.link.seq;
                self.link = link.clone();
            }
            Err(error) => {
                tracing::error!(%error, entries = waiting.len(), "audit entries could not be kept");
                *link = self.link.clone();
            }
        }
        text.clear();
        for done in waiting.drain(..) {
            // Each caller gets an error of its own.
            let answer = match &written {
                Ok(()) => Ok(()),
                Err(error) => {
                    Err(Error::new(error.kind(), APPEND, "the entry could not be kept").with_source(error.to_string()))
                }
            };
            let _ = done.send(answer);
        }
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        self.file.write_all(text)?;
        disk(Step::Write)?;
        if self.options.sync { self.file.sync_data() } else { Ok(()) }
    }

    /// Seals this segment and begins the next. Nothing happens where it has no entries: the next would have its name.
    fn next(&mut self) -> Result<()> {
        self.check()?;
        if self.entries == 0 {
            return Ok(());
        }
        self.file.sync_all().map_err(|error| failed(APPEND, &self.path, &error))?;
        match Self::begin(&self.folder, &self.writer, &self.options, self.link.clone()) {
            Ok(next) => *self = next,
            Err(error) => {
                // The head of a next segment that may be there would not follow from this one if it grew on.
                if !matches!(fs::exists(segment_path(&self.folder, self.link.seq)), Ok(false)) {
                    self.lost = Some(error.to_string());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The number of this segment's first entry. What is before it in the folder is sealed.
    pub(super) fn first(&self) -> u64 {
        self.link.seq - self.entries
    }

    /// Refuses where nobody knows what the folder holds.
    fn check(&self) -> Result<()> {
        match &self.lost {
            Some(why) => {
                Err(Error::unavailable(APPEND, "the audit log is lost until it is opened again").with("because", why))
            }
            None => Ok(()),
        }
    }
}

fn segment_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.jsonl"))
}

/// What an entry takes in a segment, at most.
pub(super) fn line_bytes(entry: &str) -> u64 {
    entry.len() as u64 + LINE_BYTES
}

pub(super) fn failed(operation: &'static str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation, "the disk refused").with("path", path.display()).with_source(error.to_string())
}

/// Where a test makes the disk refuse.
mod fault {
    use std::io;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Step {
        /// What was written did not get to the disk whole.
        Write,
        /// It cannot be cut off again.
        Cut,
        /// A new segment's name did not get to the disk.
        Name,
        /// It cannot be removed again.
        Unname,
    }

    #[cfg(not(test))]
    pub(super) fn disk(_: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn disk(step: Step) -> io::Result<()> {
        let refused = REFUSED
            .with_borrow_mut(|steps| steps.iter().position(|refused| *refused == step).map(|at| steps.remove(at)));
        refused.map_or(Ok(()), |_| Err(io::ErrorKind::StorageFull.into()))
    }

    #[cfg(test)]
    thread_local! {
        /// What is refused to this thread, each once.
        pub(super) static REFUSED: std::cell::RefCell<Vec<Step>> = const { std::cell::RefCell::new(Vec::new()) };
    }
}

#[cfg(test)]
mod tests;
