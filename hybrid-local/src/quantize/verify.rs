//! Reading a file back before it is given out.

use std::path::Path;

use hybrid_core::{Error, Result};
use tokenizers::Tokenizer;

use super::OPERATION;
use crate::decoder::{
    files::{ModelFiles, open_gguf},
    tensors::tensors,
};

/// Texts in which ways to split differ: contractions, numbers, signs, spaces, line ends, accents in two characters, other scripts.
const TEXTS: [&str; 7] = [
    "I'd like 12345 rolls, they're good!",
    "  two  spaces\n\n\tand   lines\r\n",
    "Brötchen, Bro\u{308}tchen, GRÖẞE",
    "漢字かな 한국어 привет مرحبا",
    "🥐🧑‍🍳 x²+y_1 == 3.14e-10;",
    "fn main() { println!(\"<a href='b'>\"); }",
    "HTTPServer2 isn't We'LL 007",
];

/// Compares the file with what it was made of: that each tensor is there in its shape, and that the tokenizers agree.
///
/// # Errors
/// `Unsupported` with a text that the tokenizers read differently; `Internal` for a file that is not as it was planned.
pub(super) fn verify(file: &Path, source: &ModelFiles) -> Result<()> {
    let made = open_gguf(file).map_err(|error| {
        Error::internal(OPERATION, "the file cannot be read back").with("path", file.display()).with_source(error)
    })?;
    for spec in tensors(&made.config) {
        if made.weights.bytes(&spec.name) == 0 {
            return Err(Error::internal(OPERATION, "a tensor is missing in the file").with("tensor", spec.name));
        }
    }
    let template = source.templates.default.as_deref().unwrap_or_default();
    for text in TEXTS.into_iter().chain([template]) {
        if encode(&made.tokenizer, text)? != encode(&source.tokenizer, text)? {
            let message = "the tokenizer reads a text differently in the words of a GGUF file; keep the folder instead";
            let shown: String = text.chars().take(80).collect();
            return Err(Error::unsupported(OPERATION, message).with("text", format_args!("{shown:?}")));
        }
    }
    Ok(())
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false);
    encoding
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| Error::internal(OPERATION, "the tokenizer failed").with_source(error))
}
