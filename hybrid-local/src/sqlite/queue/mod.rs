mod table;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::select;
use hybrid_core::{
    Clock, DeadLetter, DeadLetters, Delivery, Depth, Error, Guarantees, JobQueue, MessageId, NewMessage, Receipt,
    ReceiveOptions, Result, SystemClock, check_delay,
};
use tokio::sync::Notify;

use super::{
    database,
    writer::{Access, Writer},
};
use table::{Instant, Lease, Table};

/// The most messages that one [`receive`](JobQueue::receive) answers with.
const MAX_RECEIVE: usize = 256;

/// How a [`SqliteQueue`] behaves.
#[derive(Clone, Debug)]
pub struct SqliteQueueOptions {
    /// How many deliveries a message may have, at least one; five by default. Processes on one file should agree; each judges by its own.
    pub max_deliveries: u32,
    /// How often a waiting receiver looks for messages that another process has sent; 100 ms by default. Those of this process wake it at once.
    pub poll_interval: Duration,
    /// Where the time comes from. All processes on one file must have clocks with one origin, as [`SystemClock`] on one machine has.
    pub clock: Arc<dyn Clock>,
}

impl Default for SqliteQueueOptions {
    fn default() -> Self {
        Self { max_deliveries: 5, poll_interval: Duration::from_millis(100), clock: Arc::new(SystemClock) }
    }
}

/// A [`JobQueue`] with [`DeadLetters`] in one SQLite file. Clones share it, and so may several processes of one machine.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let scratch = tempfile::tempdir().unwrap();
/// # let path = scratch.path().join("queue.db");
/// use hybrid_core::{JobQueue, JobQueueExt, NewMessage, ReceiveOptions};
/// use hybrid_local::{SqliteQueue, SqliteQueueOptions};
///
/// let queue = SqliteQueue::open(&path, SqliteQueueOptions::default())?;
/// queue.send_one(NewMessage::new("bake")).await?;
/// let deliveries = queue.receive(ReceiveOptions::default()).await?;
/// assert_eq!(deliveries[0].body, "bake");
/// queue.ack_one(&deliveries[0].receipt).await?;
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// - Every change is durable when it is answered: the write-ahead log is on the disk (`synchronous=FULL`, on macOS `F_FULLFSYNC`). Calls that come together
///   share one commit; if that fails each is tried alone, so that one which does not fit on the disk leaves the others alone.
/// - Leases are exclusive and depths exact, across processes. Messages come in the order in which they became ready.
/// - A receive that is dropped gives back what it has leased, as if it had not been delivered.
/// - A full disk is [`StorageFull`](hybrid_core::ErrorKind::StorageFull), a damaged file [`Corrupt`](hybrid_core::ErrorKind::Corrupt), a file that a newer release wrote
///   [`Unsupported`](hybrid_core::ErrorKind::Unsupported); another process that writes for more than ten seconds on end is [`Unavailable`](hybrid_core::ErrorKind::Unavailable).
///
/// # Time
/// Leases and delays are points on [`Clock::monotonic`], which on Linux and macOS counts from the start of the machine and so is the same for all its
/// processes; wall-clock time is stored for people to read and decides nothing. A process reads the clock only while it holds the database's write
/// lock, so what it finds stored is never later than now, unless it comes from before a restart of the machine. Such leases end when the queue
/// is next opened (their holders are gone) and such delays begin anew. Where the new clock has already passed the old, what is left of a lease or
/// a delay is waited for, never more than its own length. Either way none ends early.
///
/// The file must lie on a local file system: SQLite's log does not work over a network.
#[derive(Clone)]
pub struct SqliteQueue {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    table: Table,
    poll_interval: Duration,
    changed: Arc<Notify>,
    path: Arc<Path>,
}

impl SqliteQueue {
    /// Opens the queue at `path`; the file and the folders above it are made if they do not exist.
    ///
    /// # Errors
    /// Those of the disk and of a file that is not a queue; each names the path.
    pub fn open(path: impl AsRef<Path>, options: SqliteQueueOptions) -> Result<Self> {
        let path = path.as_ref();
        let SqliteQueueOptions { max_deliveries, poll_interval, clock } = options;
        let table = Table { max_deliveries: max_deliveries.max(1), clock };
        let db = database::open(path, &table::FORMAT, |db| table.settle(db))?;
        let writer = Writer::start(db, path)?;
        let poll_interval = poll_interval.max(Duration::from_millis(1));
        Ok(Self { inner: Arc::new(Inner { writer, table, poll_interval, changed: Arc::default(), path: path.into() }) })
    }

    /// Runs `work` as a durable change that lets messages become ready.
    async fn change<A: Send + 'static>(
        &self,
        operation: &'static str,
        mut work: impl FnMut(&Table, &rusqlite::Connection) -> rusqlite::Result<A> + Send + 'static,
    ) -> Result<A> {
        let (table, changed) = (self.inner.table.clone(), Arc::clone(&self.inner.changed));
        let done = move |answer| {
            changed.notify_waiters();
            answer
        };
        self.inner.writer.call(operation, Access::Write, move |db| work(&table, db), done).await
    }

    /// Leases what is ready, or says when something may be.
    async fn lease(&self, max: usize, lease: Duration) -> Result<(Vec<Delivery>, Option<Instant>)> {
        let table = self.inner.table.clone();
        let holder = Arc::clone(&self.inner);
        let work = move |db: &rusqlite::Connection| {
            let deliveries = table.lease(db, max, lease)?;
            let next = if deliveries.is_empty() { table.next_ready(db)? } else { None };
            Ok((deliveries, next))
        };
        // Only what is committed may be given back: the names of leases that were rolled back are used again.
        let done = move |(deliveries, next)| (Handover { deliveries, holder }, next);
        let (mut handover, next) = self.inner.writer.call("receive messages", Access::Write, work, done).await?;
        Ok((std::mem::take(&mut handover.deliveries), next))
    }
}

/// Deliveries on their way to a receiver: if that is gone they go back.
struct Handover {
    deliveries: Vec<Delivery>,
    holder: Arc<Inner>,
}

impl Drop for Handover {
    fn drop(&mut self) {
        let leases: Vec<Lease> =
            self.deliveries.drain(..).filter_map(|delivery| Lease::parse(&delivery.receipt).ok()).collect();
        if leases.is_empty() {
            return;
        }
        let (table, changed) = (self.holder.table.clone(), Arc::clone(&self.holder.changed));
        self.holder.writer.spawn("give messages back", move |db| {
            for lease in &leases {
                table.give_back(db, *lease)?;
            }
            // Receivers of this process look through this thread, after the commit.
            changed.notify_waiters();
            Ok(())
        });
    }
}

impl fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteQueue").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl JobQueue for SqliteQueue {
    fn guarantees(&self) -> Guarantees {
        Guarantees { exclusive_lease: true, exact_depth: true, ordered: false, free_release: true }
    }

    async fn send(&self, messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        let (good, mut answers) = sort_out(messages, NewMessage::validate);
        if !good.is_empty() {
            let ids = self.change("send messages", move |table, db| table.insert(db, &good)).await?;
            fill(&mut answers, ids.into_iter().map(|id| Ok(MessageId(id.to_string()))));
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        let ReceiveOptions { max, wait, lease } = options;
        let Inner { writer, table, poll_interval, changed, .. } = &*self.inner;
        let clock = &table.clock;
        let end = clock.monotonic().plus(wait);
        loop {
            // Listening starts before the look, so that a message sent in between is not missed.
            let mut listen = std::pin::pin!(changed.notified());
            listen.as_mut().enable();
            let (deliveries, mut next) = self.lease(max.clamp(1, MAX_RECEIVE), lease).await?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            // Until something is ready a look takes no lock and writes nothing.
            loop {
                let now = clock.monotonic();
                let left = end.since(now);
                if left.is_zero() {
                    return Ok(Vec::new());
                }
                let until_ready = next.map_or(Duration::MAX, |next| next.since(now));
                if until_ready.is_zero() {
                    break;
                }
                select(listen.as_mut(), clock.sleep(left.min(until_ready).min(*poll_interval))).await;
                listen.set(changed.notified());
                listen.as_mut().enable();
                let table = table.clone();
                next =
                    writer.call("receive messages", Access::Read, move |db| table.next_ready(db), |next| next).await?;
            }
        }
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        let parsed = leases.iter().map(|(receipt, time)| Ok((Lease::parse(receipt)?, *time)));
        let (good, mut answers) = separate(parsed);
        if !good.is_empty() {
            // A lease may be made shorter, too.
            let work = move |table: &Table, db: &rusqlite::Connection| {
                good.iter()
                    .map(|(lease, time)| Ok(lease.held(table.extend(db, *lease, *time)?)))
                    .collect::<rusqlite::Result<Vec<_>>>()
            };
            fill(&mut answers, self.change("extend leases", work).await?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let (good, mut answers) = separate(receipts.iter().map(Lease::parse));
        if !good.is_empty() {
            let table = self.inner.table.clone();
            let work = move |db: &rusqlite::Connection| {
                good.iter().map(|lease| Ok(lease.held(table.remove(db, *lease)?))).collect::<rusqlite::Result<Vec<_>>>()
            };
            fill(&mut answers, self.inner.writer.call("ack messages", Access::Write, work, |done| done).await?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        let parsed = receipts.iter().map(|(receipt, delay)| {
            check_delay(*delay)?;
            Ok((Lease::parse(receipt)?, *delay))
        });
        let (good, mut answers) = separate(parsed);
        if !good.is_empty() {
            let work = move |table: &Table, db: &rusqlite::Connection| {
                good.iter()
                    .map(|(lease, delay)| Ok(lease.held(table.release(db, *lease, *delay)?)))
                    .collect::<rusqlite::Result<Vec<_>>>()
            };
            fill(&mut answers, self.change("nack messages", work).await?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let (good, mut answers) = separate(receipts.iter().map(Lease::parse));
        if !good.is_empty() {
            let work = move |table: &Table, db: &rusqlite::Connection| {
                good.iter()
                    .map(|lease| Ok(lease.held(table.give_back(db, *lease)?)))
                    .collect::<rusqlite::Result<Vec<_>>>()
            };
            fill(&mut answers, self.change("release messages", work).await?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn depth(&self) -> Result<Depth> {
        let table = self.inner.table.clone();
        self.inner.writer.call("count messages", Access::Read, move |db| table.depth(db), |depth| depth).await
    }
}

#[async_trait]
impl DeadLetters for SqliteQueue {
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>> {
        let after = after.map_or(Ok(0), numeric)?;
        let table = self.inner.table.clone();
        self.inner
            .writer
            .call("list dead letters", Access::Write, move |db| table.list_dead(db, max, after), |found| found)
            .await
    }

    async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        let ids = known(ids);
        self.change("redrive dead letters", move |table, db| table.redrive(db, &ids)).await
    }

    async fn purge(&self, ids: &[MessageId]) -> Result<u64> {
        let ids = known(ids);
        let table = self.inner.table.clone();
        self.inner
            .writer
            .call("purge dead letters", Access::Write, move |db| table.purge(db, &ids), |count| count)
            .await
    }
}

/// An id that is not of this queue's making names no letter of it.
fn known(ids: &[MessageId]) -> Vec<i64> {
    ids.iter().filter_map(|id| numeric(id).ok()).collect()
}

fn numeric(id: &MessageId) -> Result<i64> {
    id.0.parse().map_err(|_| Error::invalid("find dead letter", "not an id of this queue").with("id", &id.0))
}

/// Parts the items into those that `check` lets through and, for each item, the answer that is known already.
fn sort_out<T>(items: Vec<T>, check: impl Fn(&T) -> Result<()>) -> (Vec<T>, Vec<Option<Result<MessageId>>>) {
    separate(items.into_iter().map(|item| check(&item).map(|()| item)))
}

fn separate<T, A>(items: impl Iterator<Item = Result<T>>) -> (Vec<T>, Vec<Option<Result<A>>>) {
    let mut good = Vec::new();
    let answers = items.map(|item| item.map(|item| good.push(item)).err().map(Err)).collect();
    (good, answers)
}

/// Fills the gaps that [`separate`] left, in order.
fn fill<A>(answers: &mut [Option<Result<A>>], late: impl IntoIterator<Item = Result<A>>) {
    for (gap, answer) in answers.iter_mut().filter(|answer| answer.is_none()).zip(late) {
        *gap = Some(answer);
    }
}
