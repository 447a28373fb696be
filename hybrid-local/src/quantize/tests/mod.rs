//! Files made of folders, beside the folders and beside llama.cpp.

mod files;
mod plan;
mod prune;
mod report;
mod resume;

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use hybrid_core::{Cancellation, NoProgress, Result};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};

use super::*;
use crate::decoder::{
    files::ModelFiles,
    reading::Reading,
    tensors::{Role, tensors},
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder");
const FAMILIES: [&str; 8] = ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// A fixture in a folder that can be changed.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A folder of random weights whose rows are long enough for blocks of 256 numbers, with the tokenizer of a fixture.
pub(super) fn wide(name: &str, layers: usize) -> tempfile::TempDir {
    sized(name, layers, 256)
}

/// As [`wide`], with rows of `hidden` numbers.
fn sized(name: &str, layers: usize, hidden: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "safetensors") {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    change(folder.path(), |config| {
        config["num_hidden_layers"] = json!(layers);
        config["hidden_size"] = json!(hidden);
        config["intermediate_size"] = json!(2 * hidden);
        config["head_dim"] = json!(64);
        for key in ["sliding_window", "layer_types", "use_sliding_window"] {
            if !config["model_type"].as_str().unwrap().starts_with("gemma") {
                config.as_object_mut().unwrap().remove(key);
            }
        }
        if let Some(kinds) = config.get_mut("layer_types").filter(|kinds| kinds.is_array()) {
            *kinds = (0..layers).map(|layer| if layer == 1 { "full_attention" } else { "sliding_attention" }).collect();
        }
    });
    // The weights do not matter to the configuration's reader.
    fs::copy(fixture(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = ModelFiles::open(folder.path()).unwrap().config;
    let mut state = 1u64;
    let mut draw = || {
        // xorshift64, Marsaglia 2003; the sum of four draws is near enough to a normal one.
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        next() + next() + next() + next()
    };
    let data: Vec<_> = tensors(&config)
        .into_iter()
        .map(|spec| {
            let (scale, mean) = if spec.role == Role::Norm { (0.2, 1.0) } else { (0.12, 0.0) };
            let values = (0..spec.elements()).map(|_| f16::from_f32(draw() * scale + mean));
            (spec.name, spec.shape, values.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        })
        .collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

pub(super) fn change(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn make(mix: Mix, folder: &Path, file: &Path) -> Result<Quantized> {
    Quantizer::new(mix).write(folder, file, &NoProgress, &Cancellation::new())
}

fn logits(path: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let reading = Reading::open(path, &crate::Device::cpu(), None, 128).unwrap();
    let mut rows = Vec::new();
    reading
        .read(tokens, |_, logits| {
            rows.push(logits.to_vec());
            Ok(())
        })
        .unwrap();
    rows
}
