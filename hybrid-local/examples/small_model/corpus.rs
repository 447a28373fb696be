//! What the small model reads: this project's documentation, and messages to a bakery.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hybrid_core::{Error, Result, SeededIds, Timestamp};
use hybrid_local::judgments_from_jsonl;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::parts::{MARKS, io, json_lines};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// How texts are split before their bytes are merged, as Llama 3 does it: GGUF files know it by name.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Bytes of a text: some 150 tokens.
const TEXT_BYTES: usize = 500;

/// Texts to learn and texts to be judged on.
#[derive(Debug, Default)]
pub(crate) struct Corpus {
    pub(crate) learnt: Vec<String>,
    pub(crate) held_out: Vec<String>,
}

pub(crate) fn bakery(name: &str) -> PathBuf {
    Path::new(PROJECT).join("examples/data/bakery").join(name)
}

impl Corpus {
    /// Reads the project: its Markdown files and the comments that document its code, of which every tenth file is held out, and the
    /// bakery's messages that are there to be learnt, without their labels.
    pub(crate) fn read() -> Result<Self> {
        let mut files = BTreeMap::new();
        for part in [".", "hybrid-core", "hybrid-local", "hybrid-sync", "hybrid-cloud", "examples", "benches"] {
            find(&Path::new(PROJECT).join(part), part != ".", &mut files)?;
        }
        let mut corpus = Self::default();
        for (number, text) in files.values().filter(|text| text.len() > 200).enumerate() {
            let to = if number % 10 == 0 { &mut corpus.held_out } else { &mut corpus.learnt };
            to.extend(pieces(text));
        }
        for file in ["first.jsonl", "more.jsonl"] {
            let texts = json_lines(&bakery(file))?;
            let texts = texts.iter().filter_map(|row| row["text"].as_str());
            corpus.learnt.extend(texts.map(|text| format!("{}user\n{text}{}", MARKS[0], MARKS[1])));
        }
        Ok(corpus)
    }

    /// The learnt texts as judgments of the task `text`.
    pub(crate) fn judgments(&self) -> Result<Vec<hybrid_core::Judgment>> {
        let lines: Vec<String> = self.learnt.iter().map(|text| json!({ "text": text }).to_string()).collect();
        judgments_from_jsonl("corpus", lines.join("\n"), &SeededIds::default(), Timestamp::UNIX_EPOCH)
    }

    /// A byte-level tokenizer of `vocabulary` tokens, learnt from the texts.
    pub(crate) fn tokenizer(&self, vocabulary: usize) -> Result<Tokenizer> {
        let fail =
            |error: tokenizers::Error| Error::internal("learn tokenizer", "the library failed").with_source(error);
        let split = Split::new(SplitPattern::Regex(SPLIT.to_owned()), SplitDelimiterBehavior::Isolated, false);
        let split: Vec<PreTokenizerWrapper> =
            vec![split.map_err(fail)?.into(), ByteLevel::new(false, true, false).into()];
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(split)));
        tokenizer.with_decoder(Some(DecoderWrapper::from(ByteLevel::default())));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .special_tokens(MARKS.map(|mark| AddedToken::from(mark, true)).into())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let unmarked =
            self.learnt.iter().map(|text| MARKS.iter().fold(text.clone(), |text, mark| text.replace(mark, "")));
        tokenizer.train(&mut TrainerWrapper::from(trainer), unmarked).map_err(fail)?;
        Ok(tokenizer)
    }
}

/// A golden case: what is asked and the right label.
pub(crate) fn golden() -> Result<Vec<(String, String)>> {
    let text = |row: &Value, at: &str| row.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let rows = json_lines(&bakery("golden.jsonl"))?;
    Ok(rows.iter().map(|row| (text(row, "/input/text"), text(row, "/expected/label"))).collect())
}

/// The documentation in a folder's files by their paths, in order.
fn find(folder: &Path, deep: bool, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| io(folder, error))? {
        let path = entry.map_err(|error| io(folder, error))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() && deep && path.file_name().is_none_or(|name| name != "target" && name != "fixtures") {
            find(&path, deep, files)?;
        } else if path.is_file() && matches!(ending, Some("md" | "rs")) {
            let text = fs::read_to_string(&path).map_err(|error| io(&path, error))?;
            let text = if ending == Some("rs") { comments(&text) } else { text };
            files.insert(path, text);
        }
    }
    Ok(())
}

/// The documenting comments of a file of code, a paragraph for each.
fn comments(code: &str) -> String {
    let mut text = String::new();
    for line in code.lines().map(str::trim_start) {
        match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
            Some(comment) => {
                text += comment.strip_prefix(' ').unwrap_or(comment);
                text.push('\n');
            }
            None if !text.is_empty() && !text.ends_with("\n\n") => text.push('\n'),
            None => {}
        }
    }
    text
}

/// A text in pieces of whole lines.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in text.split_inclusive('\n') {
        match pieces.last_mut() {
            Some(piece) if piece.is_empty() || piece.len() + line.len() <= TEXT_BYTES => piece.push_str(line),
            _ => pieces.push(line.to_owned()),
        }
    }
    pieces.retain(|piece| !piece.trim().is_empty());
    pieces
}
