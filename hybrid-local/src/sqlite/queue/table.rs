//! The tables of the queue, and every statement on them. All of it runs inside a transaction.

use std::{sync::Arc, time::Duration};

use hybrid_core::{
    Clock, DeadLetter, Delivery, Depth, Error, MessageId, Monotonic, NewMessage, Receipt, Result, Timestamp,
};
use rusqlite::{Connection, Row};

use crate::sqlite::database::Format;

pub(super) static FORMAT: Format = Format {
    // "hybQ"
    application_id: 0x6879_6251,
    name: "job queue",
    migrations: &[r"
        -- What never changes, apart from what does, so that a lease of a large message writes a small row.
        -- AUTOINCREMENT: an id is never used again, so an old receipt can never name a new message.
        CREATE TABLE bodies (
            id         INTEGER PRIMARY KEY AUTOINCREMENT,
            sent       INTEGER NOT NULL, -- wall clock, microseconds since the Unix epoch
            group_name TEXT,
            trace      TEXT,
            body       TEXT NOT NULL
        ) STRICT;
        CREATE TABLE messages (
            id         INTEGER PRIMARY KEY,
            visible    INTEGER NOT NULL, -- monotonic clock, nanoseconds: when it is ready, or its lease ends
            since      INTEGER NOT NULL, -- monotonic clock, nanoseconds: when `visible` was set
            attempts   INTEGER NOT NULL DEFAULT 0,
            leases     INTEGER NOT NULL DEFAULT 0, -- how many it ever had: the number of the latest
            held       INTEGER NOT NULL DEFAULT 0, -- whether `visible` is the end of a lease
            spent      INTEGER NOT NULL DEFAULT 0  -- whether it dies when `visible` has come
        ) STRICT;
        CREATE INDEX ready ON messages (spent, visible);
        CREATE TABLE dead (
            id         INTEGER PRIMARY KEY,
            died       INTEGER NOT NULL, -- wall clock, microseconds since the Unix epoch
            attempts   INTEGER NOT NULL,
            leases     INTEGER NOT NULL
        ) STRICT;
    "],
};

/// A point on the monotonic clock in nanoseconds, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instant(i64);

impl Instant {
    pub(super) fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(nanos(earlier)).try_into().unwrap_or(0))
    }
}

/// One lease of one message, which its receipt names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    id: i64,
    number: i64,
}

impl Lease {
    pub(super) fn parse(receipt: &Receipt) -> Result<Self> {
        let parsed = receipt
            .0
            .split_once('.')
            .and_then(|(id, number)| Some(Self { id: id.parse().ok()?, number: number.parse().ok()? }));
        parsed.ok_or_else(|| Error::invalid("find lease", "not a receipt of this queue").with("receipt", &receipt.0))
    }

    fn receipt(self) -> Receipt {
        Receipt(format!("{}.{}", self.id, self.number))
    }

    /// The answer for a change that needed the lease and found it, or not.
    pub(super) fn held(self, is_held: bool) -> Result<()> {
        if is_held {
            return Ok(());
        }
        Err(Error::lease_lost("find lease", "the lease has ended").with("message", self.id))
    }
}

/// The rows, and what is needed to judge them.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) max_deliveries: u32,
    pub(super) clock: Arc<dyn Clock>,
}

impl Table {
    /// Reads the clock. Those who then write hold the write lock already, so nothing stored is later, but for what is from before a restart.
    fn now(&self) -> i64 {
        nanos(self.clock.monotonic())
    }

    /// Brings rows from before a restart of the machine, or of other options, into line.
    pub(super) fn settle(&self, db: &Connection) -> rusqlite::Result<()> {
        let now = self.now();
        // A clock that never goes back has gone back: the machine was started anew. Holders are gone; delays begin again, rather than end early.
        db.execute(
            "UPDATE messages SET visible = iif(held, ?1, ?1 + visible - since), held = 0, since = ?1
             WHERE visible > ?1 AND since > ?1",
            [now],
        )?;
        db.execute("UPDATE messages SET spent = 1 WHERE spent = 0 AND attempts >= ?1", [self.max_deliveries])?;
        Ok(())
    }

    pub(super) fn insert(&self, db: &Connection, messages: &[NewMessage]) -> rusqlite::Result<Vec<i64>> {
        let (now, sent) = (self.now(), self.clock.now().unix_micros());
        let mut body =
            db.prepare_cached("INSERT INTO bodies (sent, group_name, trace, body) VALUES (?1, ?2, ?3, ?4)")?;
        let mut message = db.prepare_cached("INSERT INTO messages (id, visible, since) VALUES (?1, ?2, ?3)")?;
        let insert = |new: &NewMessage| {
            let NewMessage { body: text, group, delay, trace } = new;
            let id = body.insert((sent, group, trace, text))?;
            message.execute((id, plus(now, *delay), now))?;
            Ok(id)
        };
        messages.iter().map(insert).collect()
    }

    pub(super) fn lease(&self, db: &Connection, max: usize, lease: Duration) -> rusqlite::Result<Vec<Delivery>> {
        let now = self.now();
        self.bury(db, now)?;
        let mut ready = db.prepare_cached(
            "SELECT id, attempts, leases, sent, group_name, trace, body FROM messages JOIN bodies USING (id)
             WHERE spent = 0 AND visible <= ?1 ORDER BY visible, id LIMIT ?2",
        )?;
        let mut take = db.prepare_cached(
            "UPDATE messages SET visible = ?2, since = ?3, attempts = ?4, leases = ?5, held = 1, spent = ?6 WHERE id = ?1",
        )?;
        // A row that an index walk updates could meet the walk again, so the walk comes first.
        let deliveries =
            ready.query_map((now, count(max)), |row| self.delivery(row))?.collect::<rusqlite::Result<Vec<_>>>()?;
        for (lease_name, delivery) in &deliveries {
            let spent = delivery.attempt >= self.max_deliveries;
            take.execute((lease_name.id, plus(now, lease), now, delivery.attempt, lease_name.number, spent))?;
        }
        Ok(deliveries.into_iter().map(|(_, delivery)| delivery).collect())
    }

    fn delivery(&self, row: &Row<'_>) -> rusqlite::Result<(Lease, Delivery)> {
        let lease = Lease { id: row.get(0)?, number: row.get::<_, i64>(2)? + 1 };
        let delivery = Delivery {
            id: MessageId(lease.id.to_string()),
            body: row.get(6)?,
            group: row.get(4)?,
            trace: row.get(5)?,
            sent: Timestamp::from_unix_micros(row.get(3)?),
            attempt: row.get::<_, u32>(1)?.saturating_add(1),
            max_attempts: Some(self.max_deliveries),
            receipt: lease.receipt(),
        };
        Ok((lease, delivery))
    }

    /// When the first message is ready, which may be past.
    pub(super) fn next_ready(&self, db: &Connection) -> rusqlite::Result<Option<Instant>> {
        let first: Option<i64> =
            db.prepare_cached("SELECT min(visible) FROM messages WHERE spent = 0")?.query_row((), |row| row.get(0))?;
        Ok(first.map(Instant))
    }

    /// Each of these answers whether the lease was still held.
    pub(super) fn extend(&self, db: &Connection, lease: Lease, time: Duration) -> rusqlite::Result<bool> {
        let now = self.now();
        db.prepare_cached(
            "UPDATE messages SET visible = ?4, since = ?3 WHERE id = ?1 AND leases = ?2 AND held = 1 AND visible > ?3",
        )?
        .execute((lease.id, lease.number, now, plus(now, time)))
        .map(|rows| rows == 1)
    }

    pub(super) fn remove(&self, db: &Connection, lease: Lease) -> rusqlite::Result<bool> {
        let removed = db
            .prepare_cached("DELETE FROM messages WHERE id = ?1 AND leases = ?2 AND held = 1 AND visible > ?3")?
            .execute((lease.id, lease.number, self.now()))?;
        if removed == 1 {
            db.prepare_cached("DELETE FROM bodies WHERE id = ?1")?.execute([lease.id])?;
        }
        Ok(removed == 1)
    }

    pub(super) fn release(&self, db: &Connection, lease: Lease, delay: Duration) -> rusqlite::Result<bool> {
        let now = self.now();
        db.prepare_cached(
            "UPDATE messages SET visible = ?4, since = ?3, held = 0 WHERE id = ?1 AND leases = ?2 AND held = 1 AND visible > ?3",
        )?
        .execute((lease.id, lease.number, now, plus(now, delay)))
        .map(|rows| rows == 1)
    }

    /// Undoes a delivery that nobody has received, or that its holder has no use for; its lease's number stays used.
    pub(super) fn give_back(&self, db: &Connection, lease: Lease) -> rusqlite::Result<bool> {
        db.prepare_cached(
            "UPDATE messages SET visible = ?3, since = ?3, held = 0, attempts = attempts - 1, spent = 0
             WHERE id = ?1 AND leases = ?2 AND held = 1 AND visible > ?3",
        )?
        .execute((lease.id, lease.number, self.now()))
        .map(|rows| rows == 1)
    }

    pub(super) fn depth(&self, db: &Connection) -> rusqlite::Result<Depth> {
        let now = self.now();
        let ready: i64 = db
            .prepare_cached("SELECT count(*) FROM messages WHERE spent = 0 AND visible <= ?1")?
            .query_row([now], |row| row.get(0))?;
        let (hidden, leased): (i64, i64) = db
            .prepare_cached(
                "SELECT count(*), coalesce(sum(held), 0) FROM messages WHERE spent IN (0, 1) AND visible > ?1",
            )?
            .query_row([now], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let whole = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Depth { ready: whole(ready), leased: whole(leased), delayed: whole(hidden - leased) })
    }

    pub(super) fn list_dead(&self, db: &Connection, max: usize, after: i64) -> rusqlite::Result<Vec<DeadLetter>> {
        self.bury(db, self.now())?;
        let mut list = db.prepare_cached(
            "SELECT id, died, attempts, sent, group_name, body FROM dead JOIN bodies USING (id) WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let letter = |row: &Row<'_>| {
            Ok(DeadLetter {
                id: MessageId(row.get::<_, i64>(0)?.to_string()),
                body: row.get(5)?,
                group: row.get(4)?,
                sent: Timestamp::from_unix_micros(row.get(3)?),
                died: Some(Timestamp::from_unix_micros(row.get(1)?)),
                attempts: row.get(2)?,
            })
        };
        list.query_map((after, count(max)), letter)?.collect()
    }

    pub(super) fn redrive(&self, db: &Connection, ids: &[i64]) -> rusqlite::Result<u64> {
        let now = self.now();
        self.bury(db, now)?;
        let mut revive = db.prepare_cached(
            "INSERT INTO messages (id, visible, since, leases) SELECT id, ?2, ?2, leases FROM dead WHERE id = ?1",
        )?;
        let mut remove = db.prepare_cached("DELETE FROM dead WHERE id = ?1")?;
        let mut moved = 0;
        for id in ids {
            revive.execute((id, now))?;
            moved += remove.execute([id])? as u64;
        }
        Ok(moved)
    }

    pub(super) fn purge(&self, db: &Connection, ids: &[i64]) -> rusqlite::Result<u64> {
        self.bury(db, self.now())?;
        let mut letter = db.prepare_cached("DELETE FROM dead WHERE id = ?1")?;
        let mut body = db.prepare_cached("DELETE FROM bodies WHERE id = ?1")?;
        let mut purged = 0;
        for id in ids {
            if letter.execute([id])? == 1 {
                body.execute([id])?;
                purged += 1;
            }
        }
        Ok(purged)
    }

    /// Moves what has died to the dead letters.
    fn bury(&self, db: &Connection, now: i64) -> rusqlite::Result<()> {
        let has_died: bool = db
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM messages WHERE spent = 1 AND visible <= ?1)")?
            .query_row([now], |row| row.get(0))?;
        if !has_died {
            return Ok(());
        }
        db.prepare_cached(
            "INSERT INTO dead (id, died, attempts, leases)
             SELECT id, ?2, attempts, leases FROM messages WHERE spent = 1 AND visible <= ?1",
        )?
        .execute((now, self.clock.now().unix_micros()))?;
        db.prepare_cached("DELETE FROM messages WHERE spent = 1 AND visible <= ?1")?.execute([now])?;
        Ok(())
    }
}

fn nanos(time: Monotonic) -> i64 {
    i64::try_from(time.since(Monotonic::default()).as_nanos()).unwrap_or(i64::MAX)
}

fn plus(now: i64, duration: Duration) -> i64 {
    now.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

fn count(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}
