//! What an adapter is, beside its numbers.

use hybrid_core::Result;

use super::Module;
use crate::learning::settings::Settings;

/// The names of [`Module::ALL`].
const MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::decoder) struct LoraConfig {
    pub(in crate::decoder) rank: usize,
    /// The matrices' product counts [`scale`](Self::scale) times.
    pub(in crate::decoder) alpha: f64,
    /// Whether the scale falls with the root of the rank: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.
    pub(in crate::decoder) rank_stabilized: bool,
    /// The share of a layer's input that a training step leaves out.
    pub(in crate::decoder) dropout: f64,
    /// In order, each once.
    pub(in crate::decoder) modules: Vec<Module>,
}

impl LoraConfig {
    /// Reads what a plan says of the matrices.
    ///
    /// # Errors
    /// `InvalidInput` that names the hyperparameter.
    pub(in crate::decoder) fn read(settings: &Settings<'_>) -> Result<Self> {
        let names = settings.some_of("lora_targets", &MODULES, &MODULES)?;
        Ok(Self {
            rank: settings.whole("lora_rank", 8, 1..=1_024)?,
            alpha: settings.number("lora_alpha", 16.0, 1e-3..=1e5)?,
            rank_stabilized: settings.flag("lora_rank_stabilized", false)?,
            dropout: settings.number("lora_dropout", 0.0, 0.0..=0.9)?,
            modules: Module::ALL.into_iter().filter(|module| names.iter().any(|name| name == module.name())).collect(),
        })
    }

    /// What the product of the matrices is multiplied by.
    pub(in crate::decoder) fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_are_those_that_adapters_have() {
        assert_eq!(Module::ALL.map(Module::name), MODULES);
    }
}
