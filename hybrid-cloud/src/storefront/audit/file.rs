//! The audit log in a folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use hybrid_core::{BoxFuture, Error, ErrorKind, Note, Result, WriterId};
use tokio::sync::oneshot;

use super::{
    AuditEntry, AuditSink,
    chain::{self, Link, segments},
};

const APPEND: &str = "append audit entry";
const OPEN: &str = "open audit log";
/// Entries that are written and synced together at most.
const GROUP: usize = 1024;
/// What a segment may have at most, so that a bucket takes it: an object has at most 16 MiB.
const MOST_BYTES: u64 = 15 * 1024 * 1024;
/// What an entry may have at most, so that one in a segment of its own is within [`MOST_BYTES`] with the segment's head.
const ENTRY_BYTES: usize = 14 * 1024 * 1024;
/// What a line has beside its entry: number and digest.
const LINE_BYTES: u64 = 128;

/// How an [`AuditLog`] writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLogOptions {
    /// A segment is sealed before it grows over this many bytes; an entry that is larger has one to itself. 4 MiB by default, at most 15 MiB.
    pub segment_bytes: u64,
    /// Entries that may wait to be written; more are refused. 8192 by default.
    pub queue: usize,
    /// Whether an entry is durable only once the disk has it, so that it outlives a power failure. Without it an entry outlives the process alone.
    /// On by default.
    pub sync: bool,
}

impl Default for AuditLogOptions {
    fn default() -> Self {
        Self { segment_bytes: 4 * 1024 * 1024, queue: 8192, sync: true }
    }
}

/// An append-only log of audit entries in a folder, chained by hashes.
///
/// # Behavior
/// - Entries that wait are written and synced together, so that many callers share one wait for the disk.
/// - Opening it verifies the last segment and cuts off what a crash left half-written, which no caller was told is kept. A line that is broken
///   in any other way is an error: somebody has to look.
/// - What was asked and answered is left out of an entry that would have over 14 MiB with it, and a note `content_left_out` says so.
/// - A write that fails, as on a full disk, is taken back and its callers are told; the next entries are tried anew. If it cannot be taken back
///   the log refuses everything until it is opened again.
/// - One process at a time: the folder is locked.
///
/// Whoever can write to the folder can write a new chain. [Shipped](Self::ship) segments lie where nothing can be overwritten.
#[derive(Debug)]
pub struct AuditLog {
    pub(super) folder: PathBuf,
    pub(super) writer: WriterId,
    // `None` once the log is being dropped: the thread ends when nobody can send to it.
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    /// One shipment at a time.
    pub(super) shipping: Arc<tokio::sync::Mutex<()>>,
    _lock: File,
}

enum Order {
    Append(String, oneshot::Sender<Result<()>>),
    /// Ends the segment, if it has any entries.
    Seal(oneshot::Sender<Result<()>>),
}

impl AuditLog {
    /// Opens the log of `writer` in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where another process has it open, [`Corrupt`](ErrorKind::Corrupt) for a broken or another
    /// writer's log, [`InvalidInput`](ErrorKind::InvalidInput) for options that cannot be.
    pub fn open(folder: impl Into<PathBuf>, writer: WriterId, options: AuditLogOptions) -> Result<Self> {
        let folder = folder.into();
        if !(1..=MOST_BYTES).contains(&options.segment_bytes) || options.queue == 0 {
            return Err(Error::invalid(OPEN, "segment_bytes must be 1 to 15 MiB, and queue at least 1"));
        }
        let failed = |error: io::Error| failed(OPEN, &folder, &error);
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(failed)?;
        if lock.try_lock().is_err() {
            let taken = Error::already_exists(OPEN, "another process has the log open; stop it or take another folder");
            return Err(taken.with("folder", folder.display()));
        }
        let segment = Segment::resume(&folder, &writer, &options)?;
        let (orders, received) = sync_channel(options.queue);
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || segment.serve(&received))
            .map_err(|error| Error::internal(OPEN, "no thread can be started").with_source(error))?;
        Ok(Self { folder, writer, orders: Some(orders), thread: Some(thread), shipping: Arc::default(), _lock: lock })
    }

    /// Ends the segment that is being written, so that it can be [shipped](Self::ship). Nothing happens where it has no entries.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn seal(&self) -> Result<()> {
        let (done, sealed) = oneshot::channel();
        self.order(Order::Seal(done))?;
        sealed.await.map_err(|_| gone())?
    }

    fn order(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => Error::unavailable(APPEND, "too many entries wait to be written"),
            TrySendError::Disconnected(_) => gone(),
        })
    }
}

impl AuditSink for AuditLog {
    fn append(&self, entry: AuditEntry) -> BoxFuture<'static, Result<()>> {
        let (done, durable) = oneshot::channel();
        let queued = encode(entry).and_then(|entry| self.order(Order::Append(entry, done)));
        Box::pin(async move {
            queued?;
            durable.await.map_err(|_| gone())?
        })
    }
}

impl Drop for AuditLog {
    /// Writes what waits.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The entry as JSON, without its content where that is too much.
fn encode(mut entry: AuditEntry) -> Result<String> {
    let json = |entry: &AuditEntry| {
        serde_json::to_string(entry).map_err(|error| Error::internal(APPEND, "the entry is no JSON").with_source(error))
    };
    let text = json(&entry)?;
    if text.len() <= ENTRY_BYTES {
        return Ok(text);
    }
    entry.content = None;
    let detail = format!("the entry had {} bytes with it, and may have {ENTRY_BYTES}", text.len());
    entry.notes.push(Note { code: "content_left_out".to_owned(), detail });
    let text = json(&entry)?;
    if text.len() > ENTRY_BYTES {
        return Err(Error::too_large(APPEND, "the entry is over the limit without its content, too")
            .with("bytes", text.len())
            .with("limit", ENTRY_BYTES));
    }
    Ok(text)
}

fn gone() -> Error {
    Error::internal(APPEND, "the audit log's thread has ended")
}

fn failed(operation: &'static str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation, "the disk refused").with("path", path.display()).with_source(error.to_string())
}

/// The segment that is being written.
struct Segment {
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
    fn resume(folder: &Path, writer: &WriterId, options: &AuditLogOptions) -> Result<Self> {
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
        let path = folder.join(format!("{:020}.jsonl", link.seq));
        let failed = |error: io::Error| failed(OPEN, &path, &error);
        // A segment is there with its head or not at all: on a full disk the next try begins anew.
        let fresh = folder.join("next");
        let mut file = File::create(&fresh).map_err(failed)?;
        let mut head = Vec::new();
        link.write_head(writer, &mut head)?;
        file.write_all(&head).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        // The name must outlive a crash as the bytes do.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
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

    /// Carries out orders until nobody can give any more.
    fn serve(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut group = vec![first];
            group.extend(orders.try_iter().take(GROUP - 1));
            let mut waiting = Vec::with_capacity(group.len());
            let mut text = Vec::new();
            let mut link = self.link.clone();
            for order in group {
                match order {
                    Order::Append(entry, done) => {
                        let line = entry.len() as u64 + LINE_BYTES;
                        let full = self.length + text.len() as u64 + line > self.options.segment_bytes;
                        if full && link.seq - self.link.seq + self.entries > 0 {
                            self.commit(&mut text, &mut link, &mut waiting);
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
                        let sealed = if self.entries > 0 { self.next() } else { Ok(()) };
                        link = self.link.clone();
                        // Whoever asked may have gone.
                        let _ = done.send(sealed);
                    }
                }
            }
            self.commit(&mut text, &mut link, &mut waiting);
        }
    }

    /// Makes `text` durable and tells who waits for it. On failure nothing of it is kept.
    fn commit(&mut self, text: &mut Vec<u8>, link: &mut Link, waiting: &mut Vec<oneshot::Sender<Result<()>>>) {
        if text.is_empty() {
            return;
        }
        let written = match &self.lost {
            Some(why) => {
                Err(Error::unavailable(APPEND, "the audit log is lost until it is opened again").with("because", why))
            }
            None => self.write(text).map_err(|error| {
                let back = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0)));
                if let Err(error) = back {
                    self.lost = Some(error.to_string());
                }
                failed(APPEND, &self.path, &error)
            }),
        };
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
        if self.options.sync { self.file.sync_data() } else { Ok(()) }
    }

    /// Seals this segment and begins the next.
    fn next(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|error| failed(APPEND, &self.path, &error))?;
        *self = Self::begin(&self.folder, &self.writer, &self.options, self.link.clone())?;
        Ok(())
    }
}
