//! Making a model smaller: a GGUF file of a folder on the kitchen's machine, measured against the folder, and refused if it lost too much.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_core::{ArtifactStoreExt, Error, ErrorKind, FileName, Files, Result};
use hybrid_local::{
    Device, DeviceChoice,
    planner::{Footprint, ModelPlan},
    quantize::{Comparison, Mix, QualityBudget, QualityReport, Quantized, Quantizer},
};
use hybrid_sync::worker::{JobContext, JobHandler, Resource};
use serde::{Deserialize, Serialize};

use crate::site::{Site, io, make_folder};

/// The longest text that models are compared on, in bytes.
const TEXT_BYTES: u64 = 16 << 20;
/// What one conversation is reckoned with when it is told what the file takes in memory, in tokens.
const CONTEXT: usize = 4_096;

/// What is to be made smaller. With an input file the result is compared with the original on that text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeJob {
    /// The folder below `kitchen/bases` that has the model.
    pub model: FileName,
    /// How many bits its numbers get.
    pub mix: Mix,
    /// How much it may lose; needs an input file, but for the size.
    #[serde(default)]
    pub budget: QualityBudget,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizeOutcome {
    /// The file, below the kitchen's folder.
    pub file: PathBuf,
    /// What was made.
    pub made: Quantized,
    /// What it lost, where a text was given.
    pub report: Option<QualityReport>,
    /// What it takes in memory to serve one conversation of at most 4,096 tokens.
    pub serving: Footprint,
}

/// Makes models smaller.
#[derive(Debug)]
pub struct QuantizeHandler {
    kitchen: PathBuf,
    device: Device,
}

impl QuantizeHandler {
    /// A handler over the folders `bases` and `quantized` of a site's kitchen.
    ///
    /// # Errors
    /// A device that is not there, a folder that cannot be made.
    pub fn open(site: &Site, device: DeviceChoice) -> Result<Self> {
        for folder in ["bases", "quantized"] {
            make_folder(&site.kitchen().join(folder))?;
        }
        Ok(Self { kitchen: site.kitchen(), device: Device::open(device)? })
    }

    /// The text of the job's input file.
    async fn text(&self, cx: &JobContext) -> Result<Option<String>> {
        let refuse = |message: &'static str| Error::invalid("quantize model", message);
        let Some(id) = cx.job.input else { return Ok(None) };
        let files = Files::new(Arc::clone(&cx.store), Arc::clone(&cx.clock));
        let file = files.get(&cx.job.tenant, id).await?.ok_or_else(|| refuse("the file is there no more"))?;
        if file.bytes > TEXT_BYTES {
            return Err(refuse("the text is over the limit").with("bytes", file.bytes).with("limit", TEXT_BYTES));
        }
        let parts: Vec<_> = files.read(&cx.job.tenant, &file).try_collect().await?;
        let text = String::from_utf8(parts.concat());
        text.map(Some).map_err(|error| refuse("the text is not UTF-8").with_source(error))
    }

    /// Makes the file, unless an earlier attempt has made it and it is still there.
    async fn make(&self, cx: &JobContext, job: &QuantizeJob, source: &Path, target: &Path) -> Result<Quantized> {
        let key = cx.effect_key("made")?;
        match cx.store.get(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => {
                let made: Quantized = serde_json::from_slice(&found?).map_err(|error| {
                    Error::corrupt("quantize model", "what an earlier attempt has made cannot be read")
                        .with("key", &key)
                        .with_source(error)
                })?;
                if std::fs::metadata(target).is_ok_and(|meta| meta.len() == made.bytes) {
                    return Ok(made);
                }
            }
        }
        let quantizer = Quantizer::new(job.mix).named(job.model.as_str());
        let made = quantizer.run(source, target, Arc::clone(&cx.progress), cx.cancel.clone()).await?;
        let bytes = serde_json::to_vec(&made)
            .map_err(|error| Error::internal("quantize model", "the outcome cannot be written").with_source(error))?;
        // The same folder and mix give the same file.
        cx.store.create_same(&key, bytes.into()).await?;
        Ok(made)
    }
}

#[async_trait]
impl JobHandler for QuantizeHandler {
    const KIND: &'static str = "quantize";
    type Payload = QuantizeJob;
    type Output = QuantizeOutcome;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: QuantizeJob) -> Result<QuantizeOutcome> {
        let source = self.kitchen.join("bases").join(job.model.as_str());
        if !source.is_dir() {
            let message = "no such model; put its folder in Hugging Face layout below the kitchen's bases";
            return Err(Error::invalid("quantize model", message).with("path", source.display()));
        }
        let text = self.text(cx).await?;
        let unmeasured = QualityBudget { bytes: job.budget.bytes, ..QualityBudget::default() };
        if text.is_none() && job.budget != unmeasured {
            let message = "the budget needs a text to compare on; name an input file";
            return Err(Error::invalid("quantize model", message));
        }
        let name = job.model.as_str().replace('/', "-");
        let file = PathBuf::from("quantized").join(format!("{name}-{}-{}.gguf", job.mix, cx.job.id));
        let target = self.kitchen.join(&file);
        let made = self.make(cx, &job, &source, &target).await?;
        let compared = match &text {
            Some(text) => {
                let comparison = Comparison::new(self.device.clone());
                let compared = comparison.run(&source, &target, text, Arc::clone(&cx.progress), cx.cancel.clone());
                let report = compared.await?;
                job.budget.check(&report).map(|()| Some(report))
            }
            None => check_size(&job.budget, made.bytes).map(|()| None),
        };
        match compared {
            Ok(report) => {
                let serving = ModelPlan::open(&target)?.serving(CONTEXT, 1);
                Ok(QuantizeOutcome { file, made, report, serving })
            }
            Err(error) => {
                // What nobody may use takes no room.
                std::fs::remove_file(&target).map_err(|error| io("remove refused model", &target, error))?;
                Err(error)
            }
        }
    }
}

fn check_size(budget: &QualityBudget, bytes: u64) -> Result<()> {
    match budget.bytes.filter(|limit| bytes > *limit) {
        Some(limit) => Err(Error::invalid("judge smaller model", "the model is over its budget; choose fewer bits")
            .with("bytes", bytes)
            .with("limit", limit)),
        None => Ok(()),
    }
}
