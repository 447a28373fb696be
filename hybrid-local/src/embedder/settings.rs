//! How a model's rows become a vector, as the files of sentence-transformers say beside a network.
//!
//! `modules.json` lists the steps; each has its settings in a folder of its own. The names are those of sentence-transformers 2 to 5.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hybrid_core::{Error, FileName, Result};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    encoder::Pooling,
    files::{self, MAX_CONFIG_BYTES},
};

const OPERATION: &str = "read embedder settings";
const MODULES: &str = "modules.json";
const LENGTH: &str = "sentence_bert_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const CONFIG: &str = "config.json";

/// What is done around the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// The folder of the network and its tokenizer.
    pub(super) network: PathBuf,
    pub(super) pooling: Pooling,
    /// Whether vectors are given length 1.
    pub(super) normalize: bool,
    /// Tokens of a text that are read at most, if the model says so.
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
    /// What stands before texts, by its name.
    pub(super) prompts: BTreeMap<String, String>,
    /// The name of the prompt where none is asked for.
    pub(super) default_prompt: Option<String>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Length {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Prompts {
    prompts: Option<BTreeMap<String, String>>,
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct Pool {
    include_prompt: Option<bool>,
    pooling_mode: Option<String>,
    #[serde(flatten)]
    modes: BTreeMap<String, serde_json::Value>,
}

impl Settings {
    /// Reads the settings in `folder`. Without a list of steps, the mean of all rows is taken as it is, as sentence-transformers does.
    ///
    /// # Errors
    /// `Corrupt` that names the file; `Unsupported` that names a step or a way of pooling that is not known.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut settings = Self {
            network: folder.to_owned(),
            pooling: Pooling::Mean,
            normalize: false,
            max_tokens: None,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
        };
        let modules: Vec<Module> = optional(&folder.join(MODULES))?.unwrap_or_default();
        let mut kinds = Vec::new();
        for Module { path, r#type } in &modules {
            let kind = r#type.rsplit('.').next().unwrap_or_default();
            match kind {
                "Transformer" => settings.network = inside(folder, path)?,
                "Pooling" => settings.pooling = pooling(&inside(folder, path)?.join(CONFIG))?,
                "Normalize" => settings.normalize = true,
                _ => return Err(unknown("the step is not known").with("type", r#type)),
            }
            kinds.push(kind);
        }
        if !modules.is_empty()
            && !matches!(*kinds, ["Transformer", "Pooling"] | ["Transformer", "Pooling", "Normalize"])
        {
            return Err(unknown("the steps have to be a transformer, a pooling and, if at all, a normalization")
                .with("found", kinds.join(", "))
                .with("path", folder.join(MODULES).display()));
        }
        let Length { max_seq_length, do_lower_case } = optional(&settings.network.join(LENGTH))?.unwrap_or_default();
        settings.max_tokens = max_seq_length;
        settings.lower_case = do_lower_case.unwrap_or(false);
        let Prompts { prompts, default_prompt_name } = optional(&folder.join(PROMPTS))?.unwrap_or_default();
        settings.prompts = prompts.unwrap_or_default();
        settings.default_prompt = default_prompt_name;
        if let Some(name) = settings.default_prompt.as_ref().filter(|&name| !settings.prompts.contains_key(name)) {
            return Err(Error::corrupt(OPERATION, "the default prompt is none of the prompts")
                .with("default_prompt_name", name)
                .with("path", folder.join(PROMPTS).display()));
        }
        Ok(settings)
    }
}

fn pooling(path: &Path) -> Result<Pooling> {
    let pool: Pool = optional(path)?.ok_or_else(|| {
        Error::corrupt(OPERATION, "the settings of the pooling are missing").with("path", path.display())
    })?;
    if pool.include_prompt == Some(false) {
        return Err(unknown("leaving a prompt out of the pooling is not known").with("path", path.display()));
    }
    // A name, or a yes or no for each way.
    let chosen = |(key, value): (&String, &serde_json::Value)| {
        key.strip_prefix("pooling_mode_").filter(|_| value == &serde_json::Value::Bool(true)).map(str::to_owned)
    };
    let modes: Vec<String> = match pool.pooling_mode {
        Some(mode) => vec![mode],
        None => pool.modes.iter().filter_map(chosen).collect(),
    };
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["lasttoken"] => Ok(Pooling::Last),
        _ => Err(unknown("the way of pooling is not known")
            .with("found", modes.join(", "))
            .with("known", "cls, mean, lasttoken")
            .with("path", path.display())),
    }
}

/// A folder within a model's.
fn inside(folder: &Path, path: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Ok(folder.to_owned());
    }
    let path = FileName::new(path).map_err(|error| {
        Error::corrupt(OPERATION, "a step's folder is not one within the model's").with("path", path).with_source(error)
    })?;
    Ok(folder.join(path.as_str()))
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_slice(&files::read(path, MAX_CONFIG_BYTES)?).map(Some).map_err(|error| {
        Error::corrupt(OPERATION, "the file does not hold what such a file holds")
            .with("path", path.display())
            .with_source(error)
    })
}

fn unknown(message: &'static str) -> Error {
    Error::unsupported(OPERATION, message)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hybrid_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    fn steps(kinds: &[(&str, &str)]) -> Value {
        let step = |(kind, path): &(&str, &str)| json!({"idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{kind}")});
        kinds.iter().map(step).collect()
    }

    fn with(files: &[(&str, Value)]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value.to_string()).unwrap();
        }
        let settings = Settings::read(folder.path())?;
        let network = settings.network.strip_prefix(folder.path()).unwrap().to_owned();
        Ok(Settings { network, ..settings })
    }

    #[test]
    fn steps_are_read_with_their_settings() {
        let plain = with(&[]).unwrap();
        assert_eq!((plain.pooling, plain.normalize, plain.max_tokens), (Pooling::Mean, false, None));
        let read = with(&[
            (MODULES, steps(&[("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")])),
            ("1_Pooling/config.json", json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false, "word_embedding_dimension": 4})),
            ("0_Transformer/sentence_bert_config.json", json!({"max_seq_length": 9, "do_lower_case": true})),
            (PROMPTS, json!({"prompts": {"query": "query: "}, "default_prompt_name": "query", "similarity_fn_name": "cosine"})),
        ])
        .unwrap();
        assert_eq!((read.network, read.pooling, read.normalize), (PathBuf::from("0_Transformer"), Pooling::Cls, true));
        assert_eq!((read.max_tokens, read.lower_case, read.default_prompt), (Some(9), true, Some("query".to_owned())));
        assert_eq!(read.prompts["query"], "query: ");
        let named = [
            (MODULES, steps(&[("Transformer", ""), ("Pooling", "p")])),
            ("p/config.json", json!({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": true})),
        ];
        assert_eq!(with(&named).unwrap().pooling, Pooling::Last);
    }

    #[test]
    fn what_is_not_known_is_named() {
        use ErrorKind::{Corrupt, Unsupported};
        let refused = |files: &[(&str, Value)], kind: ErrorKind, named: &str| {
            let error = with(files).unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(named), "{named}: {error}");
        };
        let pooled =
            |pool: Value| [(MODULES, steps(&[("Transformer", ""), ("Pooling", "p")])), ("p/config.json", pool)];
        refused(&pooled(json!({"pooling_mode_max_tokens": true})), Unsupported, "max_tokens");
        let both = json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true});
        refused(&pooled(both), Unsupported, "cls_token, mean_tokens");
        refused(&pooled(json!({})), Unsupported, "pooling");
        refused(&pooled(json!({"pooling_mode": "mean", "include_prompt": false})), Unsupported, "prompt");
        refused(&pooled(json!([])), Corrupt, "p/config.json");
        refused(&pooled(json!(null))[..1], Corrupt, "missing");
        refused(&[(MODULES, steps(&[("Transformer", ""), ("Dense", "2_Dense")]))], Unsupported, "Dense");
        refused(&[(MODULES, steps(&[("Transformer", "")]))], Unsupported, "Transformer");
        refused(&[(MODULES, steps(&[("Transformer", "../other")]))], Corrupt, "../other");
        refused(&[(PROMPTS, json!({"default_prompt_name": "query"}))], Corrupt, "query");
        refused(&[(LENGTH, json!({"max_seq_length": -1}))], Corrupt, LENGTH);
    }
}
