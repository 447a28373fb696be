//! Adapters as mlx-lm (Apple) has them: `adapter_config.json` and `adapters.safetensors`, whose matrices lie transposed.

use std::path::Path;

use hybrid_core::{Error, Result};
use serde::Deserialize;
use serde_json::json;

use super::{
    LoraConfig, Matrices, OPERATION, Pair, Place,
    files::{self, Side},
};
use crate::tensors::{self, Tensors};

pub(super) const TENSORS: &str = "adapters.safetensors";
const PREFIX: &str = "model.";

#[derive(Deserialize)]
struct Config {
    #[serde(default = "lora")]
    fine_tune_type: String,
    lora_parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    rank: usize,
    scale: f64,
    #[serde(default)]
    dropout: f64,
}

fn lora() -> String {
    "lora".to_owned()
}

pub(super) fn open(folder: &Path) -> Result<Matrices> {
    let config: Config = files::read_config(folder)?;
    if config.fine_tune_type != "lora" {
        return Err(Error::unsupported(OPERATION, "the adapter is of another kind than LoRA")
            .with("file", files::CONFIG)
            .with("fine_tune_type", config.fine_tune_type));
    }
    let Parameters { rank, scale, dropout } = config.lora_parameters;
    let pairs = files::pairs(files::read_tensors(folder, TENSORS)?, rank, |name, array| {
        let (place, side) = name.strip_prefix(PREFIX)?.rsplit_once(".lora_")?;
        let side = match side {
            "a" => Side::A,
            "b" => Side::B,
            _ => return None,
        };
        Some((Place::named(place)?, side, array.transposed()?))
    })?;
    let modules = files::modules(&pairs);
    // Their scale is the factor itself.
    let config = LoraConfig { rank, alpha: scale * rank as f64, rank_stabilized: false, dropout, modules };
    Ok(Matrices { config: files::check(config)?, pairs })
}

/// The files that mlx-lm reads, by name, for a model of `layers` layers.
pub(super) fn files(matrices: &Matrices, layers: usize) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let LoraConfig { rank, dropout, modules, .. } = &matrices.config;
    let keys: Vec<_> = modules.iter().map(|module| module.path()).collect();
    let config = json!({
        "fine_tune_type": "lora",
        // Counted from the last.
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": matrices.config.scale(), "dropout": dropout, "keys": keys},
    });
    let mut tensors = Tensors::new();
    for (place, Pair { a, b }) in &matrices.pairs {
        for (name, matrix) in [("lora_a", a), ("lora_b", b)] {
            let turned =
                matrix.transposed().ok_or_else(|| Error::internal("write adapter", "a matrix is no matrix"))?;
            tensors.insert(format!("{PREFIX}{place}.{name}"), turned);
        }
    }
    let tensors = tensors::encode(&tensors, Some(("format", "mlx".to_owned())))?;
    Ok(vec![(files::CONFIG, files::encode_config(&config)?), (TENSORS, tensors)])
}
