//! Adapters in folders: what PEFT's and mlx-lm's have in common.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hybrid_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{LoraConfig, Matrices, Module, OPERATION, Pair, Place, mlx, peft};
use crate::{
    files,
    tensors::{self, Array, Tensors},
};

pub(super) const CONFIG: &str = "adapter_config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TENSOR_BYTES: u64 = 16 << 30;
/// The largest rank that makes sense.
pub(super) const MAX_RANK: usize = 4_096;

/// Reads the adapter in `folder`.
pub(super) fn open(folder: &Path) -> Result<Matrices> {
    let has = |name: &str| folder.join(name).is_file();
    if !has(CONFIG) {
        return Err(missing(folder, CONFIG));
    }
    let opened = match (has(peft::TENSORS), has(mlx::TENSORS)) {
        (true, _) => peft::open(folder),
        (false, true) => mlx::open(folder),
        (false, false) => return Err(missing(folder, peft::TENSORS)),
    };
    opened.map_err(|error| error.with("folder", folder.display()))
}

fn missing(folder: &Path, name: &str) -> Error {
    let message = if folder.join("adapter_model.bin").exists() {
        "the adapter is pickled, which is not read; save it as safetensors"
    } else {
        "a file of the adapter is missing; the folder has to hold adapter_config.json with adapter_model.safetensors (PEFT) or adapters.safetensors (mlx-lm)"
    };
    Error::not_found(OPERATION, message).with("file", name).with("folder", folder.display())
}

pub(super) fn read_config<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let bytes = files::read(&folder.join(CONFIG), MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::corrupt(OPERATION, "not an adapter's configuration").with("file", CONFIG).with_source(error)
    })
}

pub(super) fn read_tensors(folder: &Path, name: &str) -> Result<Tensors> {
    let path = folder.join(name);
    tensors::decode(&files::read(&path, MAX_TENSOR_BYTES)?, &path).map(|(tensors, _)| tensors)
}

pub(super) fn encode_config(config: &Value) -> Result<Vec<u8>> {
    let text = serde_json::to_vec_pretty(config);
    text.map_err(|error| Error::internal("write adapter", "the configuration cannot be written").with_source(error))
}

/// Writes files into an existing folder; gives their paths.
pub(super) fn write(folder: &Path, contents: &[(&str, Vec<u8>)]) -> Result<Vec<PathBuf>> {
    let write = |(name, bytes): &(&str, Vec<u8>)| {
        let path = folder.join(name);
        files::write(&path, bytes)?;
        Ok(path)
    };
    contents.iter().map(write).collect()
}

/// Which matrix of a pair a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// Puts tensors together in pairs. `place` tells from a tensor's name what it is, and gives it in the form `[rank, in]` or `[out, rank]`.
///
/// # Errors
/// `Unsupported` that names a tensor with no place, `Corrupt` that names a matrix with no other or of another rank.
pub(super) fn pairs(
    tensors: Tensors,
    rank: usize,
    place: impl Fn(&str, Array) -> Option<(Place, Side, Array)>,
) -> Result<BTreeMap<Place, Pair>> {
    let corrupt = |message: &'static str, place: &Place| Error::corrupt(OPERATION, message).with("place", place);
    let mut sides: BTreeMap<Place, [Option<Array>; 2]> = BTreeMap::new();
    for (name, array) in tensors {
        let shape = array.shape.clone();
        match place(&name, array).filter(|(_, _, array)| array.shape.len() == 2) {
            Some((place, side, array)) => sides.entry(place).or_default()[side as usize] = Some(array),
            None if name.contains("embed_tokens") || name.contains("lm_head") => {
                return Err(Error::unsupported(
                    OPERATION,
                    "the adapter brings a vocabulary of its own, which is not hung on a model; train it without new tokens, or merge it",
                )
                .with("tensor", name)
                .with("shape", format_args!("{shape:?}")));
            }
            None => {
                return Err(Error::unsupported(OPERATION, "the tensor is no low-rank matrix of a layer that is known")
                    .with("tensor", name)
                    .with("known", Module::ALL.map(Module::name).join(", ")));
            }
        }
    }
    if sides.is_empty() {
        return Err(Error::corrupt(OPERATION, "the adapter has no matrices"));
    }
    let pair = |(place, sides): (Place, [Option<Array>; 2])| {
        let [Some(a), Some(b)] = sides else {
            return Err(corrupt("one of a layer's two matrices is missing", &place));
        };
        if [a.shape[0], b.shape[1]] != [rank; 2] {
            return Err(corrupt("the matrices have another rank than the configuration says", &place)
                .with("found", format_args!("{:?}", [a.shape[0], b.shape[1]]))
                .with("expected", rank));
        }
        Ok((place, Pair { a, b }))
    };
    sides.into_iter().map(pair).collect()
}

/// Checks the numbers of a configuration.
pub(super) fn check(config: LoraConfig) -> Result<LoraConfig> {
    let corrupt = |message: &'static str| Error::corrupt(OPERATION, message).with("file", CONFIG);
    if !(1..=MAX_RANK).contains(&config.rank) {
        return Err(corrupt("the rank is out of range").with("rank", config.rank).with("limit", MAX_RANK));
    }
    if !(config.alpha.is_finite() && config.alpha > 0.0) {
        return Err(corrupt("the alpha has to be positive and finite").with("alpha", config.alpha));
    }
    Ok(config)
}

/// The modules that pairs hang on.
pub(super) fn modules(pairs: &BTreeMap<Place, Pair>) -> Vec<Module> {
    let mut modules: Vec<_> = pairs.keys().map(|place| place.module).collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}
