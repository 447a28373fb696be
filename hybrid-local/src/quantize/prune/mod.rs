//! Models made smaller by leaving parts out: `layers` whole layers, `width` heads and channels of all layers; `folder` writes what is left.

mod folder;
mod layers;
mod width;

use std::collections::BTreeSet;

use hybrid_core::{Cancellation, Error, Progress, ProgressEvent, Result};

#[cfg(test)]
pub(super) use folder::{without_layers, without_width};
pub use layers::{Influences, LayerPruner};
pub use width::{Importances, Removal, WidthPruner};

const OPERATION: &str = "prune model";
/// The fewest tokens that say anything about a part.
const MIN_TOKENS: usize = 32;

/// Measures a text in windows of `room` tokens, the last of which may be shorter, and reports progress in tokens.
///
/// # Errors
/// `InvalidInput` if it is too short; `Cancelled`; those of `measure`.
fn by_windows(
    tokens: &[u32],
    room: usize,
    stage: &'static str,
    progress: &dyn Progress,
    cancel: &Cancellation,
    mut measure: impl FnMut(&[u32]) -> Result<()>,
) -> Result<()> {
    if tokens.len() < MIN_TOKENS {
        return Err(Error::invalid(OPERATION, "the text is too short to say anything about a model's parts")
            .with("tokens", tokens.len())
            .with("needed", MIN_TOKENS));
    }
    let mut done = 0;
    for window in tokens.chunks(room.max(2)) {
        if cancel.is_cancelled() {
            return Err(Error::cancelled(OPERATION, "the measurement was cancelled"));
        }
        measure(window)?;
        done += window.len() as u64;
        progress.report(ProgressEvent::new(stage, done, tokens.len() as u64, "tokens"));
    }
    Ok(())
}

/// The places of the `count` smallest values; of equal ones the later.
fn least(values: &[f64], count: usize) -> BTreeSet<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|one, other| values[*one].total_cmp(&values[*other]).then(other.cmp(one)));
    places.into_iter().take(count).collect()
}
