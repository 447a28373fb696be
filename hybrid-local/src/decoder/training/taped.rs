//! Passes on the processor: forward and back through one layer after another, each with a tape of its own.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use super::{
    learner::{Gradients, Learner, Measure},
    targets::Targets,
};
use crate::{
    decoder::network::{Pass, Sequences},
    ops::tape::{Buffer, Tape, Value},
};

/// What is kept of a layer.
enum Kept {
    /// Its way back, and what came out.
    Way(Tape, Value),
    /// What went in.
    Input(Arc<Buffer>),
}

impl Learner<'_> {
    /// Adds a batch's share of the gradients of the mean loss over `count` tokens or pairs.
    pub(super) fn learn_on_tape(
        &self,
        batch: &[usize],
        targets: &Targets,
        pass: &Pass<'_>,
        sequences: &Sequences,
        count: f64,
        gradients: &mut Gradients,
    ) -> TensorResult<Measure> {
        if gradients.is_empty() {
            self.slopes.borrow_mut().begin();
        }
        let hidden = self.config.hidden;
        let entered = self.network.enter(sequences)?.detach().flatten_all()?.to_vec1()?;
        let mut x = Arc::new(self.buffers.adopt(entered));
        // Where nothing below is trained, nobody asks for the gradient of what goes in.
        let embeddings = self.network.embeddings_are_trained();
        let through = |at: usize, x: Arc<Buffer>| -> TensorResult<(Tape, Value)> {
            let mut tape = Tape::new(&self.buffers);
            let input = tape.enter(x, hidden, at > 0 || embeddings);
            let output = self.network.layer_on(&mut tape, at, &input, pass)?;
            Ok((tape, output))
        };
        let mut layers = Vec::with_capacity(self.config.layers());
        for at in 0..self.config.layers() {
            let (tape, output) = through(at, Arc::clone(&x))?;
            let after = Arc::clone(output.values());
            layers.push(if self.settings.recompute { Kept::Input(x) } else { Kept::Way(tape, output) });
            x = after;
        }

        let top = rows_of(&x, &targets.rows, hidden);
        let mut gradient = self.buffers.take(x.len());
        drop(x);
        gradient.fill(0.0);
        let measure = self.descend(batch, targets, top, count, &mut gradient)?;
        let mut gradient = Arc::new(gradient);
        for at in (0..self.config.layers()).rev() {
            let (tape, output) = match layers.pop() {
                Some(Kept::Way(tape, output)) => (tape, output),
                Some(Kept::Input(input)) => through(at, input)?,
                None => break,
            };
            let below = tape.back(output, gradient, &mut self.slopes.borrow_mut())?;
            match below {
                Some(below) => gradient = below,
                None => return Ok(self.found(measure, gradients)),
            }
        }
        self.network.embed_back(sequences.tokens(), &gradient, &mut self.slopes.borrow_mut())?;
        Ok(self.found(measure, gradients))
    }

    /// The loss of rows that have come out of the last layer, whose gradients are added to those of all rows; in portions, as logits are many.
    fn descend(
        &self,
        batch: &[usize],
        targets: &Targets,
        top: Vec<f32>,
        count: f64,
        gradient: &mut [f32],
    ) -> TensorResult<Measure> {
        let hidden = self.config.hidden;
        let top = Tensor::from_vec(top, (targets.rows.len(), hidden), self.network.device())?;
        let (known, weights) = self.weights(batch, targets, &top, count)?;
        let mut loss = 0.0;
        for (from, length) in self.portions(targets.rows.len()) {
            let own = from..from + length;
            let part = self.buffers.adopt(top.narrow(0, from, length)?.flatten_all()?.to_vec1()?);
            let mut tape = Tape::new(&self.buffers);
            let part = tape.enter(Arc::new(part), hidden, true);
            let logits = self.network.leave_on(&mut tape, &part)?;
            let (targets_here, weights) = (&targets.tokens[own.clone()], &weights[own.clone()]);
            let (sum, found) = tape.descend(logits, targets_here, weights, &mut self.slopes.borrow_mut())?;
            loss += sum;
            let Some(found) = found else { candle_core::bail!("the loss does not reach the last layer") };
            for (row, found) in targets.rows[own].iter().zip(found.chunks_exact(hidden)) {
                let row = &mut gradient[*row as usize * hidden..][..hidden];
                row.iter_mut().zip(found).for_each(|(row, found)| *row += found);
            }
        }
        Ok(known.unwrap_or_else(|| Measure { loss: loss * count, count: self.count(batch), preferred: 0.0 }))
    }

    /// Names the gradients that there are.
    fn found(&self, measure: Measure, gradients: &mut Gradients) -> Measure {
        let slopes = self.slopes.borrow();
        for (name, parameter) in &self.parameters {
            if let Some(gradient) = slopes.of(parameter.value.as_tensor()) {
                gradients.insert(name.clone(), gradient.clone());
            }
        }
        self.buffers.settle();
        measure
    }
}

/// Some of the rows, one after another.
fn rows_of(values: &[f32], rows: &[u32], columns: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| &values[*row as usize * columns..][..columns]).copied().collect()
}
