//! From the port's filters to those of S3 Vectors.
//!
//! S3 Vectors has `$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`, `$exists`, `$and` and `$or`, none of them without arguments, and no negation
//! ([user guide](https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-vectors-metadata-filtering.html)). So negations are carried down to the leaves. The guide does not say whether a negated comparison is true of a record without the field; the port does, so a
//! negated leaf always says "or the field is not there". Fields have one type each, by the schema, so no other case is open.

use std::{collections::HashMap, ops::Bound};

use aws_smithy_types::{Document, Number};
use hybrid_core::vector::Filter;

use super::document::from_value;

/// What is left of a filter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Clause {
    /// It matches every record.
    Everything,
    /// It matches none, so nobody needs to be asked.
    Nothing,
    /// It matches where this says.
    Where(Document),
}

pub(super) fn translate(filter: &Filter) -> Clause {
    clause(filter, false)
}

/// The filter, or its negation.
fn clause(filter: &Filter, is_negated: bool) -> Clause {
    match (filter, is_negated) {
        (Filter::Not(filter), _) => clause(filter, !is_negated),
        (Filter::And(filters), false) | (Filter::Or(filters), true) => {
            all(filters.iter().map(|filter| clause(filter, is_negated)))
        }
        (Filter::Or(filters), false) | (Filter::And(filters), true) => {
            any(filters.iter().map(|filter| clause(filter, is_negated)))
        }
        (Filter::In { values, .. }, false) if values.is_empty() => Clause::Nothing,
        (Filter::In { values, .. }, true) if values.is_empty() => Clause::Everything,
        (Filter::Equals { field, value }, false) => compare(field, "$eq", from_value(value)),
        (Filter::Equals { field, value }, true) => or_missing(field, [compare(field, "$ne", from_value(value))]),
        (Filter::In { field, values }, _) => {
            let values = Document::Array(values.iter().map(from_value).collect());
            if is_negated { or_missing(field, [compare(field, "$nin", values)]) } else { compare(field, "$in", values) }
        }
        (Filter::Exists { field }, _) => exists(field, !is_negated),
        (Filter::Range { field, from, to }, false) => {
            let ends = [end(field, from, "$gte", "$gt"), end(field, to, "$lte", "$lt")];
            match ends {
                [None, None] => exists(field, true),
                ends => all(ends.into_iter().flatten()),
            }
        }
        (Filter::Range { field, from, to }, true) => {
            let ends = [end(field, from, "$lt", "$lte"), end(field, to, "$gt", "$gte")];
            or_missing(field, ends.into_iter().flatten())
        }
        // The port's language may grow; what is not known here cannot be asked, and matching nothing shows it.
        (_, false) => Clause::Nothing,
        (_, true) => Clause::Everything,
    }
}

fn compare(field: &str, operator: &str, value: Document) -> Clause {
    Clause::Where(object(field, object(operator, value)))
}

fn exists(field: &str, exists: bool) -> Clause {
    compare(field, "$exists", Document::Bool(exists))
}

fn or_missing(field: &str, clauses: impl IntoIterator<Item = Clause>) -> Clause {
    any([exists(field, false)].into_iter().chain(clauses))
}

fn end(field: &str, bound: &Bound<f64>, included: &str, excluded: &str) -> Option<Clause> {
    let number = |end: f64| Document::Number(Number::Float(end));
    match bound {
        Bound::Included(end) => Some(compare(field, included, number(*end))),
        Bound::Excluded(end) => Some(compare(field, excluded, number(*end))),
        Bound::Unbounded => None,
    }
}

fn all(clauses: impl IntoIterator<Item = Clause>) -> Clause {
    join("$and", &Clause::Nothing, Clause::Everything, clauses)
}

fn any(clauses: impl IntoIterator<Item = Clause>) -> Clause {
    join("$or", &Clause::Everything, Clause::Nothing, clauses)
}

/// Joins clauses of which `decisive` decides alone and `neutral` changes nothing.
fn join(operator: &str, decisive: &Clause, neutral: Clause, clauses: impl IntoIterator<Item = Clause>) -> Clause {
    let mut documents = Vec::new();
    for clause in clauses {
        match clause {
            clause if clause == *decisive => return clause,
            Clause::Where(document) => documents.push(document),
            Clause::Everything | Clause::Nothing => {}
        }
    }
    match documents.len() {
        0 => neutral,
        1 => documents.pop().map_or(neutral, Clause::Where),
        _ => Clause::Where(object(operator, Document::Array(documents))),
    }
}

fn object(name: &str, value: Document) -> Document {
    Document::Object(HashMap::from([(name.to_owned(), value)]))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(filter: &Filter) -> Value {
        match translate(filter) {
            Clause::Where(document) => {
                Value::Object(super::super::document::to_metadata("test", Some(document)).unwrap())
            }
            clause => json!(format!("{clause:?}")),
        }
    }

    #[test]
    fn negation_goes_down_to_the_leaves_and_counts_missing_fields() {
        let language = Filter::equals("language", "de");
        let year = Filter::range("year", 2020.0..2026.0);
        assert_eq!(of(&language), json!({ "language": { "$eq": "de" } }));
        assert_eq!(
            of(&(language.clone() & year.clone())),
            json!({ "$and": [
                { "language": { "$eq": "de" } },
                { "$and": [{ "year": { "$gte": 2020.0 } }, { "year": { "$lt": 2026.0 } }] },
            ] })
        );
        assert_eq!(
            of(&!(language & year)),
            json!({ "$or": [
                { "$or": [{ "language": { "$exists": false } }, { "language": { "$ne": "de" } }] },
                { "$or": [{ "year": { "$exists": false } }, { "year": { "$lt": 2020.0 } }, { "year": { "$gte": 2026.0 } }] },
            ] })
        );
        assert_eq!(of(&!!Filter::exists("a")), json!({ "a": { "$exists": true } }));
    }

    #[test]
    fn what_says_nothing_is_not_asked() {
        let none = || Filter::one_of("a", [0; 0]);
        let one = || Filter::equals("a", 1);
        assert_eq!(of(&Filter::And(vec![])), json!("Everything"));
        assert_eq!(of(&none()), json!("Nothing"));
        assert_eq!(of(&(none() & one())), json!("Nothing"));
        assert_eq!(of(&!(none() & one())), json!("Everything"));
        assert_eq!(of(&(none() | one())), json!({ "a": { "$eq": 1 } }));
        assert_eq!(of(&Filter::range("a", ..)), json!({ "a": { "$exists": true } }));
    }
}
