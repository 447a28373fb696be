//! What an adapter is, beside its numbers.

use super::Module;

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
    /// What the product of the matrices is multiplied by.
    pub(in crate::decoder) fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}
