//! A run's state on disk: one file, replaced whole.

use std::path::{Path, PathBuf};

use hybrid_core::{Digest, Hasher, Result};
use serde::{Deserialize, Serialize};

use super::{
    files,
    tensors::{self, Tensors},
};

const NOTE: &str = "checkpoint";

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The phase: the folds first, then the final model.
    pub(super) phase: usize,
    /// Steps done in this phase.
    pub(super) step: usize,
    /// The sum of this epoch's losses so far, as the bits of an `f64`.
    pub(super) loss_bits: u64,
    /// The mean loss of the last whole epoch, as the bits of an `f64`.
    pub(super) epoch_loss_bits: u64,
}

/// The checkpoint file of one plan.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    run: Digest,
}

/// Whose state it is, where it stands, and what it weighs.
#[derive(Serialize, Deserialize)]
struct Header {
    run: Digest,
    position: Position,
    /// Over all tensors, so that a failing disk changes no model in silence.
    tensors: Digest,
}

impl Checkpoint {
    /// The checkpoint in `scratch` of the run that `run` identifies: its plan and all else that its result depends on.
    pub(super) fn new(scratch: &Path, run: Digest) -> Self {
        Self { path: scratch.join("checkpoint.safetensors"), run }
    }

    pub(super) fn save(&self, position: Position, tensors: &Tensors) -> Result<()> {
        let header = Header { run: self.run, position, tensors: digest(tensors)? };
        let header = serde_json::to_string(&header).map_err(|error| {
            hybrid_core::Error::internal("save checkpoint", "the header cannot be written").with_source(error)
        })?;
        files::write(&self.path, &tensors::encode(tensors, Some((NOTE, header)))?)
    }

    /// The last state saved, or `None` if there is none of this run. One that cannot be read is as good as none.
    pub(super) fn load(&self) -> Option<(Position, Tensors)> {
        let bytes = std::fs::read(&self.path).ok()?;
        let read = || -> Result<_> {
            let (tensors, notes) = tensors::decode(&bytes, &self.path)?;
            let header = notes.get(NOTE).and_then(|text| serde_json::from_str::<Header>(text).ok());
            let digest = digest(&tensors)?;
            Ok(header.filter(|header| header.tensors == digest).map(|header| (header, tensors)))
        };
        match read() {
            Ok(Some((header, tensors))) if header.run == self.run => Some((header.position, tensors)),
            Ok(Some(_)) => None,
            Ok(None) => {
                tracing::warn!(path = %self.path.display(), "checkpoint ignored: it is damaged");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "checkpoint ignored");
                None
            }
        }
    }

    pub(super) fn remove(&self) -> Result<()> {
        files::remove(&self.path)
    }
}

fn digest(tensors: &Tensors) -> Result<Digest> {
    let mut hasher = Hasher::new();
    hasher.update(&tensors::encode(tensors, None)?);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::{super::tensors::Array, *};

    #[test]
    fn a_checkpoint_is_read_by_its_own_run_alone_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Checkpoint::new(folder.path(), Digest::of(b"ours"));
        assert!(ours.load().is_none());
        let position = Position { phase: 1, step: 7, loss_bits: 0.1f64.to_bits(), epoch_loss_bits: 0 };
        let tensors: Tensors = [("w".to_owned(), Array::f32([2], vec![1.0, 2.0]))].into();
        ours.save(position, &tensors).unwrap();
        assert_eq!(ours.load(), Some((position, tensors)));
        assert!(Checkpoint::new(folder.path(), Digest::of(b"theirs")).load().is_none());

        let mut bytes = std::fs::read(&ours.path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&ours.path, &bytes).unwrap();
        assert!(ours.load().is_none(), "a flipped bit was not noticed");
        std::fs::write(&ours.path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(ours.load().is_none());
        ours.remove().unwrap();
        ours.remove().unwrap();
    }
}
