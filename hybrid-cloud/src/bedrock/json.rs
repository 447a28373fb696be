//! Between `serde_json`'s values and the SDK's documents, which are the same thing.

use aws_smithy_types::{Document, Number};
use serde_json::Value;

pub(super) fn document(value: Value) -> Document {
    match value {
        Value::Null => Document::Null,
        Value::Bool(truth) => Document::Bool(truth),
        Value::Number(number) => Document::Number(match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => Number::PosInt(number),
            (_, Some(number), _) => Number::NegInt(number),
            (.., number) => Number::Float(number.unwrap_or(f64::NAN)),
        }),
        Value::String(text) => Document::String(text),
        Value::Array(items) => Document::Array(items.into_iter().map(document).collect()),
        Value::Object(fields) => {
            Document::Object(fields.into_iter().map(|(name, value)| (name, document(value))).collect())
        }
    }
}

pub(super) fn value(document: Document) -> Value {
    match document {
        Document::Null => Value::Null,
        Document::Bool(truth) => truth.into(),
        Document::Number(Number::PosInt(number)) => number.into(),
        Document::Number(Number::NegInt(number)) => number.into(),
        Document::Number(Number::Float(number)) => number.into(),
        Document::String(text) => text.into(),
        Document::Array(items) => items.into_iter().map(value).collect(),
        Document::Object(fields) => fields.into_iter().map(|(name, document)| (name, value(document))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_come_back() {
        let all = json!({"a": [null, true, 1, -1, 0.1, u64::MAX, i64::MIN, "x"], "b": {"c": {}}});
        assert_eq!(value(document(all.clone())), all);
    }
}
