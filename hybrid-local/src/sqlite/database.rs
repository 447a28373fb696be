//! Opening a database file: durability, schema versions, and one reading of SQLite's errors.

use std::{
    fs::File,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hybrid_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi};

use crate::disk::{self, disk_error};

/// How long a process waits for others that write to the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What a database file holds.
pub(super) struct Format {
    /// Written into the file's header (SQLite's `application_id`), so that one kind of file is never taken for another.
    pub(super) application_id: i32,
    /// What the errors call it.
    pub(super) name: &'static str,
    /// The statements that bring a file from version *n* (SQLite's `user_version`) to *n + 1*.
    pub(super) migrations: &'static [&'static str],
}

/// Opens or makes the file at `path`, with `prepare` run in the transaction that makes it ready.
pub(super) fn open(
    path: &Path,
    format: &Format,
    prepare: impl Fn(&Connection) -> rusqlite::Result<()>,
) -> Result<Connection> {
    const OPERATION: &str = "open database";
    let give_up = Instant::now() + LOCK_PATIENCE;
    let is_new = !path.exists();
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        disk::create_folders(folder).map_err(|error| disk_error(OPERATION, folder, error))?;
    }
    let connection = loop {
        match try_open(path, format, &prepare) {
            Ok(opened) => break opened?,
            // SQLite does not wait by itself where processes that turn on the write-ahead log could wait for each other.
            Err(error) if is_busy(&error) && Instant::now() < give_up => thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(explain(OPERATION, path, &error)),
        }
    };
    if is_new {
        disk::sync_parent(path).map_err(|error| disk_error(OPERATION, path, error))?;
    }
    Ok(connection)
}

/// Makes the connection overwrite what it deletes with zeros. Copies in the log and in rearranged pages are the business of [`Access`](super::writer::Access).
pub(super) fn erase_what_is_deleted(db: &Connection, path: &Path) -> Result<()> {
    db.pragma_update(None, "secure_delete", true).map_err(|error| explain("open database", path, &error))
}

/// The inner result is a file that is not ours to touch.
fn try_open(
    path: &Path,
    format: &Format,
    prepare: &impl Fn(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<Result<Connection>> {
    // One thread uses the connection, so SQLite's own locks are not needed; a path that looks like a URI is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_handler(Some(wait_for_lock))?;
    db.set_prepared_statement_cache_capacity(64);
    // A file that is not ours is left as it is, so this comes before anything that writes.
    if let Err(error) = check(path, format, &db)? {
        return Ok(Err(error));
    }
    db.pragma_update(None, "journal_mode", "wal")?;
    // A commit returns when the log is on the disk, also on macOS, where plain fsync stops at the drive's cache.
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "fullfsync", true)?;
    db.pragma_update(None, "checkpoint_fullfsync", true)?;
    // No temporary files, which could fail where the database itself still has room.
    db.pragma_update(None, "temp_store", "memory")?;
    // The log gives back what a burst has taken.
    db.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;

    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first since the check.
    let version = match check(path, format, &transaction)? {
        Ok(version) => version,
        Err(error) => return Ok(Err(error)),
    };
    for migration in &format.migrations[version..] {
        transaction.execute_batch(migration)?;
    }
    if version < format.migrations.len() {
        transaction.pragma_update(None, "application_id", format.application_id)?;
        transaction.pragma_update(None, "user_version", format.migrations.len() as i64)?;
    }
    prepare(&transaction)?;
    transaction.commit()?;
    Ok(Ok(db))
}

/// The version of the file's schema, zero for a new file.
fn check(path: &Path, format: &Format, db: &Connection) -> rusqlite::Result<Result<usize>> {
    const OPERATION: &str = "open database";
    let application_id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let has_content: bool = db.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", (), |row| row.get(0))?;
    if application_id == 0 && version == 0 && !has_content {
        return Ok(Ok(0));
    }
    if application_id != format.application_id {
        return Ok(Err(Error::invalid(OPERATION, "the file is a database of another kind; choose another path")
            .with("path", path.display())
            .with("expected", format.name)));
    }
    let newest = format.migrations.len();
    match usize::try_from(version) {
        Ok(version) if version <= newest => Ok(Ok(version)),
        _ => Ok(Err(Error::unsupported(OPERATION, "a newer release wrote the file; upgrade this one")
            .with("path", path.display())
            .with("found version", version)
            .with("newest known", newest))),
    }
}

/// SQLite calls this while another process holds the lock; true means try again.
fn wait_for_lock(tries: i32) -> bool {
    let (short, long) = (Duration::from_millis(1), Duration::from_millis(5));
    let tries = tries.unsigned_abs();
    let waited = short * tries.min(20) + long * tries.saturating_sub(20);
    if waited >= LOCK_PATIENCE {
        return false;
    }
    thread::sleep(if tries < 20 { short } else { long });
    true
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether an error leaves doubt about the file or the disk, so that nothing more should be tried in its wake.
pub(super) fn is_fatal(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::DatabaseBusy
        )
    )
}

/// The error of the crate family for an error of SQLite.
pub(super) fn explain(operation: &'static str, path: &Path, error: &rusqlite::Error) -> Error {
    let extended = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        _ => 0,
    };
    let (kind, message) = match (error.sqlite_error_code(), extended) {
        // The shared index of the log could not grow, which is how a full disk shows there.
        (Some(ErrorCode::DiskFull), _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => {
            (ErrorKind::StorageFull, "no space is left on the disk; free some, then try again")
        }
        (Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), _) => {
            (ErrorKind::Unavailable, "another process has held the database for too long")
        }
        (Some(ErrorCode::DatabaseCorrupt), _) => {
            (ErrorKind::Corrupt, "the database is damaged; restore it, or move it away to begin anew")
        }
        (Some(ErrorCode::NotADatabase), _) => (ErrorKind::Corrupt, "the file is not a database"),
        (_, ffi::SQLITE_READONLY_DBMOVED) => {
            (ErrorKind::NotFound, "the database file was moved or deleted while in use")
        }
        (Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied), _) => (
            ErrorKind::PermissionDenied,
            "the database cannot be written; check the owner and the mode of the file and its folder",
        ),
        (Some(ErrorCode::CannotOpen), _) => return cannot_open(operation, path, error),
        (Some(ErrorCode::OutOfMemory), _) => (ErrorKind::ResourceExhausted, "the system has no memory left"),
        (Some(ErrorCode::TooBig), _) => (ErrorKind::TooLarge, "the record is larger than the database can hold"),
        (Some(ErrorCode::SystemIoFailure), _) => (ErrorKind::Internal, "the disk failed"),
        _ => (ErrorKind::Internal, "the database failed"),
    };
    Error::new(kind, operation, message).with("path", path.display()).with_source(error.to_string())
}

/// SQLite does not say why a file cannot be opened; the system does.
fn cannot_open(operation: &'static str, path: &Path, error: &rusqlite::Error) -> Error {
    if path.is_dir() {
        return Error::invalid(operation, "the path is a folder, not a file").with("path", path.display());
    }
    let reason = match File::options().read(true).write(true).open(path) {
        Err(reason) if reason.kind() != std::io::ErrorKind::NotFound => Some(reason),
        // The file itself is fine or missing: its folder must let the file and its log be made.
        _ => {
            let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            let rights = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            rustix::fs::access(folder, rights).err().map(std::io::Error::from)
        }
    };
    match reason {
        Some(reason) => disk_error(operation, path, reason),
        None => Error::internal(operation, "the database cannot be opened")
            .with("path", path.display())
            .with_source(error.to_string()),
    }
}
