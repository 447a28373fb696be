//! The statements.
//!
//! Every change of a tenant gives it a new generation from one counter of the file, so that what a process holds in memory shows whether it is still true. The
//! counter never goes back, also when the tenant was dropped in between.

use std::path::Path;

use hybrid_core::{
    Result, TenantId, VectorKey, VectorRecord, VectorSchema,
    vector::{FieldKind, Metadata},
};
use rusqlite::{Connection, OptionalExtension, ffi};

use super::{
    super::database::{Format, explain},
    shard::Shard,
};

pub(super) static FORMAT: Format = Format {
    // "hybV"
    application_id: 0x6879_6256,
    name: "vector index",
    migrations: &["
        CREATE TABLE settings (only INTEGER PRIMARY KEY CHECK (only = 1), schema TEXT, generation INTEGER NOT NULL) STRICT;
        INSERT INTO settings VALUES (1, NULL, 0);
        CREATE TABLE tenants (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL) STRICT;
        CREATE TABLE records (
            id INTEGER PRIMARY KEY,
            tenant INTEGER NOT NULL,
            key TEXT NOT NULL,
            changed INTEGER NOT NULL, -- the generation that wrote it
            vector BLOB NOT NULL,     -- f32, little endian
            metadata TEXT NOT NULL,   -- JSON
            UNIQUE (tenant, key)
        ) STRICT;
    "],
};

/// A tenant as the file has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant {
    pub(super) id: i64,
    pub(super) generation: i64,
}

/// From which generation of a tenant to which a change led.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Remembers the schema in a new file, and compares with it in others.
pub(super) fn settle_schema(db: &Connection, path: &Path, schema: &VectorSchema) -> Result<()> {
    let failed = |error| explain("open vector index", path, &error);
    let found: Option<String> = db.query_row("SELECT schema FROM settings", (), |row| row.get(0)).map_err(failed)?;
    if let Some(found) = found {
        let found: VectorSchema = serde_json::from_str(&found).map_err(|error| {
            hybrid_core::Error::corrupt("open vector index", "the schema in the file cannot be read")
                .with("path", path.display())
                .with_source(error)
        })?;
        schema.check_extends(&found).map_err(|error| error.with("path", path.display()))?;
        if found == *schema {
            return Ok(());
        }
    }
    let text = serde_json::to_string(schema).map_err(|error| {
        hybrid_core::Error::internal("open vector index", "the schema cannot be written as JSON").with_source(error)
    })?;
    db.execute("UPDATE settings SET schema = ?1", [text]).map_err(failed).map(drop)
}

pub(super) fn tenant(db: &Connection, name: &TenantId) -> rusqlite::Result<Option<Tenant>> {
    db.prepare_cached("SELECT id, generation FROM tenants WHERE name = ?1")?
        .query_row([name.as_str()], |row| Ok(Tenant { id: row.get(0)?, generation: row.get(1)? }))
        .optional()
}

fn next_generation(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("UPDATE settings SET generation = generation + 1 RETURNING generation")?
        .query_row((), |row| row.get(0))
}

pub(super) fn write(db: &Connection, name: &TenantId, records: &[VectorRecord]) -> rusqlite::Result<Step> {
    let to = next_generation(db)?;
    let before = tenant(db, name)?;
    let id: i64 = db
        .prepare_cached(
            "INSERT INTO tenants (name, generation) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET generation = excluded.generation RETURNING id",
        )?
        .query_row((name.as_str(), to), |row| row.get(0))?;
    let mut insert = db.prepare_cached(
        "INSERT INTO records (tenant, key, changed, vector, metadata) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (tenant, key) DO UPDATE SET changed = excluded.changed, vector = excluded.vector, metadata = excluded.metadata",
    )?;
    let mut bytes = Vec::new();
    for VectorRecord { key, vector, metadata } in records {
        bytes.clear();
        bytes.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
        let metadata = serde_json::to_string(metadata)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        insert.execute((id, key.as_str(), to, &bytes, metadata))?;
    }
    Ok(Step { from: before.map_or(0, |before| before.generation), to })
}

pub(super) fn read(db: &Connection, name: &TenantId, key: &VectorKey) -> rusqlite::Result<Option<VectorRecord>> {
    db.prepare_cached(
        "SELECT vector, metadata FROM records WHERE tenant = (SELECT id FROM tenants WHERE name = ?1) AND key = ?2",
    )?
    .query_row((name.as_str(), key.as_str()), |row| {
        let vector = floats(row.get_ref(0)?.as_blob()?).collect();
        Ok(VectorRecord { key: key.clone(), vector, metadata: metadata(row.get_ref(1)?.as_str()?)? })
    })
    .optional()
}

/// The metadata of a record that has not changed since `changed`.
pub(super) fn metadata_at(
    db: &Connection,
    name: &TenantId,
    key: &VectorKey,
    changed: i64,
) -> rusqlite::Result<Option<Metadata>> {
    db.prepare_cached(
        "SELECT metadata FROM records WHERE tenant = (SELECT id FROM tenants WHERE name = ?1) AND key = ?2 AND changed = ?3",
    )?
    .query_row((name.as_str(), key.as_str(), changed), |row| metadata(row.get_ref(0)?.as_str()?))
    .optional()
}

/// Reads all vectors of a tenant.
pub(super) fn load(db: &Connection, name: &TenantId, schema: &VectorSchema) -> rusqlite::Result<Option<Shard>> {
    let Some(Tenant { id, generation }) = tenant(db, name)? else { return Ok(None) };
    let mut shard = Shard::new(schema, generation);
    let mut select = db.prepare_cached("SELECT key, changed, vector, metadata FROM records WHERE tenant = ?1")?;
    let mut rows = select.query([id])?;
    let mut vector = Vec::with_capacity(schema.dimension());
    while let Some(row) = rows.next()? {
        vector.clear();
        vector.extend(floats(row.get_ref(2)?.as_blob()?));
        if vector.len() != schema.dimension() {
            return Err(corrupt("a vector has another length than the schema says"));
        }
        let mut metadata = metadata(row.get_ref(3)?.as_str()?)?;
        metadata.retain(|field, _| schema.fields().get(field) != Some(&FieldKind::Stored));
        let key = VectorKey::new(row.get::<_, String>(0)?).map_err(|_| corrupt("a key is not legal"))?;
        shard.put(key, row.get(1)?, &vector, metadata);
    }
    Ok(Some(shard))
}

pub(super) fn keys(
    db: &Connection,
    name: &TenantId,
    after: Option<&VectorKey>,
    max: usize,
) -> rusqlite::Result<Vec<VectorKey>> {
    let mut select = db.prepare_cached(
        "SELECT key FROM records WHERE tenant = (SELECT id FROM tenants WHERE name = ?1) AND key > ?2 ORDER BY key LIMIT ?3",
    )?;
    // The empty text comes before every key.
    let after = after.map_or("", VectorKey::as_str);
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    select
        .query_map((name.as_str(), after, max), |row| {
            VectorKey::new(row.get::<_, String>(0)?).map_err(|_| corrupt("a key is not legal"))
        })?
        .collect()
}

pub(super) fn delete(db: &Connection, name: &TenantId, keys: &[VectorKey]) -> rusqlite::Result<Option<Step>> {
    let Some(Tenant { id, generation }) = tenant(db, name)? else { return Ok(None) };
    let to = next_generation(db)?;
    let mut delete = db.prepare_cached("DELETE FROM records WHERE tenant = ?1 AND key = ?2")?;
    for key in keys {
        delete.execute((id, key.as_str()))?;
    }
    db.prepare_cached("UPDATE tenants SET generation = ?2 WHERE id = ?1")?.execute((id, to))?;
    Ok(Some(Step { from: generation, to }))
}

pub(super) fn count(db: &Connection, name: &TenantId) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT count(*) FROM records WHERE tenant = (SELECT id FROM tenants WHERE name = ?1)")?
        .query_row([name.as_str()], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

pub(super) fn drop_tenant(db: &Connection, name: &TenantId) -> rusqlite::Result<()> {
    if tenant(db, name)?.is_none() {
        return Ok(());
    }
    next_generation(db)?;
    db.prepare_cached("DELETE FROM records WHERE tenant = (SELECT id FROM tenants WHERE name = ?1)")?
        .execute([name.as_str()])?;
    db.prepare_cached("DELETE FROM tenants WHERE name = ?1")?.execute([name.as_str()])?;
    Ok(())
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk))
}

fn metadata(text: &str) -> rusqlite::Result<Metadata> {
    serde_json::from_str(text).map_err(|_| corrupt("metadata is not JSON"))
}

fn corrupt(message: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(message.to_owned()))
}
