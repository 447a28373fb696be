//! Models made smaller by leaving parts out: `layers` whole layers, `width` heads and channels of all layers; `folder` writes what is left.

mod folder;
mod layers;
mod width;

#[cfg(test)]
pub(super) use folder::{without_layers, without_width};
pub use layers::{Influences, LayerPruner};
pub use width::{Importances, Removal, WidthPruner};

const OPERATION: &str = "prune model";
/// The fewest tokens that say anything about a part.
const MIN_TOKENS: usize = 32;

/// Refuses a text that is too short.
fn check_length(tokens: &[u32]) -> hybrid_core::Result<()> {
    if tokens.len() >= MIN_TOKENS {
        return Ok(());
    }
    Err(hybrid_core::Error::invalid(OPERATION, "the text is too short to say anything about a model's parts")
        .with("tokens", tokens.len())
        .with("needed", MIN_TOKENS))
}
