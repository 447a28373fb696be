//! The network: one for all families, driven by the configuration.
//!
//! The rows of a tensor are tokens, of one sequence after another. Whatever works on rows alone works on all sequences at once; attention
//! is given each sequence for itself, with its cache. In training there is no cache, and every operator has a way back.

mod attention;
mod cache;
mod linear;
mod positions;
mod product;
mod sequences;
mod taped;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use hybrid_core::Result;

use self::{
    attention::{Sight, Weighing, attention, capped},
    linear::{Linear, Table},
    positions::{Positions, Turns},
};
use super::{
    adapter::{Adapter, Module, Place, Worn},
    config::{Activation, DecoderConfig},
    files::{Stored, Weights},
    tensors::tensors,
};
use crate::{
    device::tensor_error,
    ops::{CachedAttention, CachedSequence, Gating, Operators},
};

pub(super) use cache::Cache;
pub(super) use product::low_rank;
pub(super) use sequences::Sequences;

/// A decoder with its weights in memory.
#[derive(Debug)]
pub(super) struct Network {
    config: DecoderConfig,
    table: Table,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    positions: Positions,
    /// What a cache's numbers are.
    cached: DType,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    query: Adaptable,
    key: Adaptable,
    value: Adaptable,
    /// Norms of each head's queries and keys.
    head_norms: Option<[Norm; 2]>,
    output: Adaptable,
    /// Norms of what attention and feed-forward give.
    post_norms: Option<[Norm; 2]>,
    norm: Norm,
    gate: Adaptable,
    up: Adaptable,
    down: Adaptable,
}

/// A linear layer at a place that adapters know.
#[derive(Debug)]
struct Adaptable {
    linear: Linear,
    place: Place,
}

/// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
#[derive(Debug)]
struct Norm {
    scale: Tensor,
    /// What is added to the scale.
    offset: f64,
    epsilon: f64,
}

/// The next tokens of a sequence.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) tokens: &'a [u32],
    /// What came before them, and after the pass they too.
    pub(super) cache: &'a mut Cache,
    pub(super) wanted: Wanted,
    /// What these tokens alone wear beside the weights.
    pub(super) adapter: Option<&'a Adapter>,
}

/// What the rows of one pass have beside their values.
pub(super) struct Pass<'a> {
    turns: Turns,
    seen: Seen<'a>,
    worn: Vec<Worn<'a>>,
}

/// What rows see beside themselves.
enum Seen<'a> {
    /// What is in their sequence's cache, and those before them.
    Cached { parts: &'a [Part<'a>], masks: Vec<Masks> },
    /// Those before them in their sequence.
    Whole(&'a Sequences),
}

/// What is added to the scores of a sequence's new tokens, by the window of the layer.
type Masks = BTreeMap<Option<usize>, Option<Tensor>>;

/// For which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    None,
    Last,
    All,
}

impl Network {
    /// What the weights take in memory, in bytes.
    pub(super) fn bytes(config: &DecoderConfig, weights: &dyn Weights) -> u64 {
        tensors(config).iter().map(|tensor| weights.bytes(&tensor.name)).sum()
    }

    /// The most that the way back has of one matrix in single precision, in bytes.
    pub(super) fn unpacked_bytes(config: &DecoderConfig, weights: &dyn Weights, device: &Device) -> u64 {
        tensors(config).iter().map(|tensor| weights.unpacked(&tensor.name, device)).max().unwrap_or_default()
    }

    /// What the numbers of a cache are: half precision beside weights in blocks, which are narrower themselves, where this crate's operator
    /// reads it; single precision otherwise.
    fn cached(weights: &dyn Weights, device: &Device) -> DType {
        if device.is_cpu() && weights.in_blocks() { DType::F16 } else { DType::F32 }
    }

    /// What keys and values of one token take in memory, in bytes.
    pub(super) fn cache_bytes_per_token(config: &DecoderConfig, weights: &dyn Weights, device: &Device) -> u64 {
        config.cached_numbers_per_token() * Self::cached(weights, device).size_in_bytes() as u64
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor that does not fit the configuration.
    pub(super) fn read(config: DecoderConfig, weights: &dyn Weights, device: &Device) -> Result<Self> {
        let (hidden, size) = (config.hidden, config.head_size);
        let vector = |name: &str, length: usize| weights.take(name, &[length], device)?.dense(device);
        let norm = |name: String, length: usize| {
            let (mut scale, mut offset) = (vector(&format!("{name}.weight"), length)?, f64::from(config.norm_offset));
            // A scale that is trained gets its offset in each pass.
            if offset != 0.0 && !scale.is_variable() {
                (scale, offset) = ((scale + offset).map_err(tensor_error("read tensors"))?, 0.0);
            }
            Ok(Norm { scale, offset, epsilon: config.norm_epsilon })
        };
        let linear = |name: String, output: usize, input: usize, biased: bool| {
            let bias = biased.then(|| vector(&format!("{name}.bias"), output)).transpose()?;
            Ok(Linear::new(weights.take(&format!("{name}.weight"), &[output, input], device)?, bias))
        };
        let layer = |layer: usize| -> Result<Layer> {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let adaptable = |module: Module, biased: bool| -> Result<Adaptable> {
                let [output, input] = module.shape(&config);
                let linear = linear(name(module.path()), output, input, biased)?;
                Ok(Adaptable { linear, place: Place { layer, module } })
            };
            let head_norms =
                || -> Result<_> { Ok([norm(name("self_attn.q_norm"), size)?, norm(name("self_attn.k_norm"), size)?]) };
            // Where there are norms behind attention and feed-forward, the one behind the attention has the name that others give the next.
            let (before, behind) = match config.post_norms {
                true => ("pre_feedforward_layernorm", Some(["post_attention_layernorm", "post_feedforward_layernorm"])),
                false => ("post_attention_layernorm", None),
            };
            let post_norms = |[attended, fed]: [&str; 2]| -> Result<_> {
                Ok([norm(name(attended), hidden)?, norm(name(fed), hidden)?])
            };
            Ok(Layer {
                attention_norm: norm(name("input_layernorm"), hidden)?,
                query: adaptable(Module::Query, config.attention_bias)?,
                key: adaptable(Module::Key, config.attention_bias)?,
                value: adaptable(Module::Value, config.attention_bias)?,
                head_norms: config.head_norms.then(head_norms).transpose()?,
                output: adaptable(Module::Output, config.output_bias)?,
                post_norms: behind.map(post_norms).transpose()?,
                norm: norm(name(before), hidden)?,
                gate: adaptable(Module::Gate, config.feed_forward_bias)?,
                up: adaptable(Module::Up, config.feed_forward_bias)?,
                down: adaptable(Module::Down, config.feed_forward_bias)?,
            })
        };
        let table: Stored = weights.take("model.embed_tokens.weight", &[config.vocabulary, hidden], device)?;
        let head = match config.tied {
            true => Linear::new(table.clone(), None),
            false => linear("lm_head".to_owned(), config.vocabulary, hidden, false)?,
        };
        Ok(Self {
            layers: (0..config.layers()).map(layer).collect::<Result<_>>()?,
            norm: norm("model.norm".to_owned(), hidden)?,
            table: Table::new(table),
            head,
            positions: Positions::of(&config),
            cached: Self::cached(weights, device),
            device: device.clone(),
            config,
        })
    }

    /// Whether it computes on an accelerator.
    pub(super) fn is_accelerated(&self) -> bool {
        !self.device.is_cpu()
    }

    /// Where it computes.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// An empty cache for a sequence of at most `limit` tokens.
    pub(super) fn cache(&self, limit: usize) -> Cache {
        Cache::new(&self.config, limit, self.cached, &self.device)
    }

    /// Reads the next tokens of some sequences, and gives the logits wanted: a row of the vocabulary's length for each token.
    ///
    /// # Errors
    /// `Internal` if the tensor library fails; the caches are then to be thrown away.
    pub(super) fn forward(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<f32>>> {
        // From within the pool of threads: whoever asks it for each operator from outside waits to be woken each time.
        rayon::scope(|_| self.logits(parts)).map_err(tensor_error("run decoder"))
    }

    fn logits(&self, parts: &mut [Part<'_>]) -> candle_core::Result<Vec<Vec<f32>>> {
        if parts.iter().all(|part| part.tokens.is_empty()) {
            return Ok(Vec::new());
        }
        let x = self.rows(parts)?;
        let mut wanted = Vec::new();
        let mut first = 0;
        for part in &mut *parts {
            let next = first + part.tokens.len();
            match part.wanted {
                Wanted::All => wanted.extend(first as u32..next as u32),
                Wanted::Last if next > first => wanted.push(next as u32 - 1),
                Wanted::Last | Wanted::None => {}
            }
            part.cache.advance(part.tokens.len());
            first = next;
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let count = wanted.len();
        let x = x.index_select(&Tensor::from_vec(wanted, count, &self.device)?, 0)?;
        self.scores(&x)?.to_vec2()
    }

    /// The next tokens' rows as they leave the network, `[tokens, hidden]`.
    #[cfg_attr(not(feature = "embedder"), allow(dead_code))]
    pub(super) fn states(&self, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let x = self.rows(parts)?;
        parts.iter_mut().for_each(|part| part.cache.advance(part.tokens.len()));
        self.norm.forward(&x)
    }

    /// The next tokens' rows behind the last layer, `[tokens, hidden]`; the caches have their keys and values, but do not count them yet.
    fn rows(&self, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        for part in &mut *parts {
            part.cache.reserve(part.tokens.len(), self.layers.len())?;
        }
        let positions = parts.iter().flat_map(|part| (0..part.tokens.len()).map(|i| part.cache.len() + i));
        let pass = Pass {
            turns: self.positions.turns(positions, &self.device)?,
            seen: Seen::Cached { parts, masks: self.masks(parts)? },
            worn: worn(parts),
        };
        let mut x = self.embed(&tokens)?;
        for (at, layer) in self.layers.iter().enumerate() {
            x = self.layer(at, layer, x, &pass)?;
        }
        Ok(x)
    }

    /// The rows of tokens before the first layer, `[tokens, hidden]`.
    fn embed(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let rows = self.table.rows(&Tensor::from_slice(tokens, tokens.len(), &self.device)?)?;
        if self.config.embedding_scale == 1.0 { Ok(rows) } else { rows * self.config.embedding_scale }
    }

    fn layer(&self, at: usize, layer: &Layer, x: Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let mut attended = self.attend(at, layer, &layer.attention_norm.forward(&x)?, pass)?;
        if let Some([norm, _]) = &layer.post_norms {
            attended = norm.forward(&attended)?;
        }
        let x = (x + attended)?;
        let mut fed = layer.feed_forward(&layer.norm.forward(&x)?, self.config.activation, &pass.worn)?;
        if let Some([_, norm]) = &layer.post_norms {
            fed = norm.forward(&fed)?;
        }
        x + fed
    }

    /// The logits of rows that have come out of the last layer, `[rows, vocabulary]`.
    fn scores(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.head.forward(&self.norm.forward(x)?)?;
        match self.config.logit_cap {
            Some(cap) => capped(&logits, cap),
            None => Ok(logits),
        }
    }

    fn attend(&self, at: usize, layer: &Layer, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let DecoderConfig { heads, key_value_heads, head_size, .. } = self.config;
        let Pass { turns, seen, worn } = pass;
        let window = self.config.windows[at];
        let turns = turns.of(window);
        let rows = x.dim(0)?;
        let mut queries = layer.query.forward(x, worn)?.reshape((rows, heads, head_size))?;
        let mut keys = layer.key.forward(x, worn)?.reshape((rows, key_value_heads, head_size))?;
        let values = layer.value.forward(x, worn)?.reshape((rows, key_value_heads, head_size))?;
        if let Some([of_queries, of_keys]) = &layer.head_norms {
            (queries, keys) = (of_queries.forward(&queries)?, of_keys.forward(&keys)?);
        }
        let operators = Operators::of(&self.device);
        let (queries, keys) = (operators.turn(&queries, turns)?, operators.turn(&keys, turns)?);
        let weighing = Weighing { scale: self.config.query_scale, cap: self.config.score_cap };
        let attended = match seen {
            Seen::Cached { parts, masks } => {
                attend_cached(at, window, [&queries, &keys, &values], parts, masks, weighing)?
            }
            Seen::Whole(sequences) => sequences.attend(window, [&queries, &keys, &values], weighing)?,
        };
        layer.output.forward(&attended, worn)
    }

    /// For each sequence the masks of the windows that layers have.
    fn masks(&self, parts: &[Part<'_>]) -> candle_core::Result<Vec<Masks>> {
        // The processor's own operator knows what a row sees.
        let windows: BTreeSet<Option<usize>> =
            self.config.windows.iter().copied().filter(|_| !self.device.is_cpu()).collect();
        let mask = |part: &Part<'_>, window| {
            let sight = Sight { from: part.cache.len(), window };
            Ok((window, sight.mask(part.tokens.len(), &self.device)?))
        };
        parts.iter().map(|part| windows.iter().map(|window| mask(part, *window)).collect()).collect()
    }
}

impl Layer {
    fn feed_forward(&self, x: &Tensor, activation: Activation, worn: &[Worn<'_>]) -> candle_core::Result<Tensor> {
        let gate = self.gate.forward(x, worn)?;
        let gating = match activation {
            Activation::Silu => Gating::Silu,
            Activation::Gelu => Gating::Gelu,
        };
        let gated = Operators::of(x.device()).gate(&gate, &self.up.forward(x, worn)?, gating)?;
        self.down.forward(&gated, worn)
    }
}

impl Adaptable {
    /// `[rows, in]` gives `[rows, out]`, with what rows wear at this place.
    fn forward(&self, x: &Tensor, worn: &[Worn<'_>]) -> candle_core::Result<Tensor> {
        Worn::add(worn, self.place, x, self.linear.forward(x)?)
    }
}

/// Which rows of a pass wear an adapter.
fn worn<'a>(parts: &'a [Part<'_>]) -> Vec<Worn<'a>> {
    let mut first = 0;
    let rows = parts.iter().map(|part| {
        first += part.tokens.len();
        (first - part.tokens.len()..first, part.adapter)
    });
    rows.filter_map(|(rows, adapter)| Some(Worn { rows, adapter: adapter?, dropout: None })).collect()
}

/// The attention of each part's rows over its cache, into which their keys and values are put.
fn attend_cached(
    at: usize,
    window: Option<usize>,
    [queries, keys, values]: [&Tensor; 3],
    parts: &[Part<'_>],
    masks: &[Masks],
    weighing: Weighing,
) -> candle_core::Result<Tensor> {
    let mut sequences = Vec::with_capacity(parts.len());
    let mut first = 0;
    for part in parts.iter().filter(|part| !part.tokens.is_empty()) {
        let rows = part.tokens.len();
        let own = |all: &Tensor| all.narrow(0, first, rows);
        let seen = Sight { from: part.cache.len(), window }.first();
        sequences.push(CachedSequence { rows, tokens: part.cache.extend(at, [&own(keys)?, &own(values)?], seen)? });
        first += rows;
    }
    if queries.device().is_cpu() {
        let (scale, cap) = (weighing.scale as f32, weighing.cap.map(|cap| cap as f32));
        return CachedAttention { window, scale, cap }.attend(queries, &sequences);
    }
    let masks = parts.iter().zip(masks).filter(|(part, _)| !part.tokens.is_empty()).map(|(_, masks)| masks);
    let mut attended = Vec::with_capacity(sequences.len());
    first = 0;
    for (CachedSequence { rows, tokens: [keys, values] }, masks) in sequences.iter().zip(masks) {
        let mask = masks.get(&window).and_then(Option::as_ref);
        attended.push(attention(&queries.narrow(0, first, *rows)?, keys, values, mask, weighing)?);
        first += rows;
    }
    Tensor::cat(&attended, 0)
}

impl Norm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let operators = Operators::of(x.device());
        if self.offset == 0.0 {
            return operators.rms_norm(x, &self.scale, self.epsilon);
        }
        operators.rms_norm(x, &(&self.scale + self.offset)?, self.epsilon)
    }
}
