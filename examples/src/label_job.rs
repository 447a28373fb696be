//! Work that customers order: label a file of messages with the version in service, and leave a file of answers.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStoreExt, CallContext, ChannelName, Digest, Document, Error, ErrorKind, FileUpload, Files, ModelName,
    NewFile, Result, task::ClassifyRequest,
};
use hybrid_local::DeviceChoice;
use hybrid_sync::{
    registry::Trust,
    worker::{JobContext, JobHandler},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    models::Models,
    serving::{Channels, Serving},
    site::{Site, make_folder},
};

/// Messages that are labelled at once.
const BATCH: usize = 256;
/// The longest message, in bytes.
const LINE_BYTES: usize = 64 * 1024;

/// What a customer orders: `{"kind": "label", "payload": {"model": "bakery"}, "input_file_id": "file-…"}`. The file has a message on each line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelJob {
    /// The model.
    pub model: ModelName,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labelled {
    /// The file of answers: `{"text", "label", "confidence"}` on each line, in the order of the messages.
    pub output_file_id: String,
    /// The version that labelled.
    pub version: u64,
    /// How many messages have which label.
    pub labels: BTreeMap<String, u64>,
}

/// The version that labels for a job: its first effect, so that every attempt labels with the same, whatever comes into service meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FixedVersion {
    manifest: Digest,
}

impl Document for FixedVersion {
    const FORMAT: &'static str = "hybrid.job-version";
    const MAJOR: u32 = 1;
}

/// Labels files.
#[derive(Debug)]
pub struct LabelHandler {
    channels: Channels,
    models: Models,
    trust: Trust,
    cache: PathBuf,
}

impl LabelHandler {
    /// A handler with the keys and the cache of a site's kitchen, which labels with what its `channels` have in service.
    ///
    /// # Errors
    /// As [`TrainHandler::open`](crate::train_job::TrainHandler::open).
    pub fn open(site: &Site, channels: &Channels, device: DeviceChoice) -> Result<Self> {
        let cache = site.kitchen().join("models");
        make_folder(&cache)?;
        Ok(Self { channels: channels.clone(), models: Models::open(device)?, trust: site.trust()?, cache })
    }

    /// The version that labels for this job, fixed by the first attempt.
    async fn version(&self, cx: &JobContext, model: ModelName) -> Result<Digest> {
        let key = cx.effect_key("version")?;
        let channel = (model, ChannelName::stable());
        let fixed = match cx.store.get(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let in_service = self.channels.in_service(&channel).await?;
                let manifest = in_service
                    .ok_or_else(|| Error::invalid("label messages", "no version of this model is in service"))?;
                match cx.store.create(&key, FixedVersion { manifest }.encode()?).await {
                    Ok(()) => return Ok(manifest),
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => cx.store.get(&key).await?,
                    Err(error) => return Err(error),
                }
            }
            found => found?,
        };
        let FixedVersion { manifest } = FixedVersion::decode(&fixed).map_err(|error| error.with("key", &key))?;
        // Nobody has signed the effect: it counts for what the channel itself has had in service.
        if self.channels.has_served(&channel, manifest).await? {
            return Ok(manifest);
        }
        let message = "the version that the job was begun with was never in service";
        Err(Error::untrusted("label messages", message).with("key", key).with("manifest", manifest))
    }
}

#[async_trait]
impl JobHandler for LabelHandler {
    const KIND: &'static str = "label";
    type Payload = LabelJob;
    type Output = Labelled;

    async fn run(&self, cx: &JobContext, LabelJob { model }: LabelJob) -> Result<Labelled> {
        let refuse = |message: &'static str| Error::invalid("label messages", message);
        let files = Files::new(Arc::clone(&cx.store), Arc::clone(&cx.clock));
        let input = cx.job.input.ok_or_else(|| refuse("the order names no input_file_id"))?;
        let input = files.get(&cx.job.tenant, input).await?.ok_or_else(|| refuse("the file is there no more"))?;
        let version = self.version(cx, model).await?;
        let serving = Serving::load(cx, version, &self.trust, &self.cache, &self.models).await?;

        let mut answers = Answers {
            call: cx.call()?,
            upload: files.upload(&cx.job.tenant, cx.output_file()),
            serving,
            waiting: Vec::new(),
            labels: BTreeMap::new(),
        };
        let (mut parts, mut rest) = (files.read(&cx.job.tenant, &input), Vec::new());
        while let Some(part) = parts.try_next().await? {
            rest.extend_from_slice(&part);
            let mut lines = rest.split(|&byte| byte == b'\n').peekable();
            let mut end = Vec::new();
            while let Some(line) = lines.next() {
                match lines.peek() {
                    Some(_) => answers.add(line).await?,
                    // It goes on in the next part.
                    None => end = line.to_vec(),
                }
            }
            if end.len() > LINE_BYTES {
                return Err(refuse("a line has more than 64 KiB"));
            }
            rest = end;
        }
        answers.add(&rest).await?;
        answers.finish(format!("{}.labels.jsonl", input.name)).await
    }
}

/// The answers on their way into a file.
struct Answers {
    call: CallContext,
    serving: Serving,
    upload: FileUpload,
    waiting: Vec<String>,
    labels: BTreeMap<String, u64>,
}

impl Answers {
    async fn add(&mut self, line: &[u8]) -> Result<()> {
        let refuse = |message: &'static str| Error::invalid("label messages", message);
        if line.len() > LINE_BYTES {
            return Err(refuse("a line has more than 64 KiB").with("bytes", line.len()));
        }
        let text = std::str::from_utf8(line).map_err(|error| refuse("a line is not UTF-8").with_source(error))?.trim();
        if !text.is_empty() {
            self.waiting.push(text.to_owned());
        }
        if self.waiting.len() == BATCH { self.label().await } else { Ok(()) }
    }

    async fn label(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let texts = std::mem::take(&mut self.waiting);
        let request = ClassifyRequest { inputs: texts.clone(), ..ClassifyRequest::default() };
        let reply = self.serving.backend.classifier()?.infer(&self.call, request).await?;
        let mut lines = String::new();
        for (text, result) in texts.iter().zip(reply.response.results) {
            *self.labels.entry(result.label.clone()).or_default() += 1;
            let answer = json!({ "text": text, "label": result.label, "confidence": result.confidence });
            lines += &format!("{answer}\n");
        }
        self.upload.write(lines.into()).await
    }

    async fn finish(mut self, name: String) -> Result<Labelled> {
        self.label().await?;
        let file = self.upload.finish(NewFile::new(name, "batch_output")).await?;
        let version = self.serving.manifest.version;
        Ok(Labelled { output_file_id: format!("file-{}", file.id), version, labels: self.labels })
    }
}
