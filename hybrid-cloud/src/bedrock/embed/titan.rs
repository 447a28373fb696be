//! The body of Titan Text Embeddings V2: one text in a call. (AWS user guide, `model-parameters-titan-embed-text`.)

use hybrid_core::{
    Result,
    task::{EmbedRequest, Truncate},
};
use serde_json::Map;

use super::{super::invoke::Invoked, Batch, Embedded, texts, unsupported, vector, with_extra};

const DIMENSIONS: [u32; 3] = [256, 512, 1024];

pub(super) fn batches(request: EmbedRequest) -> Result<Vec<Batch>> {
    // It embeds questions and documents alike: whatever the kind, its vector is the one asked for.
    let EmbedRequest { inputs, dimensions, kind: _, truncate, normalize, extra } = request;
    if truncate != Truncate::Never {
        return Err(unsupported("truncate", "the model cannot cut; it refuses what is too long"));
    }
    if let Some(dimensions) = dimensions.filter(|dimensions| !DIMENSIONS.contains(dimensions)) {
        return Err(unsupported("dimensions", "the model makes vectors of 256, 512 or 1024").with("found", dimensions));
    }
    let batch = |text: String| {
        let mut fields = Map::from_iter([("inputText".to_owned(), text.into())]);
        if let Some(dimensions) = dimensions {
            fields.insert("dimensions".to_owned(), dimensions.into());
        }
        if let Some(normalize) = normalize {
            fields.insert("normalize".to_owned(), normalize.into());
        }
        Ok(Batch { body: with_extra(fields, &extra)?, inputs: 1 })
    };
    texts(inputs)?.into_iter().map(batch).collect()
}

pub(super) fn read(invoked: Invoked) -> Option<Embedded> {
    let Invoked { body, input_tokens } = invoked;
    let tokens = body["inputTextTokenCount"].as_u64().or(input_tokens);
    Some(Embedded { vectors: vec![vector(&body["embedding"])?], tokens })
}
