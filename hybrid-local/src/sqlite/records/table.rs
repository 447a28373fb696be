//! The statements. Times are microseconds since the Unix epoch.

use bytes::Bytes;
use hybrid_core::{
    CollectionName, Record, RecordKey, RecordOrder, RecordPage, RecordQuery, RecordVersion, TenantId, Timestamp,
    prefix_end,
};
use rusqlite::{Connection, OptionalExtension, Row, ffi, types::Value};

use super::super::database::Format;

pub(super) static FORMAT: Format = Format {
    // "hybR"
    application_id: 0x6879_6252,
    name: "record store",
    migrations: &["
        CREATE TABLE records (
            id INTEGER PRIMARY KEY,
            tenant TEXT NOT NULL,
            collection TEXT NOT NULL,
            key TEXT NOT NULL,
            value BLOB NOT NULL,
            version TEXT NOT NULL,
            written INTEGER NOT NULL,
            expires INTEGER,
            UNIQUE (tenant, collection, key)
        ) STRICT;
        CREATE INDEX endings ON records (expires) WHERE expires IS NOT NULL;
    "],
};

/// Where a record lies.
pub(super) struct Place {
    tenant: TenantId,
    collection: CollectionName,
    pub(super) key: RecordKey,
}

impl Place {
    pub(super) fn new(tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Self {
        Self { tenant: tenant.clone(), collection: collection.clone(), key: key.clone() }
    }

    fn columns(&self) -> (&str, &str, &str) {
        (self.tenant.as_str(), self.collection.as_str(), self.key.as_str())
    }
}

/// The version that a place holds, an expired record being nothing.
pub(super) fn version(db: &Connection, place: &Place, now: Timestamp) -> rusqlite::Result<Option<RecordVersion>> {
    let (tenant, collection, key) = place.columns();
    db.prepare_cached(
        "SELECT version FROM records WHERE tenant = ?1 AND collection = ?2 AND key = ?3 AND (expires IS NULL OR expires > ?4)",
    )?
    .query_row((tenant, collection, key, now.unix_micros()), |row| parse(row, 0))
    .optional()
}

pub(super) fn write(db: &Connection, place: &Place, record: &Record) -> rusqlite::Result<()> {
    let (tenant, collection, key) = place.columns();
    let Record { key: _, value, version, written, expires } = record;
    db.prepare_cached(
        "INSERT INTO records (tenant, collection, key, value, version, written, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (tenant, collection, key) DO UPDATE SET
             value = excluded.value, version = excluded.version, written = excluded.written, expires = excluded.expires",
    )?
    .execute((
        tenant,
        collection,
        key,
        &**value,
        version.to_string(),
        written.unix_micros(),
        expires.map(Timestamp::unix_micros),
    ))
    .map(drop)
}

const COLUMNS: &str = "key, value, version, written, expires";

pub(super) fn read(db: &Connection, place: &Place, now: Timestamp) -> rusqlite::Result<Option<Record>> {
    let (tenant, collection, key) = place.columns();
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM records WHERE tenant = ?1 AND collection = ?2 AND key = ?3 AND (expires IS NULL OR expires > ?4)"
    ))?
    .query_row((tenant, collection, key, now.unix_micros()), |row| record(row, 0))
    .optional()
}

pub(super) fn page(
    db: &Connection,
    tenant: &TenantId,
    collection: &CollectionName,
    query: &RecordQuery,
    now: Timestamp,
    bytes: usize,
) -> rusqlite::Result<RecordPage> {
    let RecordQuery { prefix, after, before, order, limit } = query;
    let after = after.as_ref().map(RecordKey::as_str).filter(|after| *after >= prefix.as_str());
    let before = before.as_ref().map(RecordKey::as_str);
    let upper = match (before, prefix_end(prefix)) {
        (Some(before), Some(end)) => Some(before.min(&end).to_owned()),
        (before, end) => before.map(str::to_owned).or(end),
    };
    // In SQLite's order an empty blob comes after every text.
    let upper = upper.map_or_else(|| Value::Blob(Vec::new()), Value::Text);
    let mut select = db.prepare_cached(&page_statement(*order, after.is_some()))?;
    let lower = after.unwrap_or(prefix);
    let mut rows = select.query((tenant.as_str(), collection.as_str(), lower, upper, now.unix_micros()))?;
    let (mut records, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        if records.len() == *limit || size >= bytes {
            let next = records.last().map(|last: &Record| query.clone().following(&last.key));
            return Ok(RecordPage { records, next });
        }
        let record = record(row, 0)?;
        // Rows past the prefix end the page in one order and come before it in the other.
        if !record.key.as_str().starts_with(prefix) {
            continue;
        }
        size += record.value.len();
        records.push(record);
    }
    Ok(RecordPage { records, next: None })
}

/// Selects between a lower bound, which the page follows or begins with, and an upper one that it ends before. With one bound on each side, in plain
/// comparisons, SQLite seeks to the first row of the page; with more it seeks by one of them and walks over what the others leave out.
///
/// The range narrows what is read; the exact prefix is checked row by row, since no text is the least above all that start with it.
fn page_statement(order: RecordOrder, follows: bool) -> String {
    let direction = match order {
        RecordOrder::Ascending => "ASC",
        RecordOrder::Descending => "DESC",
    };
    let lower = if follows { ">" } else { ">=" };
    format!(
        "SELECT {COLUMNS} FROM records
         WHERE tenant = ?1 AND collection = ?2 AND key {lower} ?3 AND key < ?4 AND (expires IS NULL OR expires > ?5)
         ORDER BY key {direction}"
    )
}

pub(super) fn delete(db: &Connection, place: &Place) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM records WHERE tenant = ?1 AND collection = ?2 AND key = ?3")?
        .execute(place.columns())
        .map(drop)
}

/// The records after a place, and whether there are more.
pub(super) fn export(
    db: &Connection,
    tenant: &TenantId,
    after: Option<&(CollectionName, RecordKey)>,
    now: Timestamp,
    max: usize,
    bytes: usize,
) -> rusqlite::Result<(Vec<(CollectionName, Record)>, bool)> {
    let mut select = db.prepare_cached(&format!(
        "SELECT collection, {COLUMNS} FROM records
         WHERE tenant = ?1 AND (collection, key) > (?2, ?3) AND (expires IS NULL OR expires > ?4)
         ORDER BY collection, key"
    ))?;
    // The empty text comes before every name.
    let (collection, key) = after.map_or(("", ""), |(collection, key)| (collection.as_str(), key.as_str()));
    let mut rows = select.query((tenant.as_str(), collection, key, now.unix_micros()))?;
    let (mut records, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        if records.len() == max || size >= bytes {
            return Ok((records, true));
        }
        let record = record(row, 1)?;
        size += record.value.len();
        records.push((parse(row, 0)?, record));
    }
    Ok((records, false))
}

pub(super) fn erase(db: &Connection, tenant: &TenantId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM records WHERE tenant = ?1")?.execute([tenant.as_str()]).map(drop)
}

/// Removes at most `max` records that have expired.
pub(super) fn purge(db: &Connection, now: Timestamp, max: u32) -> rusqlite::Result<u64> {
    db.prepare_cached(
        "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE expires IS NOT NULL AND expires <= ?1 LIMIT ?2)",
    )?
    .execute((now.unix_micros(), max))
    .map(|count| count as u64)
}

/// Reads [`COLUMNS`] from the column `first` on.
fn record(row: &Row<'_>, first: usize) -> rusqlite::Result<Record> {
    Ok(Record {
        key: parse(row, first)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(first + 1)?),
        version: parse(row, first + 2)?,
        written: Timestamp::from_unix_micros(row.get(first + 3)?),
        expires: row.get::<_, Option<i64>>(first + 4)?.map(Timestamp::from_unix_micros),
    })
}

fn parse<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    row.get_ref(column)?.as_str()?.parse().map_err(|_| {
        rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_CORRUPT),
            Some("a name or a version in the file is not legal".to_owned()),
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use rusqlite::StatementStatus;

    use super::*;

    fn store(records: usize) -> (Connection, TenantId, CollectionName) {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(FORMAT.migrations[0]).unwrap();
        let (tenant, collection) = (TenantId::single(), CollectionName::new("orders").unwrap());
        let version = RecordVersion::next(&hybrid_core::SystemIds::default());
        for number in 0..records {
            let key = RecordKey::new(format!("2026/{number:06}")).unwrap();
            let place = Place::new(&tenant, &collection, &key);
            let record = Record { key, value: Bytes::new(), version, written: Timestamp::UNIX_EPOCH, expires: None };
            write(&db, &place, &record).unwrap();
        }
        (db, tenant, collection)
    }

    #[test]
    fn every_page_seeks_to_its_first_record() {
        let (db, ..) = store(0);
        for order in [RecordOrder::Ascending, RecordOrder::Descending] {
            for follows in [false, true] {
                let statement = format!("EXPLAIN QUERY PLAN {}", page_statement(order, follows));
                let plan: String = db
                    .query_row(&statement, ("", "", "", Value::Blob(Vec::new()), 0), |row| row.get("detail"))
                    .unwrap();
                assert!(plan.contains("key>? AND key<?"), "{order:?}, {follows}: {plan}");
            }
        }
    }

    #[test]
    fn a_page_of_an_export_ends_after_its_bytes_and_the_next_goes_on_behind_it() {
        let (db, tenant, collection) = store(0);
        for number in 0..7 {
            let (key, value) = (RecordKey::new(number.to_string()).unwrap(), Bytes::from(vec![b'x'; 10]));
            let version = RecordVersion::next(&hybrid_core::SystemIds::default());
            let place = Place::new(&tenant, &collection, &key);
            let record = Record { key, value, version, written: Timestamp::UNIX_EPOCH, expires: None };
            write(&db, &place, &record).unwrap();
        }
        let (mut after, mut pages, mut more) = (None, Vec::new(), true);
        while more {
            let page;
            (page, more) = export(&db, &tenant, after.as_ref(), Timestamp::UNIX_EPOCH, 100, 25).unwrap();
            after = page.last().map(|(collection, record)| (collection.clone(), record.key.clone()));
            pages.push(page.into_iter().map(|(_, record)| record.key.to_string()).collect::<String>());
        }
        assert_eq!(pages, ["012", "345", "6"]);
    }

    #[test]
    fn a_late_page_costs_no_more_than_an_early_one() {
        let (db, tenant, collection) = store(2_000);
        let now = Timestamp::UNIX_EPOCH;
        let key = |number: usize| RecordKey::new(format!("2026/{number:06}")).unwrap();
        let cost = |query: RecordQuery, first: usize| {
            let query = RecordQuery { limit: 10, ..query };
            let found = page(&db, &tenant, &collection, &query, now, usize::MAX).unwrap();
            assert_eq!((found.records.len(), &found.records[0].key), (10, &key(first)));
            // The statement is still in the cache, with what it has done since it was asked last.
            let follows = query.after.is_some();
            let statement = db.prepare_cached(&page_statement(query.order, follows)).unwrap();
            statement.reset_status(StatementStatus::VmStep)
        };
        let begins = RecordQuery::prefix("2026/");
        let early = cost(begins.clone().following(&key(9)), 10);
        let late = cost(begins.clone().following(&key(1_949)), 1_950);
        assert!(early > 0 && late < early * 2, "{early} steps early, {late} steps late");
        let backwards = RecordQuery { order: RecordOrder::Descending, ..begins };
        let late = cost(backwards.following(&key(20)), 19);
        assert!(late < early * 2, "{early} steps early, {late} steps late and backwards");
    }
}
