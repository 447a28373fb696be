//! Names of models: paths, models of the hub, versions of a registry.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use hybrid_core::{BaseModel, Error, FileName, Result, VersionRef};

const OPERATION: &str = "parse model source";
const HUB: &str = "hf:";
const REGISTRY: &str = "registry:";

/// Where a model comes from.
///
/// As text it is one of these:
/// - `hf:owner/name`, a model of the hub, with `@revision` and `#file` behind it if need be: a branch, a tag or, best, a commit, by default `main`;
///   and one GGUF file of several.
/// - `registry:model/channel`, what a channel has in service; `registry:model` for the channel `stable`; `registry:` and the digest of a manifest for
///   the same version for ever.
/// - Anything else is the path of a folder or a file.
///
/// ```
/// use hybrid_local::ModelSource;
///
/// let source: ModelSource = "hf:Qwen/Qwen3-0.6B-GGUF@main#Qwen3-0.6B-Q8_0.gguf".parse()?;
/// assert!(matches!(&source, ModelSource::Hub(model) if model.name() == "Qwen/Qwen3-0.6B-GGUF"));
/// assert!(matches!("registry:bakery/canary".parse()?, ModelSource::Version(_)));
/// assert!(matches!("models/qwen3".parse()?, ModelSource::Path(_)));
/// assert!("hf:../qwen3".parse::<ModelSource>().is_err());
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// A folder, or a file.
    Path(PathBuf),
    /// A model of the hub.
    Hub(HubModel),
    /// A version of a registry.
    Version(VersionRef),
}

/// A model of the Hugging Face hub: its name, the revision, and which file of it if not all.
///
/// As text it is what [`ModelSource`] has behind `hf:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubModel {
    name: String,
    revision: String,
    file: Option<FileName>,
}

impl FromStr for ModelSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(model) = text.strip_prefix(HUB) {
            // As other tools write it.
            return model.strip_prefix("//").unwrap_or(model).parse().map(Self::Hub);
        }
        match text.strip_prefix(REGISTRY) {
            Some(version) => version.parse().map(Self::Version),
            None if text.is_empty() => {
                Err(Error::invalid(OPERATION, "a path, hf:owner/name or registry:model/channel is needed"))
            }
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl TryFrom<&BaseModel> for ModelSource {
    type Error = Error;

    /// A plan's base as a source; a provider's model is none.
    fn try_from(base: &BaseModel) -> Result<Self> {
        match base {
            BaseModel::Folder(path) => Ok(Self::Path(path.clone())),
            BaseModel::Hub(model) => model.parse().map(Self::Hub),
            BaseModel::Version(digest) => Ok(Self::Version(VersionRef::Manifest(*digest))),
            _ => Err(Error::invalid(
                OPERATION,
                "the method starts from a folder, a model of the hub or a version of the registry",
            )
            .with("base", format_args!("{base:?}"))),
        }
    }
}

impl From<&Path> for ModelSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<HubModel> for ModelSource {
    fn from(model: HubModel) -> Self {
        Self::Hub(model)
    }
}

impl From<VersionRef> for ModelSource {
    fn from(version: VersionRef) -> Self {
        Self::Version(version)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hub(model) => write!(f, "{HUB}{model}"),
            Self::Version(version) => write!(f, "{REGISTRY}{version}"),
        }
    }
}

impl HubModel {
    /// `owner/name`, or `name` of the oldest models.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A commit, a branch or a tag.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The one file that is wanted, if not all that loaders read.
    pub fn file(&self) -> Option<&str> {
        self.file.as_ref().map(FileName::as_str)
    }

    /// Its folder in a cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}

impl FromStr for HubModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rest, file) = text.split_once('#').map_or((text, None), |(rest, file)| (rest, Some(file)));
        let (name, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let is_part = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && part.bytes().all(known)
        };
        let refuse = || {
            let message = "a model of the hub is named owner/name, with @revision and #file behind it if need be";
            Error::invalid(OPERATION, message).with("found", format_args!("{text:?}"))
        };
        if name.split('/').count() > 2 || !name.split('/').all(is_part) || !revision.split('/').all(is_part) {
            return Err(refuse());
        }
        let file = file.map(|file| FileName::new(file).map_err(|error| refuse().with_source(error))).transpose()?;
        Ok(Self { name: name.to_owned(), revision: revision.to_owned(), file })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "#{}", file.as_str()))
    }
}

/// Whether a revision is a commit, which never moves.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use hybrid_core::Digest;

    use super::*;

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for good in ["org/name", "name", "org/name@main", "o.r-g/n_a.me@refs/pr/1", "a/b#c/d.gguf"] {
            let model: HubModel = good.parse().unwrap();
            assert_eq!(model.to_string().parse::<HubModel>().unwrap(), model, "{good}");
        }
        for bad in
            ["", "a/b/c", "../b", "a/..", "a//b", "a/b@", "a/b@../../x", "a\\b", "/a", "a/b@.x", "a/b#", "a/b#../c"]
        {
            assert!(bad.parse::<HubModel>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_is_told_by_what_it_begins_with_and_written_as_it_is_read() {
        let digest = Digest::of(b"manifest");
        let texts = ["hf:a/b@main", "hf:a/b@v1#c.gguf", "registry:bakery/stable", "models/a", "/models/hf:a"];
        for text in texts.map(str::to_owned).into_iter().chain([format!("registry:{digest}")]) {
            assert_eq!(text.parse::<ModelSource>().unwrap().to_string(), text);
        }
        assert_eq!("hf://a/b".parse::<ModelSource>().unwrap(), "hf:a/b@main".parse().unwrap());
        assert!(matches!("/models/hf:a".parse().unwrap(), ModelSource::Path(_)));
        for bad in ["", "hf:", "hf:a/b/c", "registry:", "registry:../x"] {
            assert!(bad.parse::<ModelSource>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plans_base_is_a_source_unless_it_is_a_providers() {
        let source = |base: BaseModel| ModelSource::try_from(&base);
        assert_eq!(source(BaseModel::Hub("a/b".to_owned())).unwrap().to_string(), "hf:a/b@main");
        let digest = Digest::of(b"manifest");
        assert_eq!(source(BaseModel::Version(digest)).unwrap(), VersionRef::Manifest(digest).into());
        assert_eq!(source(BaseModel::Folder("a".into())).unwrap(), PathBuf::from("a").into());
        assert!(source(BaseModel::Provider("a".to_owned())).is_err() && source(BaseModel::Hub("../a".into())).is_err());
    }
}
