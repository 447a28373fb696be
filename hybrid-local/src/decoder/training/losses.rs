//! What lessons are to the network, with no way back, and what each token's loss weighs in the gradient.

use candle_core::{Result as TensorResult, Tensor};

use super::{
    learner::{Learner, Measure, sequences, worn},
    lessons::Lesson,
    memory::LOGITS,
    targets::Targets,
};
use crate::{decoder::adapter::Adapter, ops::Operators};

impl Learner<'_> {
    /// The weight of each token's loss, and what the batch is to the network where that has to be known before.
    pub(super) fn weights(
        &self,
        batch: &[usize],
        targets: &Targets,
        top: &Tensor,
        count: f64,
    ) -> TensorResult<(Option<Measure>, Vec<f32>)> {
        // In preference learning the weight of a token depends on all tokens of the pair.
        if self.settings.beta.is_some() {
            let (measure, weights) = self.judge(batch, targets, &self.losses_of_top(top, &targets.tokens)?, count)?;
            return Ok((Some(measure), weights));
        }
        Ok((None, vec![(1.0 / count) as f32; targets.rows.len()]))
    }

    /// What tokens' losses are in all, and the weight of each in the gradient of the mean over `count`.
    pub(super) fn judge(
        &self,
        batch: &[usize],
        targets: &Targets,
        losses: &[f32],
        count: f64,
    ) -> TensorResult<(Measure, Vec<f32>)> {
        let Some(beta) = self.settings.beta else {
            let loss = losses.iter().map(|loss| f64::from(*loss)).sum();
            let measure = Measure { loss, count: losses.len() as f64, preferred: 0.0 };
            return Ok((measure, vec![(1.0 / count) as f32; losses.len()]));
        };
        // Rafailov and others, "Direct Preference Optimization", 2023, equation 7: minus the logarithm of the sigmoid of the margin.
        let sums = targets.sums(losses, 2 * batch.len());
        let mut of_sequences = vec![0f32; sums.len()];
        let mut measure = Measure { count: batch.len() as f64, ..Measure::default() };
        for (i, lesson) in batch.iter().enumerate() {
            let [of_better, of_worse] = self.reference(*lesson)?;
            let margin = beta * ((of_better - sums[2 * i]) - (of_worse - sums[2 * i + 1]));
            measure.loss += (-margin.abs()).exp().ln_1p() + (-margin).max(0.0);
            measure.preferred += f64::from(u8::from(margin > 0.0));
            let slope = (beta / (1.0 + margin.exp()) / count) as f32;
            (of_sequences[2 * i], of_sequences[2 * i + 1]) = (slope, -slope);
        }
        Ok((measure, targets.sequences.iter().map(|sequence| of_sequences[*sequence]).collect()))
    }

    /// What the network without the adapter makes of a pair, always by itself, so that it is the same whatever it is learnt beside.
    fn reference(&self, lesson: usize) -> TensorResult<[f64; 2]> {
        if let Some(known) = self.references.borrow().get(&lesson) {
            return Ok(*known);
        }
        let lessons = self.lessons(&[lesson]);
        let targets = Targets::of(&lessons);
        let sums = targets.sums(&self.losses(&lessons, &targets, None)?, 2);
        let sums = [sums[0], sums[1]];
        self.references.borrow_mut().insert(lesson, sums);
        Ok(sums)
    }

    /// The loss of each token to be learnt, with no way back.
    pub(super) fn losses(
        &self,
        lessons: &[&Lesson],
        targets: &Targets,
        adapter: Option<&Adapter>,
    ) -> TensorResult<Vec<f32>> {
        let sequences = sequences(lessons);
        let pass = self.network.pass(&sequences, worn(adapter, &sequences, None))?;
        let mut x = self.network.enter(&sequences)?.detach();
        for at in 0..self.config.layers() {
            x = self.network.through(at, x, &pass)?.detach();
        }
        let rows = Tensor::from_slice(&targets.rows, targets.rows.len(), x.device())?;
        self.losses_of_top(&x.index_select(&rows, 0)?, &targets.tokens)
    }

    pub(super) fn losses_of_top(&self, top: &Tensor, tokens: &[u32]) -> TensorResult<Vec<f32>> {
        let mut losses = Vec::with_capacity(tokens.len());
        for (from, length) in self.portions(tokens.len()) {
            let logits = self.network.leave(&top.narrow(0, from, length)?)?.detach();
            let weights = vec![1f32; length].into();
            let targets = tokens[from..from + length].into();
            losses.extend(Operators::of(logits.device()).cross_entropy(&logits, targets, weights)?.to_vec1::<f32>()?);
        }
        Ok(losses)
    }

    pub(super) fn portions(&self, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let portion = (LOGITS as usize / self.config.vocabulary).max(1);
        (0..rows).step_by(portion).map(move |from| (from, portion.min(rows - from)))
    }
}
