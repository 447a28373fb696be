//! A decoder in one GGUF file: metadata, tokenizer and blocks of numbers.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The keys and the names of the tensors are those that
//! llama.cpp's converters write.

mod config;
mod tokenizer;
mod weights;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Cursor, Read},
    panic::catch_unwind,
    path::Path,
};

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{Content, Value},
};
use hybrid_core::{Error, Result};

pub(crate) use self::{
    tokenizer::{LLAMA_3, QWEN_2},
    weights::{heads_of, resident, theirs},
};
use super::ModelFiles;
use crate::{
    decoder::{config::DecoderConfig, defaults::GenerationConfig, template::Sources},
    files::{io_error, size},
};

const OPERATION: &str = "read GGUF file";
/// Room for metadata and the list of tensors: a quarter of a million tokens with their merges take half of it.
pub(crate) const MAX_HEADER_BYTES: u64 = 32 << 20;

/// Reads the model in one file.
pub(crate) fn open(path: &Path) -> Result<ModelFiles> {
    let named = |error: Error| error.with("path", path.display());
    let size = size(path)?;
    let file = File::open(path).map_err(|error| io_error(OPERATION, path, error))?;
    let mut head = Vec::new();
    file.take(MAX_HEADER_BYTES).read_to_end(&mut head).map_err(|error| io_error(OPERATION, path, error))?;
    let content = parse(&head).map_err(named)?;
    drop(head);
    let metadata = Metadata(&content);

    let config =
        config::read(&metadata, |name, shape| weights::vector(&content, path, size, name, shape)).map_err(named)?;
    let tokenizer = tokenizer::read(&metadata).map_err(named)?;
    let template = |name: &str| metadata.text(name).map(|text| text.map(str::to_owned));
    let templates = Sources {
        default: template("tokenizer.chat_template").map_err(named)?,
        tool_use: template("tokenizer.chat_template.tool_use").map_err(named)?,
        tokens: tokenizer::special_tokens(&metadata).map_err(named)?,
    };
    let sampling = |name: &str| metadata.number(&format!("general.sampling.{name}")).map_err(named);
    let temperature = sampling("temp")?;
    let generation = GenerationConfig {
        do_sample: Some(temperature.is_some_and(|temperature| temperature > 0.0)),
        temperature: temperature.map(|value| value as f32),
        top_k: metadata.whole("general.sampling.top_k").map_err(named)?.and_then(|k| u32::try_from(k).ok()),
        top_p: sampling("top_p")?.map(|value| value as f32),
        min_p: sampling("min_p")?.map(|value| value as f32),
        repetition_penalty: None,
        eos_token_id: None,
    };
    let mut defaults = generation.defaults();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let token = metadata.whole(&format!("tokenizer.ggml.{key}")).map_err(named)?;
        defaults.ends.extend(token.and_then(|token| u32::try_from(token).ok()));
    }
    let weights = Box::new(weights::Blocks::new(path, size, content, &config));
    Ok(ModelFiles { config, weights, tokenizer, templates, defaults })
}

/// What a file's first bytes say of the network, and of which format each tensor is, by the files' names. What the file says of scaled positions in
/// tensors of its own is not among these bytes.
///
/// # Errors
/// `Corrupt` if the header is not whole, or as in [`open`].
pub(crate) fn describe(head: &[u8]) -> Result<(DecoderConfig, BTreeMap<String, GgmlDType>)> {
    let content = parse(head)?;
    let config = config::read(&Metadata(&content), |_, length| Ok(vec![1.0; length]))?;
    let formats = content.tensor_infos.into_iter().map(|(name, info)| (name, info.ggml_dtype));
    Ok((config, formats.collect()))
}

fn parse(head: &[u8]) -> Result<Content> {
    let corrupt = || Error::corrupt(OPERATION, "the header is not one of a GGUF file, or it is cut");
    // The library panics at an alignment of zero.
    let content = catch_unwind(|| Content::read(&mut Cursor::new(head))).map_err(|_| corrupt())?;
    content.map_err(|error| {
        if error.to_string().contains("unknown dtype") {
            return Error::unsupported(OPERATION, "the file has blocks of a kind that is not known; known are F32, F16, BF16, Q4_0 to Q8_1 and Q2_K to Q8_K")
                .with_source(error);
        }
        corrupt().with_source(error)
    })
}

/// The file's metadata by key.
struct Metadata<'a>(&'a Content);

impl<'a> Metadata<'a> {
    fn get<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.metadata.get(key) else { return Ok(None) };
        let kind = value.value_type();
        read(value).map(Some).ok_or_else(|| {
            Error::corrupt(OPERATION, "the value is of another kind than it should be")
                .with("key", key)
                .with("found", format_args!("{kind:?}"))
        })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key, |value| value.to_string().ok().map(String::as_str))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, |value| value.to_bool().ok())
    }

    fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, whole)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, number)
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.get(key, |value| value.to_vec().ok().map(Vec::as_slice))
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.0.tensor_infos.contains_key(name)
    }
}

fn whole(value: &Value) -> Option<usize> {
    let signed = match *value {
        Value::I8(value) => i64::from(value),
        Value::I16(value) => i64::from(value),
        Value::I32(value) => i64::from(value),
        Value::I64(value) => value,
        _ => return value.to_u64().ok().and_then(|value| usize::try_from(value).ok()),
    };
    usize::try_from(signed).ok()
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::F32(value) => Some(f64::from(value)),
        Value::F64(value) => Some(value),
        _ => whole(value).map(|value| value as f64),
    }
}
