//! What is made of the rows of a text.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::Spans;

/// Which rows of a text count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pooling {
    /// The first row.
    Cls,
    /// The mean of all rows.
    Mean,
    /// The last row.
    Last,
}

impl Pooling {
    /// `[texts, hidden]` of `[tokens, hidden]`.
    pub(crate) fn of(self, rows: &Tensor, spans: &Spans) -> Result<Tensor> {
        let texts = spans.len();
        let pick = |row: fn((usize, usize)) -> usize| {
            let chosen: Vec<_> = spans.iter().map(|span| row(span) as u32).collect();
            rows.index_select(&Tensor::from_vec(chosen, texts, rows.device())?, 0)
        };
        match self {
            Self::Cls => pick(|(start, _)| start),
            Self::Last => pick(|(start, length)| start + length - 1),
            Self::Mean => {
                let mut shares = vec![0f32; texts * spans.rows()];
                for (text, (start, length)) in spans.iter().enumerate() {
                    shares[text * spans.rows() + start..][..length].fill(1.0 / length as f32);
                }
                Tensor::from_vec(shares, (texts, spans.rows()), rows.device())?.matmul(rows)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn each_way_takes_its_own_rows_of_each_text() {
        let rows = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0, 9.0, 8.0], (3, 2), &Device::Cpu).unwrap();
        let pooled = |pooling: Pooling| pooling.of(&rows, &Spans::of([2, 1])).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(pooled(Pooling::Cls), [[1.0, 2.0], [9.0, 8.0]]);
        assert_eq!(pooled(Pooling::Last), [[3.0, 4.0], [9.0, 8.0]]);
        assert_eq!(pooled(Pooling::Mean), [[2.0, 3.0], [9.0, 8.0]]);
    }
}
