//! Training of decoders: the same network that serves, with a way back.
//!
//! [`DecoderTrainer`] is the port. The parts, in the order of a run: `settings` reads a plan, `lessons` writes judgments as the model reads
//! them, `batches` puts them in order, `memory` estimates, `learner` has the parameters and takes the steps, on the
//! processor by `taped`, `course` is the loop with
//! validation and checkpoints. `jsonl` makes judgments of files that other trainers read.

mod base;
mod batches;
mod course;
#[cfg(test)]
mod footprint;
mod jsonl;
mod learner;
mod lessons;
mod losses;
mod memory;
mod settings;
mod taped;
mod targets;
#[cfg(test)]
mod tests;
mod trainer;

pub(super) use base::{Trainable, digests};
pub use jsonl::judgments_from_jsonl;
pub(super) use memory::activation_bytes;
pub use trainer::DecoderTrainer;
#[cfg(feature = "classifier")]
pub(super) use {
    base::files_of as base_files,
    learner::{Learner, initial},
};
