//! The loop: steps, looks at the lessons held out, checkpoints, and the weights that are kept.

use std::time::Duration;

use hybrid_core::{Cancellation, Error, ProgressEvent, Result, TrainRun};
use serde::{Deserialize, Serialize};

use super::{
    batches::{self, Steps},
    learner::{Learner, Measure},
    settings::TrainSettings,
};
use crate::{learning::checkpoint::Checkpoint, tensors::Tensors};

const OPERATION: &str = "train";
const STAGE: &str = "train";
const BEST: &str = "best.";

/// Figures of a run, all but the time a function of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// The mean over the last epoch, or over all steps if there are fewer.
    pub(super) train_loss: f64,
    pub(super) valid: Option<Measure>,
    /// After how many steps the weights were that are kept.
    pub(super) kept_step: usize,
    pub(super) steps: usize,
    pub(super) learnt_tokens: u64,
    pub(super) seconds: f64,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    steps: usize,
    /// The loss of each step so far, and its tokens or pairs, as the bits of an `f64`.
    losses: Vec<[u64; 2]>,
    /// The best look at the lessons held out: after so many steps, with this loss, count and number preferred, as the bits of an `f64`.
    best: Option<(usize, [u64; 3])>,
    /// Looks since then.
    worse: usize,
    learnt_tokens: u64,
}

/// One run on its way.
pub(super) struct Course<'a> {
    settings: &'a TrainSettings,
    run: &'a TrainRun,
    dropped: &'a Cancellation,
    checkpoint: &'a Checkpoint,
    steps: &'a Steps,
    /// In batches.
    held_out: Vec<Vec<usize>>,
    /// How many tokens a step learns.
    tokens: &'a dyn Fn(&[Vec<usize>]) -> u64,
    /// Steps of an epoch.
    epoch: usize,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        settings: &'a TrainSettings,
        run: &'a TrainRun,
        dropped: &'a Cancellation,
        checkpoint: &'a Checkpoint,
        steps: &'a Steps,
        held_out: &[usize],
        tokens: &'a dyn Fn(&[Vec<usize>]) -> u64,
    ) -> Self {
        let held_out = batches::chunks(held_out, settings.batch_size);
        let epoch = steps.len().div_ceil(settings.epochs).max(1);
        Self { settings, run, dropped, checkpoint, steps, held_out, tokens, epoch }
    }

    /// Trains, from the checkpoint if there is one, and sets the learner to the weights that are kept.
    ///
    /// # Errors
    /// `Cancelled` soon after either flag is raised; those of the learner.
    pub(super) fn train(&self, learner: &mut Learner<'_>) -> Result<Figures> {
        let started = self.run.clock.monotonic();
        let planned = self.steps.len();
        let mut best = None;
        let mut position = Position::default();
        if let Some((saved, mut state)) = self.checkpoint.load::<Position>() {
            learner.restore(&mut state, saved.steps)?;
            best = kept(&mut state);
            position = saved;
            tracing::debug!(steps = position.steps, "training goes on from its checkpoint");
        }
        let (began, mut learnt_here) = (position.steps, 0);
        self.report(&position, None);
        while position.steps < planned && !self.is_over(&position) {
            self.check_wanted()?;
            let batches = &self.steps[position.steps];
            let learnt = learner.step(batches, position.steps, planned)?;
            let tokens = (self.tokens)(batches);
            (position.steps, position.learnt_tokens, learnt_here) =
                (position.steps + 1, position.learnt_tokens + tokens, learnt_here + tokens);
            position.losses.push([learnt.loss.to_bits(), learnt.count.to_bits()]);
            if self.looks(position.steps) {
                self.look(learner, &mut position, &mut best)?;
            }
            let passed = self.run.clock.monotonic().since(started).max(Duration::ZERO);
            self.report(&position, Some((learnt.mean(), position.steps - began, learnt_here, passed)));
            if position.steps.is_multiple_of(self.settings.checkpoint_steps) && position.steps < planned {
                self.save(learner, &position, best.as_ref())?;
            }
        }
        if let Some(best) = best {
            learner.set_values(best)?;
        }
        let mut last = Measure::default();
        for [loss, count] in position.losses.iter().rev().take(self.epoch) {
            last.add(Measure { loss: f64::from_bits(*loss), count: f64::from_bits(*count), preferred: 0.0 });
        }
        Ok(Figures {
            train_loss: last.mean(),
            valid: position.best.map(|(_, bits)| measure(bits)),
            kept_step: position.best.map_or(position.steps, |(step, _)| step),
            steps: position.steps,
            learnt_tokens: position.learnt_tokens,
            seconds: self.run.clock.monotonic().since(started).max(Duration::ZERO).as_secs_f64(),
        })
    }

    /// Whether the lessons held out are looked at after so many steps.
    fn looks(&self, steps: usize) -> bool {
        let every = if self.settings.evaluate_steps > 0 { self.settings.evaluate_steps } else { self.epoch };
        !self.held_out.is_empty() && (steps.is_multiple_of(every) || steps == self.steps.len())
    }

    fn look(&self, learner: &Learner<'_>, position: &mut Position, best: &mut Option<Tensors>) -> Result<()> {
        let mut now = Measure::default();
        for batch in &self.held_out {
            self.check_wanted()?;
            now.add(learner.measure(batch)?);
        }
        if position.best.is_none_or(|(_, bits)| now.mean() < measure(bits).mean()) {
            position.best = Some((position.steps, [now.loss, now.count, now.preferred].map(f64::to_bits)));
            position.worse = 0;
            *best = Some(learner.values()?);
        } else {
            position.worse += 1;
        }
        tracing::info!(steps = position.steps, loss = now.mean(), "validation");
        Ok(())
    }

    /// Whether validation has not become better for so long that it will hardly.
    fn is_over(&self, position: &Position) -> bool {
        self.settings.patience > 0 && position.worse >= self.settings.patience
    }

    fn save(&self, learner: &Learner<'_>, position: &Position, best: Option<&Tensors>) -> Result<()> {
        let mut state = learner.state()?;
        let best = best.into_iter().flatten();
        state.extend(best.map(|(name, array)| (format!("{BEST}{name}"), array.clone())));
        self.checkpoint.save(position, &state)
    }

    fn check_wanted(&self) -> Result<()> {
        if self.run.cancel.is_cancelled() || self.dropped.is_cancelled() {
            return Err(Error::cancelled(OPERATION, "the run was cancelled"));
        }
        Ok(())
    }

    /// Reports about a hundred times, with how fast it goes. Early stopping may leave the last steps out; they count as done at the end.
    fn report(&self, position: &Position, now: Option<(f64, usize, u64, Duration)>) {
        let (done, total) = (position.steps, self.steps.len());
        if !done.is_multiple_of((total / 100).max(1)) || done >= total {
            return;
        }
        let mut event = ProgressEvent::new(STAGE, done as u64, total as u64, "steps");
        if let Some((loss, steps, tokens, passed)) = now {
            let seconds = passed.as_secs_f64().max(1e-9);
            let left = seconds / steps as f64 * (total - done) as f64;
            let mut message = format!("loss {loss:.4}, {:.0} tok/s, {} left", tokens as f64 / seconds, readable(left));
            if let Some((_, bits)) = position.best {
                message += &format!(", validation {:.4}", measure(bits).mean());
            }
            event = event.with_message(message);
        }
        self.run.progress.report(event);
    }
}

/// The event that says that everything is done, the last one of a run of `steps` steps.
pub(super) fn finished(steps: u64) -> ProgressEvent {
    ProgressEvent::new(STAGE, steps, steps, "steps").with_message("done")
}

fn measure(bits: [u64; 3]) -> Measure {
    let [loss, count, preferred] = bits.map(f64::from_bits);
    Measure { loss, count, preferred }
}

/// The weights of the best look, out of a checkpoint.
fn kept(state: &mut Tensors) -> Option<Tensors> {
    let names: Vec<_> = state.keys().filter(|name| name.starts_with(BEST)).cloned().collect();
    let kept = names.into_iter().filter_map(|name| Some((name[BEST.len()..].to_owned(), state.remove(&name)?)));
    Some(kept.collect::<Tensors>()).filter(|kept| !kept.is_empty())
}

fn readable(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::{Array, take_f32};

    #[test]
    fn the_weights_that_are_kept_come_back_out_of_a_checkpoint() {
        let array = |value| Array::f32([1], vec![value]);
        let mut state: Tensors = [("value.a".to_owned(), array(1.0)), ("best.a".to_owned(), array(2.0))].into();
        assert_eq!(kept(&mut state).unwrap(), [("a".to_owned(), array(2.0))].into());
        assert_eq!(take_f32(&mut state, "value.a", &[1]).unwrap(), [1.0]);
        assert!(kept(&mut state).is_none());
    }

    #[test]
    fn times_are_readable() {
        assert_eq!([59.4, 61.0, 7_260.0].map(readable), ["59 s", "1 min 1 s", "2 h 1 min"]);
    }
}
