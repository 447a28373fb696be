//! The bytes that each token stands for, and how bytes become a text as they come.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use llguidance::toktrie::TokTrie;
use serde::Deserialize;
use tokenizers::Tokenizer;

/// The bytes of each token, of tokenizers whose tokens are bytes (as in GPT 2), or pieces of text that fall back to bytes (as in SentencePiece).
#[derive(Debug)]
pub(super) struct Spelling {
    /// Of all tokens, one behind the other.
    bytes: Vec<u8>,
    /// Where each token's bytes end; a row that is no token has none.
    ends: Vec<u32>,
    special: BTreeSet<u32>,
    /// Spaces that are taken away at the beginning of a text.
    strips: usize,
}

impl Spelling {
    /// Spells the tokens of a model with `vocabulary` rows; `None` if the tokenizer is of another kind.
    pub(super) fn of(tokenizer: &Tokenizer, vocabulary: usize) -> Option<Self> {
        let kind = Kind::of(tokenizer)?;
        let mut tokens: BTreeMap<u32, String> =
            tokenizer.get_vocab(false).into_iter().map(|(token, id)| (id, token)).collect();
        let mut special = BTreeSet::new();
        for (id, added) in tokenizer.get_added_tokens_decoder() {
            if added.special {
                special.insert(id);
            }
            tokens.insert(id, added.content);
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(vocabulary));
        for id in 0..u32::try_from(vocabulary).ok()? {
            if let Some(token) = tokens.get(&id) {
                kind.spell(token, &mut bytes);
            }
            ends.push(u32::try_from(bytes.len()).ok()?);
        }
        let strips = if let Kind::Pieces { strips, .. } = kind { strips } else { 0 };
        Some(Self { bytes, ends, special, strips })
    }

    /// The bytes of a token, special or not.
    fn of_token(&self, token: u32) -> &[u8] {
        let at = token as usize;
        let begin = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        let range: Range<usize> = begin..self.ends.get(at).map_or(begin, |end| *end as usize);
        &self.bytes[range]
    }

    /// Whether a space at the beginning of a text is taken away, so that a text may begin with one that nobody sees.
    pub(super) fn strips_a_space(&self) -> bool {
        self.strips > 0
    }

    /// The bytes of all tokens, special ones marked as the library of constraints wants them.
    pub(super) fn marked(&self) -> Vec<Vec<u8>> {
        let marked = |token: u32| {
            let mut bytes = self.of_token(token).to_vec();
            if self.special.contains(&token) {
                bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
            bytes
        };
        (0..self.ends.len() as u32).map(marked).collect()
    }
}

/// How a tokenizer's tokens are written.
enum Kind {
    /// Each character for a byte.
    Bytes(BTreeMap<char, u8>),
    /// Text, with some of it written otherwise, and `<0x0A>` for a byte.
    Pieces { replaced: Vec<(String, String)>, strips: usize },
}

impl Kind {
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()?).ok()?;
        let steps = match serde_json::from_value(decoder).ok()? {
            Step::ByteLevel => return Some(Self::Bytes(alphabet())),
            Step::Sequence { decoders } => decoders,
            _ => return None,
        };
        let (mut replaced, mut strips, mut falls_back, mut fused) = (Vec::new(), 0, false, false);
        for step in steps {
            match step {
                Step::Replace { pattern: Pattern::String(from), content } if !fused => replaced.push((from, content)),
                Step::ByteFallback => falls_back = true,
                Step::Fuse => fused = true,
                Step::Strip { content: ' ', start, stop: 0 } if fused => strips = start,
                _ => return None,
            }
        }
        falls_back.then_some(Self::Pieces { replaced, strips })
    }

    fn spell(&self, token: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes(alphabet) => {
                let before = bytes.len();
                for char in token.chars() {
                    let Some(byte) = alphabet.get(&char) else {
                        // Such as a mark that was added later: it is text.
                        bytes.truncate(before);
                        bytes.extend_from_slice(token.as_bytes());
                        return;
                    };
                    bytes.push(*byte);
                }
            }
            Self::Pieces { replaced, .. } => match byte_of(token) {
                Some(byte) => bytes.push(byte),
                None => {
                    let mut text = token.to_owned();
                    for (from, to) in replaced {
                        text = text.replace(from, to);
                    }
                    bytes.extend_from_slice(text.as_bytes());
                }
            },
        }
    }
}

/// A step from tokens to text, as `tokenizer.json` writes it.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel,
    ByteFallback,
    Fuse,
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Sequence {
        decoders: Vec<Step>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(serde::de::IgnoredAny),
}

/// The characters that GPT 2's tokenizer writes bytes with: those that can be seen for themselves, the others from U+0100 on.
fn alphabet() -> BTreeMap<char, u8> {
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (0x100u32..).filter_map(char::from_u32);
    let written = (0..=u8::MAX).map(|byte| {
        let char = if is_seen(byte) { Some(char::from(byte)) } else { others.next() };
        (char.unwrap_or_default(), byte)
    });
    written.collect()
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Joins the bytes of tokens to text as they come, and never gives a part of a character.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    held: Vec<u8>,
    begun: bool,
}

impl Utf8 {
    /// The text that `token` makes whole. Bytes that are no character are U+FFFD.
    pub(super) fn push(&mut self, token: u32, spelling: &Spelling) -> String {
        if spelling.special.contains(&token) {
            return String::new();
        }
        let mut bytes = spelling.of_token(token);
        if !self.begun && !bytes.is_empty() {
            self.begun = true;
            let spaces = bytes.iter().take(spelling.strips).take_while(|byte| **byte == b' ').count();
            bytes = &bytes[spaces..];
        }
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = &self.held[..];
        while let Err(error) = str::from_utf8(rest) {
            let (good, bad) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(good));
            let Some(length) = error.error_len() else {
                self.held = bad.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &bad[length..];
        }
        text.push_str(&String::from_utf8_lossy(rest));
        self.held.clear();
        text
    }

    /// What was held of a character that has not become whole: U+FFFD, or nothing.
    pub(super) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::decoder::tokens::parse;

    fn tokenizer(name: &str) -> Tokenizer {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder").join(name).join("tokenizer.json");
        parse(&std::fs::read(path).unwrap()).unwrap()
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn bytes_of_tokens_join_to_the_text() {
        for name in ["llama", "gemma2", "phi3"] {
            let tokenizer = tokenizer(name);
            let spelling = Spelling::of(&tokenizer, 1_000).unwrap();
            assert_eq!(spelling.marked().len(), 1_000);
            assert_eq!(spelling.strips_a_space(), name == "phi3");
            for text in ["zwölf Brötchen für 🥐 und 漢字", "a  b\n\n c", "{\"a\": [1, 2]}", " leading", "<0x41>"]
            {
                let tokens = ids(&tokenizer, text);
                let mut joined = Utf8::default();
                let mut pieces: Vec<String> = tokens.iter().map(|token| joined.push(*token, &spelling)).collect();
                pieces.push(joined.finish());
                assert_eq!(pieces.concat(), tokenizer.decode(&tokens, true).unwrap(), "{name}: {text:?}");
                assert_eq!(pieces.concat(), text, "{name}");
                assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_byte_that_is_no_character_takes_nothing_else_along() {
        let tokenizer = tokenizer("phi3");
        let spelling = Spelling::of(&tokenizer, 1_000).unwrap();
        let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
        let join = |tokens: &[u32]| {
            let mut joined = Utf8::default();
            let text: String = tokens.iter().map(|token| joined.push(*token, &spelling)).collect();
            text + &joined.finish()
        };
        let rolls = ids(&tokenizer, "rolls");
        let character = "漢".bytes().map(byte);
        let stray = |bytes: &[u8]| bytes.iter().map(|b| byte(*b)).collect::<Vec<_>>();
        let after: Vec<u32> = character.clone().chain(stray(&[0xff])).chain(rolls.clone()).collect();
        assert_eq!(join(&after), "漢\u{fffd} rolls");
        let before: Vec<u32> = stray(&[0xe6, 0xbc]).into_iter().chain(character.clone()).chain(rolls).collect();
        assert_eq!(join(&before), "\u{fffd}漢 rolls");
        assert_eq!(join(&stray(&[0xff, 0xfe, 0xe6])), "\u{fffd}\u{fffd}\u{fffd}");
        let end = tokenizer.token_to_id("<|end|>").unwrap();
        assert_eq!(join(&character.chain([end]).collect::<Vec<_>>()), "漢", "special tokens are not seen");
    }

    #[test]
    fn runs_of_spaces_that_are_tokens_of_their_own_are_spaces() {
        let mut tokenizer = tokenizer("gemma2");
        let run = tokenizers::AddedToken::from("▁▁▁", false).normalized(false);
        tokenizer.add_tokens([run]).unwrap();
        let id = tokenizer.token_to_id("▁▁▁").unwrap();
        let spelling = Spelling::of(&tokenizer, id as usize + 1).unwrap();
        assert_eq!(spelling.of_token(id), b"   ");
        assert_eq!(tokenizer.decode(&[id], true).unwrap(), "   ");
        assert_eq!(spelling.of_token(id + 1), b"", "no token");
    }

    #[test]
    fn tokenizers_of_other_kinds_are_told() {
        let mut tokenizer = tokenizer("gemma2");
        tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
        assert!(Spelling::of(&tokenizer, 1_000).is_none());
    }
}
