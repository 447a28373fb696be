//! The filter language of S3 Vectors, from its user guide.

use serde_json::{Map, Value};

use super::{MissingField, service::Refusal};

type Outcome<T = bool> = Result<T, Refusal>;

/// Whether metadata matches a filter. A filter that is not legal is refused, whatever the metadata.
pub(super) fn matches(filter: &Value, metadata: &Map<String, Value>, context: &Context<'_>) -> Outcome {
    let fields = filter.as_object().filter(|fields| !fields.is_empty()).ok_or_else(|| invalid("not an object"))?;
    // All fields are looked at, so that what is not legal is refused even behind one that does not match.
    let mut matched = true;
    for (name, condition) in fields {
        matched &= match name.as_str() {
            "$and" => each(condition, metadata, context)?.into_iter().all(|matched| matched),
            "$or" => each(condition, metadata, context)?.into_iter().any(|matched| matched),
            operator if operator.starts_with('$') => return Err(invalid("an unknown operator")),
            field if context.stored.iter().any(|stored| *stored == field) => {
                return Err(invalid("a field that cannot be filtered by"));
            }
            field => condition_holds(condition, metadata.get(field), context)?,
        };
    }
    Ok(matched)
}

/// What a filter is judged by.
pub(super) struct Context<'a> {
    pub(super) stored: &'a [String],
    pub(super) missing: MissingField,
}

fn each(filters: &Value, metadata: &Map<String, Value>, context: &Context<'_>) -> Outcome<Vec<bool>> {
    let filters =
        filters.as_array().filter(|filters| !filters.is_empty()).ok_or_else(|| invalid("not a list of filters"))?;
    filters.iter().map(|filter| matches(filter, metadata, context)).collect()
}

fn condition_holds(condition: &Value, found: Option<&Value>, context: &Context<'_>) -> Outcome {
    let Some(operators) = condition.as_object() else { return equals(condition, found) };
    if operators.is_empty() {
        return Err(invalid("a condition without operators"));
    }
    let missing = context.missing == MissingField::DiffersFromAll;
    let mut holds = true;
    for (operator, operand) in operators {
        holds &= match operator.as_str() {
            "$eq" => equals(operand, found)?,
            "$ne" => !equals(operand, found)? && (found.is_some() || missing),
            "$in" => one_of(operand, found)?,
            "$nin" => !one_of(operand, found)? && (found.is_some() || missing),
            "$exists" => operand.as_bool().ok_or_else(|| invalid("$exists without a boolean"))? == found.is_some(),
            "$gt" => compare(operand, found)?.is_some_and(std::cmp::Ordering::is_gt),
            "$gte" => compare(operand, found)?.is_some_and(std::cmp::Ordering::is_ge),
            "$lt" => compare(operand, found)?.is_some_and(std::cmp::Ordering::is_lt),
            "$lte" => compare(operand, found)?.is_some_and(std::cmp::Ordering::is_le),
            _ => return Err(invalid("an unknown operator")),
        };
    }
    Ok(holds)
}

fn equals(operand: &Value, found: Option<&Value>) -> Outcome {
    if !(operand.is_string() || operand.is_number() || operand.is_boolean()) {
        return Err(invalid("an operand that is no string, number or boolean"));
    }
    let same = |found: &Value| match (found.as_f64(), operand.as_f64()) {
        (Some(found), Some(operand)) => found == operand,
        _ => found == operand,
    };
    Ok(match found {
        Some(Value::Array(elements)) => elements.iter().any(same),
        Some(found) => same(found),
        None => false,
    })
}

fn one_of(operands: &Value, found: Option<&Value>) -> Outcome {
    let operands = operands.as_array().filter(|operands| !operands.is_empty());
    let operands = operands.ok_or_else(|| invalid("not a list of operands"))?;
    operands.iter().try_fold(false, |any, operand| Ok(equals(operand, found)? || any))
}

/// How what was found compares with the operand.
fn compare(operand: &Value, found: Option<&Value>) -> Outcome<Option<std::cmp::Ordering>> {
    let operand = operand.as_f64().ok_or_else(|| invalid("a comparison with what is no number"))?;
    Ok(found.and_then(Value::as_f64).and_then(|found| found.partial_cmp(&operand)))
}

fn invalid(what: &str) -> Refusal {
    Refusal::validation(format!("Invalid query filter: {what}"))
}
