//! A plan's settings.

use hybrid_core::Result;

use crate::{
    decoder::headed::HeadLora,
    text_classifier::{optimiser::Optimiser, settings::Settings, training::Schedule},
};

/// The settings of `decoder-head-full` and `decoder-head-lora`.
#[derive(Clone, Debug)]
pub(in crate::text_classifier) struct HeadSettings {
    pub(in crate::text_classifier) schedule: Schedule,
    pub(super) optimiser: Optimiser,
    pub(super) label_smoothing: f64,
    pub(super) max_tokens: usize,
    /// Low-rank matrices; `None` where all weights are trained.
    pub(super) lora: Option<HeadLora>,
}

impl HeadSettings {
    /// The most tokens of a text that are read, if the base has as many positions.
    pub(in crate::text_classifier) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(in crate::text_classifier) fn lora(&self) -> Option<&HeadLora> {
        self.lora.as_ref()
    }

    pub(in crate::text_classifier) fn read(settings: &Settings<'_>, full: bool, seed: u64) -> Result<Self> {
        let (epochs, learning_rate) = if full { (3, 2e-5) } else { (5, 5e-4) };
        Ok(Self {
            schedule: Schedule::read(settings, seed, epochs, 8)?,
            optimiser: Optimiser::read(settings, learning_rate)?,
            label_smoothing: settings.number("label_smoothing", 0.05, 0.0..=0.5)?,
            max_tokens: settings.whole("max_tokens", 512, 8..=1 << 20)?,
            lora: (!full).then(|| HeadLora::read(settings)).transpose()?,
        })
    }
}
