//! A version's folder, checked by the rules of Bedrock's user guide.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use hybrid_core::{Error, ErrorKind, FileName, Result};
use serde_json::Value;

use super::{OPERATION, architecture::Architecture, weights};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const INDEX: &str = "model.safetensors.index.json";

/// Tokenizers that Bedrock has.
const TOKENIZERS: [&str; 14] = [
    "T5Tokenizer",
    "T5TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "GPTNeoXTokenizer",
    "GPTNeoXTokenizerFast",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
];

/// Those that are made of a SentencePiece file, and the names that it may have.
const SENTENCE_PIECE: [(&str, &[&str]); 3] = [
    ("LlamaTokenizer", &["tokenizer.model"]),
    ("CodeLlamaTokenizer", &["tokenizer.model"]),
    ("T5Tokenizer", &["spiece.model", "tokenizer.model"]),
];

/// What is staged beside the weights, by how its name ends: configuration, tokenizers, chat templates.
const COMPANIONS: [&str; 4] = [".json", ".model", ".txt", ".jinja"];

/// A version that Bedrock takes.
#[derive(Debug)]
pub(super) struct ModelFolder {
    /// What is staged, in order of the names.
    pub(super) files: Vec<ModelFile>,
}

#[derive(Debug)]
pub(super) struct ModelFile {
    pub(super) name: FileName,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) is_weights: bool,
}

impl ModelFolder {
    /// Reads the folder, and checks it for an import in `region`.
    pub(super) fn read(folder: &Path, region: &str) -> Result<Self> {
        let listed = Listed::read(folder)?;
        let architecture = Architecture::of(&listed.json(CONFIG)?, region)?;
        listed.check_tokenizer()?;
        let weights = listed.weights()?;
        let mut bytes = 0;
        for (name, expected) in &weights {
            let path = folder.join(name);
            let tensors = weights::read(&path)?;
            weights::check(architecture, &path, &tensors)?;
            if let Some(missing) = expected.iter().find(|tensor| !tensors.contains_key(*tensor)) {
                return Err(Error::corrupt(
                    OPERATION,
                    "the index names a tensor that its file does not have; export the model again",
                )
                .with("path", path.display())
                .with("tensor", missing));
            }
            bytes += listed.size(name);
        }
        if bytes >= architecture.max_bytes() {
            return Err(Error::too_large(
                OPERATION,
                "the weights are over what Bedrock imports; use a smaller model or numbers of 16 bits",
            )
            .with("architecture", architecture.name())
            .with("bytes", bytes)
            .with("limit", architecture.max_bytes()));
        }
        listed.select(&weights)
    }
}

/// The weights' files, each with the tensors that the index promises in it.
type Weights = BTreeMap<String, BTreeSet<String>>;

/// The files of a folder, by name; what lies in folders below it is none of the model's.
struct Listed<'a> {
    folder: &'a Path,
    sizes: BTreeMap<String, u64>,
}

impl<'a> Listed<'a> {
    fn read(folder: &'a Path) -> Result<Self> {
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::NotADirectory => ErrorKind::InvalidInput,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Internal,
            };
            Error::new(kind, OPERATION, "the model's folder cannot be read")
                .with("path", folder.display())
                .with_source(error)
        };
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A hub's cache is made of links to files, so those are followed.
            let meta = fs::metadata(entry.path()).map_err(failed)?;
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                sizes.insert(name, meta.len());
            }
        }
        Ok(Self { folder, sizes })
    }

    fn has(&self, name: &str) -> bool {
        self.sizes.contains_key(name)
    }

    fn size(&self, name: &str) -> u64 {
        self.sizes.get(name).copied().unwrap_or_default()
    }

    fn any(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.sizes.keys().any(|name| fits(name))
    }

    fn missing(&self, name: &str, message: &'static str) -> Error {
        Error::not_found(OPERATION, message).with("path", self.folder.display()).with("file", name)
    }

    fn json(&self, name: &'static str) -> Result<Value> {
        if !self.has(name) {
            return Err(self.missing(
                name,
                "the model's folder lacks a file that Bedrock reads; export it as Transformers saves it",
            ));
        }
        let path = self.folder.join(name);
        let bytes = fs::read(&path).map_err(|error| {
            Error::internal(OPERATION, "the file cannot be read").with("path", path.display()).with_source(error)
        })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::corrupt(OPERATION, "the file is not JSON").with("path", path.display()).with_source(error)
        })
    }

    fn check_tokenizer(&self) -> Result<()> {
        let config = self.json(TOKENIZER_CONFIG)?;
        self.json(TOKENIZER)?;
        // Without a class it is read from tokenizer.json, as PreTrainedTokenizerFast.
        let Some(class) = config["tokenizer_class"].as_str() else { return Ok(()) };
        if !TOKENIZERS.contains(&class) {
            return Err(Error::unsupported(
                OPERATION,
                "Bedrock does not have this tokenizer; save it as PreTrainedTokenizerFast",
            )
            .with("found", class)
            .with("known", TOKENIZERS.join(", ")));
        }
        match SENTENCE_PIECE.iter().find(|(name, _)| *name == class) {
            Some((_, files)) if !files.iter().any(|file| self.has(file)) => {
                let message = "the tokenizer is made of a SentencePiece file that is not there; add it, or name the tokenizer's fast class";
                Err(self.missing(files[0], message).with("tokenizer", class))
            }
            _ => Ok(()),
        }
    }

    fn weights(&self) -> Result<Weights> {
        if self.has(INDEX) {
            return self.indexed();
        }
        let is_weights = |name: &&String| name.ends_with(".safetensors") && !name.starts_with("adapter_");
        let found: Vec<_> = self.sizes.keys().filter(is_weights).collect();
        match found.as_slice() {
            [] => Err(self.no_weights()),
            [only] => Ok([((*only).clone(), BTreeSet::new())].into()),
            several => {
                let message =
                    "the weights are in several files, and no index says which is which; export the model again";
                Err(self.missing(INDEX, message).with("files", several.len()))
            }
        }
    }

    /// The shards that the index names.
    fn indexed(&self) -> Result<Weights> {
        let index = self.json(INDEX)?;
        let Some(map) = index["weight_map"].as_object().filter(|map| !map.is_empty()) else {
            return Err(Error::corrupt(OPERATION, "the index has no weight_map")
                .with("path", self.folder.join(INDEX).display()));
        };
        let mut weights = Weights::new();
        for (tensor, file) in map {
            let file = file.as_str().unwrap_or_default();
            if !self.has(file) {
                return Err(self
                    .missing(file, "the folder lacks a file of weights that the index names; export the model again"));
            }
            weights.entry(file.to_owned()).or_default().insert(tensor.clone());
        }
        Ok(weights)
    }

    /// Says what is there in place of weights.
    fn no_weights(&self) -> Error {
        let message = if self.any(|name| name == "adapter_config.json" || name.starts_with("adapter_model")) {
            "the folder holds an adapter alone, and Bedrock imports whole models; merge it into its base"
        } else if self.any(|name| name.ends_with(".gguf")) {
            "Bedrock does not import GGUF; export the model in Hugging Face layout with Safetensors"
        } else if self.any(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth")) {
            "Bedrock does not import pickled weights; convert them to Safetensors"
        } else {
            return self.missing("model.safetensors", "the model's folder has no weights; export them as Safetensors");
        };
        Error::unsupported(OPERATION, message).with("path", self.folder.display())
    }

    /// What is staged: the weights and their companions.
    fn select(&self, weights: &Weights) -> Result<ModelFolder> {
        let is_companion =
            |name: &str| COMPANIONS.iter().any(|end| name.ends_with(end)) && !name.starts_with("adapter_");
        let wanted = self.sizes.iter().filter(|(name, _)| weights.contains_key(*name) || is_companion(name));
        let file = |(name, size): (&String, &u64)| {
            Ok(ModelFile {
                name: FileName::new(name.as_str())?,
                path: self.folder.join(name),
                size: *size,
                is_weights: weights.contains_key(name),
            })
        };
        Ok(ModelFolder { files: wanted.map(file).collect::<Result<_>>()? })
    }
}
