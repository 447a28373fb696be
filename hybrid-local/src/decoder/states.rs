//! A decoder that is read for what it makes of each token, not for what comes next.

use std::path::Path;

use candle_core::Tensor;
use hybrid_core::{Error, Result};
use tokenizers::Tokenizer;

use super::{
    files::ModelFiles,
    network::{Cache, Network, Part, Wanted},
};
use crate::{Device, device::tensor_error, files};

const OPERATION: &str = "embed";
/// Tokens of one pass: what a pass takes does not grow with the text but for its cache.
const PORTION: usize = 512;

/// The network of a decoder without its output layer.
#[derive(Debug)]
pub(crate) struct States {
    network: Network,
    hidden: usize,
    vocabulary: usize,
    context: usize,
}

impl States {
    /// Reads the model in `folder` for texts of `limit(positions)` tokens at most, with its tokenizer.
    ///
    /// # Errors
    /// As [`DecoderLoader`](super::DecoderLoader)'s.
    pub(crate) fn open(
        folder: &Path,
        device: &Device,
        memory_limit: Option<u64>,
        limit: impl Fn(usize) -> usize,
    ) -> Result<(Self, Tokenizer)> {
        let named = |error: Error| error.with("path", folder.display());
        let ModelFiles { mut config, weights, tokenizer, .. } = ModelFiles::open(folder)?.narrow_on(device);
        config.context = limit(config.context);
        // No logits are asked for, and such files may have no output layer.
        config.tied = true;
        let (hidden, vocabulary, context) = (config.hidden, config.vocabulary, config.context);
        let token = Network::cache_bytes_per_token(&config, &*weights, device.tensors());
        let cache = token.saturating_mul(context as u64);
        let needed = Network::bytes(&config, &*weights).saturating_add(cache);
        files::check_memory("load embedder", needed, memory_limit).map_err(named)?;
        let network = Network::read(config, &*weights, device.tensors()).map_err(named)?;
        Ok((Self { network, hidden, vocabulary, context }, tokenizer))
    }

    /// Columns of a row.
    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Rows of the table of embeddings.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The most tokens of a text.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// The rows of texts one after another as they leave the network, `[tokens, hidden]`. `check` is asked between passes whether to go on.
    pub(crate) fn read(&self, texts: &[&[u32]], check: &dyn Fn() -> Result<()>) -> Result<Tensor> {
        let fail = tensor_error(OPERATION);
        let mut rows = Vec::new();
        let mut rest = texts;
        while let Some((first, others)) = rest.split_first() {
            check()?;
            if first.len() > PORTION {
                let mut cache = self.network.cache(first.len());
                for tokens in first.chunks(PORTION) {
                    check()?;
                    rows.push(self.pass(&[tokens], std::slice::from_mut(&mut cache)).map_err(fail)?);
                }
                rest = others;
                continue;
            }
            let mut tokens = 0;
            let together = rest.iter().take_while(|text| {
                tokens += text.len();
                tokens <= PORTION
            });
            let (portion, others) = rest.split_at(together.count().max(1));
            let mut caches: Vec<Cache> = portion.iter().map(|text| self.network.cache(text.len())).collect();
            rows.push(self.pass(portion, &mut caches).map_err(fail)?);
            rest = others;
        }
        Tensor::cat(&rows, 0).map_err(fail)
    }

    fn pass(&self, texts: &[&[u32]], caches: &mut [Cache]) -> candle_core::Result<Tensor> {
        let parts = texts.iter().zip(caches);
        let parts = parts.map(|(tokens, cache)| Part { tokens, cache, wanted: Wanted::None, adapter: None });
        self.network.states(&mut parts.collect::<Vec<_>>())
    }
}
