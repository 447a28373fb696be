//! A decoder in a folder, as Hugging Face's tools leave it.

use std::{collections::BTreeMap, path::Path};

use hybrid_core::{Error, Result};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{ModelFiles, config_json, fused::Fused, safetensors::Safetensors};
use crate::{
    decoder::{
        defaults::{Ends, GenerationConfig},
        template::Sources,
        tokens,
    },
    files::{CONFIG, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER, read},
};

const OPERATION: &str = "open decoder";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";

/// Reads the model in `folder`; `generation_config.json`, `tokenizer_config.json` and templates may be missing.
pub(super) fn open(folder: &Path) -> Result<ModelFiles> {
    let path = |name: &str| folder.join(name);
    let named = |name: &str| {
        let path = path(name);
        move |error: Error| error.with("path", path.display())
    };
    let config = config_json::read(&read(&path(CONFIG), MAX_CONFIG_BYTES)?).map_err(named(CONFIG))?;
    if !path(TOKENIZER).is_file() {
        return Err(Error::not_found(
            OPERATION,
            "the tokenizer is missing; save it with AutoTokenizer.save_pretrained",
        )
        .with("file", TOKENIZER)
        .with("folder", folder.display()));
    }
    let tokenizer = tokens::parse(&read(&path(TOKENIZER), MAX_TOKENIZER_BYTES)?).map_err(named(TOKENIZER))?;

    let TokenizerConfig { chat_template, mut rest } = optional(&path(TOKENIZER_CONFIG))?.unwrap_or_default();
    let special: Map<String, Value> = optional(&path(SPECIAL_TOKENS))?.unwrap_or_default();
    rest.extend(special);
    let mut templates = Sources { tokens: special_tokens(&rest), ..Sources::default() };
    match chat_template {
        Some(Templates::One(text)) => templates.default = Some(text),
        Some(Templates::Named(all)) => {
            for Named { name, template } in all {
                match &*name {
                    "default" => templates.default = Some(template),
                    "tool_use" => templates.tool_use = Some(template),
                    _ => {}
                }
            }
        }
        None => {}
    }
    if path(TEMPLATE).is_file() {
        let text = String::from_utf8(read(&path(TEMPLATE), MAX_CONFIG_BYTES)?);
        templates.default = Some(text.map_err(|error| {
            Error::corrupt(OPERATION, "not UTF-8").with("path", path(TEMPLATE).display()).with_source(error)
        })?);
    }

    let generation: Option<GenerationConfig> = optional(&path(GENERATION_CONFIG))?;
    let mut defaults = generation.unwrap_or_default().defaults();
    let model: ModelConfig = optional(&path(CONFIG))?.unwrap_or_default();
    defaults.ends.extend(model.eos_token_id.map(Ends::tokens).unwrap_or_default());
    defaults.ends.extend(templates.tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token)));
    let weights = Box::new(Safetensors::open(folder, Fused::of(&config))?);
    Ok(ModelFiles { config, weights, tokenizer, templates, defaults })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    eos_token_id: Option<Ends>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// The tokens that templates name: each a text, or an object with its text as `content`.
fn special_tokens(values: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let tokens = values.iter().filter(|(name, _)| name.ends_with("_token"));
    tokens.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_slice(&read(path, MAX_CONFIG_BYTES)?).map(Some).map_err(|error| {
        Error::corrupt(OPERATION, "the file does not hold what such a file holds")
            .with("path", path.display())
            .with_source(error)
    })
}
