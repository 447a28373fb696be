//! Judging without training: how good a version is on a golden set now.

use std::path::PathBuf;

use async_trait::async_trait;
use hybrid_core::{ChannelName, Digest, Error, Key, ModelName, Result, VerdictRecord};
use hybrid_local::DeviceChoice;
use hybrid_sync::{
    registry::Trust,
    worker::{JobContext, JobHandler, Resource},
};
use serde::{Deserialize, Serialize};

use crate::{
    judging::{GoldenRef, Judging, keep_report},
    models::Models,
    serving::{Channels, Serving},
    site::{Site, make_folder},
};

/// What an evaluation asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateJob {
    /// The model.
    pub model: ModelName,
    /// The channel that says which version is in service.
    pub channel: ChannelName,
    /// The version to judge against the one in service, by its manifest's digest; the one in service itself where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Digest>,
    /// What it is judged on.
    pub golden: GoldenRef,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The number of the version that was judged.
    pub version: u64,
    /// Its manifest.
    pub manifest: Digest,
    /// The verdict with its figures.
    pub verdict: VerdictRecord,
    /// The whole report, as JSON; the same for people lies beside it, with `md` for `json`.
    pub report: Key,
}

/// Carries out evaluations. Nothing is released by them.
#[derive(Debug)]
pub struct EvaluateHandler {
    channels: Channels,
    models: Models,
    trust: Trust,
    cache: PathBuf,
}

impl EvaluateHandler {
    /// A handler with the trust and the cache of a site's kitchen, which judges against what its `channels` have in service.
    ///
    /// # Errors
    /// As [`TrainHandler::open`](crate::train_job::TrainHandler::open).
    pub fn open(site: &Site, channels: &Channels, device: DeviceChoice) -> Result<Self> {
        let cache = site.kitchen().join("models");
        make_folder(&cache)?;
        Ok(Self { channels: channels.clone(), models: Models::open(device)?, trust: site.trust()?, cache })
    }
}

#[async_trait]
impl JobHandler for EvaluateHandler {
    const KIND: &'static str = "evaluate";
    type Payload = EvaluateJob;
    type Output = Evaluated;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: EvaluateJob) -> Result<Evaluated> {
        let refuse = |message: &'static str| Error::invalid("evaluate version", message).with("model", &job.model);
        let golden = job.golden.read(&*cx.store).await?;
        let in_service = self.channels.in_service(&(job.model.clone(), job.channel.clone())).await?;
        let asked = job.candidate.or(in_service).ok_or_else(|| refuse("no version of this model is in service"))?;
        let load = async |digest| Serving::load(cx, digest, &self.trust, &self.cache, &self.models).await;
        let candidate = load(asked).await?;
        if candidate.manifest.model != job.model {
            return Err(refuse("the candidate is a version of another model").with("found", &candidate.manifest.model));
        }
        let incumbent = match in_service.filter(|digest| *digest != asked) {
            Some(digest) => Some(load(digest).await?),
            None => None,
        };
        let judging = Judging {
            golden: &golden,
            candidate: &candidate.backend,
            requirements: candidate.manifest.requirements.clone(),
            incumbent: incumbent.as_ref().map(|incumbent| (incumbent.digest, &incumbent.backend)),
            candidates: 1,
            plan: None,
        };
        let against = incumbent.as_ref().map(|incumbent| incumbent.digest);
        let (key, report) = keep_report(cx, asked, against, judging.report(cx)).await?;
        let Serving { digest: manifest, manifest: judged, .. } = &candidate;
        Ok(Evaluated { version: judged.version, manifest: *manifest, verdict: report.record(), report: key })
    }
}
