//! Attention of a sequence's new rows over keys and values in a cache, for the processor: no copies of them, no tensor of all scores.
//!
//! Dao and others, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022: keys are taken a tile at a time, and
//! sums are scaled as larger scores come. A few rows are read through at once, as all that counts is then to read the cache once.

mod few;
mod many;
mod put;
#[cfg(test)]
mod tests;

use candle_core::{DType, Layout, Result, Storage, StorageRef, Tensor, WithDType};
use half::f16;
use rayon::prelude::*;

use self::{few::Few, many::Many};
use super::{
    fused::{cpu_slice, tensor},
    kernels::exp,
    simd::{LANES, Simd, dispatch},
};

pub(crate) use put::put_rows;

/// From how many rows on tiles are worked on.
const MANY: usize = 4;
/// Rows of queries, of all heads that share keys, that are worked on together.
const QUERIES: usize = 64;
/// Products of numbers below which sharing out costs more than it gains.
const SMALL: usize = 1 << 15;

/// How a sequence's rows see its tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedAttention {
    /// How many tokens, its own included, a row sees.
    pub(crate) window: Option<usize>,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// What no score is larger than.
    pub(crate) cap: Option<f32>,
}

/// A sequence that has new rows.
#[derive(Debug)]
pub(crate) struct CachedSequence {
    /// How many; their own tokens are the last ones.
    pub(crate) rows: usize,
    /// Keys and values `[key heads, tokens, size]` in single or half precision, of which the heads may lie apart.
    pub(crate) tokens: [Tensor; 2],
}

impl CachedAttention {
    /// Queries `[rows, heads, size]`, the sequences' rows one after another, over their keys and values: `[rows, heads · size]`.
    pub(crate) fn attend(self, queries: &Tensor, sequences: &[CachedSequence]) -> Result<Tensor> {
        match sequences.first().map(|sequence| sequence.tokens[0].dtype()) {
            Some(DType::F16) => self.attend_as::<f16>(queries, sequences),
            _ => self.attend_as::<f32>(queries, sequences),
        }
    }

    fn attend_as<N: Number>(self, queries: &Tensor, sequences: &[CachedSequence]) -> Result<Tensor> {
        let (rows, heads, size) = queries.dims3()?;
        let queries = queries.contiguous()?;
        let read = queries.storage_and_layout();
        let mut queries = cpu_slice(&read)?;
        let tokens: Vec<_> =
            sequences.iter().map(|sequence| sequence.tokens.each_ref().map(Tensor::storage_and_layout)).collect();
        if sequences.iter().map(|sequence| sequence.rows).sum::<usize>() != rows {
            candle_core::bail!("{rows} rows of queries are not those of the sequences");
        }
        let width = heads * size;
        let mut out = vec![0f32; rows * width];
        let (mut rest, mut tasks, mut work) = (&mut out[..], Vec::new(), 0);
        for (sequence, [keys, values]) in sequences.iter().zip(&tokens) {
            let rows = sequence.rows;
            let (keys, values) = (Heads::<N>::of(keys)?, Heads::<N>::of(values)?);
            let fits = keys.shape == values.shape && keys.size() == size && rows <= keys.tokens();
            if !fits || keys.count() == 0 || heads % keys.count() != 0 {
                candle_core::bail!(
                    "{rows} rows of {heads} heads of {size} do not fit keys {:?} and values {:?}",
                    keys.shape,
                    values.shape
                );
            }
            let (own, others) = queries.split_at(rows * width);
            let inputs =
                Inputs { attention: self, from: keys.tokens() - rows, queries: own, keys, values, heads, size };
            queries = others;
            let (out, others) = std::mem::take(&mut rest).split_at_mut(rows * width);
            rest = others;
            work += out.len() * keys.tokens();
            let group = heads / keys.count();
            if rows >= MANY && size.is_multiple_of(LANES) {
                let together = (QUERIES / group).max(1);
                let shares = out.chunks_mut(together * width).enumerate();
                tasks.extend(shares.map(|(share, out)| Task::Many(Many { inputs, first: share * together, out })));
            } else {
                let (units, count) = (out.chunks_mut(group * size).enumerate(), keys.count());
                tasks.extend(
                    units.map(|(unit, out)| Task::Few(Few { inputs, row: unit / count, head: unit % count, out })),
                );
            }
        }
        if work <= SMALL {
            tasks.into_iter().for_each(Task::run);
        } else {
            tasks.into_par_iter().for_each(Task::run);
        }
        tensor(out, &[rows, width])
    }
}

/// A number of a cache.
trait Number: WithDType {
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::Floats;
    fn widen(self) -> f32;
    /// The numbers as floats, which may need `room`.
    fn floats<'a, S: Simd>(simd: S, numbers: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32];
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::Floats {
        simd.load(numbers)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn floats<'a, S: Simd>(_: S, numbers: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        numbers
    }
}

impl Number for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::Floats {
        let mut bytes = [0; 2 * LANES];
        for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        simd.halves(&bytes)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn floats<'a, S: Simd>(simd: S, numbers: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32] {
        let (numbers, _) = numbers.as_chunks();
        room.resize(numbers.len() * LANES, 0.0);
        for (room, numbers) in room.as_chunks_mut().0.iter_mut().zip(numbers) {
            *room = simd.store(Self::load(simd, numbers));
        }
        room
    }
}

/// What all units of a sequence's work share.
#[derive(Clone, Copy)]
struct Inputs<'a, N> {
    attention: CachedAttention,
    /// The number of the first row's own token.
    from: usize,
    queries: &'a [f32],
    keys: Heads<'a, N>,
    values: Heads<'a, N>,
    heads: usize,
    size: usize,
}

/// Keys or values.
#[derive(Clone, Copy)]
struct Heads<'a, N> {
    numbers: &'a [N],
    /// From one head to the next.
    stride: usize,
    /// `[heads, tokens, size]`.
    shape: [usize; 3],
}

impl<N> Inputs<'_, N> {
    /// The tokens that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.from + row + 1;
        self.attention.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

impl<'a, N: Number> Heads<'a, N> {
    fn of((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<Self> {
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("the operator works on the processor alone");
        };
        let (count, tokens, size) = layout.shape().dims3()?;
        match layout.stride() {
            [stride, row, 1] if *row == size => {
                let (from, stride) = (layout.start_offset(), *stride);
                let length = (count.max(1) - 1) * stride + tokens * size;
                let numbers = &storage.as_slice::<N>()?[from..from + length];
                Ok(Self { numbers, stride, shape: [count, tokens, size] })
            }
            _ => candle_core::bail!("the tokens of a head have to lie one after another, not as {layout:?}"),
        }
    }
}

impl<'a, N> Heads<'a, N> {
    #[inline(always)]
    fn head(self, head: usize) -> &'a [N]
    where
        N: Copy,
    {
        &self.numbers[head * self.stride..]
    }

    #[inline(always)]
    fn count(&self) -> usize {
        self.shape[0]
    }

    fn tokens(&self) -> usize {
        self.shape[1]
    }

    fn size(&self) -> usize {
        self.shape[2]
    }
}

enum Task<'a, N> {
    Few(Few<'a, N>),
    Many(Many<'a, N>),
}

impl<N: Number> Task<'_, N> {
    fn run(self) {
        match self {
            Self::Few(few) => dispatch(few),
            Self::Many(many) => dispatch(many),
        }
    }
}

impl CachedAttention {
    #[inline(always)]
    fn score(self, product: f32) -> f32 {
        match self.cap {
            // The hyperbolic tangent.
            Some(cap) => cap * (1.0 - 2.0 / (exp(2.0 * product / cap) + 1.0)),
            None => product,
        }
    }
}
