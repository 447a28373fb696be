//! What every trainer shares: a plan's settings, its base, parameters, checkpoints, the proof that gradients reach what is to learn, and candidates.

use hybrid_core::{Cancellation, Error, Result};

pub(crate) mod candidate;
pub(crate) mod checkpoint;
pub(crate) mod gradients;
pub(crate) mod parameters;
pub(crate) mod settings;

/// What `work` gives, unless the run is cancelled before.
pub(crate) async fn unless_cancelled<R>(cancel: &Cancellation, work: impl Future<Output = Result<R>>) -> Result<R> {
    let done = cancel.run_until_cancelled(work).await;
    done.unwrap_or_else(|| Err(Error::cancelled("train", "the run was cancelled")))
}
