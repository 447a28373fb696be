//! Where a base model lies: a folder, or the Hugging Face hub's cache on this machine. Nothing is fetched.
//!
//! # The hub's cache
//! `models--{organisation}--{name}/refs/{revision}` holds a commit, `snapshots/{commit}/` its files. The cache is at `HF_HUB_CACHE`, else
//! `HUGGINGFACE_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`, as in `huggingface_hub`.

use std::{ffi::OsString, fs, path::PathBuf};

use hybrid_core::{BaseModel, Error, Result};

use crate::{
    encoder::missing,
    files::{CONFIG, TOKENIZER, WEIGHTS},
};

const OPERATION: &str = "find base model";

/// Where base models are looked for.
#[derive(Clone, Debug, Default)]
pub(in crate::text_classifier) struct Places {
    /// The hub's cache; by default where the environment says.
    pub(in crate::text_classifier) hub_cache: Option<PathBuf>,
}

impl Places {
    /// The folder of a base model's files.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is none, `NotFound` that says how to fetch what the cache lacks.
    pub(in crate::text_classifier) fn folder(&self, base: &BaseModel) -> Result<PathBuf> {
        match base {
            BaseModel::Folder(folder) if folder.is_dir() => Ok(folder.clone()),
            BaseModel::Folder(folder) => {
                Err(Error::not_found(OPERATION, "the folder does not exist").with("folder", folder.display()))
            }
            BaseModel::Hub(name) => self.snapshot(&HubName::parse(name)?),
            _ => Err(unusable(base)),
        }
    }

    /// Checks what can be checked of a base without looking at the disk.
    pub(in crate::text_classifier) fn check(base: &BaseModel) -> Result<()> {
        match base {
            BaseModel::Folder(_) => Ok(()),
            BaseModel::Hub(name) => HubName::parse(name).map(drop),
            _ => Err(unusable(base)),
        }
    }

    fn snapshot(&self, HubName { model, revision }: &HubName<'_>) -> Result<PathBuf> {
        let cache = match &self.hub_cache {
            Some(cache) => cache.clone(),
            None => hub_cache(|name| std::env::var_os(name)).ok_or_else(|| {
                Error::not_found(OPERATION, "the hub's cache has no place; set HF_HUB_CACHE or HF_HOME")
            })?,
        };
        let repository = cache.join(format!("models--{}", model.replace('/', "--")));
        let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let absent = |file: PathBuf| {
            Error::not_found(
                OPERATION,
                "the model is not in the hub's cache; nothing is fetched here, so fetch it before",
            )
            .with("model", model)
            .with("revision", revision)
            .with("missing", file.display())
            .with("command", format_args!("hf download {model} {CONFIG} {TOKENIZER} {WEIGHTS} --revision {revision}"))
        };
        let commit = if is_commit(revision) {
            (*revision).to_owned()
        } else {
            let path = repository.join("refs").join(revision);
            let commit = fs::read_to_string(&path).map_err(|_| absent(path.clone()))?.trim().to_owned();
            if !is_commit(&commit) {
                return Err(Error::corrupt(OPERATION, "the file does not hold a commit").with("path", path.display()));
            }
            commit
        };
        let snapshot = repository.join("snapshots").join(commit);
        match [CONFIG, TOKENIZER, WEIGHTS].into_iter().find(|name| !snapshot.join(name).is_file()) {
            // Pickled or sharded weights have an answer of their own.
            Some(WEIGHTS) if snapshot.join("pytorch_model.bin").exists() => Err(missing(&snapshot, WEIGHTS)),
            Some(name) => Err(absent(snapshot.join(name))),
            None => Ok(snapshot),
        }
    }
}

fn unusable(base: &BaseModel) -> Error {
    Error::invalid("check plan", "the method starts from a folder or from a model in the hub's cache")
        .with("base", format_args!("{base:?}"))
}

/// `organisation/name` or `name`, and after an `@` the revision, by default `main`.
struct HubName<'a> {
    model: &'a str,
    revision: &'a str,
}

impl<'a> HubName<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let (model, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_part = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && part.bytes().all(known)
        };
        if model.split('/').count() <= 2 && model.split('/').all(is_part) && revision.split('/').all(is_part) {
            return Ok(Self { model, revision });
        }
        Err(Error::invalid("check plan", "a model in the hub is named organisation/name or organisation/name@revision")
            .with("base", format_args!("{text:?}")))
    }
}

/// The hub's cache, as the environment says.
fn hub_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| path("HOME").or_else(|| path("USERPROFILE")).map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = hub_cache(|name| {
                all[i..].iter().find(|(other, _, _)| *other == name).map(|(_, value, _)| OsString::from(value))
            });
            assert_eq!(found, Some(PathBuf::from(expected)));
        }
        assert_eq!(hub_cache(|_| None), None);
    }

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for good in ["org/name", "name", "org/name@main", "o.r-g/n_a.me@refs/pr/1"] {
            assert!(HubName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b/c", "../b", "a/..", "a//b", "a/b@", "a/b@../../x", "a\\b", "/a", "a/b@.x"] {
            assert!(HubName::parse(bad).is_err(), "{bad}");
        }
    }
}
