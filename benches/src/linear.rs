//! A classifier small enough that what surrounds it shows: a linear layer over the counts of the text's bytes.

use std::{fs, path::Path, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Digest, Error, Event, InferenceBackend, Limits, Locality, Manifest,
    ModelLoader, Price, Reply, ReplyMeta, Result, ServedModel, Task, Usage,
    inference::stream_reply,
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
};

use crate::noise;

/// The file that holds a version's weights: `[label, byte]`, one signed byte each.
pub const WEIGHTS: &str = "weights.bin";
const LABELS: [&str; 4] = ["order", "change", "complaint", "hours"];

/// The weights of `version`.
pub fn weights(version: u64) -> Vec<u8> {
    noise(LABELS.len() * 256, version)
}

/// Labels the texts of a request: the plain function that the port is compared with.
///
/// # Errors
/// Never for weights of [`weights`].
pub fn classify(weights: &[u8], inputs: &[String]) -> Result<ClassifyResponse> {
    let classify = |text: &String| {
        let logits = weights.chunks(256).map(|row| {
            let sum: i32 = text.bytes().map(|byte| i32::from(row[usize::from(byte)] as i8)).sum();
            (sum as f32 / (64 * text.len().max(1)) as f32).exp()
        });
        let scores: Vec<_> = LABELS.iter().zip(logits).collect();
        let total: f32 = scores.iter().map(|(_, score)| score).sum();
        Classification::ranked(
            scores.iter().map(|(label, score)| LabelScore::new(**label, score / total)).collect(),
            None,
        )
    };
    Ok(ClassifyResponse { results: inputs.iter().map(classify).collect::<Result<_>>()? })
}

/// The function behind the port.
#[derive(Debug)]
pub struct LinearClassifier {
    weights: Vec<u8>,
    profile: Arc<BackendProfile>,
}

impl LinearClassifier {
    /// With these weights, as this model.
    pub fn new(weights: Vec<u8>, model: ServedModel) -> Self {
        let profile = BackendProfile {
            name: "linear".to_owned(),
            model,
            locality: Locality::Device,
            limits: Limits::default(),
            price: None,
        };
        Self { weights, profile: Arc::new(profile) }
    }

    /// The same at a price.
    #[must_use]
    pub fn at(self, price: Price) -> Self {
        Self { profile: Arc::new(BackendProfile { price: Some(price), ..(*self.profile).clone() }), ..self }
    }
}

#[async_trait]
impl InferenceBackend<Classify> for LinearClassifier {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        let started = cx.clock.monotonic();
        Classify::validate(&request)?;
        cx.admit("classify", &self.profile.locality)?;
        let response = classify(&self.weights, &request.inputs)?;
        let meta = ReplyMeta::of(&self.profile, cx.clock.monotonic().since(started), Usage::default())?;
        Ok(Reply { response, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

/// Loads versions whose file is [`WEIGHTS`].
#[derive(Debug)]
pub struct LinearLoader;

#[async_trait]
impl ModelLoader<Classify> for LinearLoader {
    async fn load(
        &self,
        manifest: &Manifest,
        digest: Digest,
        folder: &Path,
    ) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        let path = folder.join(WEIGHTS);
        let read = tokio::task::spawn_blocking(move || fs::read(path)).await;
        let weights = read
            .map_err(|error| Error::internal("load", "the read did not end").with_source(error))?
            .map_err(|error| Error::corrupt("load", "the weights cannot be read").with_source(error))?;
        let model =
            ServedModel { name: manifest.model.to_string(), version: Some(manifest.version), manifest: Some(digest) };
        Ok(Arc::new(LinearClassifier::new(weights, model)))
    }
}
