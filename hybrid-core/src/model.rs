//! Model versions: what a manifest says, and the ports that sign and load one.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    ChannelName, Digest, Error, InferenceBackend, Key, ModelName, Result, Task, Timestamp, document::document,
    trainer::TrainPlan, verdict::VerdictRecord,
};

/// One version of a model: files with their chunks, what they need, where they come from, and why they may be used.
///
/// A manifest is stored once under its digest, which is the version's identity; the number is for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The model.
    pub model: ModelName,
    /// The version's number, counted by the publisher; unique only together with the digest.
    pub version: u64,
    /// The task, as [`Task::NAME`].
    pub task: String,
    /// What kind of loader reads the files, as `<name>/<major>`.
    pub architecture: String,
    /// When it was made, by the publisher's wall clock.
    pub created: Timestamp,
    /// The files, in order of their names.
    pub files: Vec<FileEntry>,
    /// What a machine needs to load it.
    pub requirements: Requirements,
    /// Where it comes from.
    pub lineage: Lineage,
    /// The evaluation that let it be published.
    pub verdict: Option<VerdictRecord>,
    /// Anything else, for people.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}
document!(Manifest, "hybrid.manifest", 1);

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The path below the version's folder, `/` between parts; see [`FileName`].
    pub name: FileName,
    /// The size in bytes.
    pub size: u64,
    /// The digest of the whole file.
    pub digest: Digest,
    /// The chunks whose bytes, joined, are the file.
    pub chunks: Vec<ChunkRef>,
}

/// One chunk of a file: an object of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// The object that holds the chunk.
    pub blob: Key,
    /// The digest of the chunk's bytes.
    pub digest: Digest,
    /// The size in bytes.
    pub size: u64,
}

/// The relative path of a model's file that stays below its folder on every system.
///
/// Parts of 1 to 200 bytes between `/`, at most 400 bytes; no part is `.` or `..`, ends in a dot or a space, or has a control character or one of `\ : * ? " < > |`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

impl FileName {
    /// Checks and wraps `name`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let illegal = |char: char| char.is_control() || "\\:*?\"<>|".contains(char);
        let part_fits =
            |part: &str| (1..=200).contains(&part.len()) && !part.ends_with(['.', ' ']) && !part.chars().any(illegal);
        if name.len() <= 400 && name.split('/').all(part_fits) {
            return Ok(Self(name));
        }
        Err(Error::invalid("parse file name", "expected a relative path that stays below its folder")
            .with("found", format_args!("{name:?}")))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that names can lie in one folder on every system: no two are equal when case is folded, none is a folder of another.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the two.
    pub fn check_together<'a>(names: impl IntoIterator<Item = &'a FileName>) -> Result<()> {
        let mut seen: BTreeMap<String, &FileName> = BTreeMap::new();
        for name in names {
            if let Some(other) = seen.insert(name.0.to_lowercase(), name) {
                return Err(clash(name, other));
            }
        }
        for (folded, name) in &seen {
            for (at, _) in folded.match_indices('/') {
                if let Some(folder) = seen.get(&folded[..at]) {
                    return Err(clash(name, folder));
                }
            }
        }
        Ok(())
    }
}

fn clash(name: &FileName, other: &FileName) -> Error {
    Error::invalid("check file names", "two files cannot lie in one folder").with("one", name).with("other", other)
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for FileName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

mod file_name_serde {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::FileName;
    crate::id::serde_as_text!(FileName);
}

/// What a machine needs to load a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirements {
    /// Memory while serving, in bytes; zero if unknown.
    pub memory_bytes: u64,
}

/// Where a version comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The plan that was carried out: method, base, dataset, hyperparameters, seed.
    pub plan: TrainPlan,
    /// The digest of the dataset as it was read.
    pub dataset: Digest,
    /// How many judgments it had.
    pub examples: u64,
    /// The trainer, with its version, such as `hybrid-local/0.1.0 hashed-text`.
    pub trainer: String,
    /// The device it was trained on.
    pub device: String,
}

/// Makes a backend of a verified version's files.
///
/// # Behavior
/// - Files under `folder` are those of the manifest, complete and verified; nothing else is read.
/// - Refuses an [`Manifest::architecture`] that it does not know with [`Unsupported`](crate::ErrorKind::Unsupported), malformed files
///   with [`Corrupt`](crate::ErrorKind::Corrupt), and what cannot fit with [`ResourceExhausted`](crate::ErrorKind::ResourceExhausted),
///   before it takes the memory.
/// - Whatever blocks or computes runs off the async threads: requests go on beside a load.
/// - The backend's profile names the manifest's model, version and digest.
#[async_trait]
pub trait ModelLoader<T: Task>: fmt::Debug + Send + Sync + 'static {
    /// Loads the version whose manifest has `digest` from `folder`.
    async fn load(&self, manifest: &Manifest, digest: Digest, folder: &Path) -> Result<Arc<dyn InferenceBackend<T>>>;
}

/// Which version of a registry is meant.
///
/// As text it is the digest of a version's manifest, or `model/channel`; `model` alone means its channel `stable`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VersionRef {
    /// The version whose manifest has this digest: the same for ever.
    Manifest(Digest),
    /// The version that a channel has in service when it is asked for.
    Channel(ModelName, ChannelName),
}

impl FromStr for VersionRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // A name is shorter than a digest.
        if let Ok(digest) = text.parse() {
            return Ok(Self::Manifest(digest));
        }
        let (model, channel) = match text.split_once('/') {
            Some((model, channel)) => (model, ChannelName::new(channel)),
            None => (text, Ok(ChannelName::stable())),
        };
        ModelName::new(model).and_then(|model| Ok(Self::Channel(model, channel?))).map_err(|error| {
            Error::invalid("parse version", "expected model/channel, a model, or the digest of a manifest")
                .with("found", format_args!("{text:?}"))
                .with_source(error)
        })
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(digest) => digest.fmt(f),
            Self::Channel(model, channel) => write!(f, "{model}/{channel}"),
        }
    }
}

/// A version on this machine, verified and complete.
#[derive(Clone, Debug)]
pub struct LocalVersion {
    /// The folder of the version's files.
    pub folder: PathBuf,
    /// The version's identity.
    pub digest: Digest,
    /// The version.
    pub manifest: Manifest,
    /// Keeps the folder where it is: hold it while anything reads there.
    pub in_use: Arc<dyn Any + Send + Sync>,
}

/// Brings versions of a registry to this machine for whoever names one.
///
/// # Behavior
/// - Gives nothing that was not verified as a version in service is: its digest, its signature, and, of a channel, the channel's statement.
/// - A version that is here already needs no connection.
/// - What the registry does not have is [`NotFound`](crate::ErrorKind::NotFound), what must not be loaded
///   [`Untrusted`](crate::ErrorKind::Untrusted).
#[async_trait]
pub trait VersionSource: fmt::Debug + Send + Sync + 'static {
    /// Brings the version that `which` names.
    async fn bring(&self, which: &VersionRef) -> Result<LocalVersion>;
}

/// Signs bytes with a key that it does not give away: a file's here, a key service's elsewhere.
///
/// # Behavior
/// - ECDSA on P-256 over SHA-256 of the message; the signature is ASN.1 DER.
#[async_trait]
pub trait Signer: fmt::Debug + Send + Sync + 'static {
    /// The public key as PEM text of its SubjectPublicKeyInfo: LF line ends, a final newline.
    fn public_key_pem(&self) -> &str;
    /// Signs `message`.
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_by_channel_or_digest() {
        let digest = Digest::of(b"manifest");
        assert_eq!(digest.to_string().parse::<VersionRef>().unwrap(), VersionRef::Manifest(digest));
        let model = ModelName::new("bakery").unwrap();
        let canary = VersionRef::Channel(model.clone(), ChannelName::new("canary").unwrap());
        assert_eq!("bakery/canary".parse::<VersionRef>().unwrap(), canary);
        assert_eq!(canary.to_string(), "bakery/canary");
        let stable = VersionRef::Channel(model, ChannelName::stable());
        assert_eq!("bakery".parse::<VersionRef>().unwrap(), stable);
        for bad in ["", "/", "bakery/", "a/b/c", "../x", "Bakery"] {
            assert!(bad.parse::<VersionRef>().is_err(), "{bad}");
        }
    }

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    #[test]
    fn file_names_stay_below_their_folder() {
        for good in ["model.safetensors", "a/b.json", ".gitattributes", "Ü/ß", "a b"] {
            assert!(FileName::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a\\b", "c:a", "a\0", "a.", "a ", &"x".repeat(201)]
        {
            assert!(FileName::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<FileName>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_clash_on_some_system_are_refused() {
        let check = |names: &[&str]| FileName::check_together(&names.iter().map(|text| name(text)).collect::<Vec<_>>());
        assert!(check(&["a", "b/c", "b/d"]).is_ok());
        assert!(check(&["a", "a"]).is_err());
        assert!(check(&["Model", "model"]).is_err());
        assert!(check(&["a/b", "a"]).is_err());
        assert!(check(&["a", "a-b", "A/b"]).is_err());
    }
}
