//! Which rows of a batch say which tokens that are to be learnt.

use super::lessons::Lesson;

/// Tokens to be learnt: the row that says each, the token, and the sequence that it is of.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub(super) rows: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    pub(super) sequences: Vec<usize>,
}

impl Targets {
    pub(super) fn of(batch: &[&Lesson]) -> Self {
        let mut targets = Self::default();
        let mut first = 0;
        for (number, sequence) in batch.iter().flat_map(|lesson| &lesson.sequences).enumerate() {
            for (i, learnt) in sequence.learnt.iter().enumerate().skip(1) {
                if *learnt {
                    targets.rows.push((first + i - 1) as u32);
                    targets.tokens.push(sequence.tokens[i]);
                    targets.sequences.push(number);
                }
            }
            first += sequence.tokens.len();
        }
        targets
    }

    /// The sum of each sequence's values.
    pub(super) fn sums(&self, values: &[f32], sequences: usize) -> Vec<f64> {
        let mut sums = vec![0f64; sequences];
        for (value, sequence) in values.iter().zip(&self.sequences) {
            sums[*sequence] += f64::from(*value);
        }
        sums
    }
}
