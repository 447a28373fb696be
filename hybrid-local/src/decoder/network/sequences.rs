//! Whole sequences without a cache: what training reads.
//!
//! The pass is the one of serving, cut at its layers: a caller that keeps what went into a layer can go back through one layer at a time, and
//! has the memory of one layer's way back alone.

use std::{cell::RefCell, collections::BTreeMap, ops::Range};

use candle_core::{Device, Result, Tensor};

use super::{
    Network, Pass, Seen,
    attention::{Sight, Weighing, attention},
};
use crate::{
    decoder::adapter::Worn,
    ops::{Operators, Spans},
};

/// Sequences that lie one after another in the rows, none of which sees another.
#[derive(Debug)]
pub(in crate::decoder) struct Sequences {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    pub(super) spans: Spans,
    /// Made when they are asked for first, as fused operators know what a row sees; `None` where a token sees all.
    masks: RefCell<BTreeMap<LengthAndWindow, Option<Tensor>>>,
}

type LengthAndWindow = (usize, Option<usize>);

impl Sequences {
    pub(in crate::decoder) fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        for sequence in sequences.into_iter().filter(|sequence| !sequence.is_empty()) {
            tokens.extend_from_slice(sequence);
            lengths.push(sequence.len());
        }
        Self { tokens, spans: Spans::of(lengths.iter().copied()), lengths, masks: RefCell::default() }
    }

    pub(in crate::decoder) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// For each sequence its rows.
    fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        self.lengths.iter().map(move |length| {
            first += length;
            first - length..first
        })
    }

    /// The attention of each sequence over itself: queries are `[rows, heads, size]`, keys and values `[rows, key heads, size]`.
    pub(super) fn attend(
        &self,
        window: Option<usize>,
        [queries, keys, values]: [&Tensor; 3],
        weighing: Weighing,
    ) -> Result<Tensor> {
        let (rows, heads, size) = queries.dims3()?;
        let key_heads = keys.dim(1)?;
        let flat = |all: &Tensor| all.reshape((rows, all.dim(1)? * size));
        if weighing.cap.is_none() {
            let inputs = [&flat(queries)?, &flat(keys)?, &flat(values)?];
            let operators = Operators::of(queries.device());
            let fused = operators.causal_attention(inputs, &self.spans, [heads, key_heads], weighing.scale, window);
            if let Some(attended) = fused {
                return attended;
            }
        }
        let mut attended = Vec::with_capacity(self.lengths.len());
        for rows in self.rows() {
            let own = |all: &Tensor| all.narrow(0, rows.start, rows.len());
            let by_head = |all: &Tensor| own(all)?.transpose(0, 1)?.contiguous();
            let mask = self.mask(rows.len(), window, queries.device())?;
            attended.push(attention(&own(queries)?, &by_head(keys)?, &by_head(values)?, mask.as_ref(), weighing)?);
        }
        Tensor::cat(&attended, 0)
    }

    fn mask(&self, length: usize, window: Option<usize>, device: &Device) -> Result<Option<Tensor>> {
        let mut masks = self.masks.borrow_mut();
        if let Some(mask) = masks.get(&(length, window)) {
            return Ok(mask.clone());
        }
        let mask = Sight { from: 0, window }.mask(length, device)?;
        masks.insert((length, window), mask.clone());
        Ok(mask)
    }
}

impl Network {
    /// What is common to all layers of a pass over `sequences`, whose rows wear `worn`.
    pub(in crate::decoder) fn pass<'a>(&self, sequences: &'a Sequences, worn: Vec<Worn<'a>>) -> Result<Pass<'a>> {
        let positions = sequences.lengths.iter().flat_map(|length| 0..*length);
        Ok(Pass { turns: self.positions.turns(positions, &self.device)?, seen: Seen::Whole(sequences), worn })
    }

    /// What goes into the first layer, `[rows, hidden]`.
    pub(in crate::decoder) fn enter(&self, sequences: &Sequences) -> Result<Tensor> {
        self.embed(&sequences.tokens)
    }

    /// What comes out of layer `at`, `[rows, hidden]`.
    pub(in crate::decoder) fn through(&self, at: usize, x: Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match self.layers.get(at) {
            Some(layer) => self.layer(at, layer, x, pass),
            None => candle_core::bail!("the network has no layer {at}"),
        }
    }

    /// Rows that have come out of the last layer, as they leave the network, `[rows, hidden]`.
    #[cfg(feature = "classifier")]
    pub(in crate::decoder) fn normed(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// The logits of rows that have come out of the last layer, `[rows, vocabulary]`.
    pub(in crate::decoder) fn leave(&self, x: &Tensor) -> Result<Tensor> {
        self.scores(x)
    }
}
