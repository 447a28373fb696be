//! A plan's settings.

use hybrid_core::Result;

use crate::{
    encoder::{LoraConfig, Pooling, TARGETS},
    text_classifier::{optimiser::Optimiser, settings::Settings, training::Schedule},
};

/// Which parameters are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text_classifier) enum Mode {
    /// All.
    Full,
    /// Low-rank matrices and the head.
    Lora,
}

/// The settings of `bert-full` and `bert-lora`.
#[derive(Clone, Debug)]
pub(in crate::text_classifier) struct BertSettings {
    pub(in crate::text_classifier) schedule: Schedule,
    pub(super) optimiser: Optimiser,
    pub(super) dropout: f64,
    pub(super) label_smoothing: f64,
    /// By default as many as the base has positions for.
    pub(super) max_tokens: Option<usize>,
    pub(super) pooling: Pooling,
    pub(super) lora: Option<LoraConfig>,
}

impl BertSettings {
    pub(in crate::text_classifier) fn read(settings: &Settings<'_>, mode: Mode, seed: u64) -> Result<Self> {
        let (epochs, learning_rate) = match mode {
            Mode::Full => (5, 5e-5),
            Mode::Lora => (10, 1e-3),
        };
        // 0 stands for the default, which the base decides.
        let max_tokens = settings.whole("max_tokens", 0, 8..=131_072)?;
        let lora = || -> Result<_> {
            Ok(LoraConfig {
                rank: settings.whole("lora_rank", 8, 1..=256)?,
                alpha: settings.number("lora_alpha", 16.0, 1e-3..=1e4)?,
                targets: settings.some_of("lora_targets", &["query", "value"], TARGETS)?,
            })
        };
        Ok(Self {
            schedule: Schedule::read(settings, seed, epochs, 16)?,
            optimiser: Optimiser::read(settings, learning_rate)?,
            dropout: settings.number("dropout", 0.1, 0.0..=0.9)?,
            label_smoothing: settings.number("label_smoothing", 0.05, 0.0..=0.5)?,
            max_tokens: (max_tokens > 0).then_some(max_tokens),
            pooling: match settings.one_of("pooling", &["cls", "mean"])? {
                "mean" => Pooling::Mean,
                _ => Pooling::Cls,
            },
            lora: (mode == Mode::Lora).then(lora).transpose()?,
        })
    }
}
