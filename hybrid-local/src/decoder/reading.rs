//! A decoder that reads a text and writes nothing: what it expects after each token.

use std::path::Path;

use candle_core::D;
use hybrid_core::{Error, Result};

use super::{
    config::DecoderConfig,
    files::ModelFiles,
    network::{Network, Part, Sequences, Wanted},
    tokens::Tokens,
};
use crate::{Device, device::tensor_error, files};

const OPERATION: &str = "read text";
/// How many tokens are read at a time: their logits are in memory together.
pub(crate) const PORTION: usize = 64;

/// A model that texts are read by.
#[derive(Debug)]
pub(crate) struct Reading {
    network: Network,
    tokens: Tokens,
    config: DecoderConfig,
    /// The token that every text of the model's begins with, if there is one.
    first: Option<u32>,
}

impl Reading {
    /// Loads the model at `path`, a folder or a GGUF file, for texts of at most `context` tokens at a time.
    ///
    /// # Errors
    /// As [`DecoderLoader::open`](super::DecoderLoader::open).
    pub(crate) fn open(path: &Path, device: &Device, memory_limit: Option<u64>, context: usize) -> Result<Self> {
        let named = |error: Error| error.with("path", path.display());
        let ModelFiles { config, weights, tokenizer, templates, .. } = ModelFiles::open(path)?;
        let token = Network::cache_bytes_per_token(&config, &*weights, device.tensors());
        let caches = token.saturating_mul(context.min(config.context) as u64);
        let logits = 8 * (PORTION * config.vocabulary) as u64;
        let needed = Network::bytes(&config, &*weights).saturating_add(caches).saturating_add(logits);
        files::check_memory(OPERATION, needed, memory_limit).map_err(named)?;
        let first = templates.tokens.get("bos_token").and_then(|token| tokenizer.token_to_id(token));
        let begun = tokenizer
            .encode_fast("a", true)
            .map_err(|error| Error::internal(OPERATION, "the tokenizer failed").with_source(error))?;
        let first = first.filter(|first| begun.get_ids().first() == Some(first));
        let tokens = Tokens::new(tokenizer, config.vocabulary).map_err(named)?;
        let network = Network::read(config.clone(), &*weights, device.tensors()).map_err(named)?;
        Ok(Self { network, tokens, config, first })
    }

    pub(crate) fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The token that a text begins with, if there is one.
    pub(crate) fn first(&self) -> Option<u32> {
        self.first
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens.encode(text)
    }

    /// Reads a text and gives the logits after each of its tokens, by the token's place.
    ///
    /// # Errors
    /// Those of `each`; `Internal` if the tensor library fails, or if a logit is not a finite number.
    pub(crate) fn read(&self, tokens: &[u32], mut each: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let mut cache = self.network.cache(tokens.len());
        let mut at = 0;
        for tokens in tokens.chunks(PORTION) {
            let part = Part { tokens, cache: &mut cache, wanted: Wanted::All, adapter: None };
            let rows = self.network.forward(&mut [part])?;
            for logits in &rows {
                if logits.iter().any(|logit| !logit.is_finite()) {
                    return Err(
                        Error::internal(OPERATION, "the model gives what is not a finite number").with("token", at)
                    );
                }
                each(at, logits)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// How far each layer turns what passes through it when it reads `tokens`: one minus the cosine of its output and its input, the mean
    /// over the tokens.
    ///
    /// # Errors
    /// `Internal` if the tensor library fails.
    pub(crate) fn influences(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let measure = || {
            let sequences = Sequences::new([tokens]);
            let pass = self.network.pass(&sequences, Vec::new())?;
            let mut x = self.network.enter(&sequences)?;
            let mut turned = Vec::with_capacity(self.config.layers());
            for at in 0..self.config.layers() {
                let y = self.network.through(at, x.clone(), &pass)?;
                let norms = (x.sqr()?.sum(D::Minus1)?.sqrt()? * y.sqr()?.sum(D::Minus1)?.sqrt()?)?;
                let cosines = ((&x * &y)?.sum(D::Minus1)? / norms.clamp(1e-30, f64::MAX)?)?;
                turned.push(1.0 - f64::from(cosines.mean_all()?.to_scalar::<f32>()?));
                x = y;
            }
            Ok(turned)
        };
        measure().map_err(tensor_error(OPERATION))
    }
}
