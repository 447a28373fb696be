//! Low-rank matrices beside a decoder's linear layers: Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
//!
//! A layer `W` with the pair `A`, `B` gives `x Wᵀ + s (x Aᵀ) Bᵀ`. [`Matrices`] are an adapter on the host, as files have it; [`Adapter`] is one
//! on a device, worn by chosen rows of a pass, in serving as in training.

mod base;
mod config;
mod export;
mod files;
mod gguf;
mod merge;
mod mlx;
mod peft;

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Device, Result as TensorResult, Tensor, Var};
use hybrid_core::{Error, Result};

pub use self::export::{AdapterFormat, LoraAdapter};
pub(super) use self::{
    base::BaseDigests,
    config::LoraConfig,
    merge::{BESIDE, check_rewritable, merge, replace},
};
use super::{config::DecoderConfig, network::low_rank};
use crate::{device::tensor_error, ops::tape::LowRank, random::Random, tensors::Array};

const OPERATION: &str = "open adapter";
/// The sides of a pair, as parts of variables' names.
pub(super) const LORA_A: &str = "lora_a";
pub(super) const LORA_B: &str = "lora_b";

/// A linear layer of a decoder's layer that adapters can be hung on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Module {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Module {
    pub(super) const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Its path in a layer, as Hugging Face's files have it.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of its path, by which adapters' configurations name it.
    pub(super) fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    /// `[out, in]`.
    pub(super) fn shape(self, config: &DecoderConfig) -> [usize; 2] {
        let (hidden, queries, keys) = (config.hidden, config.query_size(), config.key_value_size());
        match self {
            Self::Query => [queries, hidden],
            Self::Key | Self::Value => [keys, hidden],
            Self::Output => [hidden, queries],
            Self::Gate | Self::Up => [config.intermediate, hidden],
            Self::Down => [hidden, config.intermediate],
        }
    }
}

/// One linear layer of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) module: Module,
}

impl Place {
    /// The place that `layers.<number>.<path>` names.
    fn named(name: &str) -> Option<Self> {
        let (layer, path) = name.strip_prefix("layers.")?.split_once('.')?;
        let module = Module::ALL.into_iter().find(|module| module.path() == path)?;
        Some(Self { layer: layer.parse().ok()?, module })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers.{}.{}", self.layer, self.module.path())
    }
}

/// An adapter on the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrices {
    pub(super) config: LoraConfig,
    pub(super) pairs: BTreeMap<Place, Pair>,
}

/// `A`, `[rank, in]`, and `B`, `[out, rank]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) a: Array,
    pub(super) b: Array,
}

impl Matrices {
    /// Reads the adapter in `folder`, as PEFT or mlx-lm leaves it.
    ///
    /// # Errors
    /// `NotFound` that names what is missing; `Corrupt` and `Unsupported` that name file and fault.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        files::open(folder)
    }

    /// Writes the adapter into an existing folder as PEFT reads it, of the base that is called so, and checks what was written.
    pub(super) fn write_peft(&self, folder: &Path, base: Option<&str>) -> Result<Vec<PathBuf>> {
        let paths = files::write(folder, &peft::files(self, base)?)?;
        self.check_same(&peft::open(folder)?)?;
        Ok(paths)
    }

    /// The same as mlx-lm reads it, for a model of `layers` layers.
    pub(super) fn write_mlx(&self, folder: &Path, layers: usize) -> Result<Vec<PathBuf>> {
        let paths = files::write(folder, &mlx::files(self, layers)?)?;
        self.check_same(&mlx::open(folder)?)?;
        Ok(paths)
    }

    /// How many numbers the matrices have.
    pub(super) fn numbers(&self) -> u64 {
        self.pairs
            .values()
            .flat_map(|Pair { a, b }| [a, b])
            .map(|array| array.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// Checks that what was read back is the same: the same matrices bit for bit, and the same scale but for rounding.
    ///
    /// # Errors
    /// `Internal` that names the place.
    fn check_same(&self, other: &Self) -> Result<()> {
        let differs = |what: &dyn fmt::Display| {
            Err(Error::internal("write adapter", "what was written reads otherwise than it was").with("at", what))
        };
        let (ours, theirs) = (self.config.scale(), other.config.scale());
        if (ours - theirs).abs() > 1e-6 * ours.abs() {
            return differs(&format_args!("scale {ours}, read {theirs}"));
        }
        if !self.pairs.keys().eq(other.pairs.keys()) {
            return differs(&"the layers");
        }
        match self.pairs.iter().find(|(place, pair)| other.pairs.get(place) != Some(pair)) {
            Some((place, _)) => differs(place),
            None => Ok(()),
        }
    }

    /// Checks that they can be hung on a model.
    ///
    /// # Errors
    /// `InvalidInput` that names the layer and both shapes.
    pub(super) fn check(&self, base: &DecoderConfig) -> Result<()> {
        for (place, Pair { a, b }) in &self.pairs {
            let refuse = |message: &'static str| Error::invalid("hang adapter on model", message).with("place", place);
            if place.layer >= base.layers() {
                return Err(refuse("the adapter has a layer that the model lacks: it was made for another model")
                    .with("layers", base.layers()));
            }
            let [output, input] = place.module.shape(base);
            if [output, input] != [b.shape[0], a.shape[1]] {
                return Err(refuse(
                    "the adapter's matrices have another shape than the model's layer: it was made for another model",
                )
                .with("found", format_args!("{:?}", [b.shape[0], a.shape[1]]))
                .with("expected", format_args!("{:?}", [output, input])));
            }
        }
        Ok(())
    }
}

/// An adapter on a device.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    pairs: BTreeMap<Place, [Tensor; 2]>,
    scale: f64,
}

impl Adapter {
    /// Reads the adapter in `folder`, as PEFT or mlx-lm leaves it, for a model of this configuration.
    ///
    /// # Errors
    /// As of [`Matrices::open`] and [`Matrices::check`].
    pub(super) fn open(folder: &Path, base: &DecoderConfig, device: &Device) -> Result<Self> {
        let matrices = Matrices::open(folder)?;
        let named = |error: Error| error.with("folder", folder.display());
        matrices.check(base).map_err(named)?;
        Self::on(&matrices, device)
    }

    /// The adapter on `device`.
    pub(super) fn on(matrices: &Matrices, device: &Device) -> Result<Self> {
        let tensor = |array: &Array| {
            Tensor::from_slice(array.floats()?, array.shape.as_slice(), device).map_err(tensor_error(OPERATION))
        };
        let pair = |(place, pair): (&Place, &Pair)| Ok((*place, [tensor(&pair.a)?, tensor(&pair.b)?]));
        let pairs = matrices.pairs.iter().map(pair).collect::<Result<_>>()?;
        Ok(Self { pairs, scale: matrices.config.scale() })
    }

    /// The adapter of variables on `device`, and the variables by their places and sides.
    pub(super) fn trainable(matrices: &Matrices, device: &Device) -> Result<(Self, BTreeMap<String, Var>)> {
        let Self { mut pairs, scale } = Self::on(matrices, device)?;
        let mut variables = BTreeMap::new();
        for (place, pair) in &mut pairs {
            for (side, tensor) in [LORA_A, LORA_B].into_iter().zip(pair) {
                let variable = Var::from_tensor(tensor).map_err(tensor_error("begin training"))?;
                *tensor = variable.as_tensor().clone();
                variables.insert(format!("{place}.{side}"), variable);
            }
        }
        Ok((Self { pairs, scale }, variables))
    }

    /// The same, without a way back to its tensors.
    pub(super) fn detached(&self) -> Self {
        let pairs = self.pairs.iter().map(|(place, pair)| (*place, pair.each_ref().map(Tensor::detach)));
        Self { pairs: pairs.collect(), scale: self.scale }
    }

    /// What it takes in memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.pairs.values().flatten().map(|tensor| 4 * tensor.elem_count() as u64).sum()
    }
}

/// Rows of a pass with the adapter that they wear.
#[derive(Debug)]
pub(super) struct Worn<'a> {
    pub(super) rows: Range<usize>,
    pub(super) adapter: &'a Adapter,
    /// In training.
    pub(super) dropout: Option<Dropout>,
}

/// Leaves out a share of what goes into the matrices, at random, and makes up for it with the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    pub(super) share: f64,
    pub(super) seed: u64,
    /// The step and the batch in it: the same numbers draw the same.
    pub(super) index: [u64; 2],
}

impl Worn<'_> {
    /// Adds to `whole`, `[rows, out]`, which the layer at `place` made of `x`, `[rows, in]`, what rows wear there. Ranges of rows are
    /// ascending and do not overlap.
    pub(super) fn add(all: &[Worn<'_>], place: Place, x: &Tensor, whole: Tensor) -> TensorResult<Tensor> {
        let rows = x.dim(0)?;
        let mut pieces = Vec::new();
        let mut next = 0;
        for worn in all.iter().filter(|worn| !worn.rows.is_empty()) {
            let Some(pair) = worn.adapter.pairs.get(&place) else { continue };
            if worn.rows == (0..rows) {
                return worn.beside(pair, place, x, &whole);
            }
            if worn.rows.start > next {
                pieces.push(whole.narrow(0, next, worn.rows.start - next)?);
            }
            let own = |all: &Tensor| all.narrow(0, worn.rows.start, worn.rows.len());
            pieces.push(worn.beside(pair, place, &own(x)?, &own(&whole)?)?);
            next = worn.rows.end;
        }
        match (pieces.is_empty(), rows - next) {
            (true, _) => return Ok(whole),
            (false, 0) => {}
            (false, rest) => pieces.push(whole.narrow(0, next, rest)?),
        }
        Tensor::cat(&pieces, 0)
    }

    /// What the layer at `place` wears on a tape, where `numbers` go in.
    pub(super) fn low_rank(&self, place: Place, numbers: usize) -> Option<LowRank> {
        let pair = self.adapter.pairs.get(&place)?.clone();
        let mask = self.dropout.map(|dropout| dropout.factors(place, numbers).into());
        Some(LowRank { pair, scale: self.adapter.scale as f32, mask })
    }

    fn beside(&self, pair: &[Tensor; 2], place: Place, x: &Tensor, whole: &Tensor) -> TensorResult<Tensor> {
        let scale = self.adapter.scale;
        whole
            + match &self.dropout {
                Some(dropout) => low_rank(&(x * dropout.mask(place, x)?)?, pair, scale)?,
                None => low_rank(x, pair, scale)?,
            }
    }
}

impl Dropout {
    fn mask(&self, place: Place, x: &Tensor) -> TensorResult<Tensor> {
        Tensor::from_vec(self.factors(place, x.elem_count()), x.shape(), x.device())
    }

    fn factors(&self, place: Place, count: usize) -> Vec<f32> {
        Random::of(self.seed, &format!("dropout {place}"), self.index).mask(count, self.share)
    }
}
