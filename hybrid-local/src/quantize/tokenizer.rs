//! A tokenizer in the words of a GGUF file.
//!
//! Of two kinds, as [the reader](crate::decoder::files) knows them: pairs of bytes with the name of a way to split a text, and SentencePiece's pairs, whose
//! scores follow from the order of the merges.

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use hybrid_core::{Error, Result};
use serde::Deserialize;
use serde_json::Value as Json;

use super::OPERATION;
use crate::decoder::files::{LLAMA_3, ModelFiles, QWEN_2};

// What a token is, as `tokenizer.ggml.token_type` says.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The parts of a `tokenizer.json` that are read.
#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    #[serde(default)]
    vocab: Json,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    special: bool,
}

/// The entries `tokenizer.ggml.*`.
///
/// # Errors
/// `Unsupported` that names the kind of tokenizer, or of splitting, that such files have no word for.
pub(super) fn entries(files: &ModelFiles, notes: &mut Vec<String>) -> Result<Vec<(String, Value)>> {
    let failed = |error| Error::internal(OPERATION, "the tokenizer cannot be written out").with_source(error);
    let json = files.tokenizer.to_string(false).map_err(failed)?;
    let file: File = serde_json::from_str(&json).map_err(|error| {
        Error::unsupported(OPERATION, "the kind of tokenizer has no form in GGUF files; known is BPE")
            .with_source(error)
    })?;
    let kind = file.model.kind.as_deref().unwrap_or_default();
    let vocabulary: Option<BTreeMap<String, usize>> = serde_json::from_value(file.model.vocab.clone()).ok();
    let Some(vocabulary) = vocabulary.filter(|_| kind == "BPE") else {
        return Err(Error::unsupported(OPERATION, "the kind of tokenizer has no form in GGUF files")
            .with("model.type", kind)
            .with("known", "BPE"));
    };
    let pieces = file.model.byte_fallback;
    let merges = merges(&file.model.merges)?;
    let (texts, kinds) = tokens(&file, &vocabulary, files.config.vocabulary)?;

    let mut entries = Vec::new();
    let mut add = |key: &str, value: Value| entries.push((format!("tokenizer.ggml.{key}"), value));
    let text = |text: &str| Value::String(text.to_owned());
    if pieces {
        add("model", text("llama"));
        add("pre", text("default"));
        let scores = scores(&texts, &kinds, &merges).into_iter().map(Value::F32).collect();
        add("scores", Value::Array(scores));
        add("add_space_prefix", Value::Bool(prefixes_space(&file)));
    } else {
        add("model", text("gpt2"));
        add("pre", text(splitting(&file)?));
        // The file joins a pair by a space, so there must be no other.
        if let Some((left, right)) = merges.iter().find(|(left, right)| left.contains(' ') || right.contains(' ')) {
            return Err(Error::unsupported(OPERATION, "a merge of the tokenizer has a space in it")
                .with("merge", format_args!("{left:?} {right:?}")));
        }
        let merges = merges.iter().map(|(left, right)| Value::String(format!("{left} {right}"))).collect();
        add("merges", Value::Array(merges));
    }
    add("tokens", Value::Array(texts.into_iter().map(Value::String).collect()));
    add("token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
    special(files, notes, &mut add)?;
    Ok(entries)
}

/// The text and kind of each token, as many as the model has rows of embeddings.
fn tokens(file: &File, vocabulary: &BTreeMap<String, usize>, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut texts: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; rows];
    let beyond = |token: &str, id: usize| {
        Error::corrupt(OPERATION, "the tokenizer has a token that the model has no embedding for")
            .with("token", format_args!("{token:?}"))
            .with("id", id)
            .with("vocabulary", rows)
    };
    let mut set = |token: &str, id: usize, kind: i32| {
        let place = texts.get_mut(id).zip(kinds.get_mut(id));
        let (text, old) = place.ok_or_else(|| beyond(token, id))?;
        (*text, *old) = (token.to_owned(), kind);
        Ok::<_, Error>(())
    };
    for (token, id) in vocabulary {
        set(token, *id, if file.model.byte_fallback && is_byte(token) { BYTE } else { NORMAL })?;
    }
    for added in &file.added_tokens {
        set(&added.content, added.id, if added.special { CONTROL } else { USER_DEFINED })?;
    }
    if let Some((token, id)) = file.model.unk_token.as_ref().and_then(|token| Some((token, vocabulary.get(token)?))) {
        set(token, *id, UNKNOWN)?;
    }
    Ok((texts, kinds))
}

fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn merges(merges: &[Merge]) -> Result<Vec<(&str, &str)>> {
    let pairs = merges.iter().map(|merge| match merge {
        Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
        Merge::Text(text) => text.split_once(' '),
    });
    let pairs: Option<Vec<_>> = pairs.collect();
    pairs.ok_or_else(|| Error::corrupt(OPERATION, "a merge of the tokenizer is no pair"))
}

/// How a text is split before bytes are merged, by the name that llama.cpp gives it.
fn splitting(file: &File) -> Result<&'static str> {
    let unknown = || {
        let shown: String =
            file.pre_tokenizer.as_ref().map(Json::to_string).unwrap_or_default().chars().take(300).collect();
        Error::unsupported(OPERATION, "how the tokenizer splits a text has no name in GGUF files that is known here")
            .with("pre_tokenizer", shown)
            .with("known", "those of Llama 3, Qwen 2 and 3, SmolLM and GPT-2")
    };
    let before = file.pre_tokenizer.as_ref().ok_or_else(unknown)?;
    let steps = match before["type"].as_str() {
        Some("Sequence") => before["pretokenizers"].as_array().ok_or_else(unknown)?.iter().collect(),
        _ => vec![before],
    };
    let is_bytes = |step: &Json, regex: bool| {
        step["type"] == "ByteLevel" && step["use_regex"] == regex && step["add_prefix_space"] == false
    };
    match steps[..] {
        [split, bytes] if split["type"] == "Split" && is_bytes(bytes, false) => {
            let whole = split["behavior"] == "Isolated" && split["invert"] == false;
            match split["pattern"]["Regex"].as_str().filter(|_| whole) {
                Some(LLAMA_3) => Ok("llama-bpe"),
                Some(QWEN_2) => Ok("qwen2"),
                _ => Err(unknown()),
            }
        }
        [digits, bytes]
            if digits["type"] == "Digits" && digits["individual_digits"] == true && is_bytes(bytes, true) =>
        {
            Ok("smollm")
        }
        [bytes] if is_bytes(bytes, true) => Ok("gpt-2"),
        _ => Err(unknown()),
    }
}

/// Whether a space is put before a text.
fn prefixes_space(file: &File) -> bool {
    let steps = |step: &Option<Json>, list: &str| -> Vec<Json> {
        let all = step.as_ref().and_then(|step| step[list].as_array()).cloned();
        all.or_else(|| step.clone().map(|step| vec![step])).unwrap_or_default()
    };
    let prepends = steps(&file.normalizer, "normalizers").iter().any(|step| step["type"] == "Prepend");
    let splits = steps(&file.pre_tokenizer, "pretokenizers");
    prepends || splits.iter().any(|step| step["type"] == "Metaspace" && step["prepend_scheme"] != "never")
}

/// SentencePiece's scores, as far as their order goes: of two pieces the one that is merged first has the higher, and one that is never
/// merged the lowest.
fn scores(tokens: &[String], kinds: &[i32], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(token, kind): (&String, &i32)| match kind {
        &NORMAL => -(*first.get(token).unwrap_or(&merges.len()) as f32) - 1.0,
        _ => 0.0,
    };
    tokens.iter().zip(kinds).map(score).collect()
}

/// The tokens with a meaning of their own.
fn special(files: &ModelFiles, notes: &mut Vec<String>, add: &mut impl FnMut(&str, Value)) -> Result<()> {
    let id = |name: &str| files.templates.tokens.get(name).and_then(|token| files.tokenizer.token_to_id(token));
    let first = id("bos_token");
    for (key, name) in
        [("bos_token_id", "bos_token"), ("unknown_token_id", "unk_token"), ("padding_token_id", "pad_token")]
    {
        if let Some(id) = id(name) {
            add(key, Value::U32(id));
        }
    }
    let named = id("eos_token");
    let others = files.defaults.ends.iter().copied().filter(|end| Some(*end) != named);
    let mut ends = named.into_iter().chain(others);
    for (key, end) in ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().zip(ends.by_ref()) {
        add(key, Value::U32(end));
    }
    let more: Vec<String> = ends.map(|end| end.to_string()).collect();
    if !more.is_empty() {
        notes.push(format!("three tokens that end an answer can be named; these are left out: {}", more.join(", ")));
    }
    let failed = |error| Error::internal(OPERATION, "the tokenizer failed").with_source(error);
    let whole = files.tokenizer.encode_fast("a", true).map_err(failed)?;
    // Without the key llama.cpp would choose by the name of the splitting.
    add("add_bos_token", Value::Bool(first.is_some() && whole.get_ids().first().copied() == first));
    add("add_eos_token", Value::Bool(named.is_some() && whole.get_ids().last().copied() == named));
    Ok(())
}
