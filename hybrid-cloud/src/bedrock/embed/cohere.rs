//! The bodies of Cohere Embed v3 and v4: up to 96 texts in a call. (AWS user guide, `model-parameters-embed-v3` and `-v4`.)

use hybrid_core::{
    Error, Note, Result,
    task::{EmbedKind, EmbedRequest, Truncate},
};
use serde_json::{Map, Value, json};

use super::{super::invoke::Invoked, Batch, Embedded, OPERATION, texts, truncated, unsupported, vector, with_extra};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V3,
    V4,
}

const TEXTS: usize = 96;
/// Of v3; v4 counts tokens.
const CHARACTERS: usize = 2048;

pub(super) fn batches(version: Version, request: EmbedRequest, notes: &mut Vec<Note>) -> Result<Vec<Batch>> {
    let EmbedRequest { inputs, dimensions, kind, truncate, normalize: _, extra } = request;
    let input_type = match kind {
        Some(EmbedKind::Query) => "search_query",
        Some(EmbedKind::Document) => "search_document",
        Some(EmbedKind::Classification) => "classification",
        Some(EmbedKind::Clustering) => "clustering",
        Some(_) => return Err(unsupported("kind", "not a kind that this adapter knows")),
        None => {
            let message = "the model embeds queries and documents differently; say what the vectors are for";
            return Err(Error::invalid(OPERATION, message).with("field", "kind"));
        }
    };
    let truncate = match (truncate, version) {
        (Truncate::Never, _) => "NONE",
        (Truncate::Start, Version::V3) => "START",
        (Truncate::Start, Version::V4) => "LEFT",
        (Truncate::End, Version::V3) => "END",
        (Truncate::End, Version::V4) => "RIGHT",
        _ => return Err(unsupported("truncate", "not a way to cut that this adapter knows")),
    };
    let dimensions = match (dimensions, version) {
        (None, _) | (Some(1024), Version::V3) => None,
        (Some(known @ (256 | 512 | 1024 | 1536)), Version::V4) => Some(known),
        (Some(other), Version::V3) => {
            return Err(unsupported("dimensions", "the model makes vectors of 1024").with("found", other));
        }
        (Some(other), Version::V4) => {
            let message = "the model makes vectors of 256, 512, 1024 or 1536";
            return Err(unsupported("dimensions", message).with("found", other));
        }
    };
    let texts = texts(inputs)?;
    let too_long = |text: &String| version == Version::V3 && text.chars().count() > CHARACTERS;
    if let Some(i) = texts.iter().position(too_long) {
        return Err(Error::too_large(OPERATION, "the model takes texts of at most 2048 characters")
            .with("field", format_args!("inputs[{i}]"))
            .with("characters", texts[i].chars().count()));
    }
    if truncate != "NONE" {
        notes.push(truncated());
    }
    let batch = |texts: &[String]| {
        let mut fields = Map::from_iter([
            ("texts".to_owned(), json!(texts)),
            ("input_type".to_owned(), input_type.into()),
            ("truncate".to_owned(), truncate.into()),
            ("embedding_types".to_owned(), json!(["float"])),
        ]);
        if let Some(dimensions) = dimensions {
            fields.insert("output_dimension".to_owned(), dimensions.into());
        }
        Ok(Batch { body: with_extra(fields, &extra)?, inputs: texts.len() })
    };
    texts.chunks(TEXTS).map(batch).collect()
}

pub(super) fn read(invoked: Invoked) -> Option<Embedded> {
    let Invoked { body, input_tokens } = invoked;
    // By type where types were asked for; models that do not know the field give the vectors bare.
    let vectors = body.pointer("/embeddings/float").or_else(|| body.get("embeddings")).and_then(Value::as_array)?;
    Some(Embedded { vectors: vectors.iter().map(vector).collect::<Option<_>>()?, tokens: input_tokens })
}
