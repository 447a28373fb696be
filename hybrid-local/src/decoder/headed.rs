//! A decoder with a layer over the state of a text's last token, in place of the one over the vocabulary: what classifiers are made of.
//!
//! It is the network that transformers calls `…ForSequenceClassification`: the layer has no bias and reads what has passed the last norm.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{Result as TensorResult, Tensor, Var};
use hybrid_core::{Digest, Error, Result};
use tokenizers::Tokenizer;

use super::{
    adapter::{self, Adapter, Dropout, LoraConfig, Worn},
    config::DecoderConfig,
    files::ModelFiles,
    network::{Network, Sequences},
    training::{Learner, Trainable, activation_bytes, base_files, digests, initial},
};
use crate::{
    Device,
    device::tensor_error,
    files::{check_memory, copy},
    learning::settings::Settings,
    tensors::Tensors,
};

/// What the layer's tensor is called in files, as transformers calls it.
pub(crate) const SCORE: &str = "score.weight";

/// A decoder that heads are put on, on the disk: a folder or a GGUF file.
#[derive(Debug)]
pub(crate) struct HeadBase {
    path: PathBuf,
    config: DecoderConfig,
    /// The weights in memory.
    bytes: u64,
}

/// The network in memory.
#[derive(Debug)]
pub(crate) struct Headed {
    network: Network,
    config: DecoderConfig,
}

/// Settings of low-rank matrices.
#[derive(Clone, Debug)]
pub(crate) struct HeadLora(LoraConfig);

/// Low-rank matrices on a device.
#[derive(Debug)]
pub(crate) struct Hung(Adapter);

impl HeadBase {
    /// Reads all but the weights, for texts of at most `limit` tokens, and gives the tokenizer with it.
    ///
    /// # Errors
    /// As [`DecoderLoader`](super::DecoderLoader)'s.
    pub(crate) fn open(path: &Path, limit: usize) -> Result<(Self, Tokenizer)> {
        let ModelFiles { mut config, weights, tokenizer, .. } = ModelFiles::open(path)?;
        // No logits are asked for, and such files may have no output layer.
        config.tied = true;
        // Models of two lengths turn their positions by the one that is used.
        config.context = config.context.min(limit);
        let bytes = Network::bytes(&config, &*weights);
        Ok((Self { path: path.to_owned(), config, bytes }, tokenizer))
    }

    /// The SHA-256 of its files, by name.
    pub(crate) fn digests(&self) -> Result<BTreeMap<String, Digest>> {
        digests(&self.path)
    }

    /// The most tokens that have a position.
    pub(crate) fn context(&self) -> usize {
        self.config.context
    }

    /// Columns of a token's state.
    pub(crate) fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Rows of the table of embeddings.
    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Checks that [`write`](Self::write) can write all of its weights anew.
    ///
    /// # Errors
    /// `Unsupported` if it is no folder of Safetensors.
    pub(crate) fn check_rewritable(&self) -> Result<()> {
        adapter::check_rewritable(&self.path)
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks that training fits into the memory that is free: of matrices, or of all weights, with `rows` tokens at a time in texts of at
    /// most `longest`.
    ///
    /// # Errors
    /// `ResourceExhausted` that names both.
    pub(crate) fn check_memory(&self, lora: Option<&HeadLora>, [rows, longest]: [u64; 2]) -> Result<()> {
        // Beside what is trained: its two moments, its gradient and what gradients are added up in; the matrices themselves.
        let state = match lora {
            Some(lora) => 4 * 5 * initial(&lora.0, &self.config, 0).numbers(),
            None => 4 * self.bytes,
        };
        check_memory("train", self.bytes + state + activation_bytes(&self.config, rows, longest), None)
            .map_err(|error| error.with("way out", "a smaller max_tokens or batch_size, or another base"))
    }

    /// The network with weights that stay as they are.
    pub(crate) fn network(&self, device: &Device) -> Result<Headed> {
        let ModelFiles { weights, .. } = ModelFiles::open(&self.path)?.narrow_on(device);
        let network = Network::read(self.config.clone(), &*weights, device.tensors())?;
        Ok(Headed { network, config: self.config.clone() })
    }

    /// The network with weights that are variables, by the names of Hugging Face's files.
    ///
    /// # Errors
    /// `Unsupported` that names a tensor in blocks.
    pub(crate) fn trainable(&self, device: &Device) -> Result<(Headed, BTreeMap<String, Var>)> {
        let weights = Trainable::new(ModelFiles::open(&self.path)?.weights);
        let network = Network::read(self.config.clone(), &weights, device.tensors())?;
        Ok((Headed { network, config: self.config.clone() }, weights.variables()))
    }

    /// New matrices that change nothing yet, as variables.
    pub(crate) fn matrices(
        &self,
        lora: &HeadLora,
        seed: u64,
        device: &Device,
    ) -> Result<(Hung, BTreeMap<String, Var>)> {
        let start = initial(&lora.0, &self.config, seed);
        Adapter::trainable(&start, device.tensors()).map(|(adapter, variables)| (Hung(adapter), variables))
    }

    /// Writes a trained decoder into an empty folder, from which [`Headed::open`] reads it: the base's files with other weights, or as they are
    /// with an adapter beside them as PEFT has it. Gives the paths.
    pub(crate) fn write(&self, lora: Option<&HeadLora>, mut values: Tensors, folder: &Path) -> Result<Vec<PathBuf>> {
        let Some(lora) = lora else { return adapter::replace(&self.path, &self.config, folder, values) };
        let files = base_files(&self.path)?;
        let mut paths = files.values().map(|file| copy(file, folder)).collect::<Result<Vec<_>>>()?;
        paths.extend(Learner::matrices(&mut values, &lora.0, &self.config)?.write_peft(folder, None)?);
        Ok(paths)
    }
}

impl HeadLora {
    /// Reads what a plan says of the matrices, under the names that training of chat models has for it.
    pub(crate) fn read(settings: &Settings<'_>) -> Result<Self> {
        LoraConfig::read(settings).map(Self)
    }

    /// The share of a layer's input that a training step leaves out.
    pub(crate) fn dropout(&self) -> f64 {
        self.0.dropout
    }
}

impl Headed {
    /// Reads what [`HeadBase::write`] wrote, with its tokenizer, to a device.
    ///
    /// # Errors
    /// As [`DecoderLoader`](super::DecoderLoader)'s, and those of reading an adapter.
    pub(crate) fn open(
        folder: &Path,
        limit: usize,
        has_adapter: bool,
        device: &Device,
        memory_limit: Option<u64>,
    ) -> Result<(Self, Option<Hung>, Tokenizer)> {
        let (base, tokenizer) = HeadBase::open(folder, limit)?;
        check_memory("load classifier", base.bytes, memory_limit)?;
        let network = base.network(device)?;
        let hung = has_adapter.then(|| Adapter::open(folder, &base.config, device.tensors()).map(Hung));
        Ok((network, hung.transpose()?, tokenizer))
    }

    /// The most tokens that have a position.
    pub(crate) fn context(&self) -> usize {
        self.config.context
    }

    /// Columns of a token's state.
    pub(crate) fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Rows of the table of embeddings.
    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// The logits `[texts, labels]` of texts of at least one token each, by the layer `head`, `[labels, hidden]`. In training the matrices leave out
    /// a share of what goes into them, drawn by a seed and two numbers.
    pub(crate) fn logits(
        &self,
        texts: &[&[u32]],
        head: &Tensor,
        hung: Option<&Hung>,
        dropout: Option<(f64, u64, [u64; 2])>,
    ) -> TensorResult<Tensor> {
        let sequences = Sequences::new(texts.iter().copied());
        let dropout = dropout.map(|(share, seed, index)| Dropout { share, seed, index });
        let worn = hung.map(|hung| Worn { rows: 0..sequences.tokens().len(), adapter: &hung.0, dropout });
        let pass = self.network.pass(&sequences, worn.into_iter().collect())?;
        let mut x = self.network.enter(&sequences)?;
        for at in 0..self.config.layers() {
            x = self.network.through(at, x, &pass)?;
        }
        let mut end = 0;
        let last: Vec<u32> = texts
            .iter()
            .map(|text| {
                end += text.len() as u32;
                end - 1
            })
            .collect();
        let states = x.index_select(&Tensor::from_vec(last, texts.len(), x.device())?, 0)?;
        self.network.normed(&states)?.matmul(&head.t()?)
    }
}

/// Reads the layer of a file, for `labels` labels.
pub(crate) fn read_head(bytes: &[u8], path: &Path, [labels, hidden]: [usize; 2], device: &Device) -> Result<Tensor> {
    let (mut tensors, _) = crate::tensors::decode(bytes, path)?;
    let values = crate::tensors::take_f32(&mut tensors, SCORE, &[labels, hidden])?;
    if let Some(extra) = tensors.keys().next() {
        return Err(Error::corrupt("read tensors", "the file has a tensor that the architecture does not know")
            .with("tensor", extra));
    }
    Tensor::from_vec(values, (labels, hidden), device.tensors()).map_err(tensor_error("load classifier"))
}
