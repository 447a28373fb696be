//! How far a long piece of work has come.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// Takes progress events. Reporting is cheap and never fails: a sink that cannot keep up drops events.
pub trait Progress: Debug + Send + Sync + 'static {
    /// Takes one event.
    fn report(&self, event: ProgressEvent);
}

/// How far one stage has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgressEvent {
    /// The stage, such as `train` or `upload`.
    pub stage: String,
    /// Units done.
    pub done: u64,
    /// Units in all, where known.
    pub total: Option<u64>,
    /// The unit, such as `steps` or `bytes`.
    pub unit: String,
    /// Anything worth showing beside it, such as `loss 0.41`.
    #[serde(default)]
    pub message: String,
}

impl ProgressEvent {
    /// `done` of `total` units of a stage.
    pub fn new(stage: impl Into<String>, done: u64, total: impl Into<Option<u64>>, unit: impl Into<String>) -> Self {
        Self { stage: stage.into(), done, total: total.into(), unit: unit.into(), message: String::new() }
    }

    /// The same event with a message.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

/// Drops every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _event: ProgressEvent) {}
}

impl<F: Fn(ProgressEvent) + Send + Sync + 'static> Progress for ProgressFn<F> {
    fn report(&self, event: ProgressEvent) {
        (self.0)(event);
    }
}

/// Passes every event to a function.
pub struct ProgressFn<F>(pub F);

impl<F> Debug for ProgressFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgressFn")
    }
}
