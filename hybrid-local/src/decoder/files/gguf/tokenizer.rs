//! The tokenizer in a GGUF file's metadata.
//!
//! Two kinds: pairs of bytes that are merged (`gpt2`), with how a text is split before that under a name; and SentencePiece's pairs
//! (`llama`), whose merges follow from the tokens' scores.

use std::collections::{BTreeMap, HashMap};

use candle_core::quantized::gguf_file::Value;
use hybrid_core::{Error, Result};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{NFC, Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

use super::{Metadata, OPERATION};

/// How Llama 3 splits a text: contractions, words, up to three digits, signs, line ends, spaces.
pub(crate) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`LLAMA_3`], each digit for itself.
pub(crate) const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

// What a token is, as `tokenizer.ggml.token_type` says.
const NORMAL: usize = 1;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

/// Puts the tokenizer together.
///
/// # Errors
/// `Unsupported` that names the kind of tokenizer or of splitting; `Corrupt` that names the key.
pub(super) fn read(metadata: &Metadata<'_>) -> Result<Tokenizer> {
    let kind = text(metadata, "tokenizer.ggml.model")?;
    let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
    let kinds = match metadata.list("tokenizer.ggml.token_type")? {
        Some(kinds) => kinds.iter().map(|kind| super::whole(kind).unwrap_or_default()).collect(),
        None => vec![NORMAL; tokens.len()],
    };
    if kinds.len() != tokens.len() {
        return Err(senseless("tokenizer.ggml.token_type"));
    }
    let mut tokenizer = match kind {
        "gpt2" => byte_pairs(metadata, &tokens)?,
        "llama" => sentence_pieces(metadata, &tokens, &kinds)?,
        _ => {
            return Err(Error::unsupported(OPERATION, "the kind of tokenizer is not known")
                .with("tokenizer.ggml.model", kind)
                .with("known", "gpt2, llama"));
        }
    };
    // Phi 3's marks of a conversation take the white space behind them; files do not say so, and llama.cpp goes by the model too.
    let phi = kind == "llama" && metadata.text("general.architecture")? == Some("phi3");
    let strips = |token: &str| phi && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
    let added = tokens.iter().zip(&kinds).filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED));
    let added =
        added.map(|(token, kind)| AddedToken::from(*token, *kind == CONTROL).normalized(false).rstrip(strips(token)));
    tokenizer
        .add_tokens(added.collect::<Vec<_>>())
        .map_err(|error| senseless("tokenizer.ggml.tokens").with_source(error))?;
    Ok(tokenizer)
}

/// The tokens that templates name, such as `bos_token`.
pub(super) fn special_tokens(metadata: &Metadata<'_>) -> Result<BTreeMap<String, String>> {
    let tokens = metadata.list("tokenizer.ggml.tokens")?.unwrap_or_default();
    let mut named = BTreeMap::new();
    for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        let id = metadata.whole(&format!("tokenizer.ggml.{key}_token_id"))?;
        if let Some(token) = id.and_then(|id| tokens.get(id)?.to_string().ok()) {
            named.insert(name.to_owned(), token.clone());
        }
    }
    Ok(named)
}

fn byte_pairs(metadata: &Metadata<'_>, tokens: &[&str]) -> Result<Tokenizer> {
    let name = text(metadata, "tokenizer.ggml.pre")?;
    let bytes = |regex: bool| ByteLevel::new(false, true, regex);
    let split = |pattern: &str| {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false);
        split.map_err(|error| Error::internal(OPERATION, "the pattern of the tokenizer is faulty").with_source(error))
    };
    // How the text is split, whether it is composed first, and whether a word that is a token is not put together of its parts.
    let (before, composed, whole_words): (PreTokenizerWrapper, bool, bool) = match name {
        "llama-bpe" | "llama3" | "llama-v3" => {
            (PreTokenizers::new(vec![split(LLAMA_3)?.into(), bytes(false).into()]).into(), false, true)
        }
        "qwen2" | "deepseek-r1-qwen" => {
            (PreTokenizers::new(vec![split(QWEN_2)?.into(), bytes(false).into()]).into(), true, false)
        }
        "smollm" => (PreTokenizers::new(vec![Digits::new(true).into(), bytes(true).into()]).into(), false, false),
        "gpt-2" => (bytes(true).into(), false, false),
        _ => {
            return Err(Error::unsupported(
                OPERATION,
                "how the tokenizer splits a text is not known; use the folder that the file was made of",
            )
            .with("tokenizer.ggml.pre", name)
            .with("known", "llama-bpe, llama3, qwen2, deepseek-r1-qwen, smollm, gpt-2"));
        }
    };
    let pair = |merge: &&str| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
    let merges: Option<Vec<_>> = texts(metadata, "tokenizer.ggml.merges")?.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| senseless("tokenizer.ggml.merges"))?;
    let model = BPE::builder().vocab_and_merges(vocabulary(tokens), merges).ignore_merges(whole_words).build();
    let model = model.map_err(|error| senseless("tokenizer.ggml.merges").with_source(error))?;
    let mut tokenizer = Tokenizer::new(model);
    if composed {
        normalize(&mut tokenizer, NFC.into())?;
    }
    tokenizer.with_pre_tokenizer(Some(before));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(tokenizer)
}

fn sentence_pieces(metadata: &Metadata<'_>, tokens: &[&str], kinds: &[usize]) -> Result<Tokenizer> {
    let key = "tokenizer.ggml.scores";
    let scores: Option<Vec<f64>> = metadata.list(key)?.unwrap_or_default().iter().map(super::number).collect();
    let scores = scores.filter(|scores| scores.len() == tokens.len()).ok_or_else(|| senseless(key))?;
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    // Every way to put a token together of two others, the token with the best score first.
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kinds[*id] == NORMAL) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], *first, *second, left, right));
            }
        }
    }
    merges.sort_by(|one, other| other.0.total_cmp(&one.0).then((one.1, one.2).cmp(&(other.1, other.2))));
    let merges = merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect();
    let unknown = metadata.whole("tokenizer.ggml.unknown_token_id")?.and_then(|id| tokens.get(id));
    let mut model = BPE::builder().vocab_and_merges(vocabulary(tokens), merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token((*unknown).to_owned());
    }
    let mut tokenizer =
        Tokenizer::new(model.build().map_err(|error| senseless("tokenizer.ggml.tokens").with_source(error))?);
    let faulty = |error| Error::internal(OPERATION, "the pattern of the tokenizer is faulty").with_source(error);
    let spaces = |from: &str, to: &str| Replace::new(from, to).map_err(faulty);
    let prefixed = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = vec![spaces(" ", "▁")?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![spaces("▁", " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefixed {
        normalizers.insert(0, Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalize(&mut tokenizer, Normalizers::new(normalizers).into())?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

fn normalize(tokenizer: &mut Tokenizer, normalizer: NormalizerWrapper) -> Result<()> {
    let set = tokenizer.with_normalizer(Some(normalizer));
    set.map(drop).map_err(|error| Error::internal(OPERATION, "the tokenizer failed").with_source(error))
}

fn vocabulary(tokens: &[&str]) -> Vocab {
    (0..).zip(tokens).map(|(id, token)| ((*token).to_owned(), id)).collect()
}

fn text<'a>(metadata: &Metadata<'a>, key: &'static str) -> Result<&'a str> {
    metadata.text(key)?.ok_or_else(|| Error::corrupt(OPERATION, "the key is missing").with("key", key))
}

fn texts<'a>(metadata: &Metadata<'a>, key: &'static str) -> Result<Vec<&'a str>> {
    let list = metadata.list(key)?.ok_or_else(|| Error::corrupt(OPERATION, "the key is missing").with("key", key))?;
    let text =
        |value: &'a Value| value.to_string().map(String::as_str).map_err(|error| senseless(key).with_source(error));
    list.iter().map(text).collect()
}

fn senseless(key: &'static str) -> Error {
    Error::corrupt(OPERATION, "the value makes no sense").with("key", key)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::{Content, VersionedMagic};

    use super::*;

    /// A vocabulary as SentencePiece makes it: marks, bytes, and pieces, the better the earlier.
    fn vocabulary_of_pieces() -> (Vec<String>, Vec<f32>) {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        let text: Vec<char> = "▁ten▁rolls▁there▁other▁ötöt".chars().collect();
        for length in [2, 4, 3, 1] {
            for piece in text.windows(length).map(|piece| piece.iter().collect::<String>()) {
                if !tokens.contains(&piece) {
                    tokens.push(piece);
                }
            }
        }
        let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { -(id as f32) }).collect();
        (tokens, scores)
    }

    fn content(tokens: &[String], scores: &[f32]) -> Content {
        let text = |text: &str| Value::String(text.to_owned());
        let kind = |id: usize| {
            if id == 0 {
                2
            } else if id < 3 {
                3
            } else if id < 259 {
                6
            } else {
                1
            }
        };
        let metadata = [
            ("model", text("llama")),
            ("tokens", Value::Array(tokens.iter().map(|token| text(token)).collect())),
            ("scores", Value::Array(scores.iter().map(|score| Value::F32(*score)).collect())),
            ("token_type", Value::Array((0..tokens.len()).map(|id| Value::I32(kind(id))).collect())),
            ("unknown_token_id", Value::U32(0)),
            ("bos_token_id", Value::U32(1)),
        ];
        let metadata = metadata.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into();
        Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos: HashMap::new(), tensor_data_offset: 0 }
    }

    /// SentencePiece's own way: of all neighbours whose join is a piece the best are joined, until there are none.
    fn pieces(text: &str, tokens: &[String], scores: &[f32]) -> Vec<u32> {
        let id = |piece: &str| tokens.iter().position(|token| token == piece);
        let mut parts: Vec<String> = format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
        while let Some((_, at)) = (1..parts.len())
            .filter_map(|at| Some((scores[id(&format!("{}{}", parts[at - 1], parts[at]))?], at)))
            .max_by(|one, other| one.0.total_cmp(&other.0).then(other.1.cmp(&one.1)))
        {
            let next = parts.remove(at);
            parts[at - 1].push_str(&next);
        }
        let bytes = |part: &str| part.bytes().map(|byte| u32::from(byte) + 3).collect();
        parts.iter().flat_map(|part| id(part).map_or_else(|| bytes(part), |id| vec![id as u32])).collect()
    }

    #[test]
    fn sentence_pieces_are_joined_as_sentence_piece_joins_them() {
        let (tokens, scores) = vocabulary_of_pieces();
        let content = content(&tokens, &scores);
        let tokenizer = read(&Metadata(&content)).unwrap();
        for text in ["ten rolls", "there  other", "töt, 漢🥐", "x", " ten", "otherthererollsten ten"] {
            let encoding = tokenizer.encode(text, false).unwrap();
            assert_eq!(encoding.get_ids(), pieces(text, &tokens, &scores), "{text:?}");
            assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("<s>", false).unwrap().get_ids(), [1]);
        assert_eq!(special_tokens(&Metadata(&content)).unwrap()["bos_token"], "<s>");
    }

    #[test]
    fn scores_have_to_be_as_many_as_tokens() {
        let (tokens, scores) = vocabulary_of_pieces();
        let error = read(&Metadata(&content(&tokens, &scores[1..]))).unwrap_err();
        assert_eq!(error.context("key"), Some("tokenizer.ggml.scores"), "{error}");
    }
}
