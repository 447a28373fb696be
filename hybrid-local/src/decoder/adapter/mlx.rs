//! Adapters as mlx-lm (Apple) has them: `adapter_config.json` and `adapters.safetensors`, whose matrices lie transposed.

use std::path::Path;

use hybrid_core::{Error, Result};
use serde::Deserialize;

use super::{
    LoraConfig, Matrices, OPERATION, Place,
    files::{self, Side},
};

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
