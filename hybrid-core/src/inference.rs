//! The inference port: one trait for every task.

use std::{fmt::Debug, future::Future, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{CallContext, Digest, Error, Locality, Money, Price, Result, Usage};

/// A boxed stream without borrowed data, as the ports return it.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;
/// A boxed future, as the ports take it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a model can be asked to do: ties a request type to its response and its streaming delta.
///
/// Implemented by the marker types in [`task`](crate::task).
pub trait Task: Debug + Send + Sync + 'static {
    /// The task's name in manifests, metrics and error messages, lower case.
    const NAME: &'static str;
    /// What is asked.
    type Request: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// The whole answer.
    type Response: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// A piece of an answer. Folding all pieces of a stream gives the response.
    type Delta: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Checks what no backend could ever answer: an empty input, a value out of range.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field and the way out.
    fn validate(request: &Self::Request) -> Result<()>;

    /// Splits a whole answer into deltas that [`fold`](Task::fold) joins again.
    fn split(response: Self::Response) -> Vec<Self::Delta>;

    /// Joins the deltas of one stream, in order, into the answer.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the deltas do not make a whole answer.
    fn fold(deltas: impl IntoIterator<Item = Self::Delta>) -> Result<Self::Response>;
}

/// A backend that answers requests of one task: a model in this process, a server on this site, a cloud service.
///
/// # Behavior
/// - [`infer`](Self::infer) and [`stream`](Self::stream) refuse a request that [`Task::validate`] refuses, before any work.
/// - They refuse with [`PolicyDenied`](crate::ErrorKind::PolicyDenied) when the context's data policy does not admit
///   [`BackendProfile::locality`], before a byte leaves; [`CallContext::admit`] does it in one line.
/// - A cancelled context ends the call with [`Cancelled`](crate::ErrorKind::Cancelled), a passed deadline with
///   [`Timeout`](crate::ErrorKind::Timeout).
/// - A stream that succeeds yields deltas, then exactly one [`Event::Done`], then ends. A stream that fails yields one error and ends;
///   no `Done` comes before or after it. Folding its deltas gives what `infer` would have returned.
/// - Every reply names the backend and the model version that made it, and meters what it used. Nothing is cut or downgraded
///   without a [`Note`] in the reply's [`ReplyMeta::notes`].
/// - What a server says of a failure may quote the request: it goes into the error as a [quote](crate::Error#what-others-said), which logs withhold.
///
/// # Cancel safety
/// Dropping the future or the stream stops the work as soon as the backend can; nothing else needs to be done.
#[async_trait]
pub trait InferenceBackend<T: Task>: Debug + Send + Sync + 'static {
    /// What this backend is now. A backend that swaps its model answers with the model now in service.
    fn profile(&self) -> Arc<BackendProfile>;

    /// Answers one request.
    async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>>;

    /// Answers one request piece by piece.
    async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>>;
}

/// What a backend is: its name, model, place, limits and price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendProfile {
    /// The backend's name, unique in one deployment, such as `kitchen-classifier`.
    pub name: String,
    /// The model in service.
    pub model: ServedModel,
    /// Where the data goes that this backend is given.
    pub locality: Locality,
    /// What it accepts.
    pub limits: Limits,
    /// What it charges; `None` where nothing is charged per call.
    pub price: Option<Price>,
}

/// The model behind a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// The model's name, as its provider or the registry spells it.
    pub name: String,
    /// The registry's version number, where the model came from a registry.
    pub version: Option<u64>,
    /// The digest of the manifest, where the model came from a registry.
    pub manifest: Option<Digest>,
}

impl ServedModel {
    /// A model that no registry knows, by its provider's name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), version: None, manifest: None }
    }
}

/// What a backend accepts. `None` means that it states no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Input of one request, in tokens.
    pub input_tokens: Option<u64>,
    /// Output of one request, in tokens.
    pub output_tokens: Option<u64>,
    /// Inputs in one request, for tasks that take several.
    pub batch: Option<usize>,
}

/// An answer with what is to be known about it.
#[derive(Debug)]
pub struct Reply<T: Task> {
    /// The answer.
    pub response: T::Response,
    /// Who made it, how long it took, what it used and cost.
    pub meta: ReplyMeta,
}

impl<T: Task> Clone for Reply<T> {
    fn clone(&self) -> Self {
        Self { response: self.response.clone(), meta: self.meta.clone() }
    }
}

/// One item of a stream.
#[derive(Debug)]
// There is one `Done` in a stream, and events are moved, not kept: a box would cost more than it saves.
#[allow(clippy::large_enum_variant)]
pub enum Event<T: Task> {
    /// A piece of the answer.
    Delta(T::Delta),
    /// The end of the answer; the last item of a stream that succeeded.
    Done(ReplyMeta),
}

impl<T: Task> Clone for Event<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Delta(delta) => Self::Delta(delta.clone()),
            Self::Done(meta) => Self::Done(meta.clone()),
        }
    }
}

/// Who made a reply, how long it took, what it used and cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyMeta {
    /// The [`BackendProfile::name`] of the backend that answered.
    pub backend: String,
    /// The model that answered.
    pub model: ServedModel,
    /// Where it ran.
    pub locality: Locality,
    /// Wall time inside the backend.
    pub elapsed: Duration,
    /// What was used.
    pub usage: Usage,
    /// What it cost, where a price is known.
    pub cost: Option<Money>,
    /// What the caller would not expect, in the order it happened: a fallback, a cut, a cache.
    pub notes: Vec<Note>,
}

impl ReplyMeta {
    /// The meta of a reply made by the backend of `profile`, priced by it.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if the cost overflows.
    pub fn of(profile: &BackendProfile, elapsed: Duration, usage: Usage) -> Result<Self> {
        let cost = profile.price.as_ref().map(|price| price.of(&usage)).transpose()?;
        Ok(Self {
            backend: profile.name.clone(),
            model: profile.model.clone(),
            locality: profile.locality.clone(),
            elapsed,
            usage,
            cost,
            notes: Vec::new(),
        })
    }
}

/// Something that happened to a reply on its way and that its reader should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What happened, from a short fixed set such as `fallback`, `truncated`, `cached`, `stale`.
    pub code: String,
    /// The reason, for a person.
    pub detail: String,
}

/// Turns a whole reply into the stream of a backend that does not stream: its deltas, then `Done`.
pub fn stream_reply<T: Task>(reply: Reply<T>) -> BoxStream<'static, Result<Event<T>>> {
    let events: Vec<_> = T::split(reply.response)
        .into_iter()
        .map(|delta| Ok(Event::Delta(delta)))
        .chain([Ok(Event::Done(reply.meta))])
        .collect();
    stream::iter(events).boxed()
}

/// Reads a stream to its end and folds it into a whole reply.
///
/// # Errors
/// The stream's own error, or [`Corrupt`](crate::ErrorKind::Corrupt) if it ends without `Done` or goes on after it.
pub async fn collect_reply<T: Task>(mut events: BoxStream<'static, Result<Event<T>>>) -> Result<Reply<T>> {
    let mut deltas = Vec::new();
    let mut meta = None;
    while let Some(event) = events.next().await {
        match (event?, &meta) {
            (Event::Delta(delta), None) => deltas.push(delta),
            (Event::Done(done), None) => meta = Some(done),
            (_, Some(_)) => return Err(Error::corrupt("collect stream", "an event came after the end of the reply")),
        }
    }
    let meta = meta.ok_or_else(|| Error::corrupt("collect stream", "the stream ended before the reply was done"))?;
    Ok(Reply { response: T::fold(deltas)?, meta })
}

macro_rules! forward_backend {
    ($($pointer:ident),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: Task, B: InferenceBackend<T> + ?Sized> InferenceBackend<T> for $pointer<B> {
            fn profile(&self) -> Arc<BackendProfile> {
                (**self).profile()
            }

            async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>> {
                (**self).infer(cx, request).await
            }

            async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>> {
                (**self).stream(cx, request).await
            }
        }
    )*};
}
forward_backend!(Arc, Box);
