//! The training loop that all methods share.
//!
//! # Course
//! The run has phases. First one model for each fold is trained without that fold's texts, and after each epoch says what it makes of them.
//! From these answers to unseen texts come the number of epochs (early stopping: the one with the least calibrated loss), the temperature
//! and the calibration figures. The last phase trains the model that is kept, on all texts, for that many epochs. With 120 texts a held-out
//! tenth would be a dozen: cross-fitting measures on all of them and keeps none from the final model.
//!
//! All randomness depends on seed, phase and epoch or step alone, so a run that goes on from a checkpoint ends as if it had never stopped.

use std::time::Duration;

use hybrid_core::{Cancellation, Error, ProgressEvent, Result, TrainRun};
use serde::{Deserialize, Serialize};

use super::{
    calibration::Unseen,
    checkpoint::Checkpoint,
    examples::Examples,
    settings::Settings,
    tensors::{Array, Tensors, take_f32},
};
use crate::random::Random;

const OPERATION: &str = "train";
const STAGE: &str = "train";
const ANSWERS: &str = "answers";
/// Unseen texts that a learner is asked about between two looks at whether the run is still wanted.
const ASKED: usize = 128;

/// Makes learners.
pub(super) trait Method {
    type Learner: Learner;

    /// A fresh learner for the texts named by `members`, the same each time for the same phase.
    fn begin(&self, phase: usize, members: &[usize]) -> Result<Self::Learner>;
}

/// A model on its way.
pub(super) trait Learner {
    /// Learns from a batch of texts and answers with the mean loss before the step.
    fn step(&mut self, batch: &[usize], at: StepAt) -> Result<f64>;
    /// The logits of texts, learnt from or not.
    fn logits(&self, texts: &[usize]) -> Result<Vec<Vec<f32>>>;
    /// All that [`restore`](Self::restore) needs to go on in a fresh learner of the same phase.
    fn state(&self) -> Result<Tensors>;
    fn restore(&mut self, state: Tensors) -> Result<()>;
}

/// Which step of a phase is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepAt {
    pub(super) phase: usize,
    pub(super) step: usize,
    /// Steps that the phase would have with all epochs: what schedules of the learning rate go by.
    pub(super) planned: usize,
}

impl StepAt {
    /// The share of the phase that is still to come, from 1 down to 0.
    pub(super) fn remaining(self) -> f64 {
        1.0 - self.step as f64 / self.planned.max(1) as f64
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The phase: the folds first, then the final model.
    pub(super) phase: usize,
    /// Steps done in this phase.
    pub(super) step: usize,
    /// The sum of this epoch's losses so far, as the bits of an `f64`.
    pub(super) loss_bits: u64,
    /// The mean loss of the last whole epoch, as the bits of an `f64`.
    pub(super) epoch_loss_bits: u64,
}

/// How long and in what portions to train.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    /// Models that are trained for validation: 1 holds out [`hold_out`](Self::hold_out) of the texts once.
    pub(super) folds: usize,
    pub(super) hold_out: f64,
    /// At most so many epochs.
    pub(super) epochs: usize,
    pub(super) batch_size: usize,
    pub(super) checkpoint_steps: usize,
}

impl Schedule {
    /// Reads what a plan of fine-tuning says of it.
    pub(super) fn read(settings: &Settings<'_>, seed: u64, epochs: usize, batch_size: usize) -> Result<Self> {
        Ok(Self {
            seed,
            folds: settings.whole("folds", 1, 1..=20)?,
            hold_out: settings.number("hold_out", 0.15, 0.05..=0.5)?,
            epochs: settings.whole("epochs", epochs, 1..=1_000)?,
            batch_size: settings.whole("batch_size", batch_size, 1..=1_024)?,
            checkpoint_steps: settings.whole("checkpoint_steps", 250, 1..=1_000_000)?,
        })
    }
}

/// A trained model with what is known of it.
#[derive(Debug)]
pub(super) struct Trained<L> {
    pub(super) learner: L,
    pub(super) temperature: f64,
    pub(super) figures: Figures,
    /// Steps of the whole run, as progress counts them.
    pub(super) steps: u64,
}

/// Figures of a run, all but the time a function of the plan.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) ece: f64,
    pub(super) ece_uncalibrated: f64,
    pub(super) valid_accuracy: f64,
    pub(super) valid_loss: f64,
    pub(super) train_loss: f64,
    pub(super) epochs: usize,
    pub(super) steps: usize,
    pub(super) seconds: f64,
}

/// Trains a model, from the checkpoint if there is one.
///
/// # Errors
/// `Cancelled` soon after either flag is raised; `InvalidInput` that names the step if the loss is not finite.
pub(super) fn train<M: Method>(
    method: &M,
    examples: &Examples,
    schedule: &Schedule,
    checkpoint: &Checkpoint,
    run: &TrainRun,
    dropped: &Cancellation,
) -> Result<Trained<M::Learner>> {
    let started = run.clock.monotonic();
    let mut course = Course::new(examples, *schedule, checkpoint, run, dropped);
    let (mut position, mut restored) = course.resume()?;
    course.report(position);
    loop {
        let members = course.members(position.phase);
        let mut learner = method.begin(position.phase, &members)?;
        if let Some(state) = restored.take() {
            learner.restore(state)?;
        }
        let epochs = if position.phase < course.folds() { schedule.epochs } else { course.best_epochs() };
        course.phase(&mut learner, &mut position, &members, epochs)?;
        if position.phase < course.folds() {
            position = Position { phase: position.phase + 1, ..Position::default() };
            continue;
        }
        let mut figures = course.figures(epochs);
        let temperature = course.unseen(epochs - 1).best_temperature();
        figures.train_loss = f64::from_bits(position.epoch_loss_bits);
        figures.steps = position.step;
        figures.seconds = run.clock.monotonic().since(started).max(Duration::ZERO).as_secs_f64();
        return Ok(Trained { learner, temperature, figures, steps: course.steps() as u64 });
    }
}

/// One run on its way.
struct Course<'a> {
    examples: &'a Examples,
    schedule: Schedule,
    checkpoint: &'a Checkpoint,
    run: &'a TrainRun,
    dropped: &'a Cancellation,
    /// The texts that each fold's model does not see.
    parts: Vec<Vec<usize>>,
    /// What the folds' models said of them: `[epochs, unseen texts, labels]`, the texts in the order of the parts.
    answers: Vec<f32>,
}

impl<'a> Course<'a> {
    fn new(
        examples: &'a Examples,
        schedule: Schedule,
        checkpoint: &'a Checkpoint,
        run: &'a TrainRun,
        dropped: &'a Cancellation,
    ) -> Self {
        let wanted = if schedule.folds > 1 { schedule.folds } else { (1.0 / schedule.hold_out).round() as usize };
        let mut parts = examples.stratified(wanted.clamp(2, examples.len().max(2)), schedule.seed);
        if schedule.folds == 1 {
            parts.truncate(1);
        }
        let mut course = Self { examples, schedule, checkpoint, run, dropped, parts, answers: Vec::new() };
        course.answers = vec![0.0; schedule.epochs * course.unseen_count() * examples.labels.len()];
        course
    }

    fn resume(&mut self) -> Result<(Position, Option<Tensors>)> {
        let Some((position, mut state)) = self.checkpoint.load::<Position>() else { return Ok(Default::default()) };
        self.answers = take_f32(&mut state, ANSWERS, &self.answers_shape())?;
        tracing::debug!(phase = position.phase, step = position.step, "training goes on from its checkpoint");
        Ok((position, Some(state)))
    }

    fn phase<L: Learner>(
        &mut self,
        learner: &mut L,
        position: &mut Position,
        members: &[usize],
        epochs: usize,
    ) -> Result<()> {
        let per_epoch = self.steps_per_epoch(members.len());
        let planned = per_epoch * self.schedule.epochs;
        let (mut order, mut ordered_for) = (Vec::new(), None);
        while position.step < per_epoch * epochs {
            self.check_wanted()?;
            let (epoch, batch) = (position.step / per_epoch, position.step % per_epoch);
            if ordered_for != Some(epoch) {
                order = members.to_vec();
                Random::of(self.schedule.seed, "order", [position.phase as u64, epoch as u64]).shuffle(&mut order);
                ordered_for = Some(epoch);
            }
            let from = batch * self.schedule.batch_size;
            let batch = &order[from..order.len().min(from + self.schedule.batch_size)];
            let loss = learner.step(batch, StepAt { phase: position.phase, step: position.step, planned })?;
            if !loss.is_finite() {
                return Err(Error::invalid(
                    OPERATION,
                    "the loss is not finite; lower the hyperparameter learning_rate",
                )
                .with("phase", position.phase)
                .with("step", position.step)
                .with("loss", loss));
            }
            position.step += 1;
            let sum = f64::from_bits(position.loss_bits) + loss * batch.len() as f64;
            position.loss_bits = sum.to_bits();
            if position.step.is_multiple_of(per_epoch) {
                position.epoch_loss_bits = (sum / members.len() as f64).to_bits();
                position.loss_bits = 0.0f64.to_bits();
                self.ask(learner, position.phase, epoch)?;
            }
            self.report(*position);
            if position.step.is_multiple_of(self.schedule.checkpoint_steps) {
                let mut state = learner.state()?;
                state.insert(ANSWERS.to_owned(), Array::f32(self.answers_shape(), self.answers.clone()));
                self.checkpoint.save(*position, &state)?;
            }
        }
        Ok(())
    }

    /// Writes down what a fold's model makes of the fold after an epoch.
    fn ask(&mut self, learner: &impl Learner, phase: usize, epoch: usize) -> Result<()> {
        let Some(part) = self.parts.get(phase) else { return Ok(()) };
        let before: usize = self.parts[..phase].iter().map(Vec::len).sum();
        let labels = self.examples.labels.len();
        let from = (epoch * self.unseen_count() + before) * labels;
        let mut logits = Vec::new();
        for texts in part.chunks(ASKED) {
            self.check_wanted()?;
            logits.extend(learner.logits(texts)?.concat());
        }
        self.answers[from..from + logits.len()].copy_from_slice(&logits);
        Ok(())
    }

    /// The number of epochs after which the unseen texts' calibrated loss was least.
    fn best_epochs(&self) -> usize {
        let loss = |epoch: usize| {
            let unseen = self.unseen(epoch);
            unseen.loss(unseen.best_temperature())
        };
        let losses = (0..self.schedule.epochs).map(loss);
        losses.enumerate().min_by(|(i, a), (j, b)| a.total_cmp(b).then(i.cmp(j))).map_or(1, |(epoch, _)| epoch + 1)
    }

    fn unseen(&self, epoch: usize) -> Unseen {
        let labels = self.examples.labels.len();
        let from = epoch * self.unseen_count() * labels;
        let answers = &self.answers[from..from + self.unseen_count() * labels];
        Unseen {
            logits: answers.chunks_exact(labels).map(<[f32]>::to_vec).collect(),
            labels: self.parts.iter().flatten().map(|&text| self.examples.targets[text]).collect(),
        }
    }

    fn figures(&self, epochs: usize) -> Figures {
        let unseen = self.unseen(epochs - 1);
        let temperature = unseen.best_temperature();
        Figures {
            ece: unseen.ece(temperature),
            ece_uncalibrated: unseen.ece(1.0),
            valid_accuracy: unseen.accuracy(),
            valid_loss: unseen.loss(temperature),
            epochs,
            ..Figures::default()
        }
    }

    /// The texts that the phase's model learns from.
    fn members(&self, phase: usize) -> Vec<usize> {
        let hidden = self.parts.get(phase).map_or(&[][..], Vec::as_slice);
        (0..self.examples.len()).filter(|text| hidden.binary_search(text).is_err()).collect()
    }

    fn check_wanted(&self) -> Result<()> {
        if self.run.cancel.is_cancelled() || self.dropped.is_cancelled() {
            return Err(Error::cancelled(OPERATION, "the run was cancelled"));
        }
        Ok(())
    }

    /// Reports about a hundred times. Early stopping may leave the last steps out; they count as done at the end.
    fn report(&self, position: Position) {
        let total = self.steps();
        let done = (0..position.phase).map(|phase| self.planned(phase)).sum::<usize>() + position.step;
        if done.is_multiple_of((total / 100).max(1)) && done < total {
            let doing = if position.phase < self.folds() { "validating" } else { "final model" };
            let event = ProgressEvent::new(STAGE, done as u64, total as u64, "steps");
            self.run.progress.report(event.with_message(format!(
                "{doing}, model {} of {}",
                position.phase + 1,
                self.folds() + 1
            )));
        }
    }

    fn steps(&self) -> usize {
        (0..=self.folds()).map(|phase| self.planned(phase)).sum()
    }

    fn planned(&self, phase: usize) -> usize {
        let members = self.examples.len() - self.parts.get(phase).map_or(0, Vec::len);
        self.steps_per_epoch(members) * self.schedule.epochs
    }

    fn folds(&self) -> usize {
        self.parts.len()
    }

    fn steps_per_epoch(&self, members: usize) -> usize {
        members.div_ceil(self.schedule.batch_size)
    }

    fn unseen_count(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }

    fn answers_shape(&self) -> [usize; 3] {
        [self.schedule.epochs, self.unseen_count(), self.examples.labels.len()]
    }
}

/// The event that says that everything is done, the last one of a run of `steps` steps.
pub(super) fn finished(steps: u64) -> ProgressEvent {
    ProgressEvent::new(STAGE, steps, steps, "steps").with_message("done")
}
