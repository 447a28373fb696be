//! The audit log in a folder.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use hybrid_core::{BoxFuture, Error, Note, Result, WriterId};
use tokio::sync::oneshot;

use super::{
    AuditEntry, AuditSink,
    segment::{MOST_BYTES, Order, Segment, failed, line_bytes},
};

pub(super) const APPEND: &str = "append audit entry";
pub(super) const OPEN: &str = "open audit log";
/// Entries that the thread writes and syncs together at most.
const GROUP: usize = 1024;
/// Bytes that a caller writes at most, its own entry and those of others, before it leaves the rest to the thread.
const BY_CALLER: u64 = 32 * 1024;
/// What an entry may have at most, so that one in a segment of its own is within [`MOST_BYTES`] with the segment's head.
const ENTRY_BYTES: usize = 14 * 1024 * 1024;

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
/// - With [`sync`](AuditLogOptions::sync) a thread of the log's own writes and syncs the entries that wait together, so that many callers share one wait
///   for the disk.
/// - Without it a caller that finds nobody writing hands its entry to the system itself, and with it those that come meanwhile, up to 32 KiB: a write
///   into the system's memory, which takes microseconds. Where the system makes a writer wait, since it holds too much that the disk has
///   not, one caller waits at a time, and the others' entries are written after it. Everything that waits for a disk by its nature (a new
///   segment, a sync) and every large entry is left to the thread.
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
    pub(super) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// One shipment at a time.
    pub(super) shipping: Arc<tokio::sync::Mutex<()>>,
    _lock: File,
}

impl AuditLog {
    /// Opens the log of `writer` in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// [`AlreadyExists`](hybrid_core::ErrorKind::AlreadyExists) where another process has it open, [`Corrupt`](hybrid_core::ErrorKind::Corrupt) for a broken or another
    /// writer's log, [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for options that cannot be.
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
        let shared = Arc::new(Shared {
            line: Mutex::default(),
            called: Condvar::new(),
            segment: Mutex::new(segment),
            most: options.queue,
            sync: options.sync,
        });
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.serve()
            })
            .map_err(|error| Error::internal(OPEN, "no thread can be started").with_source(error))?;
        Ok(Self { folder, writer, shared, thread: Some(thread), shipping: Arc::default(), _lock: lock })
    }

    /// Ends the segment that is being written, so that it can be [shipped](Self::ship). Nothing happens where it has no entries.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn seal(&self) -> Result<()> {
        let (done, sealed) = oneshot::channel();
        self.shared.order(Order::Seal(done))?;
        sealed.await.map_err(|_| gone())?
    }
}

impl AuditSink for AuditLog {
    fn append(&self, entry: AuditEntry) -> BoxFuture<'static, Result<()>> {
        let (done, durable) = oneshot::channel();
        let queued = encode(entry).and_then(|entry| self.shared.order(Order::Append(entry, done)));
        Box::pin(async move {
            queued?;
            durable.await.map_err(|_| gone())?
        })
    }
}

impl Drop for AuditLog {
    /// Writes what waits.
    fn drop(&mut self) {
        self.shared.line().closed = true;
        self.shared.called.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What callers and the log's thread share.
pub(super) struct Shared {
    line: Mutex<Line>,
    /// Told when the turn is the thread's, and when the log is closed.
    called: Condvar,
    /// Whose turn it is has it for as long as it writes.
    segment: Mutex<Segment>,
    most: usize,
    sync: bool,
}

/// Orders in the order in which they came.
#[derive(Default)]
struct Line {
    orders: VecDeque<Order>,
    turn: Turn,
    /// Nobody gives any more orders.
    closed: bool,
    /// Nobody knows any more what the file holds.
    broken: bool,
}

/// Who carries out orders. Whoever it is passes the turn on under the line's lock, so that none is left lying.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Nobody,
    Caller,
    Thread,
}

impl Shared {
    fn order(&self, order: Order) -> Result<()> {
        let mut line = self.line();
        if line.broken {
            return Err(gone());
        }
        if line.orders.len() >= self.most {
            return Err(Error::unavailable(APPEND, "too many entries wait to be written").with("limit", self.most));
        }
        line.orders.push_back(order);
        match line.turn {
            Turn::Nobody if self.sync => self.call_thread(line),
            Turn::Nobody => {
                line.turn = Turn::Caller;
                drop(line);
                self.carry_out_some();
            }
            // Whose turn it is comes to it.
            Turn::Caller | Turn::Thread => {}
        }
        Ok(())
    }

    fn call_thread(&self, mut line: MutexGuard<'_, Line>) {
        line.turn = Turn::Thread;
        drop(line);
        self.called.notify_one();
    }

    /// A caller's turn.
    fn carry_out_some(&self) {
        let _guard = IfItPanics(self);
        let mut segment = self.segment();
        let mut left = BY_CALLER.min(segment.room());
        loop {
            let mut line = self.line();
            let mut some = Vec::new();
            while let Some(order) = line.orders.pop_front() {
                match &order {
                    Order::Append(entry, _) if line_bytes(entry) <= left => {
                        left -= line_bytes(entry);
                        some.push(order);
                    }
                    _ => {
                        line.orders.push_front(order);
                        break;
                    }
                }
            }
            if some.is_empty() {
                if line.orders.is_empty() {
                    line.turn = Turn::Nobody;
                } else {
                    self.call_thread(line);
                }
                return;
            }
            drop(line);
            segment.carry_out(some);
        }
    }

    /// The thread's life.
    fn serve(&self) {
        let _guard = IfItPanics(self);
        let mut line = self.line();
        loop {
            match line.turn {
                Turn::Thread if line.orders.is_empty() => line.turn = Turn::Nobody,
                Turn::Thread => {
                    let some = line.orders.len().min(GROUP);
                    let some: Vec<_> = line.orders.drain(..some).collect();
                    drop(line);
                    self.segment().carry_out(some);
                    line = self.line();
                }
                Turn::Nobody | Turn::Caller if line.closed || line.broken => return,
                Turn::Nobody | Turn::Caller => line = self.called.wait(line).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segment(&self) -> MutexGuard<'_, Segment> {
        self.segment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("waiting", &self.line().orders.len()).finish_non_exhaustive()
    }
}

/// Ends the log where whoever writes panics: those who wait are told, and so is whoever comes.
struct IfItPanics<'a>(&'a Shared);

impl Drop for IfItPanics<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut line = self.0.line();
            line.broken = true;
            line.turn = Turn::Nobody;
            line.orders.clear();
            drop(line);
            self.0.called.notify_one();
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
    Error::internal(APPEND, "the audit log broke down; open it again")
}
