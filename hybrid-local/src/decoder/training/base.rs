//! The base model of a run.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Var};
use hybrid_core::{Digest, Error, Result};

use crate::{
    decoder::{
        adapter::BESIDE,
        files::{Stored, Weights},
    },
    device::tensor_error,
    files::{digest, io_error},
};

/// The files that make the model at `path`, a folder or a GGUF file, what it is, by name, in order.
pub(in crate::decoder) fn files_of(path: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_file() {
        return Ok([(name(path), path.to_owned())].into());
    }
    let fail = |error| io_error("open base model", path, error);
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = name(&path);
        let weights = name.ends_with(".gguf") || name.starts_with("model") && name.ends_with(".safetensors");
        if (weights || BESIDE.contains(&&*name)) && path.is_file() {
            files.insert(name, path);
        }
    }
    Ok(files)
}

/// The SHA-256 of each of a model's files, by name.
pub(in crate::decoder) fn digests(path: &Path) -> Result<BTreeMap<String, Digest>> {
    files_of(path)?.into_iter().map(|(name, path)| Ok((name, digest("read base model", &path)?))).collect()
}

/// Weights of which chosen tensors become variables as they are read.
#[derive(Debug)]
pub(in crate::decoder) struct Trainable {
    weights: Box<dyn Weights>,
    chosen: fn(&str) -> bool,
    variables: RefCell<BTreeMap<String, Var>>,
}

impl Trainable {
    /// All tensors.
    pub(in crate::decoder) fn new(weights: Box<dyn Weights>) -> Self {
        Self::of(weights, |_| true)
    }

    /// Those whose names are chosen.
    pub(in crate::decoder) fn of(weights: Box<dyn Weights>, chosen: fn(&str) -> bool) -> Self {
        Self { weights, chosen, variables: RefCell::default() }
    }

    /// The variables, by the names of Hugging Face's files.
    pub(in crate::decoder) fn variables(self) -> BTreeMap<String, Var> {
        self.variables.into_inner()
    }
}

impl Weights for Trainable {
    fn bytes(&self, name: &str) -> u64 {
        self.weights.bytes(name)
    }

    fn unpacked(&self, name: &str, device: &Device) -> u64 {
        self.weights.unpacked(name, device)
    }

    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored> {
        match self.weights.take(name, shape, device)? {
            stored if !(self.chosen)(name) => Ok(stored),
            Stored::Dense(tensor) => {
                let variable = Var::from_tensor(&tensor).map_err(tensor_error("open base model"))?;
                let tensor = variable.as_tensor().clone();
                self.variables.borrow_mut().insert(name.to_owned(), variable);
                Ok(Stored::Dense(tensor))
            }
            _ => Err(Error::unsupported(
                "open base model",
                "quantized weights cannot be trained themselves; use the method decoder-lora or decoder-dpo",
            )
            .with("tensor", name)),
        }
    }
}
