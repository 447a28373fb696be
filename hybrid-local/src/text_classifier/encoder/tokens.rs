//! From texts to tokens, and from tokens to a batch.

use std::{panic::catch_unwind, str::FromStr};

use candle_core::{Device, Tensor};
use hybrid_core::{Error, Result};
use serde::de::IgnoredAny;
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

use crate::ops::Spans;

const OPERATION: &str = "read tokenizer";
const NO_TOKENIZER: &str = "not a tokenizer that the library can read";

/// A tokenizer with the limits of its model.
#[derive(Debug)]
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    /// Tokens of a text that are read, those that are added to it included.
    max: usize,
    /// Tokens that are added to every text.
    added: usize,
}

/// A text's tokens, as many as are read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// How many the whole text has.
    pub(super) whole: usize,
}

impl Encoded {
    pub(super) fn is_cut(&self) -> bool {
        self.whole > self.ids.len()
    }
}

impl Tokens {
    /// Reads a `tokenizer.json` for a model with `vocabulary` rows of embeddings.
    ///
    /// # Errors
    /// `Corrupt` if the file is no tokenizer or has tokens that the model has no row for; `Unsupported` if it marks no beginning of a
    /// text, which is where the classifier reads.
    pub(super) fn read(bytes: &[u8], vocabulary: usize, max: usize) -> Result<Self> {
        let corrupt = |message: &'static str| Error::corrupt(OPERATION, message);
        let text = str::from_utf8(bytes).map_err(|error| corrupt("not UTF-8").with_source(error))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| corrupt("not JSON").with_source(error))?;
        // The library panics at some files that are JSON but no tokenizer.
        let parsed = catch_unwind(|| Tokenizer::from_str(text)).map_err(|_| corrupt(NO_TOKENIZER))?;
        let mut tokenizer = parsed.map_err(|error| corrupt(NO_TOKENIZER).with_source(error))?;
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
        if added == 0 {
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
        Ok(Self { tokenizer, max, added })
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// A text's tokens with those added; of a text with more than are read, the first, and the added ones around them.
    pub(super) fn encode(&self, text: &str) -> Result<Encoded> {
        let fail = |error| Error::internal("tokenize", "the tokenizer failed").with_source(error);
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(fail)?;
        let whole = encoding.len() + self.added;
        encoding.truncate(self.max - self.added, 0, TruncationDirection::Right);
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(fail)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), whole })
    }
}

/// Texts one after another, as a network reads them.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// `[tokens]`, whole numbers.
    pub(super) ids: Tensor,
    /// `[tokens]`, whole numbers: rows of the table of positions.
    pub(super) positions: Tensor,
    pub(super) spans: Spans,
}

impl Batch {
    pub(super) fn of(texts: &[&[u32]], first_position: usize, device: &Device) -> candle_core::Result<Self> {
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
        let tokens = Tokens::read(TOKENIZER.as_bytes(), 140, 8).unwrap();
        let whole = tokens.encode("the cake the cake").unwrap();
        assert_eq!((whole.ids.len(), whole.whole, whole.is_cut()), (6, 6, false));
        let cut = tokens.encode(&"the cake ".repeat(10)).unwrap();
        assert_eq!((cut.ids.len(), cut.whole, cut.is_cut()), (8, 22, true));
        assert_eq!((cut.ids[0], cut.ids[7]), (whole.ids[0], whole.ids[5]), "the marks around the text");
        assert_eq!(cut.ids[1..5], whole.ids[1..5]);
    }

    #[test]
    fn files_that_are_no_tokenizer_of_the_model_are_refused() {
        let refused = |bytes: &[u8]| Tokens::read(bytes, 140, 8).unwrap_err();
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
        let error = Tokens::read(TOKENIZER.as_bytes(), 139, 8).unwrap_err();
        assert_eq!((error.context("id"), error.context("vocabulary")), (Some("139"), Some("139")), "{error}");
    }
}
