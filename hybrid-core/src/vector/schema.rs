//! The shape of an index's records, and the one place that checks it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Filter, Metadata, VectorRecord, filter};
use crate::{Error, Result};

/// The most components of a vector: 4096.
pub const MAX_VECTOR_DIMENSION: usize = 4096;
/// The most bytes of one record's metadata, as JSON text: 40 KiB.
pub const MAX_METADATA_BYTES: usize = 40 * 1024;
/// The most bytes of one record's metadata without its [`Stored`](FieldKind::Stored) fields, as JSON text: 2 KiB.
pub const MAX_FILTERABLE_BYTES: usize = 2 * 1024;
const OPERATION: &str = "upsert vectors";
const MAX_FIELDS: usize = 50;
const MAX_STORED_FIELDS: usize = 10;
/// With components up to here squares and their sums stay finite in single precision.
const MAX_COMPONENT: f32 = 1e15;
/// Whole numbers up to here are exact as a 64-bit float, which is what every adapter compares.
const MAX_WHOLE: u64 = 1 << 53;

/// The shape of an index's records: dimension, metric, and the metadata fields with their types.
///
/// At most 50 fields, of which at most ten [`Stored`](FieldKind::Stored); a field's name is 1 to 63 characters of `A-Z`, `a-z`, `0-9`, `_` and `-`, the first a letter.
///
/// ```
/// use hybrid_core::vector::{FieldKind, Metric, VectorSchema};
///
/// let schema = VectorSchema::new(384, Metric::Cosine)?.with_field("language", FieldKind::Text)?;
/// assert_eq!(schema.dimension(), 384);
/// assert!(VectorSchema::new(5000, Metric::Cosine).is_err());
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct VectorSchema {
    dimension: usize,
    metric: Metric,
    fields: BTreeMap<String, FieldKind>,
}

/// How far apart two vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// `1 - a·b / (|a| |b|)`: from 0 (same direction) to 2 (opposite). A vector of zeros has no direction and is refused.
    Cosine,
    /// `|a - b|`: the length of the difference, not its square.
    Euclidean,
}

impl Metric {
    /// The distance, computed in double precision.
    pub fn distance(self, a: &[f32], b: &[f32]) -> f32 {
        let sum = |term: fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(b).map(|(a, b)| term(f64::from(*a), f64::from(*b))).sum()
        };
        match self {
            Self::Cosine => {
                let (dot, aa, bb) = (sum(|a, b| a * b), sum(|a, _| a * a), sum(|_, b| b * b));
                (1.0 - dot / (aa * bb).sqrt()).max(0.0) as f32
            }
            Self::Euclidean => sum(|a, b| (a - b) * (a - b)).sqrt() as f32,
        }
    }
}

/// What a metadata field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FieldKind {
    /// Text to filter by.
    Text,
    /// A finite number to filter by; a whole number at most 2^53 away from zero.
    Number,
    /// True or false, to filter by.
    Boolean,
    /// Text that is kept and given back, but never filtered by: a passage, an address.
    Stored,
}

#[derive(Deserialize)]
struct Unchecked {
    dimension: usize,
    metric: Metric,
    fields: BTreeMap<String, FieldKind>,
}

impl TryFrom<Unchecked> for VectorSchema {
    type Error = Error;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        let Unchecked { dimension, metric, fields } = unchecked;
        fields.into_iter().try_fold(Self::new(dimension, metric)?, |schema, (name, kind)| schema.with_field(name, kind))
    }
}

impl VectorSchema {
    /// A schema without metadata fields.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a dimension that is not between one and [`MAX_VECTOR_DIMENSION`].
    pub fn new(dimension: usize, metric: Metric) -> Result<Self> {
        if (1..=MAX_VECTOR_DIMENSION).contains(&dimension) {
            return Ok(Self { dimension, metric, fields: BTreeMap::new() });
        }
        Err(Error::invalid("define vector schema", "the dimension is not between one and the limit")
            .with("dimension", dimension)
            .with("limit", MAX_VECTOR_DIMENSION))
    }

    /// The same with one more metadata field.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a name that breaks the rule or is taken, and for too many fields.
    pub fn with_field(mut self, name: impl Into<String>, kind: FieldKind) -> Result<Self> {
        let name = name.into();
        let invalid = |message: &'static str| Error::invalid("define vector schema", message);
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !(1..=63).contains(&name.len()) || !name.as_bytes()[0].is_ascii_alphabetic() || !name.bytes().all(legal) {
            return Err(invalid("a field's name is 1 to 63 characters of A-Z, a-z, 0-9, _ and -, the first a letter")
                .with("field", format_args!("{name:?}")));
        }
        if self.fields.contains_key(&name) {
            return Err(invalid("the field is declared twice").with("field", name));
        }
        self.fields.insert(name, kind);
        let stored = self.stored_fields().count();
        if self.fields.len() > MAX_FIELDS || stored > MAX_STORED_FIELDS {
            return Err(invalid("too many fields")
                .with("fields", self.fields.len())
                .with("limit", MAX_FIELDS)
                .with("stored fields", stored)
                .with("stored limit", MAX_STORED_FIELDS));
        }
        Ok(self)
    }

    /// How many components each vector has.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// How distance is measured.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The metadata fields.
    pub fn fields(&self) -> &BTreeMap<String, FieldKind> {
        &self.fields
    }

    /// The names of the fields that are never filtered by.
    pub fn stored_fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(|(_, kind)| **kind == FieldKind::Stored).map(|(name, _)| name.as_str())
    }

    /// Checks that records of `earlier` remain legal under this schema, so that an index made with it can be opened with this one: the dimension, the metric
    /// and every field that it has are the same. New fields may be added, but [`Stored`](FieldKind::Stored) ones only when the index is made.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the difference.
    pub fn check_extends(&self, earlier: &Self) -> Result<()> {
        let differs = |what: String, found: String, expected: String| {
            Err(Error::invalid(
                "open vector index",
                "the index was made with another schema; use that one, or make a new index",
            )
            .with("what", what)
            .with("expected", expected)
            .with("found", found))
        };
        if self.dimension != earlier.dimension {
            return differs("dimension".to_owned(), earlier.dimension.to_string(), self.dimension.to_string());
        }
        if self.metric != earlier.metric {
            return differs("metric".to_owned(), format!("{:?}", earlier.metric), format!("{:?}", self.metric));
        }
        if !self.stored_fields().eq(earlier.stored_fields()) {
            let names = |schema: &Self| format!("{:?}", schema.stored_fields().collect::<Vec<_>>());
            return differs("stored fields".to_owned(), names(earlier), names(self));
        }
        for (name, kind) in &earlier.fields {
            if self.fields.get(name) != Some(kind) {
                return differs(format!("field {name}"), format!("{kind:?}"), format!("{:?}", self.fields.get(name)));
            }
        }
        Ok(())
    }

    /// Checks a vector's dimension and components.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
    pub fn check_vector(&self, operation: &'static str, vector: &[f32]) -> Result<()> {
        if vector.len() != self.dimension {
            return Err(Error::invalid(operation, "the vector does not have the index's dimension")
                .with("dimension", self.dimension)
                .with("found", vector.len()));
        }
        let legal = -MAX_COMPONENT..=MAX_COMPONENT;
        if let Some((at, value)) = vector.iter().enumerate().find(|(_, value)| !legal.contains(*value)) {
            return Err(Error::invalid(operation, "a component is not a number up to the limit")
                .with("component", at)
                .with("found", value)
                .with("limit", MAX_COMPONENT));
        }
        if self.metric == Metric::Cosine && vector.iter().all(|value| *value == 0.0) {
            return Err(Error::invalid(operation, "a vector of zeros has no direction, which cosine distance needs"));
        }
        Ok(())
    }

    /// Checks a record: its vector, and its metadata against the declared fields and the limits.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), or [`TooLarge`](crate::ErrorKind::TooLarge) for metadata over [`MAX_METADATA_BYTES`] or [`MAX_FILTERABLE_BYTES`].
    pub fn check_record(&self, record: &VectorRecord) -> Result<()> {
        let VectorRecord { key, vector, metadata } = record;
        self.check_vector(OPERATION, vector).map_err(|error| error.with("key", key))?;
        self.check_metadata(metadata).map_err(|error| error.with("key", key))
    }

    /// Checks metadata against the declared fields and the limits.
    ///
    /// # Errors
    /// As [`check_record`](Self::check_record).
    pub fn check_metadata(&self, metadata: &Metadata) -> Result<()> {
        for (field, value) in metadata {
            self.check_value(OPERATION, field, value)?;
        }
        let (all, filterable) = self.sizes(metadata);
        for (what, size, limit) in [
            ("the metadata is over the limit", all, MAX_METADATA_BYTES),
            (
                "the metadata to filter by is over the limit; declare long text as stored",
                filterable,
                MAX_FILTERABLE_BYTES,
            ),
        ] {
            if size > limit {
                return Err(Error::too_large(OPERATION, what).with("size", size).with("limit", limit));
            }
        }
        Ok(())
    }

    /// Checks that a filter names declared fields, with values of their types, is not nested deeper than [`MAX_FILTER_DEPTH`](super::MAX_FILTER_DEPTH), and has no more parts than
    /// [`MAX_FILTER_PARTS`](super::MAX_FILTER_PARTS).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field, or the limit.
    pub fn check_filter(&self, filter: &Filter) -> Result<()> {
        filter::check(self, filter)
    }

    /// Checks one value against the declared kind of its field.
    pub(super) fn check_value(&self, operation: &'static str, field: &str, value: &Value) -> Result<()> {
        let kind = self.kind(operation, field)?;
        let fits = match (kind, value) {
            (FieldKind::Text | FieldKind::Stored, Value::String(_)) | (FieldKind::Boolean, Value::Bool(_)) => true,
            (FieldKind::Number, Value::Number(number)) => match (number.as_u64(), number.as_i64()) {
                (Some(whole), _) => whole <= MAX_WHOLE,
                (None, Some(whole)) => whole.unsigned_abs() <= MAX_WHOLE,
                (None, None) => true,
            },
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Error::invalid(operation, "the value does not fit the field's kind")
            .with("field", field)
            .with("kind", format_args!("{kind:?}"))
            .with("found", value.to_string().chars().take(80).collect::<String>()))
    }

    pub(super) fn kind(&self, operation: &'static str, field: &str) -> Result<FieldKind> {
        self.fields.get(field).copied().ok_or_else(|| {
            Error::invalid(operation, "the schema has no such field").with("field", format_args!("{field:?}"))
        })
    }

    /// Bytes of the metadata as JSON text: all of it, and the part to filter by.
    fn sizes(&self, metadata: &Metadata) -> (usize, usize) {
        let (mut all, mut filterable) = (2, 2);
        for (field, value) in metadata {
            let size = field.len() + value.to_string().len() + 4;
            all += size;
            if self.fields.get(field) != Some(&FieldKind::Stored) {
                filterable += size;
            }
        }
        (all, filterable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn schema() -> VectorSchema {
        let schema = VectorSchema::new(2, Metric::Cosine).unwrap();
        schema.with_field("n", FieldKind::Number).unwrap().with_field("text", FieldKind::Stored).unwrap()
    }

    #[test]
    fn a_schema_survives_its_json_and_nothing_illegal_comes_in_that_way() {
        let json = serde_json::to_string(&schema()).unwrap();
        assert_eq!(serde_json::from_str::<VectorSchema>(&json).unwrap(), schema());
        assert!(serde_json::from_str::<VectorSchema>(&json.replace(":2", ":0")).is_err());
        assert!(serde_json::from_str::<VectorSchema>(&json.replace("\"n\"", "\"$n\"")).is_err());
    }

    #[test]
    fn an_index_opens_with_its_schema_or_one_that_adds_fields() {
        assert!(schema().check_extends(&schema()).is_ok());
        assert!(schema().with_field("b", FieldKind::Boolean).unwrap().check_extends(&schema()).is_ok());
        let more = schema().with_field("more", FieldKind::Stored).unwrap();
        let other = VectorSchema::new(2, Metric::Euclidean).unwrap();
        for (wrong, earlier) in [(&more, &schema()), (&schema(), &more), (&other, &schema())] {
            let error = wrong.check_extends(earlier).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
    }

    #[test]
    fn a_number_that_a_float_cannot_hold_is_refused() {
        let check = |value: Value| schema().check_value("upsert vectors", "n", &value).is_ok();
        assert!(check(5.into()) && check((-5).into()) && check(0.5.into()) && check(MAX_WHOLE.into()));
        assert!(!check((MAX_WHOLE + 1).into()) && !check(i64::MIN.into()) && !check("5".into()));
    }

    #[test]
    fn distances_are_those_of_the_definitions() {
        assert_eq!(Metric::Cosine.distance(&[1.0, 0.0], &[0.0, 3.0]), 1.0);
        assert_eq!(Metric::Cosine.distance(&[1.0, 0.0], &[-2.0, 0.0]), 2.0);
        assert_eq!(Metric::Euclidean.distance(&[1.0, 2.0], &[4.0, 6.0]), 5.0);
    }
}
