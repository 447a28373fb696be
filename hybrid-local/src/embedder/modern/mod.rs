//! ModernBERT: an encoder whose norms stand before what they are for, whose positions turn, and of whose layers most see a window alone.
//!
//! Warner and others, "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and Long Context Finetuning and
//! Inference", 2024. Its layers have no biases.

mod config;

use std::path::Path;

use candle_core::Tensor;
use hybrid_core::{Error, Result};

use self::config::ModernConfig;
use crate::{
    Device,
    decoder::rope::{Frequencies, Rope},
    device::tensor_error,
    encoder::{Base, Batch, Linear},
    files::{self, CONFIG, MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER, WEIGHTS},
    ops::{Activation, Operators},
    tensors::{self, Tensors},
};

pub(super) use config::FAMILY;

const OPERATION: &str = "load embedder";
/// What the names of tensors begin with where a head stands beside the encoder.
const PREFIX: &str = "model.";

/// The network, for reading.
#[derive(Debug)]
pub(super) struct Modern {
    config: ModernConfig,
    operators: Operators,
    device: Device,
    word: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    /// Of layers that see whole texts, and of those that see a window.
    positions: [Frequencies; 2],
}

#[derive(Debug)]
struct Layer {
    /// How far a token sees before and after its own, if not everywhere.
    window: Option<usize>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// Before the feed-forward part.
    norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Before what follows the layer.
    next: Norm,
}

/// Scale, and a shift of nothing.
#[derive(Debug)]
struct Norm([Tensor; 2]);

impl Modern {
    /// Reads the model in `folder`, if it fits into the memory that is free and into `limit` bytes, with its tokenizer's file.
    ///
    /// # Errors
    /// `NotFound` that names the missing file and how to get it; `Corrupt` and `Unsupported` that name file and fault.
    pub(super) fn read(folder: &Path, device: &Device, limit: Option<u64>) -> Result<(Self, Vec<u8>)> {
        Base::check_files(folder)?;
        let path = |name: &str| folder.join(name);
        let named = |name: &'static str| {
            let path = path(name);
            move |error: Error| error.with("path", path.display())
        };
        let config = ModernConfig::read(&files::read(&path(CONFIG), MAX_CONFIG_BYTES)?).map_err(named(CONFIG))?;
        let tokenizer = files::read(&path(TOKENIZER), MAX_TOKENIZER_BYTES)?;
        let needed: u64 = config.tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum();
        // Heads of other tasks may lie in the file too; the largest is as large as the table of words.
        files::check_memory(OPERATION, 2 * needed, limit)?;
        let weights = files::read(&path(WEIGHTS), 2 * needed + MAX_CONFIG_BYTES)?;
        let (theirs, _) = tensors::decode(&weights, &path(WEIGHTS))?;
        drop(weights);
        let network = Self::of(config, theirs, device).map_err(named(WEIGHTS))?;
        Ok((network, tokenizer))
    }

    fn of(config: ModernConfig, mut theirs: Tensors, device: &Device) -> Result<Self> {
        let operators = Operators::of(device.tensors());
        let shapes = config.tensors();
        let mut tensor = |name: &str| -> Result<Tensor> {
            let shape =
                shapes.iter().find(|(own, _)| own == name).map(|(_, shape)| shape.as_slice()).unwrap_or_default();
            let prefixed = format!("{PREFIX}{name}");
            let found = if theirs.contains_key(&prefixed) { &prefixed } else { name };
            let values = tensors::take_f32(&mut theirs, found, shape)?;
            Tensor::from_vec(values, shape, device.tensors()).map_err(tensor_error(OPERATION))
        };
        let (hidden, fail) = (config.hidden, tensor_error(OPERATION));
        let zeros = |len: usize| Tensor::zeros(len, candle_core::DType::F32, device.tensors()).map_err(fail);
        let norm = |tensor: &mut dyn FnMut(&str) -> Result<Tensor>, name: &str| -> Result<Norm> {
            Ok(Norm([tensor(&format!("{name}.weight"))?, zeros(hidden)?]))
        };
        // Some of a matrix's rows as a layer of its own.
        let part = |whole: &Tensor, first: usize, rows: usize| -> Result<Linear> {
            let weight = whole.narrow(0, first, rows).and_then(|part| part.contiguous()).map_err(fail)?;
            let mut linear = Linear::new(weight, zeros(rows)?);
            linear.lay_out(operators)?;
            Ok(linear)
        };
        let mut layers = Vec::with_capacity(config.local.len());
        for (i, local) in config.local.iter().enumerate() {
            let attention = tensor(&format!("layers.{i}.attn.Wqkv.weight"))?;
            let output = tensor(&format!("layers.{i}.attn.Wo.weight"))?;
            let wide = tensor(&format!("layers.{i}.mlp.Wi.weight"))?;
            let down = tensor(&format!("layers.{i}.mlp.Wo.weight"))?;
            let own = norm(&mut tensor, &format!("layers.{i}.mlp_norm"))?;
            let next = match i + 1 {
                end if end == config.local.len() => "final_norm".to_owned(),
                next => format!("layers.{next}.attn_norm"),
            };
            layers.push(Layer {
                window: local.then_some(config.reach),
                query: part(&attention, 0, hidden)?,
                key: part(&attention, hidden, hidden)?,
                value: part(&attention, 2 * hidden, hidden)?,
                output: part(&output, 0, hidden)?,
                norm: own,
                gate: part(&wide, 0, config.intermediate)?,
                up: part(&wide, config.intermediate, config.intermediate)?,
                down: part(&down, 0, hidden)?,
                next: norm(&mut tensor, &next)?,
            });
        }
        let pairs = hidden / config.heads / 2;
        Ok(Self {
            operators,
            device: device.clone(),
            word: tensor("embeddings.tok_embeddings.weight")?,
            norm: norm(&mut tensor, "embeddings.norm")?,
            layers,
            positions: config.theta.map(|theta| Frequencies::of(&Rope::plain(theta), pairs, config.positions)),
            config,
        })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn hidden(&self) -> usize {
        self.config.hidden
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// The most tokens of a text.
    pub(super) fn max_tokens(&self) -> usize {
        self.config.positions
    }

    /// What the last norm gives, `[tokens, hidden]`.
    pub(super) fn rows(&self, texts: &[&[u32]]) -> candle_core::Result<Tensor> {
        let batch = Batch::of(texts, 0, self.device.tensors())?;
        let (operators, epsilon, heads) = (self.operators, self.config.epsilon, self.config.heads);
        let (rows, size) = (batch.spans.rows(), self.config.hidden / heads);
        let positions: Vec<f32> = batch.spans.iter().flat_map(|(_, length)| (0..length).map(|i| i as f32)).collect();
        let turns = |frequencies: &Frequencies| frequencies.turns(&positions, self.device.tensors());
        let [whole, local] = [turns(&self.positions[0])?, turns(&self.positions[1])?];
        let words = self.word.index_select(&batch.ids, 0)?;
        let norm = |x: &Tensor, beside: &Tensor, Norm([scale, shift]): &Norm| {
            operators.norm(x, beside, [scale, shift], epsilon, None)
        };
        let mut hidden = norm(&words, &words.zeros_like()?, &self.norm)?;
        let mut input = hidden.clone();
        for layer in &self.layers {
            let linear = |linear: &Linear, x: &Tensor| linear.forward(x, Activation::None, operators);
            let turned = |x: Tensor| {
                let turns = if layer.window.is_some() { &local } else { &whole };
                operators.turn(&x.reshape((rows, heads, size))?, turns)?.reshape((rows, heads * size))
            };
            let query = turned(linear(&layer.query, &input)?)?;
            let key = turned(linear(&layer.key, &input)?)?;
            let value = linear(&layer.value, &input)?;
            let attended = operators.attention([&query, &key, &value], &batch.spans, heads, layer.window)?;
            let attended = linear(&layer.output, &attended)?;
            let normed = norm(&attended, &hidden, &layer.norm)?;
            hidden = (hidden + attended)?;
            let gate = layer.gate.forward(&normed, Activation::Gelu, operators)?;
            let narrow = linear(&layer.down, &(gate * linear(&layer.up, &normed)?)?)?;
            input = norm(&narrow, &hidden, &layer.next)?;
            hidden = (hidden + narrow)?;
        }
        Ok(input)
    }
}
