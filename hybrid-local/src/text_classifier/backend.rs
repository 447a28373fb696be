//! Serving a text classifier.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Cancellation, Error, Event, InferenceBackend, Limits, Locality, Note,
    Reply, ReplyMeta, Result, ServedModel, Task, Usage,
    inference::stream_reply,
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
};
use tokio::sync::Semaphore;

use super::{ClassifierConfig, MAX_BATCH, calibration::softmax, check_text};
use crate::{Device, blocking::blocking};

const OPERATION: &str = "classify";
/// Texts that are worked on between two looks at whether the answer is still wanted.
const PORTION: usize = 32;

/// A network that gives logits.
pub(super) trait Network: Debug + Send + Sync + 'static {
    fn classifier(&self) -> &ClassifierConfig;
    /// The most tokens of one text that it reads, where it has such a limit.
    fn max_tokens(&self) -> Option<usize>;
    /// Reads some texts.
    fn read(&self, texts: &[&str]) -> Result<Reading>;
}

/// What a network makes of some texts.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// For each text the logits of the labels.
    pub(super) logits: Vec<Vec<f32>>,
    /// Tokens read, where it counts them.
    pub(super) tokens: u64,
    /// The texts of which only the beginning was read, with their number of tokens.
    pub(super) cut: Vec<(usize, usize)>,
}

/// The backend of one model version.
#[derive(Debug)]
pub(super) struct TextClassifier<N> {
    network: Arc<N>,
    profile: Arc<BackendProfile>,
    /// As many computations side by side as the device has use for.
    lanes: Arc<Semaphore>,
}

impl<N: Network> TextClassifier<N> {
    pub(super) fn new(network: N, model: ServedModel, device: &Device) -> Self {
        let input_tokens = network.max_tokens().map(|tokens| tokens as u64);
        let profile = BackendProfile {
            name: format!("text-classifier on {device}"),
            model,
            locality: Locality::Device,
            limits: Limits { input_tokens, output_tokens: None, batch: Some(MAX_BATCH) },
            price: None,
        };
        let lanes = if device.is_parallel() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
        Self { network: Arc::new(network), profile: Arc::new(profile), lanes: Arc::new(Semaphore::new(lanes)) }
    }

    fn check(&self, cx: &CallContext, request: &ClassifyRequest) -> Result<()> {
        Classify::validate(request)?;
        cx.admit(OPERATION, &self.profile.locality)?;
        if request.inputs.len() > MAX_BATCH {
            return Err(Error::too_large(OPERATION, "the request has too many texts; send several requests")
                .with("texts", request.inputs.len())
                .with("limit", MAX_BATCH));
        }
        let check = |(i, text): (usize, &String)| check_text(OPERATION, text).map_err(|error| error.with("input", i));
        request.inputs.iter().enumerate().try_for_each(check)
    }

    async fn read(&self, inputs: Vec<String>) -> Result<Reading> {
        let permit = Arc::clone(&self.lanes).acquire_owned().await;
        let permit = permit.map_err(|error| Error::internal(OPERATION, "the backend is closed").with_source(error))?;
        // Raised when the caller gives up and this future is dropped.
        let unwanted = Cancellation::new();
        let guard = unwanted.clone().drop_guard();
        let network = Arc::clone(&self.network);
        let work = move || {
            let _permit = permit;
            let mut reading = Reading::default();
            for portion in inputs.chunks(PORTION) {
                if unwanted.is_cancelled() {
                    return Err(Error::cancelled(OPERATION, "the caller gave up"));
                }
                let before = reading.logits.len();
                let Reading { logits, tokens, cut } =
                    network.read(&portion.iter().map(String::as_str).collect::<Vec<_>>())?;
                reading.logits.extend(logits);
                reading.tokens += tokens;
                reading.cut.extend(cut.into_iter().map(|(text, tokens)| (text + before, tokens)));
            }
            Ok(reading)
        };
        let reading = blocking(OPERATION, work).await;
        guard.disarm();
        reading
    }
}

#[async_trait]
impl<N: Network> InferenceBackend<Classify> for TextClassifier<N> {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        let started = cx.clock.monotonic();
        self.check(cx, &request)?;
        let ClassifyRequest { inputs, top_k } = request;
        let Reading { logits, tokens, cut } = cx.run(OPERATION, self.read(inputs)).await?;
        let ClassifierConfig { labels, temperature } = self.network.classifier();
        let rank = |logits: &Vec<f32>| {
            let shares = softmax(logits, *temperature);
            let scores = labels.iter().zip(shares).map(|(label, share)| LabelScore::new(label, share as f32)).collect();
            Classification::ranked(scores, top_k)
        };
        let results = logits.iter().map(rank).collect::<Result<_>>()?;
        let usage = Usage { input_tokens: tokens, ..Usage::default() };
        let mut meta = ReplyMeta::of(&self.profile, cx.clock.monotonic().since(started), usage)?;
        meta.notes = cut.into_iter().map(|(text, tokens)| self.note_cut(text, tokens)).collect();
        Ok(Reply { response: ClassifyResponse { results }, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

impl<N: Network> TextClassifier<N> {
    fn note_cut(&self, text: usize, tokens: usize) -> Note {
        let limit = self.network.max_tokens().unwrap_or_default();
        Note {
            code: "truncated".to_owned(),
            detail: format!("inputs[{text}] has {tokens} tokens; the model read the first {limit}"),
        }
    }
}
