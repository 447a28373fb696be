//! Fetching models from the Hugging Face hub into its cache.
//!
//! The hub's protocol: `GET /api/models/{name}/revision/{revision}?blobs=true` lists the commit's files with their sizes and digests
//! (SHA-256 of large files, git's SHA-1 of small ones), `GET /{name}/resolve/{commit}/{file}` gives a file or a part of it. The cache's layout is
//! that of the hub's own tools, which find there what is fetched here, and the other way round.

mod client;
mod download;
mod listing;
mod part;

use std::{ffi::OsString, fs, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{TryStreamExt, stream};
use hybrid_core::{Clock, Error, Result, SystemClock};
use reqwest::Url;

use self::{
    client::Client,
    download::{Blob, link, write_ref},
    listing::{File, Listing},
};
use super::{
    HubCache, HubModel,
    cache::{home, path, shards},
    name::is_commit,
};
use crate::blocking::blocking;

const OPERATION: &str = "fetch model";
const ENDPOINT: &str = "https://huggingface.co";
/// Files that are fetched at once.
const PARALLELISM: usize = 4;

/// The Hugging Face hub, and the cache that models are fetched into.
///
/// # Behavior
/// - Only what loaders read is fetched: Safetensors, or the one GGUF file, and the JSON and Jinja beside them. Pickled weights never are; a model that
///   has no others is [`Unsupported`](hybrid_core::ErrorKind::Unsupported). Of several GGUF files one has to be named.
/// - A branch or a tag is resolved to its commit once, and all files are that commit's. Name a commit to get the same files for ever.
/// - Nothing becomes visible before its size and its digest are those that the hub promises, else it is
///   [`Corrupt`](hybrid_core::ErrorKind::Corrupt) and thrown away. A download that was cut goes on where it ended, after a crash too. Several processes
///   fetch a file once; the hub's own tools among them.
/// - What the cache has is not fetched again, nor read again to be verified. Offline nothing is fetched at all, and what the cache lacks is
///   [`NotFound`](hybrid_core::ErrorKind::NotFound). With the hub away, what the cache has is used, and a warning says so.
/// - What brings nothing, a listing or a file, is tried again after one, two and four seconds, or when the hub says, if that is within a minute.
/// - A model that needs a token, or consent that was not given, is [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied). The token goes to the
///   hub alone, not to where it sends on.
///
/// ```no_run
/// # async fn fetch() -> hybrid_core::Result<()> {
/// use hybrid_core::ServedModel;
/// use hybrid_local::{DecoderLoader, Device, Hub, ModelResolver, ModelSource};
///
/// let models = ModelResolver::local().with_hub(Hub::from_env()?);
/// let source: ModelSource = "hf:Qwen/Qwen3-0.6B".parse()?;
/// let model = models.resolve(&source).await?;
/// let backend = DecoderLoader::new(Device::cpu()).open(model.path(), ServedModel::named("qwen3")).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Hub {
    cache: HubCache,
    client: Client,
    offline: bool,
    clock: Arc<dyn Clock>,
}

impl Hub {
    /// The hub as the environment says: `HF_ENDPOINT`, the token in `HF_TOKEN` or in the file `HF_TOKEN_PATH` or `$HF_HOME/token`,
    /// `HF_HUB_OFFLINE`, and the cache's place as [`HubCache::from_env`].
    ///
    /// # Errors
    /// Those of [`HubCache::from_env`]; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for an endpoint that is no URL;
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if no connections can be made.
    pub fn from_env() -> Result<Self> {
        Self::of(&|name| std::env::var_os(name))
    }

    /// The public hub without a token, with this cache.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if no connections can be made.
    pub fn new(cache: HubCache) -> Result<Self> {
        Ok(Self { cache, client: Client::new(ENDPOINT)?, offline: false, clock: Arc::new(SystemClock) })
    }

    /// The same at another address, such as `https://hub.example`.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if it is no URL.
    pub fn with_endpoint(mut self, endpoint: &str) -> Result<Self> {
        self.client = self.client.with_endpoint(endpoint)?;
        Ok(self)
    }

    /// The same with a token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.client = self.client.with_token(Some(token.into()));
        self
    }

    /// The same, with connections given up that bring nothing for so long; by default 30 seconds.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if no connections can be made.
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Result<Self> {
        self.client = self.client.with_idle_timeout(timeout)?;
        Ok(self)
    }

    /// The same, fetching nothing.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// The same with another clock, which times the waits between tries.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Its cache.
    pub fn cache(&self) -> &HubCache {
        &self.cache
    }

    fn of(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| {
            let value = variable(name)?.into_string().ok()?.trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        // As the hub's own tools read them.
        let yes = |name: &str| {
            text(name).is_some_and(|value| ["1", "TRUE", "YES", "ON"].contains(&&*value.to_ascii_uppercase()))
        };
        let mut hub = Self::new(HubCache::of(variable)?)?;
        if let Some(endpoint) = text("HF_ENDPOINT") {
            hub = hub.with_endpoint(&endpoint)?;
        }
        hub.offline = yes("HF_HUB_OFFLINE") || text("HF_HUB_OFFLINE").is_none() && yes("TRANSFORMERS_OFFLINE");
        let kept = || {
            let file = path(variable, "HF_TOKEN_PATH").or_else(|| Some(home(variable)?.join("token")));
            fs::read_to_string(file?).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
        };
        if !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            hub.client =
                hub.client.with_token(text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(kept));
        }
        Ok(hub)
    }

    /// Brings what the cache lacks of a model, and says where it lies: the snapshot's folder, or the one file that is wanted.
    ///
    /// # Errors
    /// As in the type's behavior; [`NotFound`](hybrid_core::ErrorKind::NotFound) if the hub has no such model, revision or file,
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if it cannot be reached and the cache lacks something.
    ///
    /// # Cancel safety
    /// What has come stays, and the next call goes on there.
    pub async fn fetch(&self, model: &HubModel) -> Result<PathBuf> {
        if self.offline {
            return self.find(model).await;
        }
        self.fetch_online(model).await.map_err(|error| error.with("model", model))
    }

    async fn fetch_online(&self, model: &HubModel) -> Result<PathBuf> {
        let mut tries = 0;
        let listing = loop {
            let error = match self.client.list(model).await {
                Ok(bytes) => break Listing::read(&bytes)?,
                Err(error) => error,
            };
            // Sooner than another try.
            if error.is_temporary()
                && let Ok(path) = self.find(model).await
            {
                tracing::warn!(%model, %error, path = %path.display(), "the hub is away; what its cache has of the model is used");
                return Ok(path);
            }
            self.wait(&mut tries, error).await?;
        };
        let mut wanted = listing.wanted(model.file())?;
        let snapshot = self.cache.repository(model).join("snapshots").join(&listing.sha);
        // Weights come last, so that whoever finds them finds all.
        self.bring_all(model, &listing, &wanted.beside).await?;
        if wanted.sharded {
            let folder = snapshot.clone();
            wanted.weights.extend(listing.shards(&blocking(OPERATION, move || Ok(shards(&folder))).await?)?);
        }
        self.bring_all(model, &listing, &wanted.weights).await?;
        if !is_commit(model.revision()) {
            let (cache, model, commit) = (self.cache.clone(), model.clone(), listing.sha.clone());
            blocking(OPERATION, move || write_ref(&cache, &model, &commit)).await?;
        }
        Ok(match (&wanted.weights[..], wanted.alone) {
            ([file], true) => snapshot.join(&file.rfilename),
            _ => snapshot,
        })
    }

    async fn bring_all(&self, model: &HubModel, listing: &Listing, files: &[&File]) -> Result<()> {
        let files = stream::iter(files.iter().copied().map(Ok));
        files.try_for_each_concurrent(PARALLELISM, |file| self.bring_file(model, &listing.sha, file)).await
    }

    /// Brings one file into the cache and the snapshot.
    async fn bring_file(&self, model: &HubModel, commit: &str, file: &File) -> Result<()> {
        let name = file.rfilename.as_str();
        let bring = async {
            let name = file.name()?;
            let url = self.client.resolve(model, commit, name.as_str());
            let (digest, size) = match file.promised()? {
                Some(promised) => promised,
                None => {
                    let mut tries = 0;
                    loop {
                        match self.client.promised(&url, commit).await {
                            Ok(promised) => break promised,
                            Err(error) => self.wait(&mut tries, error).await?,
                        }
                    }
                }
            };
            let blob = Blob { url, digest, size };
            let repository = self.cache.repository(model);
            let path = self.download(&repository, &blob).await?;
            let snapshot = repository.join("snapshots").join(commit);
            blocking(OPERATION, move || link(&path, &snapshot, name.as_str())).await
        };
        bring.await.map_err(|error: Error| error.with("file", name))
    }

    async fn find(&self, model: &HubModel) -> Result<PathBuf> {
        let (cache, model) = (self.cache.clone(), model.clone());
        blocking(OPERATION, move || cache.find(&model)).await
    }
}

/// What a server says about a file that it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Promised {
    Sha256(String),
    /// SHA-1 of `blob`, the length and the bytes, as git has it.
    Git(String),
}

impl Promised {
    /// A digest in hexadecimal digits, told by its length.
    fn parse(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text.to_owned())),
            40 if is_hex => Some(Self::Git(text.to_owned())),
            _ => None,
        }
    }

    /// The name under which the cache keeps the file.
    fn name(&self) -> &str {
        match self {
            Self::Sha256(name) | Self::Git(name) => name,
        }
    }
}

/// An address without what may be a secret: signed links carry their signature in the query, mirrors ask for a password before their name.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    // An address with a host takes both.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_the_hubs_own_tools_read_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_kept\n").unwrap();
        let hub = |more: &[(&str, &str)]| {
            Hub::of(&|name| match more.iter().find(|(other, _)| *other == name) {
                Some((_, value)) => Some(OsString::from(value)),
                None if name == "HF_HOME" => Some(folder.path().into()),
                None => None,
            })
        };
        let plain = hub(&[]).unwrap();
        assert_eq!((plain.cache.root(), plain.offline), (&*folder.path().join("hub"), false));
        assert_eq!(plain.client.token(), Some("hf_kept"));
        assert_eq!(hub(&[("HF_TOKEN", " hf_set ")]).unwrap().client.token(), Some("hf_set"));
        assert_eq!(hub(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap().client.token(), None);
        assert_eq!(hub(&[("HF_TOKEN_PATH", "/nonesuch")]).unwrap().client.token(), None);
        for (name, value, offline) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "on", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("HF_HUB_OFFLINE", "", false),
            ("TRANSFORMERS_OFFLINE", "yes", true),
        ] {
            assert_eq!(hub(&[(name, value)]).unwrap().offline, offline, "{name}={value}");
        }
        let model: HubModel = "org/name".parse().unwrap();
        let mirror = hub(&[("HF_ENDPOINT", "https://mirror.example/hf/")]).unwrap();
        let url = mirror.client.resolve(&model, "main", "a b#1.gguf");
        assert_eq!(url.as_str(), "https://mirror.example/hf/org/name/resolve/main/a%20b%231.gguf");
        assert!(hub(&[("HF_ENDPOINT", "mirror")]).is_err() && hub(&[("HF_ENDPOINT", "file:///x")]).is_err());
        assert!(!format!("{plain:?}").contains("hf_kept"));
        let closed = hub(&[("HF_ENDPOINT", "https://baker:flour@mirror.example/hf")]).unwrap();
        let url = closed.client.resolve(&model, "main", "a.gguf");
        assert_eq!(url.password(), Some("flour"));
        assert_eq!(shown(&url), "https://mirror.example/hf/org/name/resolve/main/a.gguf");
        assert!(!format!("{closed:?}").contains("flour"));
        for bad in ["ftp://baker:flour@mirror.example", "baker:flour@mirror.example"] {
            let error = format!("{:?}", hub(&[("HF_ENDPOINT", bad)]).unwrap_err());
            assert!(error.contains("mirror.example") && !error.contains("flour"), "{error}");
        }
    }
}
