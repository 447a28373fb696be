//! Adapters as PEFT (Hugging Face) has them: `adapter_config.json` and `adapter_model.safetensors`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use hybrid_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    LoraConfig, Matrices, OPERATION, Pair, Place,
    files::{self, Side},
};
use crate::tensors::{self, Tensors};

pub(super) const TENSORS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.model.";

/// The keys that change what the matrices mean; what only steers training is left out.
#[derive(Deserialize)]
struct Read {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Keys that have to be absent, null, false or empty, because the matrices alone are not the adapter then.
const REFUSED: [&str; 15] = [
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "monteclora_config",
    "kasa_config",
    "velora_config",
    "arrow_config",
];

pub(super) fn open(folder: &Path) -> Result<Matrices> {
    let config: Read = files::read_config(folder)?;
    let unsupported = |message: &'static str| Error::unsupported(OPERATION, message).with("file", files::CONFIG);
    if config.peft_type != "LORA" {
        return Err(unsupported("the adapter is of another kind than LoRA").with("peft_type", config.peft_type));
    }
    if let Some(key) = REFUSED.into_iter().find(|key| config.rest.get(*key).is_some_and(says_something)) {
        return Err(unsupported("the adapter has what is not known here")
            .with("key", key)
            .with("value", &config.rest[key]));
    }
    if let Some(bias) = config.rest.get("bias").filter(|bias| !bias.is_null() && *bias != "none") {
        return Err(unsupported("the adapter has biases, which are not known here").with("bias", bias));
    }
    // Such an initialisation changes the base's weights, which the adapter then belongs to.
    let initialised = config.init_lora_weights.as_str().filter(|way| !["gaussian", "eva", "orthogonal"].contains(way));
    if let Some(way) = initialised {
        return Err(unsupported(
            "the adapter belongs to weights that its initialisation changed; save it with PEFT's conversion to LoRA",
        )
        .with("init_lora_weights", way));
    }
    let pairs = files::pairs(files::read_tensors(folder, TENSORS)?, config.r, |name, array| {
        let (place, side) = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?.rsplit_once(".lora_")?;
        let side = match side {
            "A" => Side::A,
            "B" => Side::B,
            _ => return None,
        };
        Some((Place::named(place)?, side, array))
    })?;
    let config = LoraConfig {
        rank: config.r,
        alpha: config.lora_alpha,
        rank_stabilized: config.use_rslora,
        dropout: config.lora_dropout,
        modules: files::modules(&pairs),
    };
    Ok(Matrices { config: files::check(config)?, pairs })
}

/// The files that PEFT reads, by name.
pub(super) fn files(matrices: &Matrices, base: Option<&str>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let LoraConfig { rank, alpha, rank_stabilized, dropout, modules } = &matrices.config;
    let modules: Vec<_> = modules.iter().map(|module| module.name()).collect();
    let layers: BTreeSet<_> = matrices.pairs.keys().map(|place| place.layer).collect();
    let from_first = layers.iter().copied().eq(0..layers.len());
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rank_stabilized,
        "target_modules": modules,
        "layers_to_transform": (!from_first).then_some(layers),
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    let mut tensors = Tensors::new();
    for (place, Pair { a, b }) in &matrices.pairs {
        tensors.insert(format!("{PREFIX}{place}.lora_A.weight"), a.clone());
        tensors.insert(format!("{PREFIX}{place}.lora_B.weight"), b.clone());
    }
    // The tools read the framework's name from here.
    let tensors = tensors::encode(&tensors, Some(("format", "pt".to_owned())))?;
    Ok(vec![(files::CONFIG, files::encode_config(&config)?), (TENSORS, tensors)])
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        _ => true,
    }
}
