//! What a plan has come to, remembered beside its files so that it is not trained again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hybrid_core::{
    Candidate, CandidateFile, CandidateOutput, Digest, Document, Error, ErrorKind, FileName, Hasher, Requirements,
    Result, TrainPlan,
};
use serde::{Deserialize, Serialize};

use super::{OPERATION, TrainedPlan};
use crate::{blocking::blocking, files};

const FILE: &str = "finished.json";

/// The file `finished.json` in a plan's folder, written once its candidate is whole.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    plan: Digest,
    trainer: String,
    task: String,
    architecture: String,
    output: Output,
    requirements: Requirements,
    /// JSON has no word for what is not a number.
    metrics: BTreeMap<String, Option<f64>>,
    examples: u64,
    device: String,
    seconds: f64,
}

impl Document for Finished {
    const FORMAT: &'static str = "hybrid.finished-plan";
    const MAJOR: u32 = 1;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Output {
    Files(Vec<FinishedFile>),
    Hosted { provider: String, id: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FinishedFile {
    name: FileName,
    /// Below the plan's folder.
    path: PathBuf,
    bytes: u64,
    digest: Digest,
}

impl Finished {
    /// What an earlier run of this plan by this trainer has left in `folder`, if all of it is as it was.
    ///
    /// # Errors
    /// Those of the file system, but for files that are not there.
    pub(super) async fn read(
        folder: &Path,
        name: &str,
        plan: &TrainPlan,
        trainer: &str,
    ) -> Result<Option<TrainedPlan>> {
        let path = folder.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(files::io_error(OPERATION, &path, error)),
        };
        let known = match Self::decode(&bytes) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what a plan had come to cannot be read; it is trained again");
                return Ok(None);
            }
        };
        if known.plan != Digest::of(&plan.encode()?) || known.trainer != trainer {
            return Ok(None);
        }
        let (known, below) = blocking(OPERATION, {
            let below = folder.to_owned();
            move || known.check(&below).map(|whole| (whole.then_some(known), below))
        })
        .await?;
        if known.is_none() {
            tracing::warn!(folder = %below.display(), "the files of a finished plan have changed; it is trained again");
        }
        Ok(known.map(|known| known.into_trained(folder, name, plan)))
    }

    /// Remembers what a plan has come to. The trainer has left the files durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) async fn write(
        folder: &Path,
        name: &str,
        plan: &TrainPlan,
        trainer: &str,
        candidate: Candidate,
        seconds: f64,
    ) -> Result<TrainedPlan> {
        let (below, digest, trainer) = (folder.to_owned(), Digest::of(&plan.encode()?), trainer.to_owned());
        let finished = blocking(OPERATION, move || {
            let Candidate { task, architecture, output, requirements, metrics, examples, device } = candidate;
            let output = Output::of(output, &below)?;
            let metrics =
                metrics.into_iter().map(|(name, value)| (name, Some(value).filter(|value| value.is_finite())));
            let metrics = metrics.collect();
            let plan = digest;
            let this =
                Self { plan, trainer, task, architecture, output, requirements, metrics, examples, device, seconds };
            files::write(&below.join(FILE), &this.encode()?)?;
            Ok(this)
        });
        Ok(finished.await?.into_trained(folder, name, plan))
    }

    /// Whether all files are there as they were.
    fn check(&self, folder: &Path) -> Result<bool> {
        let Output::Files(all) = &self.output else { return Ok(true) };
        for file in all {
            match files::digest(OPERATION, &folder.join(&file.path)) {
                Ok(found) if found == file.digest => {}
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn into_trained(self, folder: &Path, name: &str, plan: &TrainPlan) -> TrainedPlan {
        let (weights, bytes) = (self.output.digest(), self.output.bytes());
        let Self { plan: _, trainer, task, architecture, output, requirements, metrics, examples, device, seconds } =
            self;
        let metrics = metrics.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect();
        let output = match output {
            Output::Files(all) => {
                let file = |FinishedFile { name, path, .. }| CandidateFile { name, path: folder.join(path) };
                CandidateOutput::Files(all.into_iter().map(file).collect())
            }
            Output::Hosted { provider, id } => CandidateOutput::Hosted { provider, id },
        };
        let candidate = Candidate { task, architecture, output, requirements, metrics, examples, device };
        TrainedPlan { name: name.to_owned(), plan: plan.clone(), trainer, candidate, weights, bytes, seconds }
    }
}

impl Output {
    fn of(output: CandidateOutput, folder: &Path) -> Result<Self> {
        let all = match output {
            CandidateOutput::Files(all) => all,
            CandidateOutput::Hosted { provider, id } => return Ok(Self::Hosted { provider, id }),
            _ => return Err(Error::unsupported(OPERATION, "this kind of candidate is not known here")),
        };
        let file = |CandidateFile { name, path }| {
            let (bytes, digest) = (files::size(&path)?, files::digest(OPERATION, &path)?);
            // A trainer keeps to its folder; were it not so, the whole path would stand here.
            let path = path.strip_prefix(folder).map(Path::to_owned).unwrap_or(path);
            Ok(FinishedFile { name, path, bytes, digest })
        };
        all.into_iter().map(file).collect::<Result<_>>().map(Self::Files)
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Files(all) => all.iter().map(|file| file.bytes).sum(),
            Self::Hosted { .. } => 0,
        }
    }

    fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        match self {
            Self::Files(all) => all.iter().for_each(|file| {
                hasher.update(file.name.as_str().as_bytes());
                hasher.update(file.digest.as_bytes());
            }),
            Self::Hosted { provider, id } => hasher.update(format!("{provider}\0{id}").as_bytes()),
        }
        hasher.finish()
    }
}
