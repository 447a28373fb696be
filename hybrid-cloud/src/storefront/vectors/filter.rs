//! Filters as JSON: the operators that vector stores have taken over from MongoDB's queries.

use hybrid_core::vector::Filter;
use serde_json::{Map, Value};

use super::refuse;
use crate::storefront::error::ApiError;

/// Reads a filter. Whether it fits the index's fields is for its schema to say.
pub(super) fn read(filter: &Value) -> Result<Filter, ApiError> {
    match filter {
        Value::Object(clauses) => all(clauses, "filter", clause),
        _ => Err(refuse("filter", "must be an object")),
    }
}

/// What an object asks for: each of its parts.
fn all(
    parts: &Map<String, Value>,
    at: &str,
    read: impl Fn(&str, &Value, &str) -> Result<Filter, ApiError>,
) -> Result<Filter, ApiError> {
    let mut filters = parts.iter().map(|(name, value)| read(name, value, &format!("{at}.{name}")));
    match (filters.next(), parts.len()) {
        (None, _) => Err(refuse(at, "is empty; leave it out to ask for everything")),
        (Some(one), 1) => one,
        (Some(first), _) => Ok(Filter::And(std::iter::once(first).chain(filters).collect::<Result<_, _>>()?)),
    }
}

fn clause(name: &str, value: &Value, at: &str) -> Result<Filter, ApiError> {
    match name {
        "$and" => several(value, at).map(Filter::And),
        "$or" => several(value, at).map(Filter::Or),
        "$not" => match value {
            Value::Object(clauses) => all(clauses, at, clause).map(|filter| !filter),
            _ => Err(refuse(at, "must be a filter")),
        },
        operator if operator.starts_with('$') => Err(refuse(at, "is not known; it is $and, $or or $not here")),
        field => match value {
            Value::Object(operators) => all(operators, at, |operator, value, at| compare(field, operator, value, at)),
            Value::Array(_) | Value::Null => {
                Err(refuse(at, "must be a value or an object of operators; for a list write $in"))
            }
            value => Ok(Filter::equals(field, value.clone())),
        },
    }
}

fn several(value: &Value, at: &str) -> Result<Vec<Filter>, ApiError> {
    let filters = value.as_array().filter(|filters| !filters.is_empty());
    let filters = filters.ok_or_else(|| refuse(at, "must be a list of at least one filter"))?;
    let read = |(i, filter): (usize, &Value)| match filter {
        Value::Object(clauses) => all(clauses, &format!("{at}[{i}]"), clause),
        _ => Err(refuse(format!("{at}[{i}]"), "must be a filter")),
    };
    filters.iter().enumerate().map(read).collect()
}

fn compare(field: &str, operator: &str, value: &Value, at: &str) -> Result<Filter, ApiError> {
    let number = || value.as_f64().ok_or_else(|| refuse(at, "must be a number"));
    let scalar = |value: &Value| match value {
        Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok(value.clone()),
        _ => Err(refuse(at, "must be a text, a number, true or false")),
    };
    let list = || {
        let values = value.as_array().ok_or_else(|| refuse(at, "must be a list"))?;
        values.iter().map(scalar).collect::<Result<Vec<_>, _>>()
    };
    let above = |from| (std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded);
    Ok(match operator {
        "$eq" => Filter::equals(field, scalar(value)?),
        "$ne" => !Filter::equals(field, scalar(value)?),
        "$in" => Filter::one_of(field, list()?),
        "$nin" => !Filter::one_of(field, list()?),
        "$gt" => Filter::range(field, above(number()?)),
        "$gte" => Filter::range(field, number()?..),
        "$lt" => Filter::range(field, ..number()?),
        "$lte" => Filter::range(field, ..=number()?),
        "$exists" => match value {
            Value::Bool(true) => Filter::exists(field),
            Value::Bool(false) => !Filter::exists(field),
            _ => return Err(refuse(at, "must be true or false")),
        },
        _ => {
            return Err(refuse(
                at,
                "is not known; the operators are $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin and $exists",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_filter_means_what_its_operators_say() {
        let record = json!({ "year": 2021, "language": "en", "open": true });
        let holds = |filter: Value| {
            let filter = read(&filter).unwrap_or_else(|error| panic!("{filter}: {error:?}"));
            filter.matches(record.as_object().unwrap())
        };
        for yes in [
            json!({ "language": "en" }),
            json!({ "language": "en", "year": { "$gte": 2021, "$lt": 2022 } }),
            json!({ "year": { "$gt": 2020, "$lte": 2021 } }),
            json!({ "year": { "$in": [2020, 2021] }, "language": { "$nin": ["de"] } }),
            json!({ "$or": [{ "language": "de" }, { "open": true }] }),
            json!({ "$and": [{ "language": { "$ne": "de" } }, { "$not": { "year": 2020 } }] }),
            json!({ "year": { "$exists": true }, "author": { "$exists": false } }),
        ] {
            assert!(holds(yes.clone()), "{yes}");
            assert!(!holds(json!({ "$not": yes })), "not {yes}");
        }
        for no in [
            json!({ "language": "de" }),
            json!({ "year": { "$gt": 2021 } }),
            json!({ "year": { "$lt": 2021 } }),
            json!({ "year": { "$eq": 2020 } }),
            json!({ "author": "anna" }),
        ] {
            assert!(!holds(no.clone()), "{no}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_by_its_place() {
        for (wrong, place) in [
            (json!([]), "filter must be"),
            (json!({}), "filter is empty"),
            (json!({ "year": {} }), "filter.year is empty"),
            (json!({ "year": [2020] }), "filter.year must be"),
            (json!({ "year": null }), "filter.year must be"),
            (json!({ "year": { "$near": 1 } }), "filter.year.$near is not known"),
            (json!({ "year": { "$gt": "2020" } }), "filter.year.$gt must be a number"),
            (json!({ "year": { "$in": 2020 } }), "filter.year.$in must be a list"),
            (json!({ "$or": [] }), "filter.$or must be"),
            (json!({ "$or": [{ "a": 1 }, 2] }), "filter.$or[1] must be"),
            (json!({ "$xor": [] }), "filter.$xor is not known"),
        ] {
            let error = format!("{:?}", read(&wrong).unwrap_err());
            assert!(error.contains(place), "{wrong}: {error}");
        }
    }
}
