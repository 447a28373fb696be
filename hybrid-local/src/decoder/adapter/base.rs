//! Which base an adapter belongs to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hybrid_core::{Digest, Document, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{decoder::training::digests, files};

/// The SHA-256 of a base's files, by name: written beside an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::decoder) struct BaseDigests {
    pub(in crate::decoder) files: BTreeMap<String, Digest>,
}

impl Document for BaseDigests {
    const FORMAT: &'static str = "hybrid.base";
    const MAJOR: u32 = 1;
}

const NAME: &str = "base.json";
const MAX_BYTES: u64 = 1 << 20;

impl BaseDigests {
    pub(in crate::decoder) fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(NAME);
        files::write(&path, &self.encode()?)?;
        Ok(path)
    }

    /// Reads what lies beside an adapter.
    pub(in crate::decoder) fn read(folder: &Path) -> Result<Self> {
        Self::decode(&files::read(&folder.join(NAME), MAX_BYTES)?).map_err(|error| error.with("file", NAME))
    }

    /// Checks that the model at `path` is the one.
    ///
    /// # Errors
    /// `Corrupt` that names the file that is missing or another.
    pub(in crate::decoder) fn check(&self, path: &Path) -> Result<()> {
        let found = digests(path)?;
        match self.files.iter().find(|(name, digest)| found.get(*name) != Some(digest)) {
            None => Ok(()),
            Some((name, expected)) => {
                let error =
                    Error::corrupt("load decoder", "the adapter was made for another base than the one at this place")
                        .with("base", path.display())
                        .with("file", name)
                        .with("expected", expected);
                Err(match found.get(name) {
                    Some(found) => error.with("found", found),
                    None => error.with("found", "no such file"),
                })
            }
        }
    }
}
