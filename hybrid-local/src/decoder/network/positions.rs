//! Where a token stands, turned into its queries and keys.

use candle_core::{Device, Result, Tensor};

use crate::decoder::{
    config::DecoderConfig,
    rope::{Frequencies, Rope},
};

/// How the positions of a model turn.
#[derive(Debug)]
pub(super) struct Positions {
    whole: Frequencies,
    /// Those of layers with a window, where they turn in another way.
    local: Option<Frequencies>,
}

/// Cosines and sines of every row's position, each `[rows, 1, pairs]`.
#[derive(Debug)]
pub(super) struct Turns {
    whole: [Tensor; 2],
    local: Option<[Tensor; 2]>,
}

impl Positions {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        let frequencies = |rope: &Rope| Frequencies::of(rope, config.rotary_size / 2, config.context);
        Self { whole: frequencies(&config.rope), local: config.local_rope.as_ref().map(frequencies) }
    }

    /// The turns of rows at `positions`.
    pub(super) fn turns(&self, positions: impl Iterator<Item = usize>, device: &Device) -> Result<Turns> {
        let positions: Vec<f32> = positions.map(|position| position as f32).collect();
        let turns = |frequencies: &Frequencies| frequencies.turns(&positions, device);
        Ok(Turns { whole: turns(&self.whole)?, local: self.local.as_ref().map(turns).transpose()? })
    }
}

impl Turns {
    /// Those of a layer with this window.
    pub(super) fn of(&self, window: Option<usize>) -> &[Tensor; 2] {
        self.local.as_ref().filter(|_| window.is_some()).unwrap_or(&self.whole)
    }
}
