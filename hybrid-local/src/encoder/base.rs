//! The files of an encoder in a folder in Hugging Face layout.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use hybrid_core::{Digest, Error, Result};

use super::{
    config::EncoderConfig,
    family::Family,
    tokens::{Marks, Tokens},
};
use crate::{
    Device,
    device::tensor_error,
    files::{self, CONFIG, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER, WEIGHTS},
    tensors::{self, Array, Tensors, Values},
};

const OPERATION: &str = "read encoder";

/// A base model, read whole.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) config: EncoderConfig,
    /// The encoder's tensors, and the head's first layer where the base has one; by our names.
    pub(crate) tensors: Tensors,
    pub(crate) tokenizer: Vec<u8>,
    /// The SHA-256 of the files, by name.
    pub(crate) digests: BTreeMap<String, Digest>,
}

impl Base {
    /// Checks that `folder` has the files of an encoder.
    ///
    /// # Errors
    /// `NotFound` that names the missing file and how to get it.
    pub(crate) fn check_files(folder: &Path) -> Result<()> {
        match [CONFIG, TOKENIZER, WEIGHTS].into_iter().find(|name| !folder.join(name).is_file()) {
            Some(name) => Err(missing(folder, name)),
            None => Ok(()),
        }
    }

    /// Reads the model in `folder`, if it fits into the memory that is free and into `limit` bytes.
    ///
    /// # Errors
    /// `NotFound` that names the missing file and how to get it; `Corrupt` and `Unsupported` that name file and fault.
    pub(crate) fn read(folder: &Path, limit: Option<u64>) -> Result<Self> {
        Self::check_files(folder)?;
        let path = |name: &str| folder.join(name);
        let named = |name: &'static str| {
            let path = path(name);
            move |error: Error| error.with("path", path.display())
        };
        let config_bytes = files::read(&path(CONFIG), MAX_CONFIG_BYTES)?;
        let (config, family) = EncoderConfig::read(&config_bytes).map_err(named(CONFIG))?;
        let tokenizer = files::read(&path(TOKENIZER), MAX_TOKENIZER_BYTES)?;
        Tokens::read(&tokenizer, config.vocabulary, config.max_tokens(), Marks::Needed).map_err(named(TOKENIZER))?;
        let needed: u64 = config.tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum();
        // Heads of other tasks may lie in the file too; the largest is as large as the table of words.
        files::check_memory(OPERATION, 2 * needed, limit)?;
        let weights = files::read(&path(WEIGHTS), 2 * needed + MAX_CONFIG_BYTES)?;
        let (tensors, _) = tensors::decode(&weights, &path(WEIGHTS))?;
        let tensors = renamed(tensors, &config, family).map_err(named(WEIGHTS))?;
        let digests = [(CONFIG, &config_bytes), (TOKENIZER, &tokenizer), (WEIGHTS, &weights)]
            .map(|(name, bytes)| (name.to_owned(), Digest::of(bytes)))
            .into();
        Ok(Self { config, tensors, tokenizer, digests })
    }
}

/// What a folder's `config.json` calls its family.
///
/// # Errors
/// `Corrupt` if it does not say so.
pub(crate) fn model_type(folder: &Path) -> Result<String> {
    let path = folder.join(CONFIG);
    let corrupt = |message: &'static str| Error::corrupt(OPERATION, message).with("path", path.display());
    let config: serde_json::Value = serde_json::from_slice(&files::read(&path, MAX_CONFIG_BYTES)?)
        .map_err(|error| corrupt("not JSON").with_source(error))?;
    let name = config.get("model_type").and_then(serde_json::Value::as_str).map(str::to_owned);
    name.ok_or_else(|| corrupt("the key is missing").with("key", "model_type"))
}

/// Picks the encoder's tensors, and the head's first layer, out of a file's, and gives them our names.
fn renamed(mut theirs: Tensors, config: &EncoderConfig, family: &Family) -> Result<Tensors> {
    let head = config.head_tensors(0).into_iter().filter(|(name, _)| family.theirs(name).is_some());
    let head: Vec<_> = head.collect();
    let has_head = head.iter().all(|(ours, _)| find(&theirs, family, ours).is_some());
    let mut tensors = Tensors::new();
    for (ours, shape) in config.tensors().into_iter().chain(head.into_iter().filter(|_| has_head)) {
        let name = find(&theirs, family, &ours).unwrap_or_else(|| family.theirs(&ours).unwrap_or(ours.clone()));
        let values = tensors::take_f32(&mut theirs, &name, &shape)?;
        tensors.insert(ours, Array { shape, values: Values::F32(values) });
    }
    Ok(tensors)
}

/// The name under which a file has our tensor: with the family's prefix or without, and as the first releases called it.
fn find(theirs: &Tensors, family: &Family, ours: &str) -> Option<String> {
    let name = family.theirs(ours)?;
    let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let names = [&name, &old].into_iter().flat_map(|name| [format!("{}{name}", family.prefix), name.clone()]);
    names.into_iter().find(|name| theirs.contains_key(name))
}

fn missing(folder: &Path, name: &str) -> Error {
    let has = |name: &str| folder.join(name).exists();
    let way_out = if has("model.safetensors.index.json") && name == WEIGHTS {
        "a base model's file is missing: the weights lie in several files; save the model anew as one"
    } else if has("pytorch_model.bin") && name == WEIGHTS {
        "a base model's file is missing: pickled weights are not read; save the model as safetensors"
    } else if name == TOKENIZER {
        "a base model's file is missing; save it with the `tokenizers` library or `AutoTokenizer.save_pretrained`"
    } else {
        "a base model's file is missing; the folder has to hold config.json, tokenizer.json and model.safetensors"
    };
    Error::not_found(OPERATION, way_out).with("file", name).with("folder", folder.display())
}

/// A tensor of a file, where the device wants it.
pub(crate) fn on_device(tensors: &Tensors, name: &str, device: &Device) -> Result<Tensor> {
    match tensors.get(name) {
        Some(Array { shape, values: Values::F32(values) }) => {
            Tensor::from_slice(values, shape.as_slice(), device.tensors()).map_err(tensor_error("load tensors"))
        }
        _ => Err(Error::corrupt("read tensors", "the tensor is missing").with("tensor", name)),
    }
}
