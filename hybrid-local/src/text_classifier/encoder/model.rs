//! A version that is ready to answer.

use hybrid_core::{Error, Result};

use super::{config::BertConfig, network::Network};
use crate::{
    Device,
    encoder::{Batch, Encoded, Marks, Portions, Tokens, in_portions, on_device},
    ops::Operators,
    text_classifier::{
        ClassifierConfig, backend,
        backend::Reading,
        tensor_error,
        tensors::{Array, Tensors, Values, take_f32},
    },
};

/// The network of one version with its tokenizer.
#[derive(Debug)]
pub(in crate::text_classifier) struct BertModel {
    config: BertConfig,
    tokens: Tokens,
    network: Network,
    device: Device,
}

impl BertModel {
    /// Puts a network together from a version's tokenizer and tensors. Low-rank matrices are merged into their weights, so that answers
    /// take no longer for them.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor that does not fit the configuration, or what the tokenizer lacks.
    pub(in crate::text_classifier) fn new(
        config: BertConfig,
        tokenizer: &[u8],
        mut model: Tensors,
        mut adapter: Tensors,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        let tokens = Tokens::read(tokenizer, config.encoder.vocabulary, config.max_tokens, Marks::Needed)?;
        let mut tensors = Tensors::new();
        for (wanted, found) in [(config.model_tensors(), &mut model), (config.adapter_tensors(), &mut adapter)] {
            for (name, shape) in wanted {
                let values = take_f32(found, &name, &shape)?;
                tensors.insert(name, Array { shape, values: Values::F32(values) });
            }
            if let Some(extra) = found.keys().next() {
                return Err(Error::corrupt(
                    "read tensors",
                    "the file has a tensor that the architecture does not know",
                )
                .with("tensor", extra));
            }
        }
        let tensor = |name: &str| on_device(&tensors, name, device);
        let merged = |name: &str| match (&config.lora, name.strip_suffix(".weight")) {
            (Some(lora), Some(layer)) if tensors.contains_key(&format!("{layer}.lora_a")) => {
                let (a, b) = (tensor(&format!("{layer}.lora_a"))?, tensor(&format!("{layer}.lora_b"))?);
                let weight = tensor(name)?;
                let merge = || weight + (b.matmul(&a)? * lora.scale())?;
                merge().map_err(tensor_error("load classifier"))
            }
            _ => tensor(name),
        };
        let operators = Operators::of(device.tensors());
        let network = Network::of(&config.encoder, config.pooling, None, operators, merged)?.for_reading()?;
        Ok(Self { config, tokens, network, device: device.clone() })
    }
}

/// The logits of texts, some at a time.
pub(super) fn logits(
    network: &Network,
    texts: &[&Encoded],
    first_position: usize,
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
    in_portions(&lengths, Portions::of(device), |portion| {
        let ids: Vec<_> = portion.iter().map(|&text| texts[text].ids.as_slice()).collect();
        let answer = || {
            let batch = Batch::of(&ids, first_position, device.tensors())?;
            network.logits(&batch, None)?.detach().to_vec2::<f32>()
        };
        answer().map_err(tensor_error("classify"))
    })
}

impl backend::Network for BertModel {
    fn classifier(&self) -> &ClassifierConfig {
        &self.config.classifier
    }

    fn max_tokens(&self) -> Option<usize> {
        Some(self.tokens.max())
    }

    fn read(&self, texts: &[&str]) -> Result<Reading> {
        let encoded = texts.iter().map(|text| self.tokens.encode(text)).collect::<Result<Vec<_>>>()?;
        let cut = encoded.iter().enumerate().filter(|(_, text)| text.is_cut()).map(|(i, text)| (i, text.whole));
        Ok(Reading {
            logits: logits(
                &self.network,
                &encoded.iter().collect::<Vec<_>>(),
                self.config.encoder.first_position,
                &self.device,
            )?,
            tokens: encoded.iter().map(|text| text.ids.len() as u64).sum(),
            cut: cut.collect(),
        })
    }
}
