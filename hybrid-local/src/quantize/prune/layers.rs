//! Whole layers.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use hybrid_core::{Cancellation, Progress, Result};
use serde::{Deserialize, Serialize};

use super::{OPERATION, by_windows, folder::without_layers, least};
use crate::{Device, blocking::blocking, decoder::reading::Reading};

/// Takes layers out of a model: those that change least of what passes through them.
///
/// How much a layer matters is how far its output turns from its input: one minus their cosine, averaged over the tokens of a text (the "block
/// influence" of Men and others, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024). What a model
/// loses by it shows in a [`Comparison`](crate::quantize::Comparison) with the whole one, and most of it comes back by training what is left.
///
/// ```no_run
/// # async fn prune() -> hybrid_core::Result<()> {
/// use std::sync::Arc;
/// use hybrid_core::{Cancellation, NoProgress};
/// use hybrid_local::{Device, quantize::LayerPruner};
///
/// let pruner = LayerPruner::new(Device::cpu());
/// let text = "what such a model reads all day";
/// let influences = pruner.measure("models/bakery".as_ref(), text, Arc::new(NoProgress), Cancellation::new()).await?;
/// pruner.remove("models/bakery".as_ref(), "models/bakery-small".as_ref(), influences.least(4)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LayerPruner {
    device: Device,
    context: usize,
    memory_limit: Option<u64>,
}

/// How much each layer of a model changes of what passes through it, from 0 for nothing, by the layers' numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Influences(pub Vec<f64>);

impl Influences {
    /// The `count` layers that change least; of equal ones the later.
    pub fn least(&self, count: usize) -> BTreeSet<usize> {
        least(&self.0, count)
    }
}

impl LayerPruner {
    /// Measures on `device`, with windows of 512 tokens.
    pub fn new(device: Device) -> Self {
        Self { device, context: 512, memory_limit: None }
    }

    /// The same, with windows of `tokens` tokens, as far as the model has so many positions.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = tokens;
        self
    }

    /// The same, for models that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Measures the layers of `model`, a folder or a GGUF file, on a text. Progress counts tokens, in the stage `measure layers`.
    ///
    /// Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// Those of loading the model; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a text of fewer than 32 tokens; [`Cancelled`](hybrid_core::ErrorKind::Cancelled).
    pub async fn measure(
        &self,
        model: &Path,
        text: &str,
        progress: Arc<dyn Progress>,
        cancel: Cancellation,
    ) -> Result<Influences> {
        let (this, model, text) = (self.clone(), model.to_owned(), text.to_owned());
        blocking(OPERATION, move || this.influences(&model, &text, &*progress, &cancel)).await
    }

    pub(in crate::quantize) fn influences(
        &self,
        model: &Path,
        text: &str,
        progress: &dyn Progress,
        cancel: &Cancellation,
    ) -> Result<Influences> {
        let reading = Reading::open(model, &self.device, self.memory_limit, self.context)?;
        let tokens = reading.encode(text)?;
        let room = self.context.min(reading.config().context);
        let mut sums = vec![0.0; reading.config().layers()];
        by_windows(&tokens, room, "measure layers", progress, cancel, |window| {
            for (sum, turned) in sums.iter_mut().zip(reading.influences(window)?) {
                *sum += turned * window.len() as f64;
            }
            Ok(())
        })?;
        Ok(Influences(sums.into_iter().map(|sum| sum / tokens.len() as f64).collect()))
    }

    /// Makes the folder `target` of the model in `folder` without `layers`. The numbers of all others stay as they are, bit for bit.
    ///
    /// The folder appears when it is whole and was read back. Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for layers that the model has not, or for all of them; [`AlreadyExists`](hybrid_core::ErrorKind::AlreadyExists) if something
    /// has the target's name; those of reading and writing.
    pub async fn remove(&self, folder: &Path, target: &Path, layers: BTreeSet<usize>) -> Result<()> {
        let (folder, target) = (folder.to_owned(), target.to_owned());
        blocking(OPERATION, move || without_layers(&folder, &target, &layers)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_influential_are_those_with_the_smallest_figures() {
        let influences = Influences(vec![0.5, 0.1, 0.3, 0.1, f64::NAN]);
        assert_eq!(influences.least(1), [3].into());
        assert_eq!(influences.least(3), [1, 2, 3].into());
        assert_eq!(influences.least(9).len(), 5);
    }
}
