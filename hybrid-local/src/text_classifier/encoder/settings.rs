//! A plan's settings.

use hybrid_core::Result;

use crate::{
    encoder::{LoraConfig, Pooling, TARGETS},
    text_classifier::{settings::Settings, training::Schedule},
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
    pub(super) learning_rate: f64,
    pub(super) head_learning_rate: f64,
    pub(super) weight_decay: f64,
    pub(super) warm_up: f64,
    pub(super) clip_norm: f64,
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
            schedule: Schedule {
                seed,
                folds: settings.whole("folds", 1, 1..=20)?,
                hold_out: settings.number("hold_out", 0.15, 0.05..=0.5)?,
                epochs: settings.whole("epochs", epochs, 1..=1_000)?,
                batch_size: settings.whole("batch_size", 16, 1..=1_024)?,
                checkpoint_steps: settings.whole("checkpoint_steps", 250, 1..=1_000_000)?,
            },
            learning_rate: settings.number("learning_rate", learning_rate, 1e-8..=1.0)?,
            head_learning_rate: settings.number("head_learning_rate", 1e-3, 1e-8..=1.0)?,
            weight_decay: settings.number("weight_decay", 0.01, 0.0..=1.0)?,
            warm_up: settings.number("warm_up", 0.1, 0.0..=0.9)?,
            clip_norm: settings.number("clip_norm", 1.0, 1e-3..=1e6)?,
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

    /// The learning rate's share at a step: rising to one over the warm-up, then falling to zero, both in a line.
    pub(super) fn rate_share(&self, step: usize, planned: usize) -> f64 {
        let warm_up = (self.warm_up * planned as f64).ceil();
        let step = step as f64;
        if step < warm_up { (step + 1.0) / warm_up } else { (planned as f64 - step) / (planned as f64 - warm_up) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_in_a_line() {
        let values = [("warm_up".to_owned(), json!(0.2))].into();
        let settings = BertSettings::read(&Settings::new(&values), Mode::Full, 1).unwrap();
        let shares: Vec<_> = (0..10).map(|step| settings.rate_share(step, 10)).collect();
        assert_eq!(shares[..3], [0.5, 1.0, 1.0]);
        assert!((shares[9] - 0.125).abs() < 1e-12 && shares[2..].is_sorted_by(|a, b| a > b));
        let none = [("warm_up".to_owned(), json!(0))].into();
        assert_eq!(BertSettings::read(&Settings::new(&none), Mode::Full, 1).unwrap().rate_share(0, 10), 1.0);
    }
}
