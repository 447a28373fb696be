//! Heads and channels of all layers.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use hybrid_core::{Cancellation, Error, Progress, Result};
use serde::{Deserialize, Serialize};

use super::{OPERATION, by_windows, folder::without_width, least};
use crate::{
    Device,
    blocking::blocking,
    decoder::{config::DecoderConfig, importance::Importance},
};

/// Makes a model's layers narrower: takes out those heads of the attention and those channels of the feed-forward that its loss hangs on least.
///
/// How much a head matters is how much the loss on a text would change without it, to first order: the mean over windows of the absolute derivative
/// by a factor on what the head adds (Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019, equation 2), and of a
/// channel likewise. Heads that share keys and values go together, as a group; and all layers lose the same number of groups and of channels, as
/// configurations have one number for all. What a model loses by it shows in a [`Comparison`](crate::quantize::Comparison) with the whole one, and
/// most of it comes back by training what is left.
///
/// ```no_run
/// # async fn prune() -> hybrid_core::Result<()> {
/// use std::sync::Arc;
/// use hybrid_core::{Cancellation, NoProgress};
/// use hybrid_local::{Device, quantize::WidthPruner};
///
/// let pruner = WidthPruner::new(Device::cpu());
/// let text = "what such a model reads all day";
/// let importances = pruner.measure("models/bakery".as_ref(), text, Arc::new(NoProgress), Cancellation::new()).await?;
/// pruner.remove("models/bakery".as_ref(), "models/bakery-narrow".as_ref(), importances.least(1, 256)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct WidthPruner {
    device: Device,
    context: usize,
    memory_limit: Option<u64>,
}

/// How much the loss on a text hangs on each part of each layer, in nats a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Importances {
    /// For each layer its groups of heads that share keys and values, by number.
    pub groups: Vec<Vec<f64>>,
    /// For each layer the channels of its feed-forward, by number.
    pub channels: Vec<Vec<f64>>,
}

/// What is taken out: of all layers as many groups of heads, and as many channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// For each layer the groups, by number.
    pub groups: Vec<BTreeSet<usize>>,
    /// For each layer the channels, by number.
    pub channels: Vec<BTreeSet<usize>>,
}

impl Importances {
    /// Of each layer the `groups` groups of heads and the `channels` channels that matter least; of equal ones the later.
    ///
    /// Formats of fewer bits want rows of a multiple of 256 numbers, so leave that many channels.
    pub fn least(&self, groups: usize, channels: usize) -> Removal {
        let of = |layers: &[Vec<f64>], count: usize| layers.iter().map(|values| least(values, count)).collect();
        Removal { groups: of(&self.groups, groups), channels: of(&self.channels, channels) }
    }
}

impl Removal {
    /// How many groups and channels each layer loses.
    ///
    /// # Errors
    /// `InvalidInput` that says what does not fit the model.
    pub(super) fn check(&self, config: &DecoderConfig) -> Result<[usize; 2]> {
        let refuse = |message: &'static str| Error::invalid(OPERATION, message);
        let count = |layers: &[BTreeSet<usize>], all: usize, what: &'static str| {
            let count = layers.first().map_or(0, BTreeSet::len);
            if layers.len() != config.layers() || layers.iter().any(|units| units.len() != count) {
                return Err(refuse("all of the model's layers have to lose as many parts")
                    .with("parts", what)
                    .with("layers", config.layers()));
            }
            if count >= all || layers.iter().flatten().any(|unit| *unit >= all) {
                return Err(refuse("some of a layer's parts are to be removed, but not all")
                    .with("parts", what)
                    .with("removed", count)
                    .with("of", all));
            }
            Ok(count)
        };
        let counts = [
            count(&self.groups, config.key_value_heads, "groups of heads")?,
            count(&self.channels, config.intermediate, "channels")?,
        ];
        if counts == [0, 0] {
            return Err(refuse("nothing is to be removed"));
        }
        Ok(counts)
    }
}

impl WidthPruner {
    /// Measures on `device`, with windows of 256 tokens.
    pub fn new(device: Device) -> Self {
        Self { device, context: 256, memory_limit: None }
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

    /// Measures heads and channels of the model in `folder` on a text. Progress counts tokens, in the stage `measure width`.
    ///
    /// Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// Those of loading the model; [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for a GGUF file; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a text of
    /// fewer than 32 tokens; [`Cancelled`](hybrid_core::ErrorKind::Cancelled).
    pub async fn measure(
        &self,
        folder: &Path,
        text: &str,
        progress: Arc<dyn Progress>,
        cancel: Cancellation,
    ) -> Result<Importances> {
        let (this, folder, text) = (self.clone(), folder.to_owned(), text.to_owned());
        blocking(OPERATION, move || this.importances(&folder, &text, &*progress, &cancel)).await
    }

    pub(in crate::quantize) fn importances(
        &self,
        folder: &Path,
        text: &str,
        progress: &dyn Progress,
        cancel: &Cancellation,
    ) -> Result<Importances> {
        let model = Importance::open(folder, &self.device, self.memory_limit, self.context)?;
        let tokens = model.encode(text)?;
        let config = model.config();
        let mut groups = vec![vec![0.0; config.key_value_heads]; config.layers()];
        let mut channels = vec![vec![0.0; config.intermediate]; config.layers()];
        let room = self.context.min(config.context);
        by_windows(&tokens, room, "measure width", progress, cancel, |window| {
            // A last token by itself predicts nothing.
            if window.len() > 1 {
                for (layer, [of_groups, of_channels]) in model.measure(window)?.into_iter().enumerate() {
                    let share = window.len() as f64 / tokens.len() as f64;
                    let add = |sums: &mut [f64], found: Vec<f64>| {
                        sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += share * found.abs());
                    };
                    add(&mut groups[layer], of_groups);
                    add(&mut channels[layer], of_channels);
                }
            }
            Ok(())
        })?;
        Ok(Importances { groups, channels })
    }

    /// Makes the folder `target` of the model in `folder` without those parts. The numbers of all others stay as they are, bit for bit.
    ///
    /// The folder appears when it is whole and was read back. Of a Phi 3 with fewer heads `transformers` refuses the configuration, whose positions it counts by the number of heads
    /// whatever `head_dim` says; this crate reads it. Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for parts that the model has not, for all of them, and for layers that lose different numbers;
    /// [`AlreadyExists`](hybrid_core::ErrorKind::AlreadyExists) if something has the target's name; those of reading and writing.
    pub async fn remove(&self, folder: &Path, target: &Path, removal: Removal) -> Result<()> {
        let (folder, target) = (folder.to_owned(), target.to_owned());
        blocking(OPERATION, move || without_width(&folder, &target, &removal)).await
    }
}
