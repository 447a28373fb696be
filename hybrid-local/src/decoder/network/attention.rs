//! Attention of one sequence's new tokens over all that it has, of the tensor library's operators.

use candle_core::{D, Device, Result, Tensor};

/// Which tokens a row sees: its own and those before it, at most `window` of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The position of the first row.
    pub(super) from: usize,
    pub(super) window: Option<usize>,
}

impl Sight {
    /// The first position that any of the rows sees.
    pub(super) fn first(self) -> usize {
        self.window.map_or(0, |window| (self.from + 1).saturating_sub(window))
    }

    /// What is added to the scores of `rows` rows over all tokens from [`first`](Self::first) on; `None` if all see all.
    pub(super) fn mask(self, rows: usize, device: &Device) -> Result<Option<Tensor>> {
        if rows <= 1 {
            return Ok(None);
        }
        let (first, columns) = (self.first(), self.from + rows - self.first());
        let hidden = |row: usize, column: usize| {
            let (row, column) = (self.from + row, first + column);
            column > row || self.window.is_some_and(|window| row - column >= window)
        };
        let cell = |i: usize| if hidden(i / columns, i % columns) { f32::NEG_INFINITY } else { 0.0 };
        Tensor::from_vec((0..rows * columns).map(cell).collect(), (rows, columns), device).map(Some)
    }
}

/// How a query's product with a key becomes the key's score.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighing {
    /// What the product is multiplied by.
    pub(super) scale: f64,
    /// What no score is larger than.
    pub(super) cap: Option<f64>,
}

/// Queries `[rows, heads, size]` over keys and values `[key heads, tokens, size]`: `[rows, heads * size]`. The mask is `[rows, tokens]`.
pub(super) fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
    Weighing { scale, cap }: Weighing,
) -> Result<Tensor> {
    let (rows, heads, size) = queries.dims3()?;
    let (key_heads, tokens, _) = keys.dims3()?;
    let group = heads / key_heads;
    // Query heads that share a key head lie under each other, so that no keys need be repeated.
    let queries = (queries.reshape((rows, key_heads, group, size))? * scale)?;
    let queries = queries.permute((1, 2, 0, 3))?.contiguous()?.reshape((key_heads, group * rows, size))?;
    let mut scores = queries.matmul(&keys.t()?)?;
    if let Some(cap) = cap {
        scores = capped(&scores, cap)?;
    }
    if let Some(mask) = mask {
        let by_group = scores.reshape((key_heads, group, rows, tokens))?.broadcast_add(mask)?;
        scores = by_group.reshape((key_heads, group * rows, tokens))?;
    }
    let scores = softmax(&scores)?;
    let attended = scores.matmul(values)?.reshape((key_heads, group, rows, size))?;
    attended.permute((2, 0, 1, 3))?.contiguous()?.reshape((rows, heads * size))
}

/// `cap * tanh(x / cap)`.
pub(super) fn capped(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x / cap)?.tanh()? * cap
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sees_itself_and_what_is_before_it_within_its_window() {
        let seen = |from, window, rows| {
            let mask = Sight { from, window }.mask(rows, &Device::Cpu).unwrap();
            mask.map(|mask| {
                let rows = mask.to_vec2::<f32>().unwrap();
                rows.iter()
                    .map(|row| row.iter().map(|cell| if *cell == 0.0 { 'x' } else { '.' }).collect::<String>())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(seen(0, None, 3).unwrap(), ["x..", "xx.", "xxx"]);
        assert_eq!(seen(2, None, 2).unwrap(), ["xxx.", "xxxx"]);
        assert_eq!(seen(0, Some(2), 3).unwrap(), ["x..", "xx.", ".xx"]);
        // Of position 5 on, with two tokens in sight, nothing before position 4 is looked at.
        assert_eq!(seen(5, Some(2), 2).unwrap(), ["xx.", ".xx"]);
        assert_eq!(Sight { from: 5, window: Some(2) }.first(), 4);
        assert!(seen(7, None, 1).is_none());
    }
}
