//! The statements. Times are microseconds since the Unix epoch.

use bytes::Bytes;
use hybrid_core::{
    CollectionName, Record, RecordKey, RecordOrder, RecordPage, RecordQuery, RecordVersion, TenantId, Timestamp,
    prefix_end,
};
use rusqlite::{Connection, OptionalExtension, Row, ffi};

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
    let direction = match order {
        RecordOrder::Ascending => "ASC",
        RecordOrder::Descending => "DESC",
    };
    // The range narrows what is read; the exact prefix is checked below, since no text is the least above all that start with it.
    let mut select = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM records
         WHERE tenant = ?1 AND collection = ?2 AND key >= ?3 AND key > ?4 AND (?5 IS NULL OR key < ?5)
             AND (expires IS NULL OR expires > ?6) ORDER BY key {direction}"
    ))?;
    let after = after.as_ref().map_or("", RecordKey::as_str);
    let before = before.as_ref().map(RecordKey::as_str);
    let upper = match (before, prefix_end(prefix)) {
        (Some(before), Some(end)) => Some(before.min(&end).to_owned()),
        (before, end) => before.map(str::to_owned).or(end),
    };
    let mut rows = select.query((tenant.as_str(), collection.as_str(), prefix, after, upper, now.unix_micros()))?;
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

pub(super) fn delete(db: &Connection, place: &Place) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM records WHERE tenant = ?1 AND collection = ?2 AND key = ?3")?
        .execute(place.columns())
        .map(drop)
}

pub(super) fn export(
    db: &Connection,
    tenant: &TenantId,
    after: Option<&(CollectionName, RecordKey)>,
    now: Timestamp,
    max: usize,
) -> rusqlite::Result<Vec<(CollectionName, Record)>> {
    let mut select = db.prepare_cached(&format!(
        "SELECT collection, {COLUMNS} FROM records
         WHERE tenant = ?1 AND (collection, key) > (?2, ?3) AND (expires IS NULL OR expires > ?4)
         ORDER BY collection, key LIMIT ?5"
    ))?;
    // The empty text comes before every name.
    let (collection, key) = after.map_or(("", ""), |(collection, key)| (collection.as_str(), key.as_str()));
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    select
        .query_map((tenant.as_str(), collection, key, now.unix_micros(), max), |row| {
            Ok((parse(row, 0)?, record(row, 1)?))
        })?
        .collect()
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
