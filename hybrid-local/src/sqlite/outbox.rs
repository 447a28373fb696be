use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{Error, Outbox, Result};
use rusqlite::Connection;

use super::{
    database::{self, Format},
    writer::{Access, Writer},
};

static FORMAT: Format = Format {
    // "hybO"
    application_id: 0x6879_624F,
    name: "outbox",
    // AUTOINCREMENT keeps the highest number ever given beside the records, so that none is given again.
    migrations: &["CREATE TABLE records (number INTEGER PRIMARY KEY AUTOINCREMENT, record BLOB NOT NULL) STRICT"],
};

/// An [`Outbox`] in one SQLite file. Clones share it, and several processes may.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let scratch = tempfile::tempdir().unwrap();
/// # let path = scratch.path().join("outbox.db");
/// use hybrid_core::Outbox;
/// use hybrid_local::SqliteOutbox;
///
/// let outbox = SqliteOutbox::open(&path)?;
/// let number = outbox.append("record".into()).await?;
/// assert_eq!(outbox.pending(0, 10).await?, [(number, "record".into())]);
/// outbox.remove(&[number]).await?;
/// assert_eq!(outbox.len().await?, 0);
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
///
/// # Behavior
/// Each change is one durable commit, which callers that come together share. A damaged file is [`Corrupt`](hybrid_core::ErrorKind::Corrupt), one that a newer release
/// wrote [`Unsupported`](hybrid_core::ErrorKind::Unsupported); both are left as they are.
#[derive(Clone)]
pub struct SqliteOutbox {
    writer: Writer,
    path: Arc<Path>,
}

impl SqliteOutbox {
    /// Opens the outbox at `path`; the file and the folders above it are made if they do not exist.
    ///
    /// # Errors
    /// Those of the disk and of a file that is not an outbox; each names the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let db = database::open(path, &FORMAT, |_| Ok(()))?;
        Ok(Self { writer: Writer::start(db, path)?, path: path.into() })
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Outbox for SqliteOutbox {
    async fn append(&self, record: Bytes) -> Result<u64> {
        let insert =
            move |db: &Connection| db.prepare_cached("INSERT INTO records (record) VALUES (?1)")?.insert([&*record]);
        let number = self.writer.call("append record", Access::Write, insert, |number| number).await?;
        u64::try_from(number)
            .map_err(|_| Error::internal("append record", "a number is negative").with("path", self.path.display()))
    }

    async fn pending(&self, after: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        let select = move |db: &Connection| {
            let select = "SELECT number, record FROM records WHERE number > ?1 ORDER BY number LIMIT ?2";
            let mut statement = db.prepare_cached(select)?;
            let rows = statement.query_map([as_i64(after), as_i64(max as u64)], |row| {
                Ok((row.get::<_, i64>(0)?.unsigned_abs(), Bytes::from(row.get::<_, Vec<u8>>(1)?)))
            })?;
            rows.collect()
        };
        self.writer.call("read records", Access::Read, select, |records| records).await
    }

    async fn remove(&self, numbers: &[u64]) -> Result<()> {
        let numbers: Vec<i64> = numbers.iter().copied().map(as_i64).collect();
        let delete = move |db: &Connection| {
            let mut delete = db.prepare_cached("DELETE FROM records WHERE number = ?1")?;
            numbers.iter().try_for_each(|number| delete.execute([number]).map(drop))
        };
        self.writer.call("remove records", Access::Write, delete, |()| ()).await
    }

    async fn len(&self) -> Result<u64> {
        let count = |db: &Connection| {
            db.prepare_cached("SELECT count(*) FROM records")?.query_row((), |row| row.get::<_, i64>(0))
        };
        self.writer.call("count records", Access::Read, count, i64::unsigned_abs).await
    }
}

/// SQLite's numbers end here, and so do records.
fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
