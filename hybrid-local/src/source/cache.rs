//! The cache of the Hugging Face hub on this machine, as its own tools keep it.
//!
//! `models--{owner}--{name}/refs/{revision}` holds a commit, `snapshots/{commit}/` links to the files, which are `blobs/{etag}`. The layout:
//! <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use hybrid_core::{Error, FileName, Result};
use serde::Deserialize;

use super::name::{HubModel, is_commit};
use crate::files::{CONFIG, MAX_CONFIG_BYTES, TOKENIZER, read};

const OPERATION: &str = "find model in the hub's cache";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const MODULES: &str = "modules.json";
pub(super) const ADAPTER: &str = "adapter_config.json";
/// As PEFT keeps them, and as mlx-lm does.
pub(super) const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];
/// Pickled weights have an answer of their own at the loaders.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "adapter_model.bin"];

/// The hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// The cache where the hub's own tools look: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `$HF_HOME/hub`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) if none of them is set, nor a home.
    pub fn from_env() -> Result<Self> {
        Self::of(&|name| std::env::var_os(name))
    }

    /// The cache in a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn of(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(|name| path(variable, name));
        let root = named.or_else(|| Some(home(variable)?.join("hub")));
        root.map(Self::at)
            .ok_or_else(|| Error::not_found(OPERATION, "the hub's cache has no place; set HF_HUB_CACHE or HF_HOME"))
    }

    /// Where a model lies in the cache: the snapshot's folder, or its one file that is wanted. Nothing is fetched.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) that names what is missing with the command that fetches it;
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) if one GGUF file of several has to be named.
    pub fn find(&self, model: &HubModel) -> Result<PathBuf> {
        let snapshot = self.snapshot(model)?;
        let has = |name: &str| snapshot.join(name).is_file();
        let absent = |name: &str| Err(absent(model, &snapshot.join(name)));
        if let Some(file) = model.file() {
            return if has(file) { Ok(snapshot.join(file)) } else { absent(file) };
        }
        let in_blocks = gguf_files(&snapshot);
        if has(ADAPTER) && !has(WEIGHTS) && !has(INDEX) {
            let is_whole = ADAPTER_WEIGHTS.into_iter().chain(PICKLED).any(has);
            return if is_whole { Ok(snapshot) } else { absent(ADAPTER_WEIGHTS[0]) };
        }
        if has(MODULES) && !has(CONFIG) {
            let Some(network) = network(&snapshot) else { return Ok(snapshot) };
            let within = |name: &str| if network.is_empty() { name.to_owned() } else { format!("{network}/{name}") };
            let is_pickled = PICKLED.into_iter().any(|name| has(&within(name)));
            let needed = [CONFIG, TOKENIZER, WEIGHTS].into_iter().filter(|name| *name != WEIGHTS || !is_pickled);
            return match needed.map(within).find(|name| !has(name)) {
                Some(name) => absent(&name),
                None => Ok(snapshot),
            };
        }
        if has(INDEX) && !has(WEIGHTS) {
            for shard in shards(&snapshot) {
                if !has(&shard) {
                    return absent(&shard);
                }
            }
        } else if !has(WEIGHTS) && !has(PICKLED[0]) {
            return match &in_blocks[..] {
                [] if has(CONFIG) => absent(WEIGHTS),
                [] => absent(CONFIG),
                [file] => Ok(snapshot.join(file)),
                several => Err(one_of_several(several).with("model", model)),
            };
        }
        // What loaders cannot do without; pickled weights have an answer of their own there.
        match [CONFIG, TOKENIZER].into_iter().find(|name| !has(name)) {
            Some(name) => absent(name),
            None => Ok(snapshot),
        }
    }

    /// The folder of the commit that a model's revision is, whatever it has.
    fn snapshot(&self, model: &HubModel) -> Result<PathBuf> {
        let repository = self.repository(model);
        let revision = model.revision();
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let path = repository.join("refs").join(revision);
            let commit = fs::read_to_string(&path).map_err(|_| absent(model, &path))?.trim().to_owned();
            if !is_commit(&commit) {
                return Err(Error::corrupt(OPERATION, "the file does not hold a commit").with("path", path.display()));
            }
            commit
        };
        let snapshot = repository.join("snapshots").join(commit);
        if snapshot.is_dir() { Ok(snapshot) } else { Err(absent(model, &snapshot)) }
    }

    /// A model's folder.
    pub(super) fn repository(&self, model: &HubModel) -> PathBuf {
        self.root.join(model.folder())
    }
}

/// The folder of all that the hub's tools keep.
pub(super) fn home(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    path(variable, "HF_HOME")
        .or_else(|| path(variable, "XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| user(variable).map(|user| user.join(".cache/huggingface")))
}

/// The path that a variable holds, `~` read as the hub's tools do.
pub(super) fn path(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    let path = variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)?;
    match path.strip_prefix("~") {
        Ok(rest) => user(variable).map(|user| user.join(rest)),
        Err(_) => Some(path),
    }
}

/// Says that a GGUF file has to be named.
pub(super) fn one_of_several(names: &[String]) -> Error {
    Error::unsupported(OPERATION, "the model has several GGUF files; name one behind a #")
        .with("files", names.join(", "))
}

fn user(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let value = ["HOME", "USERPROFILE"].into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    value.map(PathBuf::from)
}

fn gguf_files(snapshot: &Path) -> Vec<String> {
    let names = fs::read_dir(snapshot).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).collect();
    names.sort();
    names
}

/// The files that a snapshot's index names. An index that cannot be read names none: a loader says what is wrong with it.
pub(super) fn shards(snapshot: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, FileName>,
    }
    let index = read(&snapshot.join(INDEX), MAX_CONFIG_BYTES).ok();
    let index: Option<Index> = index.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut names: Vec<String> =
        index.into_iter().flat_map(|index| index.weight_map.into_values()).map(|name| name.to_string()).collect();
    names.sort();
    names.dedup();
    names
}

/// The step of a list of them in whose folder the network lies. A list that cannot be read names none: a loader says what is wrong with it.
fn network(snapshot: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Step {
        path: String,
        r#type: String,
    }
    let steps: Vec<Step> = serde_json::from_slice(&read(&snapshot.join(MODULES), MAX_CONFIG_BYTES).ok()?).ok()?;
    let network = steps.into_iter().find(|step| step.r#type.ends_with(".Transformer"))?;
    (network.path.is_empty() || FileName::new(&*network.path).is_ok()).then_some(network.path)
}

fn absent(model: &HubModel, missing: &Path) -> Error {
    let (name, revision) = (model.name(), model.revision());
    let file = model.file().map(|file| format!(" {file}")).unwrap_or_default();
    Error::not_found(OPERATION, "the model is not in the hub's cache, and nothing is fetched here; fetch it before")
        .with("model", name)
        .with("revision", revision)
        .with("missing", missing.display())
        .with("command", format_args!("hf download {name}{file} --revision {revision}"))
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_cache_is_where_the_hubs_own_tools_look() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/e", "/e/.cache/huggingface/hub"),
        ];
        for (i, (_, _, expected)) in all.iter().enumerate() {
            let found = HubCache::of(&|name| {
                all[i..].iter().find(|(other, _, _)| *other == name).map(|(_, value, _)| OsString::from(value))
            });
            assert_eq!(found.unwrap().root(), Path::new(expected));
        }
        assert_eq!(HubCache::of(&|_| None).unwrap_err().kind(), ErrorKind::NotFound);
        let tilde = HubCache::of(&|name| match name {
            "HF_HOME" => Some("~/models".into()),
            "HOME" => Some("/home/baker".into()),
            _ => None,
        });
        assert_eq!(tilde.unwrap().root(), Path::new("/home/baker/models/hub"));
    }

    /// A cache that has the snapshot of `org/name` at `main`, with these files.
    fn cache(files: &[(&str, &str)]) -> (HubCache, PathBuf, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("models--org--name");
        let snapshot = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        for name in ["main", "refs/pr/1"] {
            fs::write(repository.join("refs").join(name), format!("{COMMIT}\n")).unwrap();
        }
        fs::create_dir_all(&snapshot).unwrap();
        for (name, text) in files {
            fs::create_dir_all(snapshot.join(name).parent().unwrap()).unwrap();
            fs::write(snapshot.join(name), text).unwrap();
        }
        (HubCache::at(folder.path()), snapshot, folder)
    }

    fn model(text: &str) -> HubModel {
        text.parse().unwrap()
    }

    #[track_caller]
    fn refused(cache: &HubCache, text: &str, kind: ErrorKind, named: &str) {
        let error = cache.find(&model(text)).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(named), "{named}: {error}");
    }

    #[test]
    fn a_model_is_found_by_branch_and_by_commit() {
        let files = [(CONFIG, "{}"), (TOKENIZER, "{}"), (WEIGHTS, "")];
        let (cache, snapshot, _folder) = cache(&files);
        for revision in ["main", "refs/pr/1", COMMIT] {
            assert_eq!(cache.find(&model(&format!("org/name@{revision}"))).unwrap(), snapshot);
        }
        refused(&cache, "org/other", ErrorKind::NotFound, "hf download org/other --revision main");
        refused(&cache, "org/name@v2", ErrorKind::NotFound, "refs/v2");
        fs::write(snapshot.join("../../refs/main"), "../../etc").unwrap();
        refused(&cache, "org/name", ErrorKind::Corrupt, "refs/main");
        let other = COMMIT.replace('0', "f");
        fs::write(snapshot.join("../../refs/main"), &other).unwrap();
        refused(&cache, "org/name", ErrorKind::NotFound, &other);
    }

    #[test]
    fn what_is_missing_of_a_model_is_named() {
        let index =
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        let all = [(CONFIG, "{}"), (TOKENIZER, "{}"), (INDEX, index), ("model-00001-of-00002.safetensors", "")];
        let with = |count: usize, named: &str| {
            let (cache, _snapshot, _folder) = cache(&all[..count]);
            refused(&cache, "org/name", ErrorKind::NotFound, named);
        };
        with(0, CONFIG);
        with(2, WEIGHTS);
        with(3, "model-00001-of-00002.safetensors");
        with(4, "model-00002-of-00002.safetensors");
        let (cache, _snapshot, _folder) = cache(&[(CONFIG, "{}"), (WEIGHTS, "")]);
        refused(&cache, "org/name", ErrorKind::NotFound, TOKENIZER);
    }

    #[test]
    fn an_adapter_and_a_network_in_a_folder_of_its_own_are_found_with_their_weights_alone() {
        let steps =
            r#"[{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]"#;
        let adapter = [(ADAPTER, "{}"), (ADAPTER_WEIGHTS[0], "")];
        let network = [
            (MODULES, steps),
            ("0_Transformer/config.json", "{}"),
            ("0_Transformer/tokenizer.json", "{}"),
            ("0_Transformer/model.safetensors", ""),
        ];
        for files in [&adapter[..], &network] {
            for count in 1..files.len() {
                let (cache, _snapshot, _folder) = cache(&files[..count]);
                refused(&cache, "org/name", ErrorKind::NotFound, files[count].0);
            }
            let (cache, snapshot, _folder) = cache(files);
            assert_eq!(cache.find(&model("org/name")).unwrap(), snapshot);
        }
        let pickled = [(ADAPTER, "{}"), ("adapter_model.bin", "")];
        let (cache, snapshot, _folder) = cache(&pickled);
        assert_eq!(cache.find(&model("org/name")).unwrap(), snapshot, "a loader says what is wrong with it");
    }

    #[test]
    fn a_gguf_file_is_taken_if_it_is_the_only_one_or_named() {
        let (cache, snapshot, _folder) = cache(&[(CONFIG, "{}"), ("a.gguf", "")]);
        assert_eq!(cache.find(&model("org/name")).unwrap(), snapshot.join("a.gguf"));
        refused(&cache, "org/name#b.gguf", ErrorKind::NotFound, "hf download org/name b.gguf --revision main");
        fs::write(snapshot.join("b.gguf"), "").unwrap();
        assert_eq!(cache.find(&model("org/name#b.gguf")).unwrap(), snapshot.join("b.gguf"));
        refused(&cache, "org/name", ErrorKind::Unsupported, "a.gguf, b.gguf");
    }
}
