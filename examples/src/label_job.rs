//! Work that customers order: label a file of messages with the version in service, and leave a file of answers.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    ArtifactStoreExt, CallContext, ChannelName, Digest, Document, Error, ErrorKind, Files, ModelName, NewFile,
    ProgressEvent, Result,
    task::{Classification, ClassifyRequest},
};
use hybrid_local::DeviceChoice;
use hybrid_sync::{
    batch::{Line, Lines, Steps},
    registry::Trust,
    worker::{JobContext, JobHandler, Resource},
};
use serde::{Deserialize, Serialize};

use crate::{
    models::Models,
    serving::{Channels, Serving},
    site::{Site, make_folder},
};

const OPERATION: &str = "label messages";
/// Messages that are labelled at once, and become one effect: how many a crash costs at most.
const BATCH: usize = 256;
/// So many bytes of them are enough: the answers repeat them, and have to fit into an object.
const BATCH_BYTES: usize = 2 << 20;
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

/// A line of the file of answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    text: String,
    label: String,
    confidence: f32,
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
                let manifest =
                    in_service.ok_or_else(|| Error::invalid(OPERATION, "no version of this model is in service"))?;
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
        Err(Error::untrusted(OPERATION, message).with("key", key).with("manifest", manifest))
    }
}

#[async_trait]
impl JobHandler for LabelHandler {
    const KIND: &'static str = "label";
    type Payload = LabelJob;
    type Output = Labelled;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, LabelJob { model }: LabelJob) -> Result<Labelled> {
        let refuse = |message: &'static str| Error::invalid(OPERATION, message);
        let files = Files::new(Arc::clone(&cx.store), Arc::clone(&cx.clock));
        let input = cx.job.input.ok_or_else(|| refuse("the order names no input_file_id"))?;
        let input = files.get(&cx.job.tenant, input).await?.ok_or_else(|| refuse("the file is there no more"))?;
        let version = self.version(cx, model).await?;
        let serving = Serving::load(cx, version, &self.trust, &self.cache, &self.models).await?;
        let name = cx.output_file();
        let mut labelled = Labelled {
            output_file_id: format!("file-{name}"),
            version: serving.manifest.version,
            labels: BTreeMap::new(),
        };
        let mut steps = Steps::open(cx).await?;
        if let Some(file) = files.get(&cx.job.tenant, name).await? {
            // An earlier attempt came to the end, but for its result.
            let mut lines = Lines::new(files.read(&cx.job.tenant, &file), usize::MAX);
            while let Some(line) = lines.next().await? {
                labelled.add(&line.bytes)?;
            }
            steps.clear().await?;
            return Ok(labelled);
        }

        let call = cx.call()?;
        let mut upload = files.upload(&cx.job.tenant, name);
        let lines = Lines::new(files.read(&cx.job.tenant, &input), LINE_BYTES);
        let (mut messages, mut done) = (Messages { lines, read: 0, waiting: Vec::new() }, 0);
        let report = |read: u64| cx.progress.report(ProgressEvent::new(Self::KIND, read, input.bytes, "bytes"));
        loop {
            report(messages.read);
            messages.read(BATCH, BATCH_BYTES).await?;
            let answers = match steps.get(done).await? {
                Some(answers) => answers,
                None if messages.waiting.is_empty() => break,
                None => steps.put(done, label(&serving, &call, &messages.waiting).await?).await?,
            };
            let count = labelled.add(&answers)?;
            // Another attempt may have taken more at once, or fewer.
            messages.read(count, usize::MAX).await?;
            messages.waiting.drain(..count.min(messages.waiting.len()));
            done += count as u64;
            upload.write(answers).await?;
        }
        report(input.bytes);
        upload.finish(NewFile::new(format!("{}.labels.jsonl", input.name), "batch_output")).await?;
        steps.clear().await?;
        Ok(labelled)
    }
}

impl Labelled {
    /// Counts lines of answers; answers with how many there are.
    fn add(&mut self, answers: &[u8]) -> Result<usize> {
        let mut count = 0;
        for line in answers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Answer { label, .. } = serde_json::from_slice(line).map_err(|error| {
                Error::corrupt(OPERATION, "an answer of an earlier attempt is damaged").with_source(error)
            })?;
            *self.labels.entry(label).or_default() += 1;
            count += 1;
        }
        if count == 0 {
            return Err(Error::corrupt(OPERATION, "a step of an earlier attempt has no answers"));
        }
        Ok(count)
    }
}

/// The messages of a file that wait for their labels.
struct Messages {
    lines: Lines,
    /// How many bytes of the file are read, but for its empty lines.
    read: u64,
    waiting: Vec<String>,
}

impl Messages {
    /// Reads until so many wait, or so many bytes of them, or there are no more.
    async fn read(&mut self, count: usize, budget: usize) -> Result<()> {
        let mut held: usize = self.waiting.iter().map(String::len).sum();
        while self.waiting.len() < count
            && held < budget
            && let Some(Line { number, bytes }) = self.lines.next().await?
        {
            self.read += bytes.len() as u64;
            let text = std::str::from_utf8(&bytes).map_err(|error| {
                Error::invalid(OPERATION, "the line is not UTF-8").with("line", number).with_source(error)
            })?;
            held += text.trim().len();
            self.waiting.extend(Some(text.trim().to_owned()).filter(|text| !text.is_empty()));
        }
        Ok(())
    }
}

/// The answers to messages, one on each line.
async fn label(serving: &Serving, call: &CallContext, messages: &[String]) -> Result<Bytes> {
    let reply = serving.backend.classifier()?.infer(call, ClassifyRequest::many(messages)).await?;
    let mut lines = Vec::new();
    for (text, Classification { label, confidence, .. }) in messages.iter().zip(reply.response.results) {
        let answer = Answer { text: text.clone(), label, confidence };
        serde_json::to_writer(&mut lines, &answer)
            .map_err(|error| Error::internal(OPERATION, "the answer cannot be written").with_source(error))?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}
