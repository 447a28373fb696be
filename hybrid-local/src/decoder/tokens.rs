//! From text to tokens and back, a token at a time.

use std::{panic::catch_unwind, str::FromStr, sync::OnceLock};

use hybrid_core::{Error, Result};
use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

use super::spelling::{Spelling, Utf8};

const OPERATION: &str = "read tokenizer";
/// A character has four bytes at most, so this many tokens after a cut one the rest of it will not come.
const HELD: usize = 4;

/// Parses a `tokenizer.json`.
///
/// # Errors
/// `Corrupt` if the bytes are no tokenizer.
pub(super) fn parse(bytes: &[u8]) -> Result<Tokenizer> {
    let corrupt = |message: &'static str| Error::corrupt(OPERATION, message);
    let text = str::from_utf8(bytes).map_err(|error| corrupt("not UTF-8").with_source(error))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| corrupt("not JSON").with_source(error))?;
    const NO_TOKENIZER: &str = "not a tokenizer that the library can read";
    // The library panics at some files that are JSON but no tokenizer.
    let parsed = catch_unwind(|| Tokenizer::from_str(text)).map_err(|_| corrupt(NO_TOKENIZER))?;
    parsed.map_err(|error| corrupt(NO_TOKENIZER).with_source(error))
}

/// The tokenizer of a model.
#[derive(Debug)]
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    /// Rows of the model's embeddings, at least as many as there are tokens.
    vocabulary: usize,
    /// The tokens' bytes, where they are known; read when they are first asked for.
    spelling: OnceLock<Option<Spelling>>,
}

impl Tokens {
    /// Wraps the tokenizer of a model with `vocabulary` rows of embeddings.
    ///
    /// # Errors
    /// `Corrupt` if it has tokens that the model has no row for.
    pub(super) fn new(mut tokenizer: Tokenizer, vocabulary: usize) -> Result<Self> {
        // Many published files cut and pad in silence.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::corrupt(OPERATION, "the truncation cannot be switched off").with_source(error))?;
        let largest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        if let Some((token, id)) = largest
            && id as usize >= vocabulary
        {
            return Err(Error::corrupt(OPERATION, "the tokenizer has a token that the model has no embedding for")
                .with("token", format_args!("{token:?}"))
                .with("id", id)
                .with("vocabulary", vocabulary));
        }
        Ok(Self { tokenizer, vocabulary, spelling: OnceLock::new() })
    }

    /// The tokens of a text in which the special ones are written out already.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::internal("tokenize", "the tokenizer failed").with_source(error))
    }

    /// The token that is written so.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// The bytes that the tokens stand for; `None` if the tokenizer is not one of bytes, nor falls back to them.
    pub(super) fn spelling(&self) -> Option<&Spelling> {
        self.spelling.get_or_init(|| Spelling::of(&self.tokenizer, self.vocabulary)).as_ref()
    }

    /// The tokens of a text by itself, with those that the tokenizer puts at its beginning and end.
    pub(super) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, true);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::internal("tokenize", "the tokenizer failed").with_source(error))
    }

    /// The text of tokens without the special ones; bytes that are no character become U+FFFD.
    pub(super) fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(tokens, true);
        text.map_err(|error| Error::internal("join tokens", "the tokenizer failed").with_source(error))
    }

    /// The text of one token by itself, special or not.
    pub(super) fn spell(&self, token: u32) -> Result<String> {
        let text = self.tokenizer.decode(&[token], false);
        text.map_err(|error| Error::internal("spell token", "the tokenizer failed").with_source(error))
    }
}

/// Joins tokens to text as they come, and never gives a part of a character.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    bytes: Utf8,
    words: Words,
}

impl Joiner {
    /// The text that `token` makes whole.
    pub(super) fn push(&mut self, token: u32, tokens: &Tokens) -> Result<String> {
        match tokens.spelling() {
            Some(spelling) => Ok(self.bytes.push(token, spelling)),
            None => self.words.push(token, tokens),
        }
    }

    /// The text that is still held, as far as it is whole, with U+FFFD for what is not.
    pub(super) fn finish(&mut self, tokens: &Tokens) -> Result<String> {
        match tokens.spelling() {
            Some(_) => Ok(self.bytes.finish()),
            None => self.words.advance(tokens, true),
        }
    }
}

/// As [`Joiner`], of tokens whose bytes are not known.
#[derive(Debug, Default)]
struct Words {
    /// The tokens whose text was given last, and those that came since: the same token reads differently at the beginning of a text.
    tokens: Vec<u32>,
    /// How many of them have been given.
    given: usize,
}

impl Words {
    fn push(&mut self, token: u32, tokens: &Tokens) -> Result<String> {
        self.tokens.push(token);
        self.advance(tokens, self.tokens.len() - self.given > HELD)
    }

    fn advance(&mut self, tokens: &Tokens, all: bool) -> Result<String> {
        let before = tokens.decode(&self.tokens[..self.given])?;
        let whole = tokens.decode(&self.tokens)?;
        // A tokenizer may write what it has given differently when more comes; then it is not given again.
        let new = match whole.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            None if all => tokens.decode(&self.tokens[self.given..])?,
            None => return Ok(String::new()),
        };
        if new.is_empty() || (new.ends_with(char::REPLACEMENT_CHARACTER) && !all) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;

    use super::*;

    const TOKENIZER: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder/llama/tokenizer.json"));

    fn tokens() -> Tokens {
        Tokens::new(parse(TOKENIZER.as_bytes()).unwrap(), 1_000).unwrap()
    }

    #[test]
    fn pieces_are_whole_characters_and_join_to_the_text() {
        let tokens = tokens();
        for text in ["ten rolls", "zwölf Brötchen für 🥐 und 漢字", " leading", "a  b\n\n c", "👩‍🍳🥖"]
        {
            let ids = tokens.encode(text).unwrap();
            let mut joiner = Joiner::default();
            let mut pieces: Vec<String> = ids.iter().map(|id| joiner.push(*id, &tokens).unwrap()).collect();
            pieces.push(joiner.finish(&tokens).unwrap());
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
            assert!(ids.len() < 8 || pieces.iter().filter(|piece| !piece.is_empty()).count() > 1, "{pieces:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_character_are_given_up_after_a_while() {
        let tokens = tokens();
        let croissant = tokens.encode("🥐").unwrap();
        assert!(croissant.len() > 1, "the test needs a character of several tokens");
        let mut joiner = Joiner::default();
        let mut text = joiner.push(croissant[0], &tokens).unwrap();
        assert_eq!(text, "");
        for id in tokens.encode("rolls").unwrap() {
            text += &joiner.push(id, &tokens).unwrap();
        }
        text += &joiner.finish(&tokens).unwrap();
        assert_eq!(text, "\u{fffd}rolls");
        let mut joiner = Joiner::default();
        let held: Vec<String> = (0..12).map(|_| joiner.push(croissant[0], &tokens).unwrap()).collect();
        assert!(held.concat().contains(char::REPLACEMENT_CHARACTER), "nothing is held for ever");
    }

    #[test]
    fn files_that_are_no_tokenizer_of_the_model_are_refused() {
        for end in [0, 1, 100, TOKENIZER.len() / 2, TOKENIZER.len() - 2] {
            assert_eq!(parse(&TOKENIZER.as_bytes()[..end]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let error = Tokens::new(parse(TOKENIZER.as_bytes()).unwrap(), 20).unwrap_err();
        assert_eq!((error.kind(), error.context("vocabulary")), (ErrorKind::Corrupt, Some("20")), "{error}");
    }
}
