//! What every trainer shares: a plan's settings, checkpoints, and the proof that gradients reach what is to learn.

pub(crate) mod checkpoint;
pub(crate) mod gradients;
pub(crate) mod settings;
