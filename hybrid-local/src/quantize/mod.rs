//! Models made smaller: GGUF files in fewer bits, and what they lose by it.
//!
//! [`Quantizer`] makes a file of a folder, in one of the field's [mixes](Mix). [`Comparison`] reads a text by the file and by the folder and says how far
//! they are apart; a [`QualityBudget`] refuses a file that lost too much. [`LayerPruner`] takes out layers that change little,
//! [`WidthPruner`] heads and channels that matter little, with the same report.
//!
//! No quality of a published model is claimed here: what a model loses depends on its weights, and the tests use random ones.

mod convert;
mod gguf;
mod layout;
mod metadata;
mod mix;
mod prune;
mod report;
#[cfg(test)]
mod tests;
mod tokenizer;
mod verify;

pub use convert::{Fallback, Quantized, Quantizer};
pub(crate) use gguf::bytes_of;
pub use mix::Mix;
pub use prune::{Importances, Influences, LayerPruner, Removal, WidthPruner};
pub use report::{Comparison, QualityBudget, QualityReport};

const OPERATION: &str = "quantize model";
