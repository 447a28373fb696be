//! The classifier that needs no downloaded weights: n-gram embeddings, summed, and a linear layer.
//!
//! # Files
//! `config.json` ([`HashedConfig`]) and `model.safetensors`: `keys` `[rows]` (whole numbers, rising: see
//! [`features`](super::features)), `weights` `[rows]`, `embeddings` `[rows, dimension]`, `head.weight` `[dimension, labels]`, `head.bias` `[labels]`.

mod learner;
mod vocabulary;

use candle_core::Tensor;
use hybrid_core::{Document, Error, Result};
use serde::{Deserialize, Serialize};

use super::{
    ClassifierConfig, check_labels,
    features::{BUCKETS, Features, MAX_CHAR_NGRAM, MAX_WORD_NGRAM},
    settings::{Settings, refuse},
    tensor_error,
    tensors::{Array, Tensors, take_f32, take_u32},
    training::Schedule,
};
use crate::Device;

pub(super) use learner::HashedMethod;
pub(super) use vocabulary::{Bag, Vocabulary};

const MAX_DIMENSION: usize = 1024;

/// A plan's settings. The defaults were chosen by cross-validation on 120 and 720 short messages in two languages.
#[derive(Clone, Copy, Debug)]
pub(super) struct HashedSettings {
    pub(super) schedule: Schedule,
    pub(super) features: Features,
    pub(super) min_count: usize,
    pub(super) dimension: usize,
    pub(super) learning_rate: f64,
    pub(super) label_smoothing: f64,
    pub(super) ngram_dropout: f64,
}

impl HashedSettings {
    pub(super) fn read(settings: &Settings<'_>, seed: u64) -> Result<Self> {
        let read = Self {
            schedule: Schedule {
                seed,
                folds: settings.whole("folds", 5, 1..=20)?,
                hold_out: settings.number("hold_out", 0.15, 0.05..=0.5)?,
                epochs: settings.whole("epochs", 30, 1..=1_000)?,
                batch_size: settings.whole("batch_size", 32, 1..=4_096)?,
                checkpoint_steps: settings.whole("checkpoint_steps", 250, 1..=1_000_000)?,
            },
            features: Features {
                word_ngrams: settings.whole("word_ngrams", 1, 1..=MAX_WORD_NGRAM)?,
                char_min: settings.whole("char_min", 2, 1..=MAX_CHAR_NGRAM)?,
                char_max: settings.whole("char_max", 5, 1..=MAX_CHAR_NGRAM)?,
                buckets: settings.whole("buckets", 1 << 20, BUCKETS)? as u32,
            },
            min_count: settings.whole("min_count", 1, 1..=1_000)?,
            dimension: settings.whole("dimension", 32, 1..=MAX_DIMENSION)?,
            learning_rate: settings.number("learning_rate", 10.0, 1e-6..=1e3)?,
            label_smoothing: settings.number("label_smoothing", 0.05, 0.0..=0.5)?,
            ngram_dropout: settings.number("ngram_dropout", 0.0, 0.0..=0.9)?,
        };
        let Features { char_min, char_max, buckets, .. } = read.features;
        if char_min > char_max {
            return Err(refuse("char_min", char_min, "the hyperparameter has to be at most char_max"));
        }
        if !buckets.is_power_of_two() {
            return Err(refuse("buckets", buckets, "the hyperparameter has to be a power of two"));
        }
        Ok(read)
    }
}

/// `config.json` of the architecture `hashed-text-classifier/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HashedConfig {
    #[serde(flatten)]
    pub(super) classifier: ClassifierConfig,
    pub(super) features: Features,
    pub(super) rows: usize,
    pub(super) dimension: usize,
}

impl Document for HashedConfig {
    const FORMAT: &'static str = "hybrid.hashed-text-classifier";
    const MAJOR: u32 = 1;
}

impl HashedConfig {
    /// # Errors
    /// `Corrupt` that names what makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        check_labels(&self.classifier)?;
        self.features.check()?;
        // Two kinds of n-grams, each with its buckets.
        if !(1..=MAX_DIMENSION).contains(&self.dimension) || self.rows > 2 * self.features.buckets as usize {
            return Err(Error::corrupt("check configuration", "the sizes are out of range")
                .with("rows", self.rows)
                .with("dimension", self.dimension));
        }
        Ok(())
    }

    /// Bytes of the tensors, on disk as in memory.
    pub(super) fn tensor_bytes(&self) -> u64 {
        let labels = self.classifier.labels.len();
        4 * (self.rows * (self.dimension + 2) + labels * (self.dimension + 1)) as u64
    }
}

/// A network that is ready to answer.
#[derive(Debug)]
pub(super) struct HashedModel {
    config: HashedConfig,
    vocabulary: Vocabulary,
    /// `[rows, dimension]`, on the host: an answer touches a few hundred rows.
    embeddings: Vec<f32>,
    head: Head,
    device: Device,
}

/// The linear layer: `[dimension, labels]` and `[labels]`.
#[derive(Clone, Debug)]
struct Head {
    weight: Tensor,
    bias: Tensor,
}

impl HashedModel {
    /// Puts a network together from a file's tensors.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor that does not fit the configuration.
    pub(super) fn new(config: HashedConfig, mut tensors: Tensors, device: &Device) -> Result<Self> {
        config.check()?;
        let (rows, dimension, labels) = (config.rows, config.dimension, config.classifier.labels.len());
        let keys = take_u32(&mut tensors, "keys", &[rows])?;
        let weights = take_f32(&mut tensors, "weights", &[rows])?;
        let vocabulary = Vocabulary::from_parts(config.features, keys, weights)?;
        let embeddings = take_f32(&mut tensors, "embeddings", &[rows, dimension])?;
        let weight = take_f32(&mut tensors, "head.weight", &[dimension, labels])?;
        let bias = take_f32(&mut tensors, "head.bias", &[labels])?;
        if let Some(extra) = tensors.keys().next() {
            return Err(Error::corrupt("read tensors", "the file has a tensor that the architecture does not know")
                .with("tensor", extra));
        }
        let fail = tensor_error("load classifier");
        let head = Head {
            weight: Tensor::from_vec(weight, (dimension, labels), device.tensors()).map_err(fail)?,
            bias: Tensor::from_vec(bias, labels, device.tensors()).map_err(fail)?,
        };
        Ok(Self { config, vocabulary, embeddings, head, device: device.clone() })
    }

    /// The tensors of `model.safetensors`.
    pub(super) fn tensors(&self) -> Result<Tensors> {
        let (rows, dimension, labels) = (self.config.rows, self.config.dimension, self.config.classifier.labels.len());
        let fail = tensor_error("write classifier");
        let head = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(fail);
        Ok([
            ("keys", Array::u32([rows], self.vocabulary.keys().to_vec())),
            ("weights", Array::f32([rows], self.vocabulary.weights().to_vec())),
            ("embeddings", Array::f32([rows, dimension], self.embeddings.clone())),
            ("head.weight", Array::f32([dimension, labels], head(&self.head.weight)?)),
            ("head.bias", Array::f32([labels], head(&self.head.bias)?)),
        ]
        .map(|(name, array)| (name.to_owned(), array))
        .into())
    }

    pub(super) fn config(&self) -> &HashedConfig {
        &self.config
    }

    /// The logits of each text, before the temperature.
    pub(super) fn logits(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let bags: Vec<_> = texts.iter().map(|text| self.vocabulary.bag(text)).collect();
        logits(&bags, &self.embeddings, self.config.dimension, &self.head, &self.device)
    }
}

/// The sum of a bag's rows of the `[rows, dimension]` table, each by its weight.
///
/// Done here and not by the tensor library: a text touches a few hundred of the table's rows, and the library's dense products would touch
/// all that a batch has, several times over for the gradient.
fn sum_rows(bag: &Bag, table: &[f32], dimension: usize) -> Vec<f32> {
    let mut sum = vec![0f32; dimension];
    for &(row, weight) in bag {
        let from = row as usize * dimension;
        for (sum, value) in sum.iter_mut().zip(&table[from..from + dimension]) {
            *sum += weight * value;
        }
    }
    sum
}

/// `[texts, labels]` logits of `[texts, dimension]` sums: the network, the same in training and in service.
fn forward(sums: &Tensor, head: &Head) -> candle_core::Result<Tensor> {
    sums.matmul(&head.weight)?.broadcast_add(&head.bias)
}

fn logits<'a>(
    bags: impl IntoIterator<Item = &'a Bag>,
    table: &[f32],
    dimension: usize,
    head: &Head,
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let sums: Vec<_> = bags.into_iter().flat_map(|bag| sum_rows(bag, table, dimension)).collect();
    let texts = sums.len() / dimension;
    let answer = || forward(&Tensor::from_vec(sums, (texts, dimension), device.tensors())?, head)?.to_vec2();
    answer().map_err(tensor_error("classify"))
}
