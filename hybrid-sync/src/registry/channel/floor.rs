//! What a reader has seen and never goes back below.

use std::{
    fmt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hybrid_core::{Digest, Document, Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::files::{read_small, replace};

/// The newest statement that a reader has accepted, and the latest time it has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The statement's number.
    pub seq: u64,
    /// The digest of the statement's object.
    pub statement: Digest,
    /// The version that it names.
    pub manifest: Digest,
    /// When it expires; absent in a floor from configuration.
    #[serde(default)]
    pub expires: Option<Timestamp>,
    /// The latest time seen, up to `expires`; never moves back.
    pub time: Timestamp,
    /// The version in service, which stays the one before where the newest does not load.
    #[serde(default)]
    pub serving: Option<Digest>,
}

impl Document for Floor {
    const FORMAT: &'static str = "hybrid.floor";
    const MAJOR: u32 = 1;
}

/// Keeps a [`Floor`] between runs.
///
/// # Behavior
/// - `save` replaces the floor durably and atomically; `load` gives the last one saved.
/// - Both may block; they are called off the async threads.
pub trait FloorStore: fmt::Debug + Send + Sync + 'static {
    /// The floor, if one was saved.
    fn load(&self) -> Result<Option<Floor>>;
    /// Replaces the floor.
    fn save(&self, floor: &Floor) -> Result<()>;
}

/// A floor in a JSON file.
#[derive(Debug)]
pub struct FileFloor {
    path: PathBuf,
}

impl FileFloor {
    /// A floor in the file at `path`, whose folder must exist. The file is one reader's own.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl FloorStore for FileFloor {
    fn load(&self) -> Result<Option<Floor>> {
        match read_small(&self.path, 64 * 1024) {
            // A floor that cannot be read must not become no floor: that would let an old version in.
            Ok(bytes) => Floor::decode(&bytes).map(Some).map_err(|error| {
                Error::new(
                    error.kind(),
                    "read floor",
                    "the file that remembers the newest accepted statement is damaged; restore it",
                )
                .with("path", self.path.display())
                .with_source(error)
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn save(&self, floor: &Floor) -> Result<()> {
        replace(&self.path, &floor.encode()?)
    }
}

/// A floor in memory, for a reader without a disk: starts from the deployment's configuration or from nothing.
#[derive(Debug, Default)]
pub struct MemoryFloor(Mutex<Option<Floor>>);

impl MemoryFloor {
    /// A floor at a statement that the deployment's configuration names.
    pub fn pinned(floor: Floor) -> Self {
        Self(Mutex::new(Some(floor)))
    }
}

impl FloorStore for MemoryFloor {
    fn load(&self) -> Result<Option<Floor>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, floor: &Floor) -> Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(floor.clone());
        Ok(())
    }
}
