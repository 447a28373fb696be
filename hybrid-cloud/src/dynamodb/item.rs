//! What an item of the table looks like.

use std::collections::HashMap;

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use bytes::Bytes;
use hybrid_core::{CollectionName, Error, Record, RecordKey, Result, TenantId, Timestamp};

pub(super) type Attributes = HashMap<String, AttributeValue>;

/// The attributes' names. Some are words of DynamoDB's own language, so expressions name all of them by placeholders.
pub(super) const NAMES: Names = Names {
    tenant: "tenant",
    place: "place",
    value: "value",
    version: "version",
    written: "written",
    expires: "expires",
    ttl: "ttl",
};

pub(super) struct Names {
    pub(super) tenant: &'static str,
    pub(super) place: &'static str,
    pub(super) value: &'static str,
    pub(super) version: &'static str,
    pub(super) written: &'static str,
    pub(super) expires: &'static str,
    pub(super) ttl: &'static str,
}

/// Where a record lies.
pub(super) struct Place {
    tenant: String,
    place: String,
}

impl Place {
    pub(super) fn new(tenant: &TenantId, collection: &CollectionName, key: &RecordKey) -> Self {
        Self { tenant: tenant.to_string(), place: format!("{collection}/{key}") }
    }

    pub(super) fn key(&self) -> Attributes {
        let pair = |name: &str, value: &str| (name.to_owned(), text(value));
        [pair(NAMES.tenant, &self.tenant), pair(NAMES.place, &self.place)].into()
    }
}

/// An item that was read.
pub(super) struct Item {
    pub(super) collection: CollectionName,
    pub(super) record: Record,
}

pub(super) fn write(place: &Place, record: &Record) -> Attributes {
    let Record { key: _, value, version, written, expires } = record;
    let mut item = place.key();
    let mut put = |name: &str, value| item.insert(name.to_owned(), value);
    put(NAMES.value, AttributeValue::B(Blob::new(value.to_vec())));
    put(NAMES.version, text(version.to_string()));
    put(NAMES.written, number(written.unix_micros().to_string()));
    if let Some(expires) = expires {
        put(NAMES.expires, number(expires.unix_micros().to_string()));
        // Whole seconds, and not before the end.
        put(NAMES.ttl, number(expires.unix_micros().div_euclid(1_000_000).saturating_add(1).to_string()));
    }
    item
}

impl Item {
    pub(super) fn read(operation: &'static str, mut attributes: Attributes) -> Result<Self> {
        let place = take_text(operation, &mut attributes, NAMES.place)?;
        let corrupt = |name: &'static str| {
            Error::corrupt(operation, "an item is not a record of this store").with("attribute", name)
        };
        let (collection, key) = place.split_once('/').ok_or_else(|| corrupt(NAMES.place))?;
        let (collection, key) = (collection.parse()?, key.parse()?);
        let value = match attributes.remove(NAMES.value) {
            Some(AttributeValue::B(bytes)) => Bytes::from(bytes.into_inner()),
            _ => return Err(corrupt(NAMES.value).with("place", place)),
        };
        let version = take_text(operation, &mut attributes, NAMES.version)?.parse()?;
        let mut time = |name: &'static str| match attributes.remove(name) {
            Some(AttributeValue::N(digits)) => {
                digits.parse().map(|micros| Some(Timestamp::from_unix_micros(micros))).map_err(|_| corrupt(name))
            }
            None => Ok(None),
            _ => Err(corrupt(name)),
        };
        let written = time(NAMES.written)?.ok_or_else(|| corrupt(NAMES.written))?;
        let expires = time(NAMES.expires)?;
        Ok(Self { collection, record: Record { key, value, version, written, expires } })
    }
}

fn take_text(operation: &'static str, attributes: &mut Attributes, name: &'static str) -> Result<String> {
    match attributes.remove(name) {
        Some(AttributeValue::S(text)) => Ok(text),
        _ => Err(Error::corrupt(operation, "an item is not a record of this store").with("attribute", name)),
    }
}

pub(super) fn text(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn number(digits: String) -> AttributeValue {
    AttributeValue::N(digits)
}
