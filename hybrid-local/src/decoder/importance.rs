//! How much a model's loss on a text hangs on each head and each channel.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Tensor, Var};
use hybrid_core::{Error, Result};

use super::{
    adapter::{Module, Place},
    config::DecoderConfig,
    files::{ModelFiles, check_folder},
    network::{Network, Sequences},
    tokens::Tokens,
    training::Trainable,
};
use crate::{Device, device::tensor_error, files::check_memory, ops::Operators};

const OPERATION: &str = "measure importance";

/// Of each layer the sums of its groups of heads and of its channels.
pub(crate) type Sums = Vec<[Vec<f64>; 2]>;

/// A model whose last matrices of attention and feed-forward have a way back.
#[derive(Debug)]
pub(crate) struct Importance {
    network: Network,
    tokens: Tokens,
    config: DecoderConfig,
    lasts: BTreeMap<String, Var>,
}

impl Importance {
    /// Loads the model in `folder`, for texts of at most `context` tokens at a time.
    ///
    /// # Errors
    /// As [`DecoderLoader::open`](super::DecoderLoader::open); `Unsupported` for a GGUF file.
    pub(crate) fn open(folder: &Path, device: &Device, memory_limit: Option<u64>, context: usize) -> Result<Self> {
        let named = |error: Error| error.with("path", folder.display());
        let ModelFiles { config, weights, tokenizer, .. } = ModelFiles::open(folder)?;
        check_folder(OPERATION, folder)?;
        let window = context.min(config.context) as u64;
        let lasts = 4 * (config.layers() * config.hidden * (config.query_size() + config.intermediate)) as u64;
        let logits = 12 * window * config.vocabulary as u64;
        let kept = super::training::activation_bytes(&config, window, window);
        check_memory(OPERATION, Network::bytes(&config, &*weights) + lasts + logits + kept, memory_limit)
            .map_err(named)?;
        let tokens = Tokens::new(tokenizer, config.vocabulary).map_err(named)?;
        let is_last = |name: &str| name.ends_with("self_attn.o_proj.weight") || name.ends_with("mlp.down_proj.weight");
        let weights = Trainable::of(weights, is_last);
        let network = Network::read(config.clone(), &weights, device.tensors()).map_err(named)?;
        Ok(Self { network, tokens, config, lasts: weights.variables() })
    }

    pub(crate) fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens.encode(text)
    }

    /// How much the mean loss on `tokens`, at least two, would change if a head or channel were left out, to first order: the loss's derivative by
    /// a factor on what it adds, which is the sum over its columns `w` of the matrix behind it of `w · ∂loss/∂w`.
    ///
    /// # Errors
    /// `Internal` if the tensor library fails.
    pub(crate) fn measure(&self, tokens: &[u32]) -> Result<Sums> {
        self.derivatives(tokens).map_err(tensor_error(OPERATION))
    }

    fn derivatives(&self, tokens: &[u32]) -> candle_core::Result<Sums> {
        let sequences = Sequences::new([tokens]);
        let pass = self.network.pass(&sequences, Vec::new())?;
        let mut x = self.network.enter(&sequences)?;
        for at in 0..self.config.layers() {
            x = self.network.through(at, x, &pass)?;
        }
        let predicted = tokens.len() - 1;
        let logits = self.network.leave(&x.narrow(0, 0, predicted)?)?;
        let weights = vec![1.0 / predicted as f32; predicted].into();
        let losses = Operators::of(logits.device()).cross_entropy(&logits, tokens[1..].into(), weights)?;
        let gradients = losses.sum_all()?.backward()?;
        let columns = |layer: usize, module: Module, wide: usize| -> candle_core::Result<Vec<f64>> {
            let name = format!("model.{}.weight", Place { layer, module });
            let Some(var) = self.lasts.get(&name) else { candle_core::bail!("there is no {name}") };
            let Some(gradient) = gradients.get(var) else { candle_core::bail!("the loss does not reach {name}") };
            let sums: Tensor = (var.as_tensor().detach() * gradient)?.sum(0)?;
            let sums = sums.to_vec1::<f32>()?;
            Ok(sums.chunks(wide).map(|unit| unit.iter().map(|sum| f64::from(*sum)).sum::<f64>()).collect())
        };
        let group = self.config.query_size() / self.config.key_value_heads;
        (0..self.config.layers())
            .map(|layer| Ok([columns(layer, Module::Output, group)?, columns(layer, Module::Down, 1)?]))
            .collect()
    }
}
