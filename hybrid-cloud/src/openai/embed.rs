//! `Embed` over `/embeddings`.

use std::sync::Arc;

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, ErrorKind, Event, InferenceBackend, Note, Reply, Result, Task,
    Usage,
    inference::stream_reply,
    task::{Embed, EmbedInput, EmbedRequest, EmbedResponse, Truncate},
};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::OpenAiCompatible;
use crate::wire::{
    embed::{EmbeddingList, EmbeddingRequest},
    unsupported,
};

const EMBED: &str = "embed";

#[async_trait]
impl InferenceBackend<Embed> for OpenAiCompatible {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.inner.profile)
    }

    async fn infer(&self, cx: &CallContext, request: EmbedRequest) -> Result<Reply<Embed>> {
        Embed::validate(&request)?;
        cx.admit(EMBED, &self.inner.config.locality)?;
        if let Some(limit) = self.inner.config.limits.batch.filter(|limit| request.inputs.len() > *limit) {
            let error = Error::new(ErrorKind::TooLarge, EMBED, "has more inputs than the server takes");
            return Err(error.with("field", "inputs").with("limit", limit).with("found", request.inputs.len()));
        }
        let started = cx.clock.monotonic();
        let (asked, dimensions, normalize) = (request.inputs.len(), request.dimensions, request.normalize);
        let (body, notes) = self.write(request)?;
        let fill =
            |request: reqwest::RequestBuilder| Ok(request.header(CONTENT_TYPE, "application/json").body(body.clone()));
        let response = self.inner.http.post(cx, EMBED, "embeddings", fill).await?;
        let body = self.inner.http.body(cx, EMBED, response).await?;
        let list: EmbeddingList = serde_json::from_slice(&body).map_err(|error| {
            Error::corrupt(EMBED, "the server's answer is not in the API's form").with_quoted_source(error)
        })?;
        let usage = list.usage.as_ref().map(|used| Usage { input_tokens: used.prompt_tokens, ..Usage::default() });
        let mut embeddings = read(list, asked, dimensions)?;
        if normalize == Some(true) {
            embeddings.iter_mut().for_each(|vector| to_length_1(vector));
        }
        Ok(Reply { response: EmbedResponse { embeddings }, meta: self.meta(cx, started, usage, notes)? })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: EmbedRequest,
    ) -> Result<BoxStream<'static, Result<Event<Embed>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

impl OpenAiCompatible {
    fn write(&self, request: EmbedRequest) -> Result<(Vec<u8>, Vec<Note>)> {
        let EmbedRequest { inputs, dimensions, kind, truncate, normalize, extra } = request;
        let mut notes = Vec::new();
        let mut note = |detail: &str| notes.push(Note { code: "left_out".into(), detail: detail.to_owned() });
        if kind.is_some() {
            note("the OpenAI API has no place for what a vector is for");
        }
        if truncate != Truncate::Never {
            note(
                "the OpenAI API has no place for how to cut a long input; the server refuses it or cuts it as it likes",
            );
        }
        if normalize == Some(false) {
            note("the OpenAI API has no place for the length of a vector; most servers make it 1");
        }
        let texts: Option<Vec<_>> = inputs.iter().map(EmbedInput::as_text).collect();
        let input = match texts {
            Some(texts) => json!(texts),
            None => {
                let tokens = inputs.iter().map(|input| match input {
                    EmbedInput::Tokens(tokens) => Some(tokens),
                    _ => None,
                });
                let tokens: Option<Vec<_>> = tokens.collect();
                let mixed = || unsupported(EMBED, "inputs", "must be all texts or all tokens for the OpenAI API");
                json!(tokens.ok_or_else(mixed)?)
            }
        };
        let wire = EmbeddingRequest {
            model: Some(self.inner.config.model.clone()),
            input,
            dimensions,
            input_type: None,
            // Not every local server knows the other form.
            encoding_format: Some("float".into()),
            user: None,
        };
        let cannot = |error| Error::internal(EMBED, "the request cannot be written").with_source(error);
        let mut value = serde_json::to_value(&wire).map_err(cannot)?;
        if let Value::Object(fields) = &mut value {
            for (name, extra) in extra {
                if fields.insert(name.clone(), extra).is_some() {
                    let error = Error::invalid(EMBED, "is a field of the request already; set it there");
                    return Err(error.with("field", format_args!("extra.{name}")));
                }
            }
        }
        Ok((serde_json::to_vec(&value).map_err(cannot)?, notes))
    }
}

/// The vectors in the order of their inputs: one for each, all of one length, of finite numbers.
fn read(list: EmbeddingList, asked: usize, dimensions: Option<u32>) -> Result<Vec<Vec<f32>>> {
    let corrupt = |message: &'static str| Error::corrupt(EMBED, message);
    let mut vectors = vec![None; asked];
    for (position, embedding) in list.data.into_iter().enumerate() {
        // Some servers leave every index at 0.
        let at = if embedding.index == 0 { position } else { embedding.index };
        let vector = embedding
            .embedding
            .into_floats(EMBED)
            .map_err(|error| corrupt("a vector is not in the API's form").with_source(error))?;
        if vector.iter().any(|number| !number.is_finite()) {
            return Err(corrupt("a vector holds what is no number").with("index", at));
        }
        let place = vectors.get_mut(at).ok_or_else(|| corrupt("there are more vectors than inputs"))?;
        if place.replace(vector).is_some() {
            return Err(corrupt("an input has two vectors").with("index", at));
        }
    }
    let vectors: Option<Vec<Vec<f32>>> = vectors.into_iter().collect();
    let vectors = vectors.ok_or_else(|| corrupt("an input has no vector"))?;
    let length = vectors.first().map_or(0, Vec::len);
    if length == 0 || vectors.iter().any(|vector| vector.len() != length) {
        return Err(corrupt("the vectors are empty or differ in length"));
    }
    match dimensions.filter(|wanted| usize::try_from(*wanted).is_ok_and(|wanted| wanted != length)) {
        Some(wanted) => {
            let error = Error::unsupported(EMBED, "the server's vectors have another length than was asked for");
            Err(error.with("field", "dimensions").with("asked", wanted).with("found", length))
        }
        None => Ok(vectors),
    }
}

fn to_length_1(vector: &mut [f32]) {
    let norm = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        // Rounding to the type of the vector is what is wanted.
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / norm) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: Value) -> EmbeddingList {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn vectors_are_put_in_the_order_of_their_inputs() {
        let shuffled = list(json!({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}));
        assert!(
            read(shuffled, 2, None).is_err(),
            "an index of 0 after another one is ambiguous and must not be guessed"
        );
        let ordered = list(json!({"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAAAQA=="}]}));
        assert_eq!(read(ordered, 2, Some(1)).unwrap(), [[1.0], [2.0]]);
        let none = list(json!({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}));
        assert_eq!(read(none, 2, None).unwrap(), [[1.0], [2.0]]);
    }

    #[test]
    fn vectors_that_do_not_fit_are_not_believed() {
        for (data, asked) in [
            (json!([]), 1),
            (json!([{"index": 0, "embedding": []}]), 1),
            (json!([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]), 1),
            (json!([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]), 2),
            (json!([{"index": 1, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]), 2),
            (json!([{"index": 0, "embedding": "AAAAA"}]), 1),
            (json!([{"index": 0, "embedding": "AADAfw=="}]), 1),
        ] {
            let error = read(list(json!({ "data": data })), asked, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{data}");
        }
        let short = list(json!({"data": [{"index": 0, "embedding": [1.0]}]}));
        assert_eq!(read(short, 1, Some(256)).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_normal_vector_has_length_1() {
        let mut vector = [3.0, 4.0];
        to_length_1(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0, 0.0];
        to_length_1(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
