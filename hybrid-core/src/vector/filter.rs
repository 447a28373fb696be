//! The filter language: small enough that every adapter does it exactly.

use std::ops::Bound;

use serde_json::Value;

use super::{FieldKind, Metadata, VectorSchema};
use crate::{Error, Result};

/// How deep filters may be nested: 16.
pub const MAX_FILTER_DEPTH: usize = 16;
/// The most parts that a filter may have: 1000. Each filter in it is one, and each value that one lists: every record is compared with all of them.
pub const MAX_FILTER_PARTS: usize = 1000;

/// Which records count in a query.
///
/// A filter is true or false of a record, nothing in between: a comparison with a field that the record does not have is false, and its
/// [`Not`](Self::Not) is true. Fields have the types that the [`VectorSchema`] declares, so that no comparison meets a value of another type; a filter with a
/// field that is not declared, is [`Stored`](FieldKind::Stored), or has another type is refused.
///
/// Numbers are compared as 64-bit floats, text byte by byte.
///
/// ```
/// use hybrid_core::vector::Filter;
/// use serde_json::json;
///
/// let filter = Filter::equals("language", "de") & Filter::at_least("year", 2024.0) & !Filter::equals("draft", true);
/// let record = json!({ "language": "de", "year": 2025 });
/// assert!(filter.matches(record.as_object().unwrap()));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Filter {
    /// The field has this value.
    Equals {
        /// The field.
        field: String,
        /// Text, a number or a boolean.
        value: Value,
    },
    /// The field has one of these values; with none of them nothing matches.
    In {
        /// The field.
        field: String,
        /// Texts, numbers or booleans.
        values: Vec<Value>,
    },
    /// The field is a number in this range.
    Range {
        /// The field.
        field: String,
        /// Where the range begins.
        from: Bound<f64>,
        /// Where it ends.
        to: Bound<f64>,
    },
    /// The record has the field.
    Exists {
        /// The field.
        field: String,
    },
    /// All of them match; with none of them everything does.
    And(Vec<Filter>),
    /// One of them matches; with none of them nothing does.
    Or(Vec<Filter>),
    /// It does not match.
    Not(Box<Filter>),
}

impl Filter {
    /// The field has this value.
    pub fn equals(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::Equals { field: field.into(), value: value.into() }
    }

    /// The field has one of these values.
    pub fn one_of<V: Into<Value>>(field: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        Self::In { field: field.into(), values: values.into_iter().map(Into::into).collect() }
    }

    /// The field is a number in `range`, such as `1.0..2.0` or `..=5.0`.
    pub fn range(field: impl Into<String>, range: impl std::ops::RangeBounds<f64>) -> Self {
        Self::Range { field: field.into(), from: range.start_bound().cloned(), to: range.end_bound().cloned() }
    }

    /// The field is a number and not less than `least`.
    pub fn at_least(field: impl Into<String>, least: f64) -> Self {
        Self::range(field, least..)
    }

    /// The record has the field.
    pub fn exists(field: impl Into<String>) -> Self {
        Self::Exists { field: field.into() }
    }

    /// Whether a record with this metadata matches.
    pub fn matches(&self, metadata: &Metadata) -> bool {
        let has = |field: &str, test: &dyn Fn(&Value) -> bool| metadata.get(field).is_some_and(test);
        match self {
            Self::Equals { field, value } => has(field, &|found| same(found, value)),
            Self::In { field, values } => has(field, &|found| values.iter().any(|value| same(found, value))),
            Self::Range { field, from, to } => {
                let range = (*from, *to);
                has(field, &|found| found.as_f64().is_some_and(|found| std::ops::RangeBounds::contains(&range, &found)))
            }
            Self::Exists { field } => metadata.contains_key(field),
            Self::And(all) => all.iter().all(|filter| filter.matches(metadata)),
            Self::Or(any) => any.iter().any(|filter| filter.matches(metadata)),
            Self::Not(filter) => !filter.matches(metadata),
        }
    }
}

impl std::ops::BitAnd for Filter {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        match self {
            Self::And(mut all) => {
                all.push(other);
                Self::And(all)
            }
            one => Self::And(vec![one, other]),
        }
    }
}

impl std::ops::BitOr for Filter {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        match self {
            Self::Or(mut any) => {
                any.push(other);
                Self::Or(any)
            }
            one => Self::Or(vec![one, other]),
        }
    }
}

impl std::ops::Not for Filter {
    type Output = Self;

    fn not(self) -> Self {
        Self::Not(Box::new(self))
    }
}

const OPERATION: &str = "filter vectors";

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// As [`VectorSchema::check_filter`].
pub(super) fn check(schema: &VectorSchema, filter: &Filter) -> Result<()> {
    let parts = parts(filter, 0)?;
    if parts > MAX_FILTER_PARTS {
        return Err(Error::invalid(OPERATION, "the filter has too many parts and listed values")
            .with("parts", parts)
            .with("limit", MAX_FILTER_PARTS));
    }
    check_fields(schema, filter)
}

/// How many parts a filter has that is not nested too deep.
fn parts(filter: &Filter, depth: usize) -> Result<usize> {
    if depth >= MAX_FILTER_DEPTH {
        return Err(Error::invalid(OPERATION, "the filter is nested too deep").with("limit", MAX_FILTER_DEPTH));
    }
    let below = match filter {
        Filter::And(filters) | Filter::Or(filters) => {
            filters.iter().try_fold(0, |sum, filter| Ok(parts(filter, depth + 1)? + sum))?
        }
        Filter::Not(filter) => parts(filter, depth + 1)?,
        Filter::In { values, .. } => values.len(),
        Filter::Equals { .. } | Filter::Range { .. } | Filter::Exists { .. } => 0,
    };
    Ok(below + 1)
}

/// Checks that a filter, which is not nested too deep, fits the schema.
fn check_fields(schema: &VectorSchema, filter: &Filter) -> Result<()> {
    let kind = |field: &str| match schema.kind(OPERATION, field)? {
        FieldKind::Stored => {
            Err(Error::invalid(OPERATION, "the field is stored, not to filter by").with("field", field))
        }
        kind => Ok(kind),
    };
    match filter {
        Filter::Equals { field, value } => {
            kind(field)?;
            schema.check_value(OPERATION, field, value)
        }
        Filter::In { field, values } => {
            kind(field)?;
            values.iter().try_for_each(|value| schema.check_value(OPERATION, field, value))
        }
        Filter::Range { field, from, to } => {
            if kind(field)? != FieldKind::Number {
                return Err(Error::invalid(OPERATION, "a range needs a field of numbers").with("field", field));
            }
            let end = |bound: &Bound<f64>| match bound {
                Bound::Included(end) | Bound::Excluded(end) if !end.is_finite() => {
                    Err(Error::invalid(OPERATION, "an end of the range is not a finite number; leave it open instead")
                        .with("field", field)
                        .with("found", end))
                }
                _ => Ok(()),
            };
            end(from)?;
            end(to)
        }
        Filter::Exists { field } => kind(field).map(drop),
        Filter::And(filters) | Filter::Or(filters) => {
            filters.iter().try_for_each(|filter| check_fields(schema, filter))
        }
        Filter::Not(filter) => check_fields(schema, filter),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vector::Metric;

    #[test]
    fn a_comparison_with_a_missing_field_is_false_and_its_negation_true() {
        let record = json!({ "a": 5, "t": "x" });
        let matches = |filter: Filter| filter.matches(record.as_object().unwrap());
        assert!(matches(Filter::equals("a", 5.0)) && matches(Filter::equals("a", 5)));
        assert!(matches(Filter::range("a", 5.0..6.0)) && !matches(Filter::range("a", 4.0..5.0)));
        assert!(!matches(Filter::equals("b", 5)) && matches(!Filter::equals("b", 5)));
        assert!(!matches(Filter::range("b", ..)) && matches(!Filter::range("b", ..)));
        assert!(!matches(Filter::one_of("t", [""; 0])) && matches(Filter::one_of("t", ["y", "x"])));
        assert!(matches(Filter::And(vec![])) && !matches(Filter::Or(vec![])));
    }

    #[test]
    fn a_filter_that_does_not_fit_the_schema_is_refused() {
        let schema = VectorSchema::new(1, Metric::Cosine).unwrap();
        let schema = schema.with_field("n", FieldKind::Number).unwrap().with_field("s", FieldKind::Stored).unwrap();
        let fits = |filter: &Filter| schema.check_filter(filter).is_ok();
        assert!(fits(&Filter::equals("n", 1)) && fits(&Filter::exists("n")) && fits(&Filter::range("n", ..)));
        for wrong in [
            Filter::equals("n", "1"),
            Filter::equals("m", 1),
            Filter::equals("s", "x"),
            Filter::exists("s"),
            Filter::range("n", f64::NAN..),
            !Filter::equals("m", 1),
        ] {
            assert!(!fits(&wrong), "{wrong:?}");
        }
        let deep = (0..MAX_FILTER_DEPTH).fold(Filter::equals("n", 1), |filter, _| !filter);
        assert!(!fits(&deep));
        let Filter::Not(less) = deep else { unreachable!() };
        assert!(fits(&less));
    }

    #[test]
    fn a_filter_that_would_compare_each_record_with_too_much_is_refused() {
        let schema = VectorSchema::new(1, Metric::Cosine).unwrap().with_field("n", FieldKind::Number).unwrap();
        let listed = |values: usize| Filter::one_of("n", 0..values);
        let either = |filters: usize| Filter::Or(vec![Filter::exists("n"); filters]);
        for fits in [listed(999), either(999), listed(499) & either(498)] {
            schema.check_filter(&fits).unwrap();
        }
        for (wide, parts) in [(listed(1000), 1001), (!either(1000), 1002), (listed(500) & either(499), 1002)] {
            let error = schema.check_filter(&wide).unwrap_err().to_string();
            assert!(error.contains(&format!("parts: {parts}")) && error.contains("limit: 1000"), "{error}");
        }
    }
}
