//! From texts to tokens, and from tokens to a batch.

use std::{panic::catch_unwind, str::FromStr};

use candle_core::{Device, Tensor};
use hybrid_core::{Error, Result};
use serde::de::IgnoredAny;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use crate::ops::Spans;

const OPERATION: &str = "read tokenizer";
const NO_TOKENIZER: &str = "not a tokenizer that the library can read";

/// A tokenizer with the limits of its model.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    vocabulary: usize,
    /// Tokens of a text that are read, those that are added to it included.
    max: usize,
    /// Tokens that are added to every text.
    added: usize,
}

/// Whether a tokenizer has to mark where a text begins, which is where some networks read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    Needed,
    IfAny,
}

/// A text's tokens, as many as are read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// How many the whole text has.
    pub(crate) whole: usize,
}

impl Encoded {
    pub(crate) fn is_cut(&self) -> bool {
        self.whole > self.ids.len()
    }
}

impl Tokens {
    /// Reads a `tokenizer.json` for a model with `vocabulary` rows of embeddings, of which at most `max` tokens of a text are read.
    ///
    /// # Errors
    /// `Corrupt` if the file is no tokenizer or has tokens that the model has no row for; `Unsupported` if it lacks the marks needed.
    pub(crate) fn read(bytes: &[u8], vocabulary: usize, max: usize, marks: Marks) -> Result<Self> {
        let corrupt = |message: &'static str| Error::corrupt(OPERATION, message);
        let text = str::from_utf8(bytes).map_err(|error| corrupt("not UTF-8").with_source(error))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| corrupt("not JSON").with_source(error))?;
        // The library panics at some files that are JSON but no tokenizer.
        let parsed = catch_unwind(|| Tokenizer::from_str(text)).map_err(|_| corrupt(NO_TOKENIZER))?;
        let tokenizer = parsed.map_err(|error| corrupt(NO_TOKENIZER).with_source(error))?;
        Self::new(tokenizer, vocabulary, max, marks)
    }

    /// As [`read`](Self::read), of a tokenizer that was read.
    pub(crate) fn new(mut tokenizer: Tokenizer, vocabulary: usize, max: usize, marks: Marks) -> Result<Self> {
        let corrupt = |message: &'static str| Error::corrupt(OPERATION, message);
        // Many published files cut and pad in silence.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| corrupt("the truncation cannot be switched off").with_source(error))?;
        let largest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        if let Some((token, id)) = largest
            && id as usize >= vocabulary
        {
            return Err(corrupt("the tokenizer has a token that the model has no embedding for")
                .with("token", format_args!("{token:?}"))
                .with("id", id)
                .with("vocabulary", vocabulary));
        }
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if added == 0 && marks == Marks::Needed {
            return Err(Error::unsupported(
                OPERATION,
                "the tokenizer does not mark the beginning of a text; save it with its post-processor",
            ));
        }
        if added >= max {
            return Err(corrupt("the tokenizer adds more tokens than are read")
                .with("added", added)
                .with("max_tokens", max));
        }
        Ok(Self { tokenizer, vocabulary, max, added })
    }

    /// Tokens of a text that are read, those added to it included.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Tokens that are added to every text.
    pub(crate) fn added(&self) -> usize {
        self.added
    }

    /// Rows of the table of embeddings.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// A text's tokens with those added; of a text with more than are read, the first, and the added ones around them.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoded> {
        let mut ids = self.ids(text)?;
        let whole = ids.len() + self.added;
        ids.truncate(self.max - self.added);
        Ok(Encoded { ids: self.marked(ids)?, whole })
    }

    /// A text's own tokens, all of them.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(failed)
    }

    /// A text's own tokens with those added.
    pub(crate) fn marked(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let token = |id: u32| Token { id, value: String::new(), offsets: (0, 0) };
        let encoding = Encoding::from_tokens(ids.into_iter().map(token).collect(), 0);
        let marked = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        Ok(marked.get_ids().to_vec())
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::internal("tokenize", "the tokenizer failed").with_source(error)
}

/// Texts one after another, as a network reads them.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// `[tokens]`, whole numbers.
    pub(crate) ids: Tensor,
    /// `[tokens]`, whole numbers: rows of the table of positions.
    pub(crate) positions: Tensor,
    pub(crate) spans: Spans,
}

impl Batch {
    pub(crate) fn of(texts: &[&[u32]], first_position: usize, device: &Device) -> candle_core::Result<Self> {
        let spans = Spans::of(texts.iter().map(|ids| ids.len()));
        let positions = spans.iter().flat_map(|(_, length)| (0..length).map(|i| (first_position + i) as u32));
        Ok(Self {
            ids: Tensor::from_vec(texts.concat(), spans.rows(), device)?,
            positions: Tensor::from_vec(positions.collect(), spans.rows(), device)?,
            spans,
        })
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    const TOKENIZER: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bert/bert/tokenizer.json"));

    #[test]
    fn a_text_is_cut_only_by_the_limit_given_and_keeps_its_marks() {
        // The file itself cuts to six tokens and pads to twelve.
        let tokens = Tokens::read(TOKENIZER.as_bytes(), 140, 8, Marks::Needed).unwrap();
        let whole = tokens.encode("the cake the cake").unwrap();
        assert_eq!((whole.ids.len(), whole.whole, whole.is_cut()), (6, 6, false));
        let cut = tokens.encode(&"the cake ".repeat(10)).unwrap();
        assert_eq!((cut.ids.len(), cut.whole, cut.is_cut()), (8, 22, true));
        assert_eq!((cut.ids[0], cut.ids[7]), (whole.ids[0], whole.ids[5]), "the marks around the text");
        assert_eq!(cut.ids[1..5], whole.ids[1..5]);
    }

    #[test]
    fn files_that_are_no_tokenizer_of_the_model_are_refused() {
        let refused = |bytes: &[u8]| Tokens::read(bytes, 140, 8, Marks::Needed).unwrap_err();
        for end in [0, 1, 100, TOKENIZER.len() / 2, TOKENIZER.len() - 1] {
            assert_eq!(refused(&TOKENIZER.as_bytes()[..end]).kind(), ErrorKind::Corrupt);
        }
        let change = |change: fn(&mut Value)| {
            let mut value: Value = serde_json::from_str(TOKENIZER).unwrap();
            change(&mut value);
            refused(&serde_json::to_vec(&value).unwrap()).kind()
        };
        assert_eq!(change(|value| value["model"] = json!({"type": "Nonesuch"})), ErrorKind::Corrupt);
        let panics: fn(&mut Value) =
            |value| value["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        assert_eq!(change(panics), ErrorKind::Corrupt);
        assert_eq!(change(|value| value["post_processor"] = json!(null)), ErrorKind::Unsupported);
        let error = Tokens::read(TOKENIZER.as_bytes(), 139, 8, Marks::Needed).unwrap_err();
        assert_eq!((error.context("id"), error.context("vocabulary")), (Some("139"), Some("139")), "{error}");
    }
}
