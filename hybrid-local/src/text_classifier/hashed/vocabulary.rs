use hybrid_core::{Error, Result};

use crate::text_classifier::features::{Features, is_char_ngram};

/// The n-grams that the network has an embedding for, in order of their keys; a row is a place in that order.
#[derive(Clone, Debug)]
pub(in crate::text_classifier) struct Vocabulary {
    features: Features,
    keys: Vec<u32>,
    /// What an n-gram counts beside others: the rarer, the more.
    weights: Vec<f32>,
}

/// A text as rows with their weights, the rows rising.
pub(in crate::text_classifier) type Bag = Vec<(u32, f32)>;

impl Vocabulary {
    /// The n-grams of at least `min_count` of the texts.
    ///
    /// Weights are the square root of the smoothed inverse document frequency, `ln((1 + texts) / (1 + texts with it)) + 1`. The root
    /// keeps some of the say that common words have: in short messages "where", "again" and "my" tell intents apart.
    pub(super) fn of<'a>(features: Features, min_count: usize, texts: impl Iterator<Item = &'a str>) -> Self {
        let mut all = Vec::new();
        let mut count = 0;
        for text in texts {
            let mut keys = features.keys(text);
            keys.dedup();
            all.extend(keys);
            count += 1;
        }
        all.sort_unstable();
        let (mut keys, mut weights) = (Vec::new(), Vec::new());
        for run in all.chunk_by(|a, b| a == b).filter(|run| run.len() >= min_count) {
            let inverse = f64::from(1 + count) / (1 + run.len()) as f64;
            keys.push(run[0]);
            weights.push((inverse.ln() + 1.0).sqrt() as f32);
        }
        Self { features, keys, weights }
    }

    /// # Errors
    /// `Corrupt` if the keys do not rise, cannot come from the features, or a weight is not positive.
    pub(super) fn from_parts(features: Features, keys: Vec<u32>, weights: Vec<f32>) -> Result<Self> {
        let corrupt =
            |message: &'static str, tensor| Err(Error::corrupt("read tensors", message).with("tensor", tensor));
        if !keys.is_sorted_by(|a, b| a < b) || !keys.iter().all(|&key| features.owns(key)) {
            return corrupt("the keys do not rise or are beyond the buckets", "keys");
        }
        if weights.iter().any(|&weight| !(weight > 0.0 && weight.is_finite())) {
            return corrupt("a weight is not positive", "weights");
        }
        Ok(Self { features, keys, weights })
    }

    /// The rows of a text. Each kind of n-grams has a Euclidean length of 1 (of 0 where none is known), so that long texts say no more than short ones; an
    /// n-gram that comes n times counts `1 + ln n` times.
    pub(in crate::text_classifier) fn bag(&self, text: &str) -> Bag {
        let mut bag = Bag::new();
        for run in self.features.keys(text).chunk_by(|a, b| a == b) {
            if let Ok(row) = self.keys.binary_search(&run[0]) {
                bag.push((row as u32, (1.0 + (run.len() as f32).ln()) * self.weights[row]));
            }
        }
        let border = self.keys.partition_point(|&key| !is_char_ngram(key)) as u32;
        let border = bag.partition_point(|(row, _)| *row < border);
        let (words, chars) = bag.split_at_mut(border);
        for kind in [words, chars] {
            let length = kind.iter().map(|(_, weight)| weight * weight).sum::<f32>().sqrt();
            kind.iter_mut().for_each(|(_, weight)| *weight /= length);
        }
        bag
    }

    pub(super) fn keys(&self) -> &[u32] {
        &self.keys
    }

    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Features = Features { word_ngrams: 1, char_min: 2, char_max: 3, buckets: 1 << 16 };

    #[test]
    fn a_text_has_length_one_in_words_and_in_characters() {
        let vocabulary = Vocabulary::of(FEATURES, 1, ["my bread is burnt", "my cake is late late"].into_iter());
        let bag = vocabulary.bag("is my my bread, a zebra");
        assert!(bag.is_sorted_by(|a, b| a.0 < b.0));
        let length: f32 = bag.iter().map(|(_, weight)| weight * weight).sum();
        assert!((length - 2.0).abs() < 1e-5, "{length}");
        assert!(vocabulary.bag("").is_empty() || vocabulary.bag("").iter().all(|(_, weight)| weight.is_finite()));
    }

    #[test]
    fn a_rare_ngram_weighs_more_and_one_below_the_count_is_left_out() {
        let texts = ["bread", "bread", "cake"];
        let vocabulary = Vocabulary::of(FEATURES, 1, texts.into_iter());
        let weight = |text: &str| vocabulary.weights[vocabulary.keys.binary_search(&FEATURES.keys(text)[0]).unwrap()];
        assert!(weight("cake") > weight("bread"));
        let common = Vocabulary::of(FEATURES, 2, texts.into_iter());
        assert!(common.bag("cake").len() < common.bag("bread").len());
        assert!(common.len() < vocabulary.len());
    }

    #[test]
    fn keys_out_of_order_or_range_are_corrupt() {
        let read =
            |keys: &[u32], weight: f32| Vocabulary::from_parts(FEATURES, keys.to_vec(), vec![weight; keys.len()]);
        assert!(read(&[1, 2, 1 << 31 | 1], 1.0).is_ok());
        for (keys, weight) in [(&[2, 1][..], 1.0), (&[1, 1], 1.0), (&[1 << 16], 1.0), (&[1], 0.0), (&[1], f32::NAN)] {
            assert!(read(keys, weight).is_err(), "{keys:?} {weight}");
        }
    }
}
