//! Metadata as the SDK's documents, and back.

use aws_smithy_types::{Document, Number};
use hybrid_core::{Error, Result, vector::Metadata};
use serde_json::Value;

pub(super) fn from_metadata(metadata: &Metadata) -> Document {
    Document::Object(metadata.iter().map(|(field, value)| (field.clone(), from_value(value))).collect())
}

pub(super) fn from_value(value: &Value) -> Document {
    match value {
        Value::Null => Document::Null,
        Value::Bool(value) => Document::Bool(*value),
        Value::String(text) => Document::String(text.clone()),
        Value::Number(number) => Document::Number(match (number.as_u64(), number.as_i64()) {
            (Some(whole), _) => Number::PosInt(whole),
            (None, Some(whole)) => Number::NegInt(whole),
            (None, None) => Number::Float(number.as_f64().unwrap_or_default()),
        }),
        Value::Array(values) => Document::Array(values.iter().map(from_value).collect()),
        Value::Object(metadata) => from_metadata(metadata),
    }
}

pub(super) fn to_metadata(operation: &'static str, document: Option<Document>) -> Result<Metadata> {
    match document.map(to_value) {
        None | Some(Value::Null) => Ok(Metadata::new()),
        Some(Value::Object(metadata)) => Ok(metadata),
        Some(_) => Err(Error::corrupt(operation, "the service gave metadata that is no object")),
    }
}

fn to_value(document: Document) -> Value {
    match document {
        Document::Null => Value::Null,
        Document::Bool(value) => Value::Bool(value),
        Document::String(text) => Value::String(text),
        Document::Number(Number::PosInt(whole)) => whole.into(),
        Document::Number(Number::NegInt(whole)) => whole.into(),
        Document::Number(Number::Float(number)) => number.into(),
        Document::Array(values) => values.into_iter().map(to_value).collect(),
        Document::Object(fields) => fields.into_iter().map(|(field, value)| (field, to_value(value))).collect(),
    }
}
