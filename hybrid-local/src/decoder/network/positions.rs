//! Where a token stands, turned into its queries and keys.

use candle_core::{Device, Result, Tensor};

use crate::decoder::{config::DecoderConfig, rope::Rope};

/// How the positions of a model turn.
#[derive(Debug)]
pub(super) struct Positions {
    whole: Frequencies,
    /// Those of layers with a window, where they turn in another way.
    local: Option<Frequencies>,
}

/// What a head's pairs turn by for one position, and what sines and cosines are multiplied by.
#[derive(Debug)]
struct Frequencies {
    turns: Vec<f32>,
    amplitude: f32,
}

/// Cosines and sines of every row's position, each `[rows, 1, pairs]`.
#[derive(Debug)]
pub(super) struct Turns {
    whole: [Tensor; 2],
    local: Option<[Tensor; 2]>,
}

impl Positions {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        let frequencies = |rope: &Rope| Frequencies {
            turns: rope.frequencies(config.rotary_size / 2, config.context),
            amplitude: rope.amplitude(),
        };
        Self { whole: frequencies(&config.rope), local: config.local_rope.as_ref().map(frequencies) }
    }

    /// The turns of rows at `positions`.
    pub(super) fn turns(&self, positions: impl Iterator<Item = usize>, device: &Device) -> Result<Turns> {
        let positions: Vec<f32> = positions.map(|position| position as f32).collect();
        let turns = |frequencies: &Frequencies| frequencies.turns(&positions, device);
        Ok(Turns { whole: turns(&self.whole)?, local: self.local.as_ref().map(turns).transpose()? })
    }
}

impl Frequencies {
    /// Angles are in single precision, as the reference has them.
    fn turns(&self, positions: &[f32], device: &Device) -> Result<[Tensor; 2]> {
        let angles = positions.iter().flat_map(|position| self.turns.iter().map(move |turn| position * turn));
        let angles: Vec<f32> = angles.collect();
        let tensor = |of: fn(f32) -> f32| {
            let values = angles.iter().map(|angle| of(*angle) * self.amplitude).collect();
            Tensor::from_vec(values, (positions.len(), 1, self.turns.len()), device)
        };
        Ok([tensor(f32::cos)?, tensor(f32::sin)?])
    }
}

impl Turns {
    /// Those of a layer with this window.
    pub(super) fn of(&self, window: Option<usize>) -> &[Tensor; 2] {
        self.local.as_ref().filter(|_| window.is_some()).unwrap_or(&self.whole)
    }
}
