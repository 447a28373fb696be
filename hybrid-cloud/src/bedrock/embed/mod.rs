//! Embedding through InvokeModel.

mod cohere;
mod titan;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, Event, InferenceBackend, Note, Reply, Result, Task, Usage,
    inference::stream_reply,
    task::{Embed, EmbedInput, EmbedRequest, EmbedResponse},
};
use serde_json::{Map, Value};

use super::call::{Caller, note};

const OPERATION: &str = "embed with Bedrock";

/// How many calls of one request run beside each other.
const PARALLEL: usize = 8;

/// A model on Bedrock that embeds texts: Titan Text Embeddings V2, Cohere Embed v3 and v4.
///
/// # Behavior
/// - A request of any length is answered: Titan takes one text in a call, Cohere 96, and eight calls run beside each other. If one fails, the request
///   does, and its error is [in doubt](Error::is_in_doubt) whatever it is, since the calls beside it are paid for.
/// - Nothing is cut unless the request says so. A text that is too long is refused by the model, as
///   [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput), or here as [`TooLarge`](hybrid_core::ErrorKind::TooLarge) where the limit is in
///   characters; Titan cannot cut at all. Cohere does not say what it cut, so that a reply to a request that allows it is noted `truncated` always.
/// - Cohere embeds queries and documents differently: the request's `kind` must be given. Titan embeds both alike.
/// - Images and tokens are refused with [`Unsupported`](hybrid_core::ErrorKind::Unsupported).
/// - A reply whose tokens the provider did not count is noted `unmetered` and has no cost.
#[derive(Debug)]
pub struct BedrockEmbed {
    caller: Caller,
    model: Model,
}

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    TitanV2,
    Cohere(cohere::Version),
}

/// One call's part of a request.
struct Batch {
    body: Value,
    inputs: usize,
}

/// What one call gave.
struct Embedded {
    vectors: Vec<Vec<f32>>,
    tokens: Option<u64>,
}

impl BedrockEmbed {
    pub(super) fn new(caller: Caller) -> Result<Self> {
        let model = match caller.id.base() {
            id if id.starts_with("amazon.titan-embed-text-v2") => Model::TitanV2,
            id if id.starts_with("cohere.embed-v4") => Model::Cohere(cohere::Version::V4),
            id if id.starts_with("cohere.embed-english-v3") || id.starts_with("cohere.embed-multilingual-v3") => {
                Model::Cohere(cohere::Version::V3)
            }
            _ => {
                let message = "known are amazon.titan-embed-text-v2, cohere.embed-english-v3, cohere.embed-multilingual-v3 and cohere.embed-v4";
                return Err(Error::unsupported(OPERATION, message).with("model", caller.id.as_str()));
            }
        };
        Ok(Self { caller, model })
    }

    async fn ask(&self, cx: &CallContext, batch: Batch, normalize: bool) -> Result<Embedded> {
        let invoked = self.caller.invoke(cx, OPERATION, &batch.body).await?;
        let embedded = match self.model {
            Model::TitanV2 => titan::read(invoked),
            Model::Cohere(_) => cohere::read(invoked),
        };
        let mut embedded = embedded.ok_or_else(|| self.corrupt("the model's answer has no vectors"))?;
        if embedded.vectors.len() != batch.inputs {
            let error = self.corrupt("the model's answer has another count of vectors than inputs");
            return Err(error.with("vectors", embedded.vectors.len()).with("inputs", batch.inputs));
        }
        if embedded.vectors.iter().flatten().any(|number| !number.is_finite()) {
            return Err(self.corrupt("the model's answer has numbers that are not finite"));
        }
        if normalize && matches!(self.model, Model::Cohere(_)) {
            embedded.vectors.iter_mut().for_each(|vector| to_length_one(vector));
        }
        Ok(embedded)
    }

    fn corrupt(&self, message: &'static str) -> Error {
        Error::corrupt(OPERATION, message).with("model", self.caller.id.as_str())
    }
}

#[async_trait]
impl InferenceBackend<Embed> for BedrockEmbed {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.caller.profile)
    }

    async fn infer(&self, cx: &CallContext, request: EmbedRequest) -> Result<Reply<Embed>> {
        let start = cx.clock.monotonic();
        Embed::validate(&request)?;
        cx.admit(OPERATION, &self.caller.profile.locality)?;
        let (normalize, mut notes) = (request.normalize == Some(true), Vec::new());
        let batches = match self.model {
            Model::TitanV2 => titan::batches(request)?,
            Model::Cohere(version) => cohere::batches(version, request, &mut notes)?,
        };
        let several = batches.len() > 1;
        let calls = batches.into_iter().map(|batch| self.ask(cx, batch, normalize));
        let answers = stream::iter(calls).buffered(PARALLEL).try_collect::<Vec<_>>().await;
        // One call's refusal says nothing of the others: some have been answered, or are at work.
        let answers = answers.map_err(|error| if several { error.in_doubt() } else { error })?;
        let counted = answers.iter().map(|answer| answer.tokens).sum::<Option<u64>>();
        let embeddings: Vec<_> = answers.into_iter().flat_map(|answer| answer.vectors).collect();
        if embeddings.windows(2).any(|pair| pair[0].len() != pair[1].len()) {
            return Err(self.corrupt("the model's answers have vectors of several lengths"));
        }
        if counted.is_none() {
            notes.push(note("unmetered", "the provider did not count the tokens"));
        }
        let usage = Usage { input_tokens: counted.unwrap_or(0), ..Usage::default() };
        let mut meta = self.caller.meta(cx.clock.monotonic().since(start), usage, notes)?;
        if counted.is_none() {
            meta.cost = None;
        }
        Ok(Reply { response: EmbedResponse { embeddings }, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: EmbedRequest,
    ) -> Result<BoxStream<'static, Result<Event<Embed>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

fn texts(inputs: Vec<EmbedInput>) -> Result<Vec<String>> {
    let text = |(i, input): (usize, EmbedInput)| match input {
        EmbedInput::Text(text) => Ok(text),
        _ => Err(unsupported(format_args!("inputs[{i}]"), "the model is given texts alone")),
    };
    inputs.into_iter().enumerate().map(text).collect()
}

/// The model's own fields, over which none of the request's may be written.
fn with_extra(mut fields: Map<String, Value>, extra: &Map<String, Value>) -> Result<Value> {
    for (name, value) in extra {
        if fields.insert(name.clone(), value.clone()).is_some() {
            let message = "says what another field of the request says; keep one";
            return Err(Error::invalid(OPERATION, message).with("field", format_args!("extra.{name}")));
        }
    }
    Ok(fields.into())
}

fn unsupported(field: impl std::fmt::Display, message: &'static str) -> Error {
    Error::unsupported(OPERATION, message).with("field", field)
}

fn vector(value: &Value) -> Option<Vec<f32>> {
    // Out of f32's range is infinite, and refused as such.
    value.as_array()?.iter().map(|number| number.as_f64().map(|number| number as f32)).collect()
}

fn truncated() -> Note {
    note(
        "truncated",
        "inputs longer than the model reads may have been cut, as the request allows; the provider does not say which",
    )
}

fn to_length_one(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
