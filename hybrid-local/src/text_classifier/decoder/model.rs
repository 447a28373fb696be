//! A version that is ready to answer.

use std::{ops::Range, path::Path};

use candle_core::Tensor;
use hybrid_core::{Error, Result};

use super::{HEAD, config::HeadConfig};
use crate::{
    Device,
    decoder::headed::{Headed, Hung, read_head},
    encoder::{Encoded, Marks, Tokens},
    files::{MAX_CONFIG_BYTES, read},
    text_classifier::{ClassifierConfig, backend, backend::Reading, tensor_error},
};

/// Tokens that are worked on at a time.
pub(super) const PORTION: usize = 2_048;

/// The network of one version with its tokenizer.
#[derive(Debug)]
pub(in crate::text_classifier) struct HeadModel {
    config: HeadConfig,
    tokens: Tokens,
    network: Headed,
    hung: Option<Hung>,
    /// `[labels, hidden]`.
    head: Tensor,
}

impl HeadModel {
    /// Reads a version's files.
    ///
    /// # Errors
    /// `Corrupt` that names the file or tensor that does not fit the configuration, `ResourceExhausted` if the weights do not fit into memory.
    pub(in crate::text_classifier) fn open(
        folder: &Path,
        config: HeadConfig,
        device: &Device,
        memory_limit: Option<u64>,
    ) -> Result<Self> {
        let (network, hung, tokenizer) = Headed::open(folder, config.max_tokens, config.adapter, device, memory_limit)?;
        if network.context() < config.max_tokens {
            return Err(Error::corrupt("load classifier", "more tokens are to be read than have positions")
                .with("max_tokens", config.max_tokens)
                .with("positions", network.context()));
        }
        let tokens = Tokens::new(tokenizer, network.vocabulary(), config.max_tokens, Marks::IfAny)?;
        let (path, shape) = (folder.join(HEAD), [config.classifier.labels.len(), network.hidden()]);
        let bytes = read(&path, 4 * (shape[0] * shape[1]) as u64 + MAX_CONFIG_BYTES)?;
        let head = read_head(&bytes, &path, shape, device)?;
        Ok(Self { config, tokens, network, hung, head })
    }
}

/// The logits of texts, some at a time.
pub(super) fn logits(network: &Headed, head: &Tensor, hung: Option<&Hung>, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    let mut logits = Vec::with_capacity(texts.len());
    for portion in portions(texts) {
        // From within the pool of threads: whoever asks it for each operator from outside waits to be woken each time.
        let answer = rayon::scope(|_| network.logits(&texts[portion], head, hung, None)?.detach().to_vec2::<f32>());
        logits.extend(answer.map_err(tensor_error("classify"))?);
    }
    Ok(logits)
}

/// Texts that are worked on together: at most [`PORTION`] tokens, or one text.
pub(super) fn portions(texts: &[&[u32]]) -> Vec<Range<usize>> {
    let mut portions: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (number, text) in texts.iter().enumerate() {
        match portions.last_mut() {
            Some(last) if tokens + text.len() <= PORTION => last.end = number + 1,
            _ => {
                portions.push(number..number + 1);
                tokens = 0;
            }
        }
        tokens += text.len();
    }
    portions
}

impl backend::Network for HeadModel {
    fn classifier(&self) -> &ClassifierConfig {
        &self.config.classifier
    }

    fn max_tokens(&self) -> Option<usize> {
        Some(self.tokens.max())
    }

    fn read(&self, texts: &[&str]) -> Result<Reading> {
        let encoded = texts.iter().map(|text| self.tokens.encode(text)).collect::<Result<Vec<Encoded>>>()?;
        if let Some(input) = encoded.iter().position(|text| text.ids.is_empty()) {
            return Err(Error::invalid("classify", "the tokenizer makes nothing of the text").with("input", input));
        }
        let ids: Vec<_> = encoded.iter().map(|text| text.ids.as_slice()).collect();
        let cut = encoded.iter().enumerate().filter(|(_, text)| text.is_cut()).map(|(i, text)| (i, text.whole));
        Ok(Reading {
            logits: logits(&self.network, &self.head, self.hung.as_ref(), &ids)?,
            tokens: ids.iter().map(|ids| ids.len() as u64).sum(),
            cut: cut.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_worked_on_together_up_to_the_limit_and_each_once() {
        let lengths = [1_000, 1_000, 100, 3_000, 10, 10];
        let tokens: Vec<Vec<u32>> = lengths.iter().map(|length| vec![0; *length]).collect();
        let texts: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        assert_eq!(portions(&texts), [0..2, 2..3, 3..4, 4..6]);
        assert!(portions(&[]).is_empty());
    }
}
