//! Words and character n-grams of a text, hashed.
//!
//! The idea is fastText's: Joulin, Grave, Bojanowski and Mikolov, "Bag of Tricks for Efficient Text Classification", 2016; Bojanowski et al.,
//! "Enriching Word Vectors with Subword Information", 2017. Character n-grams see through typos and German compounds.
//!
//! # Format
//! Files depend on what is written here, so it never changes under one architecture id.
//! 1. The text is lower-cased by Unicode's rules; every numeric character becomes `0`; combining
//!    diacritical marks (U+0300 to U+036F) are left out.
//! 2. Words are runs of alphabetic and numeric characters and `_`; each `?` and `!` is a word of its own; all else separates words.
//! 3. Word n-grams are 1 to `word_ngrams` neighbouring words, joined by U+001F.
//! 4. Character n-grams are runs of `char_min` to `char_max` characters of the words joined by single spaces, with a space before the
//!    first and after the last.
//! 5. An n-gram's key is the low bits (`buckets` is a power of two) of the 64-bit FNV-1a hash of its kind's letter, `w` or `c`, and its
//!    UTF-8 bytes, mixed by the finaliser of MurmurHash3; bit 31 of the key is set for character n-grams.

use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Set in the keys of character n-grams, so that the two kinds never share a row.
const CHAR_KIND: u32 = 1 << 31;

/// Which n-grams a text is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Features {
    pub(super) word_ngrams: usize,
    pub(super) char_min: usize,
    pub(super) char_max: usize,
    pub(super) buckets: u32,
}

pub(super) const BUCKETS: std::ops::RangeInclusive<usize> = 1 << 10..=1 << 24;
pub(super) const MAX_WORD_NGRAM: usize = 3;
pub(super) const MAX_CHAR_NGRAM: usize = 8;

impl Features {
    /// # Errors
    /// `Corrupt` that names what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        let Self { word_ngrams, char_min, char_max, buckets } = *self;
        let holds = (1..=MAX_WORD_NGRAM).contains(&word_ngrams)
            && (1..=char_max).contains(&char_min)
            && char_max <= MAX_CHAR_NGRAM
            && buckets.is_power_of_two()
            && BUCKETS.contains(&(buckets as usize));
        if holds {
            return Ok(());
        }
        Err(Error::corrupt("check features", "the features are out of range").with("found", format_args!("{self:?}")))
    }

    /// The keys of all n-grams of a text, sorted, each as often as it occurs.
    pub(super) fn keys(&self, text: &str) -> Vec<u32> {
        let words = words(text);
        let mut keys = Vec::new();
        for n in 1..=self.word_ngrams {
            keys.extend(words.windows(n).map(|run| self.key(b'w', run.join("\u{1f}").as_bytes())));
        }
        let joined = format!(" {} ", words.join(" "));
        // Byte offsets of the characters, and the end: an n-gram is a slice between two of them.
        let starts: Vec<_> = joined.char_indices().map(|(at, _)| at).chain([joined.len()]).collect();
        for n in self.char_min..=self.char_max {
            let ends = starts.iter().skip(n);
            keys.extend(
                starts.iter().zip(ends).map(|(&from, &to)| self.key(b'c', &joined.as_bytes()[from..to]) | CHAR_KIND),
            );
        }
        keys.sort_unstable();
        keys
    }

    /// Whether `key` can come from these features.
    pub(super) fn owns(&self, key: u32) -> bool {
        key & !CHAR_KIND < self.buckets
    }

    fn key(&self, kind: u8, bytes: &[u8]) -> u32 {
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let fnv = [kind].iter().chain(bytes).fold(0xcbf2_9ce4_8422_2325, step);
        (mix(fnv) as u32) & (self.buckets - 1)
    }
}

/// Whether a key is a character n-gram's.
pub(super) fn is_char_ngram(key: u32) -> bool {
    key & CHAR_KIND != 0
}

/// MurmurHash3's finaliser: without it the low bits of FNV-1a of short inputs are poorly spread.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for char in text.chars().flat_map(char::to_lowercase) {
        if char.is_numeric() {
            word.push('0');
        } else if char.is_alphabetic() || char == '_' {
            word.push(char);
        } else if !('\u{300}'..='\u{36f}').contains(&char) {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if matches!(char, '?' | '!') {
                words.push(char.to_string());
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Features = Features { word_ngrams: 2, char_min: 2, char_max: 3, buckets: 1 << 20 };

    #[test]
    fn texts_fall_into_words() {
        assert_eq!(
            words("Zwölf BRÖTCHEN, bitte!! Um 10:30?"),
            ["zwölf", "brötchen", "bitte", "!", "!", "um", "00", "00", "?"]
        );
        assert_eq!(words(" \u{0}🙂…"), [""; 0]);
    }

    #[test]
    fn keys_never_change() {
        // Worked out apart from this code, from the format written above.
        let one = Features { word_ngrams: 1, char_min: 4, char_max: 4, buckets: 1 << 24 };
        assert_eq!(one.keys("ab"), PINNED);
    }

    const PINNED: [u32; 2] = [0x005e_5676, 0x80b0_6b3d];

    #[test]
    fn the_count_of_ngrams_is_that_of_the_text() {
        // Three words and two pairs; " ab c ? " has 8 characters: 7 runs of two and 6 of three.
        let keys = FEATURES.keys("ab c?");
        assert_eq!(keys.iter().filter(|key| is_char_ngram(**key)).count(), 7 + 6);
        assert_eq!(keys.iter().filter(|key| !is_char_ngram(**key)).count(), 3 + 2);
        assert!(keys.iter().all(|&key| FEATURES.owns(key)));
        assert!(FEATURES.keys("").iter().all(|key| is_char_ngram(*key)));
    }

    #[test]
    fn keys_spread_over_the_buckets() {
        let few = Features { buckets: 1 << 10, word_ngrams: 1, char_min: 1, char_max: 1 };
        let mut hit = vec![0u32; 1 << 10];
        for i in 0..10_240 {
            hit[few.key(b'w', format!("word{i}").as_bytes()) as usize] += 1;
        }
        // Poisson with mean 10: all 1,024 buckets lie far within 0 to 35.
        assert!(hit.iter().all(|&count| (1..35).contains(&count)), "{:?}", hit.iter().max());
    }

    #[test]
    fn features_out_of_range_are_refused() {
        assert!(FEATURES.check().is_ok());
        for bad in [
            Features { buckets: 1000, ..FEATURES },
            Features { buckets: 0, ..FEATURES },
            Features { char_min: 4, ..FEATURES },
            Features { char_min: 0, ..FEATURES },
            Features { word_ngrams: 0, ..FEATURES },
            Features { char_max: 99, ..FEATURES },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
