//! A run's state on disk: one file, replaced whole.

use std::path::{Path, PathBuf};

use hybrid_core::{Digest, Hasher, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    files,
    tensors::{self, Tensors},
};

const NOTE: &str = "checkpoint";

/// The checkpoint file of one plan. The last one stays beside what the run has made: until whoever called has that in safety, a repetition goes on from there.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    run: Digest,
}

/// Whose state it is, where it stands, and what it weighs.
#[derive(Serialize, Deserialize)]
struct Header<P> {
    run: Digest,
    position: P,
    /// Over all tensors, so that a failing disk changes no model in silence.
    tensors: Digest,
}

impl Checkpoint {
    /// The checkpoint in `scratch` of the run that `run` identifies: its plan and all else that its result depends on.
    pub(crate) fn new(scratch: &Path, run: Digest) -> Self {
        Self { path: scratch.join("checkpoint.safetensors"), run }
    }

    pub(crate) fn save<P: Serialize>(&self, position: P, tensors: &Tensors) -> Result<()> {
        let header = Header { run: self.run, position, tensors: digest(tensors)? };
        let header = serde_json::to_string(&header).map_err(|error| {
            hybrid_core::Error::internal("save checkpoint", "the header cannot be written").with_source(error)
        })?;
        files::write(&self.path, &tensors::encode(tensors, Some((NOTE, header)))?)
    }

    /// The last state saved, or `None` if there is none of this run. One that cannot be read is as good as none.
    pub(crate) fn load<P: DeserializeOwned>(&self) -> Option<(P, Tensors)> {
        let bytes = std::fs::read(&self.path).ok()?;
        let read = || -> Result<_> {
            let (tensors, notes) = tensors::decode(&bytes, &self.path)?;
            let header = notes.get(NOTE).and_then(|text| serde_json::from_str::<Header<P>>(text).ok());
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
}

fn digest(tensors: &Tensors) -> Result<Digest> {
    let mut hasher = Hasher::new();
    hasher.update(&tensors::encode(tensors, None)?);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Array;

    #[test]
    fn a_checkpoint_is_read_by_its_own_run_alone_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Checkpoint::new(folder.path(), Digest::of(b"ours"));
        assert!(ours.load::<[u64; 3]>().is_none());
        let position = [1u64, 7, 0.1f64.to_bits()];
        let tensors: Tensors = [("w".to_owned(), Array::f32([2], vec![1.0, 2.0]))].into();
        ours.save(position, &tensors).unwrap();
        assert_eq!(ours.load(), Some((position, tensors)));
        assert!(Checkpoint::new(folder.path(), Digest::of(b"theirs")).load::<[u64; 3]>().is_none());

        let mut bytes = std::fs::read(&ours.path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&ours.path, &bytes).unwrap();
        assert!(ours.load::<[u64; 3]>().is_none(), "a flipped bit was not noticed");
        std::fs::write(&ours.path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(ours.load::<[u64; 3]>().is_none());
    }
}
