//! One thread that owns a database connection and commits for all callers at once.
//!
//! A commit costs an fsync, and while one runs the calls that come in pile up; the thread then runs all of them in one transaction, so that
//! they share the next. If that transaction fails, each call is run again in one of its own: a call that fails leaves the others alone, and
//! the price of that is paid only when something fails. On a full disk the log is emptied first, which may make room.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use hybrid_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, hooks::Action};
use tokio::sync::oneshot;

use super::database::{explain, is_fatal};

/// The most calls that one transaction serves, so that none waits for long.
const MAX_BATCH: usize = 256;

/// Whether a call changes the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// It does not: a transaction of such calls alone takes no lock that others wait for.
    Read,
    /// It does, and is durable when answered.
    Write,
    /// As [`Write`](Self::Write), and when answered the log holds no copy of what it has removed.
    Erase,
    /// As [`Erase`](Self::Erase), and the file has been written anew since anything was removed: where SQLite has moved rows between pages, `secure_delete` leaves copies in the
    /// pages' unused room.
    Rewrite,
}

/// The way to the thread. The thread ends, and closes the database, when the last clone is gone and what was asked is done.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    path: Arc<Path>,
}

impl Writer {
    /// Starts the thread for the database at `path`.
    pub(super) fn start(mut db: Connection, path: &Path) -> Result<Self> {
        let (jobs, incoming) = mpsc::channel();
        let path: Arc<Path> = path.into();
        let owner = path.to_path_buf();
        let leavings = Leavings::watch(&mut db).map_err(|error| explain("open database", &path, &error))?;
        let thread = thread::Builder::new().name("hybrid-sqlite".to_owned());
        thread.spawn(move || serve(&db, leavings, &incoming, &owner)).map_err(|error| {
            Error::new(ErrorKind::ResourceExhausted, "open database", "the system gives no thread")
                .with("path", path.display())
                .with_source(error)
        })?;
        Ok(Self { jobs, path })
    }

    /// Runs `work` in a transaction, and `done` on its answer once that is committed.
    ///
    /// `work` may run again after a transaction that failed. A call that is dropped before its turn is not run at all.
    pub(super) async fn call<A, T>(
        &self,
        operation: &'static str,
        access: Access,
        work: impl FnMut(&Connection) -> rusqlite::Result<A> + Send + 'static,
        done: impl FnOnce(A) -> T + Send + 'static,
    ) -> Result<T>
    where
        A: Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.post(Box::new(Call { operation, access, work, done, answer: None, reply: Some(reply) }));
        answer.await.unwrap_or_else(|_| {
            Err(Error::internal(operation, "the thread that owns the database has ended")
                .with("path", self.path.display()))
        })
    }

    /// Runs `work` in a transaction some time soon; nobody hears how it went.
    pub(super) fn spawn(
        &self,
        operation: &'static str,
        work: impl FnMut(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) {
        self.post(Box::new(Call { operation, access: Access::Write, work, done: |()| (), answer: None, reply: None }));
    }

    fn post(&self, job: Box<dyn Job>) {
        // If the thread has ended the job is dropped here, which its caller sees.
        let _ = self.jobs.send(job);
    }
}

fn serve(db: &Connection, mut leavings: Leavings, incoming: &mpsc::Receiver<Box<dyn Job>>, path: &Path) {
    let mut batch = Vec::new();
    while let Ok(job) = incoming.recv() {
        batch.push(job);
        batch.extend(incoming.try_iter().take(MAX_BATCH - 1));
        batch.retain(|job| !job.is_abandoned());
        let outcome = commit(db, &mut batch);
        let is_full = outcome.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull));
        if is_full {
            give_space_back(db);
        }
        let run_alone = is_full || batch.len() > 1 && outcome.as_ref().is_err_and(|error| !is_fatal(error));
        // One cleaning, the most thorough that is asked for, serves all of the batch.
        let wanted = batch.iter().map(|job| job.access()).max();
        let mut cleaned = None;
        for mut job in batch.drain(..) {
            let alone = run_alone.then(|| commit(db, std::slice::from_mut(&mut job)));
            let mut outcome = alone.as_ref().unwrap_or(&outcome).as_ref().copied();
            if job.access() >= Access::Erase && outcome.is_ok() {
                if run_alone || cleaned.is_none() {
                    let thorough = if run_alone { Some(job.access()) } else { wanted };
                    cleaned = Some(leavings.clean(db, thorough == Some(Access::Rewrite)));
                }
                outcome = cleaned.as_ref().map_or(outcome, |cleaned| cleaned.as_ref().copied());
            }
            job.finish(outcome, path);
        }
    }
}

/// Runs the jobs in one transaction.
fn commit(db: &Connection, jobs: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    let begin = match jobs.iter().all(|job| job.access() == Access::Read) {
        false => "BEGIN IMMEDIATE",
        true if jobs.is_empty() => return Ok(()),
        true => "BEGIN",
    };
    run(db, begin)?;
    let outcome = jobs.iter_mut().try_for_each(|job| job.run(db)).and_then(|()| run(db, "COMMIT"));
    // SQLite has rolled back by itself after some errors.
    if outcome.is_err() && !db.is_autocommit() {
        run(db, "ROLLBACK")?;
    }
    outcome
}

/// What may be left in the file of what was removed from it.
struct Leavings {
    /// Whether anything was removed or replaced since the file was last written anew. What was before is not known.
    removed: Arc<AtomicBool>,
    /// SQLite's `data_version` when it was: another process that changes the file gives it another.
    version: Option<i64>,
}

impl Leavings {
    fn watch(db: &mut Connection) -> rusqlite::Result<Self> {
        let removed = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&removed);
        let watch = move |action: Action, _: &str, table: &str, _: i64| {
            // Other tables are updated for their counters.
            if action == Action::SQLITE_DELETE || action == Action::SQLITE_UPDATE && table == "records" {
                seen.store(true, Ordering::Relaxed);
            }
        };
        db.update_hook(Some(watch))?;
        Ok(Self { removed, version: None })
    }

    /// Moves what the log holds into the database and cuts it off; with `rewrite` the file is written anew first, unless nothing can be left in it. A reader of
    /// another process that still needs the log makes it busy.
    fn clean(&mut self, db: &Connection, rewrite: bool) -> rusqlite::Result<()> {
        let version = db.pragma_query_value(None, "data_version", |row| row.get(0))?;
        let rewrite = rewrite && (self.removed.load(Ordering::Relaxed) || self.version != Some(version));
        if rewrite {
            run(db, "VACUUM")?;
        }
        let is_busy: bool = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
        if is_busy {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(busy, Some("the log still holds copies".to_owned())));
        }
        if rewrite {
            self.removed.store(false, Ordering::Relaxed);
            self.version = Some(version);
        }
        Ok(())
    }
}

/// On a full disk the log's own space may be what is missing: moves what it holds into the database and cuts it off.
fn give_space_back(db: &Connection) {
    let checkpoint = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
    if let Err(error) = checkpoint {
        tracing::debug!(%error, "the log of the full disk could not be cut off");
    }
}

fn run(db: &Connection, statement: &str) -> rusqlite::Result<()> {
    db.prepare_cached(statement)?.execute(()).map(|_| ())
}

trait Job: Send {
    fn access(&self) -> Access;
    fn is_abandoned(&self) -> bool;
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn finish(self: Box<Self>, outcome: Result<(), &rusqlite::Error>, path: &Path);
}

struct Call<A, T, W, D> {
    operation: &'static str,
    access: Access,
    work: W,
    done: D,
    answer: Option<A>,
    reply: Option<oneshot::Sender<Result<T>>>,
}

impl<A, T, W, D> Job for Call<A, T, W, D>
where
    A: Send,
    T: Send,
    W: FnMut(&Connection) -> rusqlite::Result<A> + Send,
    D: FnOnce(A) -> T + Send,
{
    fn access(&self) -> Access {
        self.access
    }

    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.answer = Some((self.work)(db)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), &rusqlite::Error>, path: &Path) {
        let Self { operation, done, answer, reply, .. } = *self;
        let answer = match (outcome, answer) {
            (Ok(()), Some(answer)) => Ok(done(answer)),
            (Ok(()), None) => Err(Error::internal(operation, "the call was committed without an answer")),
            (Err(error), _) => Err(explain(operation, path, error)),
        };
        match reply {
            // A caller that has gone needs no answer.
            Some(reply) => drop(reply.send(answer)),
            None => {
                if let Err(error) = answer {
                    tracing::warn!(%error, "a background change of the database failed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn writer(scratch: &tempfile::TempDir) -> Writer {
        let path = scratch.path().join("numbers");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE numbers (number INTEGER CHECK (number < 100), batch INTEGER)").unwrap();
        Writer::start(db, &path).unwrap()
    }

    fn insert(writer: &Writer, number: i64) -> impl Future<Output = Result<()>> {
        let insert =
            move |db: &Connection| db.execute("INSERT INTO numbers (number) VALUES (?1)", [number]).map(|_| ());
        writer.call("insert", Access::Write, insert, |()| ())
    }

    async fn count(writer: &Writer) -> i64 {
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM numbers", (), |row| row.get(0));
        writer.call("count", Access::Read, count, |count| count).await.unwrap()
    }

    /// Holds the thread until the sender given back is dropped, so that what is called meanwhile comes into one batch.
    fn hold(writer: &Writer) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel();
        writer.spawn("hold", move |_| {
            let _ = held.recv();
            Ok(())
        });
        release
    }

    #[tokio::test]
    async fn calls_that_wait_together_share_a_commit() {
        let scratch = tempfile::tempdir().unwrap();
        let writer = writer(&scratch);
        let other = Connection::open(scratch.path().join("numbers")).unwrap();
        let version = || -> i64 { other.pragma_query_value(None, "data_version", |row| row.get(0)).unwrap() };
        let before = version();
        let release = hold(&writer);
        let calls = join_all((0..50).map(|number| insert(&writer, number)));
        let (answers, ()) = tokio::join!(calls, async { drop(release) });
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!((count(&writer).await, version()), (50, before + 1));
    }

    #[tokio::test]
    async fn a_call_that_fails_leaves_the_others_of_its_batch_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let writer = writer(&scratch);
        let release = hold(&writer);
        let calls = join_all([1, 100, 2, 101, 3].map(|number| insert(&writer, number)));
        let (answers, ()) = tokio::join!(calls, async { drop(release) });
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false, true]);
        assert_eq!(count(&writer).await, 3);
    }

    #[tokio::test]
    async fn a_file_is_written_anew_only_where_something_was_removed_since() {
        let scratch = tempfile::tempdir().unwrap();
        let writer = writer(&scratch);
        let other = Connection::open(scratch.path().join("numbers")).unwrap();
        other.execute_batch("CREATE TABLE records (number INTEGER)").unwrap();
        // SQLite counts a file written anew as a change of its schema.
        let version = || -> i64 { other.pragma_query_value(None, "schema_version", |row| row.get(0)).unwrap() };
        let change = async |statement: &'static str| {
            let change = move |db: &Connection| db.execute(statement, ()).map(drop);
            writer.call("change", Access::Write, change, |()| ()).await.unwrap();
        };
        let rewrites = async || {
            let before = version();
            writer.call("erase", Access::Rewrite, |_| Ok(()), |()| ()).await.unwrap();
            version() != before
        };
        assert!(rewrites().await, "what was before is not known");
        assert!(!rewrites().await);
        change("INSERT INTO records VALUES (1), (2), (3)").await;
        change("INSERT INTO numbers (number) VALUES (1)").await;
        change("UPDATE numbers SET number = 2").await;
        assert!(!rewrites().await, "nothing was removed");
        for statement in ["UPDATE records SET number = 4 WHERE number = 1", "DELETE FROM records WHERE number = 2"] {
            change(statement).await;
            assert!(rewrites().await && !rewrites().await, "{statement}");
        }
        other.execute("DELETE FROM records WHERE number = 3", ()).unwrap();
        assert!(rewrites().await, "another process may have removed something");
        assert!(!rewrites().await);
    }

    #[tokio::test]
    async fn a_call_dropped_before_its_turn_is_not_run() {
        let scratch = tempfile::tempdir().unwrap();
        let writer = writer(&scratch);
        let release = hold(&writer);
        let mut dropped = Box::pin(insert(&writer, 1));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        drop(dropped);
        drop(release);
        assert_eq!(count(&writer).await, 0);
    }
}
